"""What the book itself takes: every chapter run anew at ``smoke``, and the site built from it.

All of it happens in a copy of the tracked files in a temporary folder, with an empty cache, so that
nothing is found that an earlier run has left. Parts, one after the other, each once:

* ``every chapter``: ``minilib run --all --preset smoke``, kernels, victims and figures included;
* ``site of these runs``: ``tools/build.py --preset smoke``, nothing built before;
* ``HTML only``: ``tools/build.py``, the published runs, nothing built before;
* ``HTML again``: the same once more, nothing changed.

This is not part of ``python -m bench`` alone: name it, ``python -m bench book``.
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from . import timing
from .timing import Options

ROOT = Path(__file__).resolve().parent.parent
BUILD = ("tools/build.py",)
PARTS = {
    "every chapter": ("-m", "minilib.cli", "run", "--all", "--preset", "smoke"),
    "site of these runs": (*BUILD, "--preset", "smoke"),
    "HTML only": BUILD,
    "HTML again": BUILD,
}


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


def seconds(words: tuple[str, ...], root: Path, cache: Path, device: str) -> dict[str, float]:
    """Run a command of Python's in a folder: seconds on the clock, and of all its processes' CPU.

    Raises:
        RuntimeError: the command failed; the message ends with what it said last.
    """
    environ = {**os.environ, "MINILIB_CACHE": str(cache), "PYTHONPATH": str(root)}
    if device == "cpu":
        environ["CUDA_VISIBLE_DEVICES"] = ""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    done = subprocess.run(
        [sys.executable, *words], cwd=root, env=environ, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    wall, after = time.monotonic() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)} ended with {done.returncode}: {done.stdout[-800:]}")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": round(wall, 3), "cpu_seconds": round(cpu, 3)}


def main(folder, options: Options):
    """Run all parts in order and write ``book-<device>.json``; a rehearsal asks for their help."""
    parts = {}
    with tempfile.TemporaryDirectory() as place:
        copy = copied(ROOT, Path(place) / "book")
        for name, words in PARTS.items():
            words = (*words, "--help") if options.quick else words
            parts[name] = seconds(words, copy, Path(place) / "cache", options.device)
    result = timing.record(
        "The book: every chapter at smoke, and the site",
        options,
        {"preset": "smoke"},
        seconds=parts,
        whole_seconds={name: one["seconds"] for name, one in parts.items()},
        **{"load average": [round(one, 1) for one in os.getloadavg()]},
    )
    return timing.write(folder, "book", options, result)
