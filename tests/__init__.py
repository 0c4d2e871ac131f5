"""The proofs, in the shape of the tree: tests/handler proves handler/, and so on; twins/ stands in for what cannot be had here.

Which kind of proof a file holds, `law`, `contract`, `fault` or `smoke`, is said in conftest.py.
"""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "ci" / "demo_model" / "checkpoint"
TRANSCRIPTS = ROOT / "tests" / "transcripts"
DATA = ROOT / "tests" / "data"
