"""The miniature's engine; `BUILD` says which GPU architectures it was built for."""

from pathlib import Path

BUILD = Path(__file__).with_name("build.txt").read_text(encoding="ascii").strip()
