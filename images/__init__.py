"""The image builder: from what exists to the bytes of an image and to a registry, in twelve steps.

 1. `releases`   says what exists: releases of FastDeploy, their base images, what each covers (`releases.toml`); `gpu_types`
    which GPUs RunPod rents (`gpus.toml`).
 2. `lock`       says what is pinned: every input by its SHA-256 (`images.lock.json`, a row of which is one of
    `locked`); `schema` reads and writes such tables.
 3. `cache`      finds the pinned inputs on this disk, by their digest.
 4. `entries`    is one file, folder or whiteout of a layer, with a path that cannot leave the root.
 5. `install_paths`, `wheels`, `model_layers`, `worker_layers`  make entries of wheels, of a model's files, of the worker's own code.
 6. `tar`        writes entries as bytes: the same entries give the same bytes.
 7. `contents`   lists an image's layers from the bottom to the top, before anything is written.
 8. `image`      appends the layers to the base: manifest and config.
 9. `layout`     writes them to disk as an OCI layout, whole or not at all; `build` runs the steps 3 to 9.
10. `verify`     reads a layout with none of the above but digests, and finds whatever is wrong with it.
11. `http_client`, `auth`, `registry`, `index`, `scan` ask the outside world; `resolve` pins what it has today, `fetch` brings what is
    pinned.
12. `skopeo`, `push`, `mirror`, `load` copy images and inputs to a registry or into Docker.

`arguments` reads key=value words; `__main__` has the table of commands; `watch` runs them again after an edit.

Imports point upwards in this order; a file may import those before it: build_errors, arguments, digest, schema, releases, gpu_types,
locked, lock, cache, entries, install_paths, wheels, model_layers, worker_layers, tar, contents, image, layout, build, verify, http_client,
auth, registry, index, scan, fetch, resolve, skopeo, push, mirror, load, apply, watch, __main__.

Rules of determinism, which the tests cite:

R1. The bytes are a function of the lock's entries, the files they name, the worker's files and the build's own arguments, of nothing else.
R2. No clock: every time is `EPOCH`. R3. No user: owner and group are 0 and have no names. R4. No umask: a mode is one of two for files, one
for folders. R5. No order of a file system: entries are sorted by the bytes of their paths. R6. No locale: texts are UTF-8 or ASCII.
R7. No compressor: layers are plain tar, so a layer's digest is its diff_id. R8. One way to write JSON: `canonical_json`.

Not here: images for several platforms, Dockerfiles, logging in (`skopeo login`, `docker login`). Steps 1 to 10 never open a socket.
"""
