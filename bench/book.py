"""What the book itself takes: every chapter run anew at ``smoke``, and the site built from it.

All of it happens in a copy of the committed files in a temporary folder, with an empty cache, so
that nothing is found that an earlier run has left. The parts follow each other, each once. It takes
longer than the other benchmarks together: name it, ``python -m bench book``.
"""

from __future__ import annotations

import os
import resource
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


def seconds(words: tuple[str, ...], root: Path, **environ: str) -> dict[str, float]:
    """Run a command of Python's in a folder: seconds on the clock, and of all its processes' CPU.

    Raises:
        subprocess.CalledProcessError: it failed; what it said stands on the screen.
    """
    environ = {**os.environ, "PYTHONPATH": str(root), **environ}
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    subprocess.run([sys.executable, *words], cwd=root, env=environ, check=True)
    wall, after = time.monotonic() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": round(wall, 3), "cpu_seconds": round(cpu, 3)}


def records(options: Options) -> list[dict]:
    """Run all parts in order; a rehearsal asks for their help."""
    environ, parts = {"CUDA_VISIBLE_DEVICES": ""} if options.device == "cpu" else {}, {}
    with tempfile.TemporaryDirectory() as place:
        copy = Path(place, "book")
        subprocess.run(["git", "clone", "-q", str(ROOT), str(copy)], check=True)
        for name, words in PARTS.items():
            words = (*words, "--help") if options.quick else words
            parts[name] = seconds(words, copy, MINILIB_CACHE=f"{place}/cache", **environ)
    return [timing.record(
        "The book: every chapter at smoke, and the site", options, {"preset": "smoke"},
        seconds=parts, whole_seconds={name: one["seconds"] for name, one in parts.items()},
        **{"load average": [round(one, 1) for one in os.getloadavg()]},
    )]  # fmt: skip
