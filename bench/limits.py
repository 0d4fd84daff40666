"""How near a loop comes to what its machine can do.

Two rates bound every loop: how many floating-point operations (FLOP) of a matrix product the
machine does in a second, and how many bytes it copies in a second. Both are measured here, with the
same number of threads as the loops, by what torch itself has for them. A part of a benchmark is
then given the rate of its own work, as a share of the one that bounds it. For matrix products that
share is the model FLOPs utilisation (MFU).

``count`` has torch count the FLOPs of matrix products, convolutions and attention while a loop
runs, forward and backward; what is done element by element is not counted. Causal attention is
counted as if it were full.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from math import prod

import torch
from torch.utils.flop_counter import FlopCounterMode

from minilib import train

from .timing import wait

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SIDES = {"cpu": 1536, "cuda": 8192}  # of the square matrices: larger is no faster
COPIED = {"cpu": 2**27, "cuda": 2**31}  # bytes: far more than any cache holds
PLAINLY = ("plain", "default", "fp32")  # in the name of a loop that computes in fp32
SECONDS = 0.4  # a rate is looked at for so long, and the best taken: a limit is what can be had


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
        found = loop(*arguments)
    return found, counter.get_total_flops()


def best_rate(work: Callable[[], object], amount: float, device: str) -> float:
    """The highest of many rates: ``amount`` over the seconds of one ``work()``."""
    work()
    best, started = 0.0, time.perf_counter()
    while time.perf_counter() - started < SECONDS:
        begun = wait(device)
        work()
        best = max(best, amount / (wait(device) - begun))
    return best


def product_rate(precision: str, device: str, side: int) -> float:
    """FLOP/s of the product of two square matrices."""
    a = torch.ones(side, side, dtype=DTYPES[precision], device=device)
    out = torch.empty_like(a)
    return best_rate(lambda: torch.mm(a, a, out=out), 2 * side**3, device)


def copy_rate(device: str, size: int) -> float:
    """Bytes per second of a copy, what is read and what is written together."""
    source = torch.ones(size // 4, device=device)
    target = torch.empty_like(source)
    return best_rate(lambda: target.copy_(source), 2 * size, device)


def machine(device: str, quick: bool = False) -> dict[str, float]:
    """Measure the limits, with as many threads as torch has now.

    Returns:
        FLOP/s of matrix products under the name of each precision that loops run in, and bytes
        per second under ``copy``.
    """
    side, size = (64, 2**16) if quick else (SIDES[device], COPIED[device])
    names = {"fp32", train.resolve_precision("auto", torch.device(device))}
    rates = {name: product_rate(name, device, side) for name in sorted(names)}
    return rates | {"copy": copy_rate(device, size)}


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


def precision_of(variant: str, device: str) -> str:
    """What a loop computes in, by its name: fp32, or the device's fastest safe precision."""
    plainly = any(word in variant for word in PLAINLY)
    return train.resolve_precision("fp32" if plainly else "auto", torch.device(device))


def loops(limits: dict, device: str, seconds: dict, flops: dict, label: str = "{}") -> dict:
    """The parts of a record's ``limits``: each loop's products beside the machine's.

    Args:
        seconds: loop → spread. flops: loop → FLOPs of one timed run; its loops are shown.
        label: the part's name, with ``{}`` for the loop's.
    """
    return {
        label.format(name): part(
            limits,
            statistics.median(seconds[name]["values"]),
            flops=amount,
            precision=precision_of(name, device),
        )
        for name, amount in flops.items()
    }
