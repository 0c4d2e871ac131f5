"""The files of a checkpoint, from a hub to this machine's memory. `models` decides where to look; these do the work.

1. `progress`   bytes, rate and time left, for a log or a terminal.
2. `shards`     which files make a checkpoint, and which of them are missing, damaged or cut short.
3. `receive`    one large file, resumed where it broke off, checked by its SHA-256, whole or absent.
4. `hub`        a repository of the Hugging Face hub: listed, weighed against the free disk, downloaded.
5. `readahead`  the weights brought into the page cache while the engine is still importing.
"""
