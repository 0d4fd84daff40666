"""What every benchmark does with its seconds: spreads, ratios, conditions, the file they go to."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import transformers

import minilib


def wait(device: str) -> float:
    """Return the time once the device has nothing left to do."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def turns(repeats: int | None, quick: bool, device: str) -> int:
    """Timed turns: so many as were asked for, or what a device has time for."""
    if repeats is not None:
        return repeats
    # Two keep all benchmarks of two cores below ten minutes; a GPU has the plain loops done sooner.
    return 1 if quick else {"cpu": 2, "cuda": 5}[device]


def spread(values: list[float], digits: int = 3) -> dict:
    """Number, median, lowest, highest and the values themselves."""
    return {
        "n": len(values),
        "median": round(statistics.median(values), digits),
        "min": round(min(values), digits),
        "max": round(max(values), digits),
        "values": [round(value, digits) for value in values],
    }


def in_turns(loops: dict[str, Callable], repeats: int) -> dict[str, list[float]]:
    """Seconds of each loop, timed one after the other in every turn; the first turn warms up."""
    turns = [{name: loop()[0] for name, loop in loops.items()} for _ in range(repeats + 1)]
    return {name: [turn[name] for turn in turns[1:]] for name in loops}


def ratios(slow: dict, fast: dict) -> dict:
    """Ratios of the epochs that were timed in the same turn."""
    return spread([a / b for a, b in zip(slow["values"], fast["values"], strict=True)])


def versions() -> dict:
    """Versions of what a figure depends on."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "minilib": minilib.__version__,
    }


def hardware(case) -> dict:
    """Type of machine, without names of machines; ``case`` has a device and threads."""
    model = platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as lines:
            names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model n")]
        model = names[0] if names else model
    gpu = torch.cuda.get_device_name() if case.device == "cuda" else None
    return {"cpu": model, "cores": os.cpu_count(), "threads": case.threads, "gpu": gpu}


def write(folder: Path, name: str, record: dict | list) -> Path:
    """Keep a benchmark's record as ``name``.json in a folder, and return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"written: {path}")
    return path
