"""The image builder: from releases and a lock to the bytes of an image, and to a registry, in twelve steps.

  1. `releases`   the releases of FastDeploy, their base images, and what each covers (`releases.toml`); `gpu_types` the GPUs that RunPod
     rents (`gpus.toml`); `schema` reads tables.
  2. `lock`       every input of every image by its SHA-256 (`images.lock.json`), in rows that `lock_entries` declares.
  3. `cache`      the pinned inputs on this disk, by their digest.
  4. `entries`    the files, folders and whiteouts of a layer, with paths that cannot leave the root.
  5. `wheels`, `model_layers`, `worker_layers`   entries of wheels, of a model's files, of the worker's own code.
  6. `tar`        entries as bytes: the same entries are the same bytes.
  7. `image`      layers appended to a base: manifest and config.
  8. `contents`   an image's layers from the bottom to the top, before anything is written.
  9. `layout`     an image on disk as an OCI layout, always whole; `context` reads a user's words, `build` runs the steps 1 to 9.
 10. `verify`     a second reader, which checks a layout with nothing of the above but digests.
 11. `auth`, `registry`, `index`, `scan` ask registries and package indexes; `download` receives one file, `resolve` pins what there is
     today, `fetch` gets all inputs of an image.
 12. `skopeo`, `push`, `mirror`, `load` copy images and inputs to a registry or into Docker; `programs` checks that these are there.

`apply` is for `docker build`; `arguments` reads key=value words; `__main__` has the table of commands.

Imports point upwards in this order; a file may import those before it: build_errors, arguments, programs, digest, schema, releases,
gpu_types, lock_entries, lock, cache, entries, wheels, model_layers, worker_layers, tar, image, contents, layout, context, build, verify,
auth, registry, index, scan, download, resolve, fetch, skopeo, push, mirror, load, apply, __main__.

Rules of determinism, which the tests cite:

R1. The bytes are a function of the lock's entries, the files they name, the worker's files and the build's own arguments alone.
R2. No clock: every time is `EPOCH`. R3. No user: owner and group are 0 and have no names. R4. No umask: a file has one of two modes, a
folder has one. R5. No order of a file system: entries are sorted by the bytes of their paths. R6. No locale: texts are UTF-8 or ASCII.
R7. No compressor: layers are plain tar, so a layer's digest is its diff_id. R8. One way to write JSON: `canonical_json`.

Not here: images for several platforms, Dockerfiles, logging in (`skopeo login`, `docker login`). Steps 1 to 10 never open a socket.
"""
