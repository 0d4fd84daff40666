"""What the book itself takes: every chapter run anew at ``smoke``, and the site built from it.

All of it happens in a copy of the tracked files in a temporary folder, with an empty cache, so that
nothing is found that an earlier run has left. Parts, one after the other, each once:

* ``every chapter``: ``minilib run --all --preset smoke``, kernels, victims and figures included;
* ``site of these runs``: ``tools/build.py --preset smoke``, nothing built before;
* ``HTML only``: ``tools/build.py``, the published runs, nothing built before;
* ``HTML again``: the same once more, nothing changed.

What a warm start of a kernel saves is measured by ``python -m bench.sweep start``, and taken from
there. This is not part of ``python -m bench`` alone: name it, ``python -m bench book``.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from .timing import hardware, versions, write

ROOT = Path(__file__).resolve().parent.parent
SWEEP = ROOT / "bench" / "results" / "sweep.json"
RUN = ("-m", "minilib.cli", "run", "--all", "--preset", "smoke")
BUILD = ("tools/build.py",)
PARTS = {
    "every chapter": RUN,
    "site of these runs": (*BUILD, "--preset", "smoke"),
    "HTML only": BUILD,
    "HTML again": BUILD,
}


@dataclass(frozen=True)
class Case:
    """Where it runs."""

    device: str
    threads: int


def copied(root: Path, target: Path) -> Path:
    """Copy the files that git tracks, as they are now.

    Raises:
        RuntimeError: ``root`` is not a checkout.
    """
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, text=True)
    if listed.returncode:
        raise RuntimeError(f"{root} is no git checkout; accepted: one, to know the book's files")
    for name in filter(None, listed.stdout.split("\0")):
        if (root / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(root / name, target / name)
    return target


def timed(words: tuple[str, ...], root: Path, cache: Path, device: str) -> dict[str, float]:
    """Run a command of Python's in a folder: seconds on the clock, and of all its processes' CPU.

    Raises:
        RuntimeError: the command failed; the message ends with what it said last.
    """
    found = {**os.environ, "MINILIB_CACHE": str(cache), "PYTHONPATH": str(root)}
    if device == "cpu":
        found["CUDA_VISIBLE_DEVICES"] = ""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, *words], cwd=root, env=found, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    wall = time.monotonic() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)} ended with {done.returncode}: {done.stdout[-800:]}")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": round(wall, 3), "cpu_seconds": round(cpu, 3)}


def warm_starts() -> dict:
    """How often a warm run of a chapter of imports fits into a cold one, as measured before."""
    if not SWEEP.is_file() or "start" not in (found := json.loads(SWEEP.read_text())):
        return {}
    start = found["start"]
    low, high = start["cold over warm, lowest and highest"]
    return {
        "cold start / warm start, from the measurements of sweeps": {
            "n": start["pairs of runs"], "median": start["cold over warm, median"],
            "min": low, "max": high,
        }
    }  # fmt: skip


def measure(case: Case, parts: dict[str, tuple[str, ...]], root: Path) -> dict:
    """Run all parts in order in a copy of ``root``; return the record."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        copy = copied(root, Path(folder) / "book")
        for name, words in parts.items():
            found[name] = timed(words, copy, Path(folder) / "cache", case.device)
            print(f"{name:24} {found[name]['seconds']:8.1f} s", flush=True)
    return {
        "what": "The book: every chapter at smoke, and the site",
        "case": {"preset": "smoke", "device": case.device},
        "hardware": hardware(case),
        "versions": versions(),
        "load average": [round(one, 1) for one in os.getloadavg()],
        "seconds": found,
        "whole_seconds": {name: one["seconds"] for name, one in found.items()},
        "ratios": warm_starts(),
    }


def main(
    folder: Path, device: str, threads: int, repeats: int | None, quick: bool, switches: bool = True
) -> Path:
    """Measure and write ``book-<device>.json``; ``repeats`` and ``switches`` are not used.

    A rehearsal only asks the tools for their help.
    """
    parts = {name: (*words, "--help") for name, words in PARTS.items()} if quick else PARTS
    record = measure(Case(device, threads), parts, ROOT)
    return write(folder, f"book-{device}{'-quick' if quick else ''}", record)
