"""The one training loop, and the tokenised, device-resident data it runs on.

Victims, re-trained references and every unlearning method go through ``fit``: what differs between
them is the loss and the batches, which are arguments.
"""

from __future__ import annotations

import ctypes
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .models import TextClassifier, state

EVAL_TOKENS = 8192  # tokens per forward-only batch: large enough to keep the matrix units busy
SYNC_EVERY = 50  # steps between checks for NaN on a GPU, where each check waits for the device


@dataclass(frozen=True)
class TrainSettings:
    """How ``fit`` trains.

    Attributes:
        epochs: passes over the batches.
        lr: AdamW's learning rate.
        batch_size: rows per step (of each part, where a batch has several).
        weight_decay: AdamW's decoupled decay; betas are (0.9, 0.999).
        clip: largest global gradient norm; 0 switches clipping off.
        schedule: "constant", or "linear" decay to 0.
        reset_optimizer: forget AdamW's moments at the start of every epoch, as RGA's code does.
        precision: "fp32", "bf16", "fp16", or "auto": bf16 where the hardware multiplies it, fp16
            with loss scaling on older GPUs, else fp32.
        seed: of batch order and dropout.
    """

    epochs: int = 3
    lr: float = 5e-5
    batch_size: int = 32
    weight_decay: float = 0.01
    clip: float = 1.0
    schedule: str = "constant"
    reset_optimizer: bool = False
    precision: str = "auto"
    seed: int = 0

    def __post_init__(self):
        for name in ("epochs", "lr", "batch_size"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)!r}; accepted: above 0")
        if self.schedule not in ("constant", "linear"):
            raise ValueError(f"schedule is {self.schedule!r}; accepted: constant, linear")
        if self.precision not in ("auto", "fp32", "bf16", "fp16"):
            raise ValueError(f"precision is {self.precision!r}; accepted: auto, fp32, bf16, fp16")


class Diverged(RuntimeError):
    """The loss or its gradient stopped being a finite number.

    Attributes:
        step: the 1-based step, counted over all epochs, at which it happened.
        good: the model's weights at the end of the last epoch before that.
    """

    def __init__(self, step: int, epoch: int, good: dict[str, Tensor]):
        super().__init__(
            f"loss is not finite at step {step} (epoch {epoch}); "
            f"the weights at the end of epoch {epoch - 1} are in .good; lower the learning rate"
        )
        self.step, self.epoch, self.good = step, epoch, good


class Batch(NamedTuple):
    """``input_ids`` and ``attention_mask`` (B, T) int64, ``labels`` (B,) int64, ``rows`` (B,)."""

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor
    rows: np.ndarray


@dataclass(frozen=True)
class Encoded:
    """Texts tokenised once: ``ids`` (N, L) int32 on the device, ``lengths`` (N,) on the host."""

    ids: Tensor
    lengths: np.ndarray
    labels: Tensor

    def __len__(self) -> int:
        return len(self.lengths)

    def batch(self, rows: np.ndarray) -> Batch:
        """Return the rows, padded to the longest of them (to a multiple of 8 on a GPU)."""
        longest = int(self.lengths[rows].max())
        if self.ids.is_cuda:
            longest = min(-(-longest // 8) * 8, self.ids.shape[1])
        index = torch.as_tensor(rows, device=self.ids.device)
        lengths = torch.as_tensor(self.lengths[rows], device=self.ids.device)
        mask = torch.arange(longest, device=self.ids.device) < lengths[:, None]  # (B, T)
        return Batch(self.ids[index, :longest].long(), mask.long(), self.labels[index], rows)


def encode(
    texts: Sequence[str],
    labels: Sequence[int] | np.ndarray,
    tokenizer,
    max_length: int = 128,
    device: torch.device | str = "cpu",
) -> Encoded:
    """Tokenise once, truncate to ``max_length`` tokens, put everything on the device.

    Raises:
        ValueError: no texts, or a tokenizer without a padding token.
    """
    if not len(texts):
        raise ValueError("no texts to encode; accepted: one or more")
    if tokenizer.pad_token_id is None:
        raise ValueError("the tokenizer has no padding token; set tokenizer.pad_token")
    rows = tokenizer(list(texts), truncation=True, max_length=max_length)["input_ids"]
    lengths = np.array([max(len(row), 1) for row in rows])
    ids = np.full((len(rows), -(-int(lengths.max()) // 8) * 8), tokenizer.pad_token_id, np.int32)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
    labels = torch.as_tensor(np.asarray(labels), dtype=torch.int64, device=device)
    return Encoded(torch.as_tensor(ids, device=device), lengths, labels)


@dataclass(frozen=True)
class Batches:
    """One pass over ``data`` in random batches of similar length."""

    data: Encoded
    batch_size: int

    POOL = 50  # batches that are shuffled together before they are sorted by length

    def __len__(self) -> int:
        return -(-len(self.data) // self.batch_size)

    def rows(self, rng: np.random.Generator) -> list[np.ndarray]:
        """Draw the rows of each batch: shuffle, sort by length within a pool, shuffle batches."""
        order = rng.permutation(len(self.data))
        size, pool = self.batch_size, self.batch_size * self.POOL
        batches = []
        for start in range(0, len(order), pool):
            part = order[start : start + pool]
            part = part[np.argsort(self.data.lengths[part], kind="stable")]
            batches += [part[i : i + size] for i in range(0, len(part), size)]
        return [batches[i] for i in rng.permutation(len(batches))]

    def __call__(self, rng: np.random.Generator) -> Iterator[Batch]:
        return (self.data.batch(rows) for rows in self.rows(rng))


Loss = Callable[[nn.Module, Any], tuple[Tensor, dict[str, Tensor]]]


def cross_entropy(model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean cross-entropy in nats: the loss of ordinary fine-tuning."""
    logits = model(batch.input_ids, batch.attention_mask)
    value = F.cross_entropy(logits.float(), batch.labels)
    return value, {"loss": value.detach()}


def fit(
    model: nn.Module,
    batches: Callable[[np.random.Generator], Iterator],
    loss: Loss,
    settings: TrainSettings,
    on_epoch: Callable[[nn.Module, int], dict] | None = None,
) -> list[dict]:
    """Train ``model`` in place.

    Args:
        batches: called with a generator at the start of each epoch, yields batches; has a length.
        loss: ``loss(model, batch)`` → scalar to be minimised and scalars to log (detached).
        on_epoch: called with (model in eval mode, epoch), 1-based; its dict joins the history.

    Returns:
        One dict per epoch: ``epoch``, ``seconds`` (training only), the mean of each logged scalar,
        and what ``on_epoch`` returned.

    Raises:
        Diverged: a loss or gradient norm became NaN or infinite.

    Bitwise repeatable under ``settings.seed`` on one machine's CPU; the caller's random state is
    left as it was.
    """
    device = next(model.parameters()).device
    precision = resolve_precision(settings.precision, device)
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
    rng = np.random.default_rng(settings.seed)
    keep_heap(device)
    history, step, optimizer = [], 0, None
    total = settings.epochs * len(batches)

    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(settings.seed)
        for epoch in range(1, settings.epochs + 1):
            if optimizer is None or settings.reset_optimizer:
                optimizer = _adamw(model, settings)
            good, logs, finite = state(model), [], []
            model.train()
            started = time.perf_counter()
            for batch in progress(batches(rng), len(batches), f"epoch {epoch}"):
                if settings.schedule == "linear":
                    for group in optimizer.param_groups:
                        group["lr"] = settings.lr * (1 - step / total)
                with autocast(device, precision):
                    value, log = loss(model, batch)
                scaler.scale(value).backward()
                scaler.unscale_(optimizer)
                limit = settings.clip or float("inf")
                norm = nn.utils.clip_grad_norm_(model.parameters(), limit, foreach=True)
                scaler.step(optimizer)
                scaler.update()
                optimizer.zero_grad(set_to_none=True)
                # A loss scale that was too high makes fp16 gradients infinite now and then; the
                # scaler skips such a step, so only the loss counts there.
                finite.append(torch.isfinite(value.detach() if scaler.is_enabled() else norm))
                logs.append(log)
                step += 1
                if device.type == "cpu" or len(finite) == SYNC_EVERY:
                    _check(finite, step, epoch, good)
                    finite = []
            _check(finite, step, epoch, good)
            record = {"epoch": epoch, "seconds": time.perf_counter() - started, **_means(logs)}
            if on_epoch is not None:
                model.eval()
                record |= on_epoch(model, epoch)
            history.append(record)
    model.eval()
    return history


def _adamw(model: nn.Module, settings: TrainSettings) -> torch.optim.Optimizer:
    parameters = [p for p in model.parameters() if p.requires_grad]
    return torch.optim.AdamW(
        parameters, lr=settings.lr, weight_decay=settings.weight_decay, fused=True
    )


def _check(finite: list[Tensor], step: int, epoch: int, good: dict[str, Tensor]) -> None:
    """Raise Diverged for the first step among the latest that was not finite."""
    if finite and not (flags := torch.stack(finite).cpu()).all():
        raise Diverged(step - len(finite) + 1 + int((~flags).nonzero()[0]), epoch, good)


def _means(logs: list[dict[str, Tensor]]) -> dict[str, float]:
    return {key: torch.stack([log[key].float() for log in logs]).mean().item() for key in logs[0]}


def fine_tune(
    model: TextClassifier,
    dataset,
    settings: TrainSettings,
    on_epoch: Callable[[nn.Module, int], dict] | None = None,
    max_length: int = 128,
) -> list[dict]:
    """Fine-tune all parameters on a TextDataset by cross-entropy; returns ``fit``'s history."""
    device = next(model.parameters()).device
    data = encode(dataset.texts, dataset.labels, model.tokenizer, max_length, device)
    return fit(model, Batches(data, settings.batch_size), cross_entropy, settings, on_epoch)


def predict(model: nn.Module, data: Encoded, precision: str = "auto") -> Tensor:
    """Return logits (N, K) float32 on the CPU, in the order of ``data``'s rows.

    Rows are sorted by length and cut into batches of about EVAL_TOKENS tokens.
    """
    device = data.ids.device
    precision = resolve_precision(precision, device)
    order = np.argsort(data.lengths, kind="stable")
    keep_heap(device)
    training = model.training
    model.eval()
    logits = []
    with torch.inference_mode(), autocast(device, precision):
        for rows in _by_tokens(order, data.lengths):
            batch = data.batch(rows)
            logits.append(model(batch.input_ids, batch.attention_mask).float())
    model.train(training)
    inverse = torch.as_tensor(np.argsort(order))
    return torch.cat(logits).cpu()[inverse]


def _by_tokens(order: np.ndarray, lengths: np.ndarray) -> Iterator[np.ndarray]:
    start = 0
    while start < len(order):
        rows = max(1, EVAL_TOKENS // int(lengths[order[start]]))
        # Sorted by length, so the batch's last row is its longest: shrink until it fits.
        while rows > 1 and rows * int(lengths[order[start : start + rows][-1]]) > EVAL_TOKENS:
            rows -= 1
        yield order[start : start + rows]
        start += rows


# ------------------------------------------------------------------------- the machine


def resolve_precision(precision: str, device: torch.device) -> str:
    """Turn "auto" into the fastest precision that is safe on this device."""
    if precision != "auto":
        return precision
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


def autocast(device: torch.device, precision: str):
    """Return the autocast context of a precision (none for fp32)."""
    if precision == "fp32":
        return nullcontext()
    dtype = torch.bfloat16 if precision == "bf16" else torch.float16
    return torch.autocast(device.type, dtype)


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


def progress(items: Iterator, total: int, label: str) -> Iterator:
    """Show a progress bar to somebody who watches: on a terminal, or in a live notebook."""
    watched = sys.stderr.isatty() or (
        "ipykernel" in sys.modules and "MINILIB_RUN" not in os.environ
    )
    if not watched:
        return items
    from tqdm.auto import tqdm

    return tqdm(items, total=total, desc=label, leave=False)
