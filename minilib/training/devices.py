"""The precision a device is trained and asked in, and how the CPU keeps its memory."""

from __future__ import annotations

import ctypes
import os
import sys
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from functools import cache

import torch
from torch import Tensor

from .. import provenance
from ..checks import one_of
from ..models.loading import default_device

# ------------------------------------------------------------------------- the machine


def resolve_precision(precision: str, device: torch.device) -> str:
    """Turn "auto" into the fastest precision that is safe on this device.

    MINILIB_PRECISION says what "auto" stands for, where it is set: fp32, bf16 or fp16.
    """
    if precision != "auto":
        return precision
    if setting := os.environ.get("MINILIB_PRECISION"):
        one_of("MINILIB_PRECISION", setting, ("fp32", "bf16", "fp16"))
        return setting
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp16"
    return "bf16" if _cpu_multiplies_bf16() else "fp32"


@cache
def _cpu_multiplies_bf16() -> bool:
    """Tell whether the CPU has bf16 dot products; without them bf16 is emulated, and slow."""
    capability = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    if capability:
        return bool(capability.get("avx512_bf16") or capability.get("amx_bf16"))
    try:
        with open("/proc/cpuinfo") as info:
            flags = info.read()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def default_precision() -> str:
    """What "auto" stands for on the default device."""
    return resolve_precision("auto", default_device())


provenance.KNOWN_ABOVE["precision"] = default_precision


def autocast(device: torch.device, precision: str = "auto", scaled: bool = True):
    """Return the autocast context of a precision (none for fp32).

    Args:
        scaled: whether the caller can do with fp16, whose small gradients need a scaled loss; who
            cannot gets fp32 in its place, on older GPUs that is.
    """
    precision = resolve_precision(precision, device)
    if precision == "fp32" or (precision == "fp16" and not scaled):
        return nullcontext()
    dtype = torch.bfloat16 if precision == "bf16" else torch.float16
    return torch.autocast(device.type, dtype)


class NotFinite(RuntimeError):
    """A model gave NaN or infinity where an answer was asked of it; one line."""


def finite(run: Callable[[str], Tensor], precision: str, device: torch.device) -> Tensor:
    """Run a prediction; where half precision overflows, warn and run it in single precision.

    NaN would be class 0 to an ``argmax``, without a word.

    Args:
        run: precision → (N, …) float outputs.

    Raises:
        NotFinite: single precision has no finite outputs either.
    """
    precision = resolve_precision(precision, device)
    outputs = run(precision)
    if precision != "fp32" and not torch.isfinite(outputs).all():
        warnings.warn(f"outputs overflow in {precision}; asked again in fp32", stacklevel=3)
        outputs = run("fp32")
    check_finite(outputs)
    return outputs


def check_finite(outputs: Tensor) -> None:
    """Raise NotFinite where outputs (N, …) of N rows are NaN or infinite."""
    finite_rows = torch.isfinite(outputs).flatten(1).all(1)
    if not finite_rows.all():
        raise NotFinite(
            f"the model's outputs are not finite for {int((~finite_rows).sum())} of "
            f"{len(finite_rows)} rows; its weights have diverged, "
            "or MINILIB_PRECISION=fp32 is needed"
        )


@cache
def _keep_heap() -> None:
    if sys.platform != "linux":
        return
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(ctypes.c_int(-4), ctypes.c_int(0))  # M_MMAP_MAX
        libc.mallopt(ctypes.c_int(-1), ctypes.c_int(2**31 - 1))  # M_TRIM_THRESHOLD
    except (OSError, AttributeError):  # another C library: nothing to tune
        pass


def keep_heap(device: torch.device) -> None:
    """Let glibc keep freed buffers on a CPU run.

    By default it gives every large buffer (the 47 MB gradient of a word-embedding matrix, each
    step) back to the kernel and pays page faults to get it again.
    """
    if device.type == "cpu":
        _keep_heap()
