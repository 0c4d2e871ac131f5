"""What the proofs of the image builder stand on, each a context manager that needs nothing running and leaves nothing behind.

 1. `processes`  starts a server with its log in a file, waits until it answers, and ends it.
 2. `dockerd`    a Docker Engine of its own: data, socket and bridge belong to it alone. Needs root.
 3. `registry`   a container registry on a free loopback port.
 4. `base`       the base of CI's images: Debian with Python by mmdebstrap, made once per release of its recipe and kept.
 5. `shared`     the three together, started by their first user and ended after their last.

From a shell: `python -m ci.hosts` runs them until it is interrupted and says where they are.
"""
