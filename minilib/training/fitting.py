"""The training loop.

Victims, re-trained references, every unlearning method and every short tuning of a finished model
go through ``fit``. What differs between them is an argument: the loss, the batches, and the
settings, whose class says which optimiser it is.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from ..checks import above_zero, not_negative, one_of
from ..models.loading import state
from .devices import autocast, keep_heap, resolve_precision

SYNC_EVERY = 50  # steps between checks for NaN on a GPU, where each check waits for the device
SCHEDULES = ("constant", "linear", "cosine")


@dataclass(frozen=True)
class TrainSettings:
    """How ``fit`` trains with AdamW.

    Attributes:
        epochs: passes over the batches.
        lr: learning rate.
        batch_size: rows per step (of each part, where a batch has several).
        weight_decay: AdamW's decoupled decay.
        clip: largest global gradient norm; 0 switches clipping off.
        schedule: of the learning rate: "constant", or "linear" or "cosine" decay to 0.
        reset_optimizer: forget AdamW's moments at the start of every epoch, as RGA's code does.
        precision: "fp32", "bf16", "fp16", or "auto": bf16 where the hardware multiplies it, fp16
            with loss scaling on older GPUs, else fp32.
        seed: of batch order and dropout.
        betas: AdamW's.
        warmup: share of the steps in which the rate rises linearly, below the schedule.
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
    betas: tuple[float, float] = (0.9, 0.999)
    warmup: float = 0.0

    def __post_init__(self):
        above_zero(self, "epochs", "lr", "batch_size")
        # A clip below 0 would turn every gradient round.
        not_negative(self, "weight_decay", "clip", "warmup")
        if self.warmup > 1:  # the rate would never be reached
            raise ValueError(f"warmup is {self.warmup!r}; accepted: a share of the steps, 0 … 1")
        one_of("schedule", self.schedule, SCHEDULES)
        one_of("precision", self.precision, ("auto", "fp32", "bf16", "fp16"))

    def optimizer(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        """A new AdamW."""
        return torch.optim.AdamW(
            parameters, self.lr, self.betas, weight_decay=self.weight_decay, fused=True
        )


@dataclass(frozen=True)
class SgdSettings:
    """How ``fit`` trains with SGD, as the papers of many defences do: short tunings, constant rate.

    Attributes:
        epochs: passes over the batches. lr: learning rate. batch_size: rows per step.
        momentum, weight_decay: SGD's.
        precision: as in ``TrainSettings``, without fp16.
        seed: of the batch order and of dropout.
    """

    epochs: int = 10
    lr: float = 0.01
    batch_size: int = 128
    momentum: float = 0.9
    weight_decay: float = 5e-4
    precision: str = "auto"
    seed: int = 0
    clip: ClassVar[float] = 0.0
    schedule: ClassVar[str] = "constant"
    warmup: ClassVar[float] = 0.0
    reset_optimizer: ClassVar[bool] = False

    def __post_init__(self):
        above_zero(self, "epochs", "lr", "batch_size")
        not_negative(self, "momentum", "weight_decay")
        one_of("precision", self.precision, ("auto", "fp32", "bf16"))

    def optimizer(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        """A new SGD."""
        return torch.optim.SGD(parameters, self.lr, self.momentum, weight_decay=self.weight_decay)


@dataclass(frozen=True)
class CycleSettings(SgdSettings):
    """SGD with Nesterov's momentum in one cycle: the rate rises, then falls to 0."""

    lr: float = 0.1
    weight_decay: float = 1e-3
    schedule: ClassVar[str] = "linear"
    warmup: ClassVar[float] = 0.25

    def optimizer(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        """A new SGD."""
        return torch.optim.SGD(
            parameters, self.lr, self.momentum, weight_decay=self.weight_decay, nesterov=True
        )


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


Loss = Callable[[nn.Module, Any], tuple[Tensor, dict[str, Tensor]]]


def fit(
    model: nn.Module,
    batches: Callable[[np.random.Generator], Iterable],
    loss: Loss,
    settings: TrainSettings | SgdSettings,
    on_epoch: Callable[[nn.Module, int], dict] | None = None,
    *,
    around: Callable[[], AbstractContextManager] = nullcontext,
    past: tuple[int, int] | None = None,
) -> list[dict]:
    """Train ``model`` in place; its parameters that need no gradient stay.

    Args:
        batches: called with a generator at the start of each epoch, yields batches; has a length.
        loss: ``loss(model, batch)`` → scalar to be minimised and scalars to log (detached).
        on_epoch: called with (model in eval mode, epoch), 1-based; its dict joins the history.
        around: context in which each gradient is taken; PAM moves the weights there and back.
        past: steps of the schedule made before this call, and steps of all of it, where this call
            makes a part.

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
    scaled = isinstance(settings, TrainSettings)
    scaler = torch.amp.GradScaler(device.type, enabled=scaled and precision == "fp16")
    keep_heap(device)
    history, step, optimizer = [], 0, None
    past_steps, total = past or (0, settings.epochs * len(batches))

    with seeded(settings.seed, device) as rng:
        for epoch in range(1, settings.epochs + 1):
            if optimizer is None or settings.reset_optimizer:
                optimizer = settings.optimizer([p for p in model.parameters() if p.requires_grad])
            weights, logs, finite_flags = state(model), [], []
            model.train()
            started = time.perf_counter()
            for batch in progress(batches(rng), len(batches), f"epoch {epoch}"):
                if settings.schedule != "constant" or settings.warmup:
                    for group in optimizer.param_groups:
                        group["lr"] = settings.lr * _share(settings, past_steps + step, total)
                with around():
                    with autocast(device, precision, scaled):
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
                finite_flags.append(torch.isfinite(value.detach() if scaler.is_enabled() else norm))
                logs.append(log)
                step += 1
                if device.type == "cpu" or len(finite_flags) == SYNC_EVERY:
                    _check(finite_flags, step, epoch, weights)
                    finite_flags = []
            _check(finite_flags, step, epoch, weights)
            record = {"epoch": epoch, "seconds": time.perf_counter() - started, **_means(logs)}
            if on_epoch is not None:
                model.eval()
                record |= on_epoch(model, epoch)
            history.append(record)
    model.eval()
    return history


def _share(settings: TrainSettings, done: int, total: int) -> float:
    """The share of its learning rate that a schedule gives the step after ``done`` others."""
    decay = {
        "constant": 1.0,
        "linear": 1 - done / total,
        "cosine": 0.5 * (1 + math.cos(math.pi * min(done / total, 1))),
    }[settings.schedule]
    return min((done + 1) / max(1, round(settings.warmup * total)), decay)


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[np.random.Generator]:
    """Seed torch inside, leave the caller's random state alone, give a NumPy generator too."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield np.random.default_rng(seed)


def _check(finite: list[Tensor], step: int, epoch: int, good: dict[str, Tensor]) -> None:
    """Raise Diverged for the first step among the latest that was not finite."""
    if finite and not (flags := torch.stack(finite).cpu()).all():
        raise Diverged(step - len(finite) + 1 + int((~flags).nonzero()[0]), epoch, good)


def _means(logs: list[dict[str, Tensor]]) -> dict[str, float]:
    return {key: torch.stack([log[key].float() for log in logs]).mean().item() for key in logs[0]}


def progress(items: Iterator, total: int, label: str) -> Iterator:
    """Show a progress bar to somebody who watches: on a terminal, or in a live notebook."""
    watched = sys.stderr.isatty() or (
        "ipykernel" in sys.modules and "MINILIB_RUN" not in os.environ
    )
    if not watched:
        return items
    from tqdm.auto import tqdm

    return tqdm(items, total=total, desc=label, leave=False)
