"""The benches of the relay run, print what they promise, and tell good from bad."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace

import pytest

from ci.bench.__main__ import BENCHES, command
from ci.bench.soak import Sample, rises
from ci.bench.stream import TARGETS, Cell, CellFigures, cells, misses, tokens_of
from images.arguments import parse
from tests import ROOT

STEADY = [
    Sample(at=float(at), ended=at, megabytes=100 + at % 2, files=90 + at % 7, connections=60, threads=5, tasks=80 + at % 9, objects=80_000)
    for at in range(20)
]


def bench(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ci.bench", name, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110, check=False)


@pytest.mark.timeout(120)
def test_the_stream_bench_prints_its_figures() -> None:
    done = bench("stream", "streams=3", "rate=100", "latency=20", "seconds=0.5")
    assert done.returncode == 0, done
    assert re.search(
        r"^ +3 +100 +20 +[\d.]+ +[\d,]+ +0\.\d{3}(?: +[\d.]+){3}(?: +\d+){3} +[\d.]+ +-?\d+ +\d+", done.stdout, re.MULTILINE
    ), done
    assert re.search(r"the engine alone, 3 streams of 100 tokens/s: [\d,]+ tokens/s", done.stdout), done


@pytest.mark.timeout(120)
def test_the_soak_prints_samples_of_both_parts_and_a_verdict() -> None:
    done = bench("soak", "jobs=40", "minutes=0.02", "together=4")
    assert len(re.findall(r"^ +\d+ +\d+ +[\d.]+ +\d+ +\d+ +\d+ +\d+ +\d+$", done.stdout, re.MULTILINE)) > 10, done
    assert "40 short jobs\n" in done.stdout
    # All of so short a run is warm-up: only what is not a trend counts.
    assert not [line for line in done.stdout.splitlines() if "expected" in line or "exit code" in line or "Problem" in line], done


@pytest.mark.parametrize("name", ["megabytes", "files", "connections", "threads", "tasks", "objects"])
def test_a_figure_that_rises_is_named(name: str) -> None:
    assert not list(rises(STEADY))
    rising = [replace(sample, **{name: getattr(sample, name) * (1 + sample.at / 19)}) for sample in STEADY]
    assert [words.split()[0] for words in rises(rising)] == [name]


def test_a_warm_up_is_no_rise() -> None:
    assert not list(rises([replace(sample, megabytes=50) if sample.at < 4 else sample for sample in STEADY]))


def test_missed_targets_are_named() -> None:
    cell = Cell(streams=1, rate=100, latency=50, seconds=5)
    good = CellFigures(wall=5.2, posts=100, processor=(0.1, 0.1, 0.1), lags=(0.05, 0.08, 0.1), last_lag=0.08, late=0, memory=80_000_000)
    assert not list(misses(cell, good))
    bad = replace(good, wall=5.6, posts=130, last_lag=0.11)
    assert [words.split()[1] for words in misses(cell, bad)] == ["wall", "posts", "trips"]
    unpaced = Cell(streams=256, rate=0, latency=0, seconds=5)
    assert not list(misses(unpaced, replace(good, wall=9)))
    assert list(misses(unpaced, replace(good, wall=10)))


def test_cells_are_chosen_by_the_command_line() -> None:
    def chosen(*words: str) -> list[Cell]:
        return cells(parse(command("stream"), words))

    assert len(chosen()) == 25
    assert {(cell.streams, cell.rate, cell.latency) for cell in chosen("quick=yes")} == set(TARGETS)
    assert {cell.rate for cell in chosen("rate=40")} == {40}
    [one] = chosen("streams=7", "rate=10", "latency=5", "seconds=2")
    assert one.tokens == 20


@pytest.mark.parametrize("name", BENCHES)
def test_every_bench_refuses_a_key_that_it_does_not_take_and_lists_what_it_takes(name: str) -> None:
    refused = bench(name, "ronds=1")
    assert refused.returncode == 2
    assert f"bench {name}: ronds: unknown key" in refused.stderr
    listed = bench(name, "help")
    assert listed.returncode == 0
    assert listed.stdout.startswith(f"usage: ci/just bench {name} [key=value ...]\n")
    for key in command(name).keys:
        assert f"  {key.name} " in listed.stdout


def test_a_bench_that_there_is_not_is_refused_with_the_nearest_one() -> None:
    refused = bench("strat")
    assert (refused.returncode, refused.stderr) == (
        2,
        f"bench: strat: unknown; did you mean start?; expected one of {', '.join(BENCHES)}\n",
    )
    assert bench("help").stdout.startswith("usage: ci/just bench api-trials|cpu|")


def test_tokens_are_counted_and_the_opening_is_none() -> None:
    opening, token = 'data: {"delta":{"role":"assistant","content":""}}\n\n', 'data: {"delta":{"content":" the","x":1}}\n\n'
    last = 'data: {"delta":{"content":"","x":1},"finish_reason":"stop"}\n\n'
    assert tokens_of(opening + token + token + last + "data: [DONE]\n\n") == 2
