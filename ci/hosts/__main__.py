"""Run the hosts of the proofs from a shell: `python -m ci.hosts` until it is interrupted, `... keep FOLDER` while somebody uses them."""

from __future__ import annotations

import signal
import sys
import tempfile
from pathlib import Path
from typing import NoReturn

from ci.hosts.servers import HostFailed
from ci.hosts.shared import hosts, keep


def main(arguments: list[str]) -> int:
    """Return the exit code."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        match arguments:
            case []:
                with tempfile.TemporaryDirectory(prefix="hosts-") as folder, hosts(Path(folder)) as running:
                    print(
                        f"export DOCKER_HOST={running.docker_host} DOCKER_BUILDKIT=0 REGISTRY={running.registry} BASE={running.base}",
                        flush=True,
                    )
                    signal.pause()
            case ["keep", folder]:
                keep(Path(folder))
            case _:
                print(__doc__, file=sys.stderr)
                return 2
    except HostFailed as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _interrupt(number: int, _: object) -> NoReturn:
    raise KeyboardInterrupt(number)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
