"""The weights of a model: found, sized, downloaded, read ahead. The worker, the image builder and `plan` use it; it knows none of them.

1. `unavailable` is the error that all of this raises.
2. `progress`    bytes, rate and time left, for a log or a terminal; `http_client` asks servers, for the image builder too.
3. `files`       which files make a checkpoint, and which of them are missing, damaged or cut short.
4. `config`      config.json, and what it says of a model whichever engine runs it.
5. `size`        how much GPU memory it will take, from its headers or its config.json.
6. `receive`     one large file, continued where an earlier try stopped, checked by its SHA-256, whole or absent.
7. `hub`         a repository of the Hugging Face hub: listed, weighed against the free disk, downloaded.
8. `find`        where to look: a directory, the image, RunPod's cache, a volume, the hub.
9. `memory`      the container's main memory, and the kernel's kills for want of it.
10. `read_ahead` the weights brought into the page cache while the engine is still importing.

Imports point upwards in this order.
"""
