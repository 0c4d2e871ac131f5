"""What reading ahead gains: `ci/just bench readahead`.

An engine imports for some seconds and then loads its weights. Here a child process sleeps `imports` seconds and then reads a checkpoint of
`gib` GiB from a disk whose cache was emptied, once by itself and once while `ReadAhead` works, in turns. Printed are the seconds from the
child's start to the last byte; at best the gain is the smaller of the imports and the reading.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from checkpoint.read_ahead import ReadAhead
from images.arguments import Command, Key, file_named, number, whole

SHARDS = 4
BLOCK = 4 << 20
ENGINE = """
import pathlib, sys, time
time.sleep(float(sys.argv[1]))
for path in sorted(pathlib.Path(sys.argv[2]).glob("*.safetensors")):
    with path.open("rb", buffering=0) as file:
        while file.read(4 << 20):
            pass
"""


def write_checkpoint(folder: Path, size: int) -> None:
    """Write shards of the given bytes in all, each one tensor of random numbers, so that no disk can shrink them."""
    each = size // SHARDS // BLOCK * BLOCK
    header = json.dumps({"weight": {"dtype": "U8", "shape": [each], "data_offsets": [0, each]}}).encode()
    noise = os.urandom(BLOCK)
    for shard in range(1, SHARDS + 1):
        with (folder / f"model-{shard:05}-of-{SHARDS:05}.safetensors").open("wb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            for _ in range(each // BLOCK):
                file.write(noise)
            file.flush()
            os.fsync(file.fileno())


def forget(folder: Path) -> None:
    """Empty the page cache of the folder's files."""
    for path in folder.iterdir():
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def start(folder: Path, imports: float, *, ahead: bool) -> float:
    """Return the seconds until the child has read everything."""
    forget(folder)
    began = time.monotonic()
    with subprocess.Popen([sys.executable, "-c", ENGINE, str(imports), str(folder)]) as child:
        if ahead:
            with ReadAhead(folder):
                child.wait()
        else:
            child.wait()
    if child.returncode:
        raise RuntimeError(f"the child ended with {child.returncode}")
    return time.monotonic() - began


def measure(gib: float, imports: float, rounds: int, parent: Path) -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory(dir=parent, prefix="readahead-") as name:
        folder = Path(name)
        write_checkpoint(folder, int(gib * (1 << 30)))
        seconds: dict[str, list[float]] = {"engine alone": [], "read ahead": []}
        for _ in range(rounds):
            seconds["engine alone"].append(start(folder, imports, ahead=False))
            seconds["read ahead"].append(start(folder, imports, ahead=True))
    alone = statistics.median(seconds["engine alone"])
    print(f"{'':14}  median s  min s  of alone")
    for way, found in seconds.items():
        print(f"{way:14}  {statistics.median(found):8.2f}  {min(found):5.2f}  {statistics.median(found) / alone:8.2f}")


def run(values: Mapping[str, str]) -> int:
    """Measure."""
    measure(float(values["gib"]), float(values["imports"]), int(values["rounds"]), file_named(values["folder"]))
    return 0


COMMAND = Command(
    name="bench readahead",
    help="Measure what reading a checkpoint ahead of the engine gains.",
    keys=(
        Key("gib", "Size of the checkpoint in GiB.", default="1", check=number(0.02, 1000)),
        Key("imports", "Seconds that the engine imports.", default="3", check=number(0, 600)),
        Key("rounds", "How often each way is measured.", default="3", check=whole(1, 1000)),
        Key("folder", "Where the checkpoint is written, on the disk to measure.", default=tempfile.gettempdir()),
    ),
    run=run,
)
