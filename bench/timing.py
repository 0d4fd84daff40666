"""Loops in turns: how long each takes, how much memory, and what bounds it.

Loops take turns (plain, minilib, plain, minilib …), timed by ``torch.utils.benchmark``, which warms
up before each. Each has a process of its own, for two reasons: the peak of its memory, and
minilib's setting of the C library's heap, which cannot be taken back. That the loops of a bench
compute the same is for `tests/bench/test_loops.py` to say.

Beside a loop stands its work: the floating-point operations (FLOP) of its matrix products,
convolutions and attention, counted by torch, forward and backward. What is done element by element
is not counted; causal attention counts as full.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import statistics
import sys
from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch.utils.benchmark import Timer
from torch.utils.flop_counter import (
    FlopCounterMode,
    flop_registry,
    sdpa_backward_flop,
    sdpa_flop,
)

from minilib import provenance
from minilib.training import devices

ONCE = 1e-9  # seconds: one warm-up and one timed run are enough
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SIDES = {"cpu": 1536, "cuda": 8192}  # of the square matrices: larger is no faster
COPIED = {"cpu": 2**27, "cuda": 2**31}  # bytes: far more than any cache holds
PRELOADED = ("minilib.training.chat", "minilib.attacks.text")  # of what all processes are forked
PLAINLY = ("plain", "default", "fp32")  # in the name of a loop that computes in fp32
# torch's own table has the GPU's kernels of attention only.
KERNEL = "_scaled_dot_product_flash_attention_for_cpu"
flop_registry.setdefault(getattr(torch.ops.aten, KERNEL), sdpa_flop)
flop_registry.setdefault(getattr(torch.ops.aten, f"{KERNEL}_backward"), sdpa_backward_flop)


@dataclass(frozen=True)
class Options:
    """What the command line says; ``quick``: a rehearsal of toy size, all in this process."""

    device: str = "cpu"
    threads: int = 1
    repeats: int | None = None
    quick: bool = False
    switches: bool = False

    @property
    def turns(self) -> int:
        """A GPU has the plain loops done sooner."""
        return self.repeats or (1 if self.quick else {"cpu": 2, "cuda": 5}[self.device])

    def precision(self, name: str = "") -> str:
        """What a loop computes in, by its name: fp32, or the device's fastest safe precision."""
        plainly = any(word in name for word in PLAINLY)
        return devices.resolve_precision("fp32" if plainly else "auto", torch.device(self.device))


@dataclass(frozen=True)
class Bench:
    """Loops that are timed in turns, and what of them is divided.

    Attributes:
        what: the record's title. case: what is timed on what.
        build: (name of a loop, precision) → ``run(steps)``.
        ratios: label → the loops above and below the line.
        parts: label → the loop that stands beside the machine's limit.
        moved: loop → bytes that it reads and writes, of one with hardly any arithmetic.
        steps: that are timed (None: all), beyond the first ``less``. memory: divide peaks, too.
    """

    what: str
    case: dict
    build: Callable[[str, str], Callable]
    ratios: dict[str, tuple[str, str]]
    parts: dict[str, str] = field(default_factory=dict)
    moved: dict[str, int] = field(default_factory=dict)
    steps: int | None = None
    less: int = 0
    memory: bool = False

    @property
    def names(self) -> list[str]:
        """All its loops."""
        return list(dict.fromkeys([*sum(self.ratios.values(), ()), *self.parts.values()]))


# ------------------------------------------------------------------------------- one loop


def seconds_of(work: Callable, *arguments, threads: int, least: float = ONCE) -> list[float]:
    """Seconds of each timed call after a warm-up, until ``least`` seconds are over."""
    told = {"work": work, "arguments": arguments}
    timer = Timer("work(*arguments)", globals=told, num_threads=threads)
    return timer.blocked_autorange(min_run_time=least).times


def peak(device: str) -> float:
    """Peak so far in MiB: of the GPU's allocations, or of the process's resident set."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    unit = 2**20 if sys.platform == "darwin" else 2**10  # ru_maxrss: bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


class Loop:
    """A loop that is ready for its turns."""

    def __init__(self, bench: Bench, name: str, options: Options):
        torch.set_num_threads(options.threads)
        self.bench, self.options = bench, options
        self.run = bench.build(name, options.precision(name))
        if options.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        with suppress(OSError):  # not Linux: the peak since the process began has to do
            Path("/proc/self/clear_refs").write_text("5")
        self.before = peak(options.device)

    def turn(self) -> tuple[float, float]:
        """Median seconds of the steps beyond the first ``less``; MiB over the start."""
        steps, less = self.bench.steps, self.bench.less

        def took(steps: int | None) -> float:
            return statistics.median(seconds_of(self.run, steps, threads=self.options.threads))

        seconds = took(less + steps) - took(less) if less else took(steps)
        return seconds, peak(self.options.device) - self.before

    def work(self) -> int:
        """FLOPs of the steps."""
        with FlopCounterMode(display=False) as counter:
            self.run(self.bench.steps)
        return counter.get_total_flops()


_loops: dict[str, Loop] = {}  # of this process


def _begin(bench: Bench, name: str, options: Options) -> None:
    _loops[name] = Loop(bench, name, options)


def _ask(name: str, method: str):
    return getattr(_loops[name], method)()


def worker(bench: Bench, name: str, options: Options) -> Executor:
    """A process for a loop, forked from one that only imports; a rehearsal's is a thread.

    That one never computes, so it has neither threads nor a GPU's context that a fork would break.
    """
    told = _begin, (bench, name, options)
    if options.quick:
        return ThreadPoolExecutor(1, "rehearsal", *told)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*PRELOADED])
    return ProcessPoolExecutor(1, context, *told)


# ------------------------------------------------------------------------------- records


def measure(bench: Bench, options: Options) -> dict:
    """Time a bench's loops, one after the other, turn by turn; its record."""
    with ExitStack() as stack:
        pools = {one: stack.enter_context(worker(bench, one, options)) for one in bench.names}

        def asked(method: str, names) -> dict:
            return {one: pools[one].submit(_ask, one, method).result() for one in names}

        turns = [asked("turn", pools) for _ in range(options.turns)]
        work = asked("work", {*bench.parts.values()} - bench.moved.keys())
    seconds, peaks, rates = {}, {}, machine(options)
    for one in bench.names:
        peaks[one] = round(turns[-1][one][1], 1)
        seconds[one] = spread([turn[one][0] for turn in turns], 6)
        seconds[one]["peak_mib_over_start"] = peaks[one]
    return record(
        bench.what,
        options,
        bench.case | {"precision": options.precision()},
        seconds=seconds,
        ratios={label: ratios(seconds[a], seconds[b]) for label, (a, b) in bench.ratios.items()},
        memory_ratios={
            label: round(peaks[a] / peaks[b], 2)
            for label, (a, b) in bench.ratios.items() if bench.memory and peaks[b] > 0
        },
        limits={"machine": rates, "parts": {
            label: part(rates, seconds[one]["median"], options.precision(one), work.get(one, 0),
                        bench.moved.get(one, 0))
            for label, one in bench.parts.items()
        }},
    )  # fmt: skip


def spread(values: list[float], digits: int = 3) -> dict:
    """Number, median, lowest, highest and the values themselves."""
    three = {"median": statistics.median(values), "min": min(values), "max": max(values)}
    rounded = {name: round(value, digits) for name, value in three.items()}
    return {"n": len(values), **rounded, "values": [round(value, digits) for value in values]}


def ratios(slow: dict, fast: dict) -> dict:
    """Ratios of what was timed in the same turn."""
    return spread([a / b for a, b in zip(slow["values"], fast["values"], strict=True)])


def machine(options: Options) -> dict[str, float]:
    """The best rate that was seen: FLOP/s of products under each precision, bytes/s of ``copy``."""
    device, least = options.device, 0.01 if options.quick else 0.4  # seconds
    side, size = (64, 2**16) if options.quick else (SIDES[device], COPIED[device])

    def rate(amount: float, work: Callable, *arguments) -> float:
        return amount / min(seconds_of(work, *arguments, threads=options.threads, least=least))

    rates = {}
    for name in sorted({"fp32", options.precision()}):
        a = torch.ones(side, side, dtype=DTYPES[name], device=device)
        rates[name] = rate(2 * side**3, torch.mm, a, a)
    source = torch.ones(size // 4, device=device)
    return rates | {"copy": rate(2 * size, torch.empty_like(source).copy_, source)}


def part(limits: dict, seconds: float, precision: str, flops: int, moved: int) -> dict:
    """One part's work beside the limit that bounds it: FLOPs, or the bytes that it has to move."""
    work, limit = ({"bytes": moved}, "copy") if moved else ({"flops": flops}, precision)
    rate = (moved or flops) / seconds
    return work | {
        "limit": limit, "seconds": seconds, "rate": rate, "share": rate / limits[limit],
    }  # fmt: skip


def record(what: str, options: Options, case: dict, **measured) -> dict:
    """A benchmark's record: what was measured on what, and the measurements."""
    gpu = torch.cuda.get_device_name() if options.device == "cuda" else None
    names = ("python", "torch", "transformers", "minilib")
    versions = provenance.environment()
    return {
        "what": what, "case": case | {"device": options.device},
        "hardware": {"cpu": versions["cpu"], "cores": os.cpu_count(), "threads": options.threads,
                     "gpu": gpu},
        "versions": {name: versions[name] for name in names},
    } | measured  # fmt: skip


def write(folder: Path, name: str, options: Options, result: list[dict]) -> Path:
    """Keep a benchmark's records in ``<name>-<device>.json``, and return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    file = name if name == "sweep" else f"{name}-{options.device}"
    path = folder / f"{file}{'-quick' if options.quick else ''}.json"
    path.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return path
