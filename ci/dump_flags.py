"""Write the flag table of the FastDeploy that is installed here, from its own parser: python -m ci.dump_flags [DIRECTORY].

Run at the repository's root inside an image that has FastDeploy, by the interpreter that imports it. Needs nothing else.
"""

from __future__ import annotations

import sys
from pathlib import Path

from handler.fastdeploy.describe import canonical, describe_installed


def main(argv: list[str]) -> None:
    """Write DIRECTORY/<release>.json, by default among the tables that the worker reads, and say so."""
    directory = Path(argv[0]) if argv else Path(__file__).parent.parent / "handler" / "fastdeploy" / "flag_tables"
    found = describe_installed()
    path = directory / f"{found['release']}.json"
    path.write_text(canonical(found["release"], found["flags"]), encoding="utf-8")
    print(f"wrote {path}: {len(found['flags'])} flags of FastDeploy {found['release']}")


if __name__ == "__main__":
    main(sys.argv[1:])
