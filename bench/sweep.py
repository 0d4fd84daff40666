"""What a sweep costs beyond its runs' own work: planning, and no-op runs through the local engine.

    python -m bench.sweep --runs 2000 --workers 2

Writes `bench/results/sweep.json`, which the page on scale shows. CPU seconds are those of all
processes: driver, workers, the server that kernels are forked from, and kernels.
"""

import argparse
import json
import os
import resource
import tempfile
import time
from multiprocessing import forkserver
from pathlib import Path

from minilib import engines, runs, sweep

CELLS = (
    ("bootstrap", "import sys"),
    ("parameters", "alpha: float = 0.0\nseed: int = 0"),
    ("", "from minilib import runs\nruns.record('01_noop', {'alpha': alpha, 'seed': seed}, "
         "[{'cacc': alpha}], [])"),
)  # fmt: skip


def book(root: Path) -> Path:
    """A repository of one chapter that does nothing but record."""
    cells = [
        {"cell_type": "code", "id": f"c{number}", "execution_count": None, "outputs": [],
         "metadata": {"tags": [tag] if tag else []}, "source": source}
        for number, (tag, source) in enumerate(CELLS)
    ]  # fmt: skip
    spec = {"name": "python3", "display_name": "Python 3"}
    notebook = {
        "cells": cells,
        "metadata": {"kernelspec": spec},
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    runs.write_json(root / "notebooks" / "01_noop.ipynb", notebook)
    (root / "presets").mkdir()
    (root / "presets" / "smoke.yml").write_text("01_noop: {}\n")
    return root


def write(root: Path, count: int) -> Path:
    """A sweep of that many runs, ten seeds each."""
    file = root / f"noop{count}.yml"
    alphas = list(range(count // 10))
    file.write_text(f"chapter: 01_noop\npreset: smoke\ngrid: {{alpha: {alphas}}}\n"
                    f"seeds: {list(range(10))}\n")  # fmt: skip
    return file


def cpu() -> float:
    """CPU seconds of this process and of all that it has waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def measure(count: int, workers: int, planned: int) -> dict:
    """Plan `planned` runs, then make `count` of them."""
    os.chdir(book(Path(tempfile.mkdtemp(prefix="noop")) / "book"))
    started = time.process_time()
    assert sweep.plan(write(Path.cwd(), planned)).size == planned
    planning = time.process_time() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    before, clock = cpu(), time.monotonic()
    code = sweep.sweep(write(Path.cwd(), count), options=engines.Options(workers=workers))
    wall = time.monotonic() - clock
    forkserver._forkserver._stop()  # waits for it, so that its processes' CPU time is known
    assert code == 0, f"the sweep ended with {code}"
    return {
        "planned": planned,
        "planning_cpu_seconds": round(planning, 2),
        "planning_peak_mib": round(peak, 1),
        "runs": count,
        "workers": workers,
        "cpu_seconds_per_run": round((cpu() - before) / count, 3),
        "wall_seconds_per_run_and_worker": round(wall * workers / count, 3),
        "load_average": round(os.getloadavg()[2], 1),
        "env": runs.environment(),
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.sweep", description=__doc__)
    parser.add_argument("--runs", type=int, default=2000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--planned", type=int, default=100_000)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    out = options.out.absolute() / "sweep.json"
    runs.write_json(out, measure(options.runs, options.workers, options.planned))
    print(json.dumps(json.loads(out.read_text()), indent=1))


if __name__ == "__main__":
    main()
