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
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
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
PLAINLY = ("plain", "default", "fp32")  # in the name of a loop that computes in fp32
# torch's own table has the GPU's kernels of attention only.
KERNEL = "_scaled_dot_product_flash_attention_for_cpu"
flop_registry.setdefault(getattr(torch.ops.aten, KERNEL), sdpa_flop)
flop_registry.setdefault(getattr(torch.ops.aten, f"{KERNEL}_backward"), sdpa_backward_flop)


@dataclass(frozen=True)
class Options:
    """What the command line says.

    ``quick``: a rehearsal of toy size, all in this process. ``exact``: in fp32 and without dropout,
    as tests compare loops.
    """

    device: str = "cpu"
    threads: int = 1
    repeats: int | None = None
    quick: bool = False
    switches: bool = False
    exact: bool = False

    @property
    def turns(self) -> int:
        """A GPU has the plain loops done sooner."""
        return self.repeats or (1 if self.quick else {"cpu": 2, "cuda": 5}[self.device])

    def precision(self, name: str = "") -> str:
        """What a loop computes in, by its name: fp32, or the device's fastest safe precision."""
        plainly = self.exact or any(word in name for word in PLAINLY)
        return devices.resolve_precision("fp32" if plainly else "auto", torch.device(self.device))


@dataclass(frozen=True)
class Bench:
    """Loops that are timed in turns, and what of them is divided.

    Attributes:
        what: the record's title. case: what is timed on what.
        build: name → ``run(steps)``, which runs the loop of that name and returns what it computed.
        ratios: label → the loops above and below the line. switches: the same, in another table.
        parts: label → the loop that stands beside the machine's limit.
        moved: loop → bytes that it reads and writes, of one with hardly any arithmetic.
        steps: that are timed (None: all), beyond the first ``less``. memory: divide peaks, too.
        more: from the seconds by loop, what else the record has; ``ratios`` join the others.
    """

    what: str
    case: dict
    build: Callable[[str], Callable]
    ratios: dict[str, tuple[str, str]]
    parts: dict[str, str] = field(default_factory=dict)
    moved: dict[str, int] = field(default_factory=dict)
    switches: dict[str, tuple[str, str]] = field(default_factory=dict)
    steps: int | None = None
    less: int = 0
    memory: bool = False
    more: Callable[[dict], dict] = lambda seconds: {}

    @property
    def names(self) -> list[str]:
        """All its loops."""
        pairs = [*self.ratios.values(), *self.switches.values()]
        return list(
            dict.fromkeys([*(name for pair in pairs for name in pair), *self.parts.values()])
        )


# ------------------------------------------------------------------------------- one loop


def seconds_of(work: Callable, *arguments, threads: int, least: float = ONCE) -> list[float]:
    """Seconds of each timed call after a warm-up, until ``least`` seconds are over."""
    told = {"work": work, "arguments": arguments}
    timer = Timer("work(*arguments)", globals=told, num_threads=threads)
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

    def __init__(self, build, name: str, steps: int | None, less: int, options: Options):
        torch.set_num_threads(options.threads)
        self.run, self.steps, self.less, self.options = build(name), steps, less, options
        forget_peak(options.device)
        self.before = peak(options.device)

    def turn(self) -> tuple[float, float]:
        """Median seconds of the steps beyond the first ``less``; MiB over the start."""
        threads, less = self.options.threads, self.less
        seconds = seconds_of(self.run, less + self.steps if less else self.steps, threads=threads)
        first = seconds_of(self.run, less, threads=threads) if less else [0.0]
        took = statistics.median(seconds) - statistics.median(first)
        return took, peak(self.options.device) - self.before

    def work(self) -> int:
        """FLOPs of the steps."""
        with FlopCounterMode(display=False) as counter:
            self.run(self.steps)
        return counter.get_total_flops()


def _begin(*arguments) -> None:
    global _loop
    _loop = Loop(*arguments)


def _call(name: str, *words):
    return getattr(_loop, name)(*words)


def process(initializer=None, arguments=()) -> ProcessPoolExecutor:
    """One process, forked from one that only imports.

    That one never computes, so it has neither threads nor a GPU's context that a fork would break.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["minilib.training.chat", "minilib.attacks.text"])
    return ProcessPoolExecutor(1, context, initializer, arguments)


@contextmanager
def ready(bench: Bench, name: str, options: Options) -> Iterator[Callable]:
    """Its methods by name, in a process of its own; a rehearsal stays here."""
    told = bench.build, name, bench.steps, bench.less, options
    if options.quick:
        here = Loop(*told)
        yield lambda method: getattr(here, method)()
        return
    with process(_begin, told) as pool:
        yield lambda method: pool.submit(_call, method).result()


# ------------------------------------------------------------------------------- records


def measure(bench: Bench, options: Options) -> dict:
    """Time a bench's loops, one after the other, turn by turn; its record."""
    with ExitStack() as stack:
        loops = {name: stack.enter_context(ready(bench, name, options)) for name in bench.names}
        turns = [{name: call("turn") for name, call in loops.items()} for _ in range(options.turns)]
        counted = [name for name in bench.parts.values() if name not in bench.moved]
        work = {name: loops[name]("work") for name in counted}
    seconds = {
        name: spread([turn[name][0] for turn in turns], 6)
        | {"peak_mib_over_start": round(turns[-1][name][1], 1)}
        for name in bench.names
    }
    rates, memory, more = machine(options), {}, bench.more(seconds)
    divided = {label: ratios(seconds[a], seconds[b]) for label, (a, b) in bench.ratios.items()}
    for label, (a, b) in bench.ratios.items() if bench.memory else ():
        if (less := seconds[b]["peak_mib_over_start"]) > 0:
            memory[label] = round(seconds[a]["peak_mib_over_start"] / less, 2)
    parts = {
        label: part(rates, seconds[name]["median"], options.precision(name), work.get(name, 0),
                    bench.moved.get(name, 0))
        for label, name in bench.parts.items()
    }  # fmt: skip
    return record(
        bench.what,
        options,
        bench.case | {"precision": options.precision()},
        seconds=seconds,
        ratios=divided | more.pop("ratios", {}),
        memory_ratios=memory,
        switches={
            label: {"slowdown": ratios(seconds[a], seconds[b])}
            for label, (a, b) in bench.switches.items()
        },
        limits={"machine": rates, "parts": parts},
        **more,
    )


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
        "versions": {name: versions[name] for name in names}, "ratios": {},
    } | measured  # fmt: skip


def write(folder: Path, name: str, options: Options, result: list[dict]) -> Path:
    """Keep a benchmark's records in ``<name>-<device>.json``, and return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    file = name if name == "sweep" else f"{name}-{options.device}"
    path = folder / f"{file}{'-quick' if options.quick else ''}.json"
    path.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return path
