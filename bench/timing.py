"""Loops in turns: what they compute, how long it takes, and what bounds it.

A benchmark gives ``build(case, name, exact)``: it makes the loop of that name and returns
``run(steps)``, which runs it and returns what it has computed. With ``exact`` the loop is without
dropout and in fp32, so that two loops can be compared. Here is what all benchmarks share:

* ``compared``: all loops compute the same, or no time is taken; the floating-point operations
  (FLOP) of their matrix products, convolutions and attention, counted by torch, forward and
  backward. What is done element by element is not counted; causal attention counts as full.
* ``timed``: seconds by ``torch.utils.benchmark``, which warms up before each turn. Loops take turns
  (plain, minilib, plain, minilib …). Each has a process of its own, for two reasons: the peak of
  its memory, and minilib's setting of the C library's heap, which cannot be taken back.
* ``beside``: work and seconds of a loop beside the machine's limits: the FLOP/s of one large matrix
  product, the bytes a second of one large copy.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import resource
import statistics
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
import torch
import transformers
from torch.utils.benchmark import Timer
from torch.utils.flop_counter import FlopCounterMode

import minilib
from minilib.training import devices

TOLERANCE = 1e-4  # relative, of each number that two loops compute
ONCE = 1e-9  # seconds: one warm-up and one timed run are enough
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SIDES = {"cpu": 1536, "cuda": 8192}  # of the square matrices: larger is no faster
COPIED = {"cpu": 2**27, "cuda": 2**31}  # bytes: far more than any cache holds
PLAINLY = ("plain", "default", "fp32")  # in the name of a loop that computes in fp32


@dataclass(frozen=True)
class Options:
    """What the command line says. ``quick``: a rehearsal of toy size, all in this process."""

    device: str = "cpu"
    threads: int = 1
    repeats: int | None = None
    quick: bool = False
    switches: bool = False

    @property
    def turns(self) -> int:
        """A GPU has the plain loops done sooner."""
        return self.repeats or (1 if self.quick else {"cpu": 2, "cuda": 5}[self.device])


def precision_of(name: str, device: str, exact: bool = False) -> str:
    """What a loop computes in, by its name: fp32, or the device's fastest safe precision."""
    plainly = exact or any(word in name for word in PLAINLY)
    return devices.resolve_precision("fp32" if plainly else "auto", torch.device(device))


# ----------------------------------------------------------------------------- comparing


def attention(query, key, value, *_, **__) -> int:
    """FLOPs of attention, forward: shapes (B, heads, S, d), (B, heads, T, d), twice."""
    return 4 * prod(query) * key[-2]


def attention_backward(grad, query, key, value, *_, **__) -> int:
    """The same backward: five products, the scores being made once more."""
    return 10 * prod(query) * key[-2]


# torch's own table has the GPU's kernels only.
UNLISTED = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: attention_backward,
}


def count(loop: Callable, *arguments):
    """Run a loop; return what it returns, and the FLOPs of its matrix products."""
    with FlopCounterMode(display=False, custom_mapping=UNLISTED) as counter:
        result = loop(*arguments)
    return result, counter.get_total_flops()


def apart(a, b) -> float:
    """Largest relative difference of two loops' numbers; infinite where they are not as many."""
    a, b = np.asarray(a, float), np.asarray(b, float)
    if a.shape != b.shape:
        return float("inf")
    return float((np.abs(a - b) / np.maximum(np.abs(a), np.abs(b)).clip(1e-12)).max(initial=0.0))


def compared(build, case, names, steps=None, distance=apart, accepted=TOLERANCE):
    """Run each loop once, exactly, and compare it with the first; FLOPs by name.

    Returns:
        {"largest_relative_difference", "tolerance"}, name → FLOPs.

    Raises:
        RuntimeError: the loops do not compute the same, so their times must not be compared.
    """
    results, flops = {}, {}
    for name in names:
        alike = name.replace("minilib fp32", "minilib")  # exactly, they are one
        if alike not in results:
            results[alike], flops[alike] = count(build(case, alike, True), steps)
        flops[name] = flops[alike]
    first, *others = results.values()
    worst = max((distance(first, other) for other in others), default=0.0)
    if not worst <= accepted:
        raise RuntimeError(f"the loops differ by {worst:.1e} (relative); accepted: {accepted:.0e}")
    equal = {"largest_relative_difference": worst, "tolerance": accepted}
    return equal, {name: flops[name] for name in names}


# ------------------------------------------------------------------------------- timing


def seconds_of(work: Callable, *arguments, threads: int | None = None, least=ONCE) -> list[float]:
    """Seconds of each timed call after a warm-up, until ``least`` seconds are over."""
    timer = Timer(
        "work(*arguments)",
        globals={"work": work, "arguments": arguments},
        num_threads=threads or torch.get_num_threads(),
    )
    return timer.blocked_autorange(min_run_time=least).times


def forget_peak(device: str) -> None:
    """Let ``peak`` count from here."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError):  # not Linux: the peak since the process began has to do
        Path("/proc/self/clear_refs").write_text("5")


def peak(device: str) -> float:
    """Peak so far in MiB: of the GPU's allocations, or of the process's resident set."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    unit = 2**20 if sys.platform == "darwin" else 2**10  # ru_maxrss: bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


class Loop:
    """A loop that is ready for its turns."""

    def __init__(self, build, arguments, options: Options):
        torch.set_num_threads(options.threads)
        self.options, self.run = options, build(*arguments)
        forget_peak(options.device)
        self.before = peak(options.device)

    def turn(self, steps, less=0) -> tuple[float, float]:
        """Median seconds of ``steps`` steps beyond the first ``less``; MiB over the start."""
        threads = self.options.threads
        seconds = statistics.median(seconds_of(self.run, steps, threads=threads))
        seconds -= statistics.median(seconds_of(self.run, less, threads=threads)) if less else 0.0
        return seconds, peak(self.options.device) - self.before


def _begin(*arguments) -> None:
    global _loop
    _loop = Loop(*arguments)


def _turn(*arguments) -> tuple[float, float]:
    return _loop.turn(*arguments)


def _run(*arguments) -> None:
    _loop.run(*arguments)


def process(initializer=None, arguments=()) -> ProcessPoolExecutor:
    """One process, forked from one that only imports, or from nothing where none forks.

    That one never computes, so it has neither threads nor a GPU's context that a fork would break.
    """
    forks = "forkserver" in multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if forks else "spawn")
    if forks:
        context.set_forkserver_preload(["minilib.training.chat", "minilib.attacks.text"])
    return ProcessPoolExecutor(1, context, initializer, arguments)


@contextmanager
def ready(build, arguments, options: Options):
    """Its ``turn``, in a process of its own; a rehearsal stays here."""
    if options.quick:
        yield Loop(build, arguments, options).turn
        return
    with process(_begin, (build, arguments, options)) as pool:
        yield lambda *words: pool.submit(_turn, *words).result()


def timed(build, case, names, options: Options, steps=None, less=0) -> dict[str, dict]:
    """name → spread of seconds over the turns, with ``peak_mib_over_start``."""
    with ExitStack() as stack:
        loops = {
            name: stack.enter_context(ready(build, (case, name, False), options)) for name in names
        }
        turns = [
            {name: turn(steps, less) for name, turn in loops.items()} for _ in range(options.turns)
        ]
    return {
        name: spread([turn[name][0] for turn in turns], 6)
        | {"peak_mib_over_start": round(turns[-1][name][1], 1)}
        for name in names
    }


def spread(values: list[float], digits: int = 3) -> dict:
    """Number, median, lowest, highest and the values themselves."""
    three = {"median": statistics.median(values), "min": min(values), "max": max(values)}
    rounded = {name: round(value, digits) for name, value in three.items()}
    return {"n": len(values), **rounded, "values": [round(value, digits) for value in values]}


def ratios(slow: dict, fast: dict) -> dict:
    """Ratios of what was timed in the same turn."""
    return spread([a / b for a, b in zip(slow["values"], fast["values"], strict=True)])


# ------------------------------------------------------------------------------- limits


def machine(options: Options) -> dict[str, float]:
    """The best rate that was seen: FLOP/s of products under each precision, bytes/s of ``copy``."""
    device, least = options.device, 0.01 if options.quick else 0.4  # seconds
    side, size = (64, 2**16) if options.quick else (SIDES[device], COPIED[device])

    def rate(amount: float, work: Callable, *arguments) -> float:
        return amount / min(seconds_of(work, *arguments, threads=options.threads, least=least))

    rates = {}
    for name in sorted({"fp32", precision_of("", device)}):
        a = torch.ones(side, side, dtype=DTYPES[name], device=device)
        rates[name] = rate(2 * side**3, torch.mm, a, a)
    source = torch.ones(size // 4, device=device)
    return rates | {"copy": rate(2 * size, torch.empty_like(source).copy_, source)}


def part(limits: dict, seconds: float, *, flops=0.0, precision="fp32", moved=0.0) -> dict:
    """One part's work beside the limit that bounds it.

    Args:
        seconds: that the work takes, a median.
        flops: of its matrix products, in ``precision``; or moved: the bytes it has to read and
            write, where it does hardly any arithmetic.

    Raises:
        ValueError: both kinds of work, or none.
    """
    if bool(flops) == bool(moved):
        raise ValueError(f"flops is {flops}, moved {moved}; accepted: one of them above 0")
    limit = "copy" if moved else precision
    rate = (moved or flops) / seconds
    kind = {"bytes": int(moved)} if moved else {"flops": int(flops)}
    return kind | {
        "limit": limit, "seconds": seconds, "rate": rate, "share": rate / limits[limit],
    }  # fmt: skip


def beside(rates: dict, device: str, seconds: dict, flops: dict, label: str = "{}") -> dict:
    """Each loop's products beside the machine's; ``label`` has ``{}`` for the loop's name."""
    return {
        label.format(name): part(
            rates,
            statistics.median(seconds[name]["values"]),
            flops=amount,
            precision=precision_of(name, device),
        )
        for name, amount in flops.items()
    }


# ------------------------------------------------------------------------------- records


def record(what: str, options: Options, case: dict, **measured) -> dict:
    """A benchmark's record: what was measured on what, and the measurements."""
    model = platform.machine()
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
        model = next(
            (line.split(":", 1)[1].strip() for line in lines if line.startswith("model n")), model
        )
    gpu = torch.cuda.get_device_name() if options.device == "cuda" else None
    return {
        "what": what,
        "case": case | {"device": options.device},
        "hardware": {
            "cpu": model, "cores": os.cpu_count(), "threads": options.threads, "gpu": gpu,
        },
        "versions": {
            "python": platform.python_version(), "torch": torch.__version__,
            "transformers": transformers.__version__, "minilib": minilib.__version__,
        },
        "ratios": {},
    } | measured  # fmt: skip


def write(folder: Path, name: str, options: Options, result: dict | list) -> Path:
    """Keep a benchmark's record in ``<name>-<device>.json``, and return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{options.device}{'-quick' if options.quick else ''}.json"
    path.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return path
