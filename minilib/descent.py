"""Plain SGD over batches: for the methods whose papers prescribe it, where ``train.fit`` is AdamW.

Short tunings of a finished model (purification, re-activation) go through here. Victims and all
that is trained from scratch go through ``train.fit``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from . import train
from .models import state


@dataclass(frozen=True)
class SgdSettings:
    """How ``descend`` tunes.

    Attributes:
        epochs: passes over the batches. lr: learning rate. batch_size: rows per step.
        momentum, weight_decay: SGD's.
        precision: as in ``TrainSettings``, without fp16 (there is no loss scaling here).
        seed: of the batch order and of dropout.
    """

    epochs: int = 10
    lr: float = 0.01
    batch_size: int = 128
    momentum: float = 0.9
    weight_decay: float = 5e-4
    precision: str = "auto"
    seed: int = 0

    def __post_init__(self):
        for name in ("epochs", "lr", "batch_size"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)!r}; accepted: above 0")
        for name in ("momentum", "weight_decay"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} is {getattr(self, name)!r}; accepted: 0 or above")
        if self.precision not in ("auto", "fp32", "bf16"):
            raise ValueError(f"precision is {self.precision!r}; accepted: auto, fp32, bf16")


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[np.random.Generator]:
    """Seed torch inside, leave the caller's random state alone, give a NumPy generator too."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield np.random.default_rng(seed)


def mixed(device: torch.device, precision: str = "auto") -> AbstractContextManager:
    """Return the autocast context of ``precision``; older GPUs, which lack bf16, stay at fp32."""
    found = train.resolve_precision(precision, device)
    return train.autocast(device, "fp32" if found == "fp16" else found)


def descend(
    model: nn.Module,
    batches: Callable[[np.random.Generator], Iterable],
    loss: Callable[[nn.Module, object], tuple[Tensor, dict]],
    settings: SgdSettings,
    around: Callable[[], AbstractContextManager] = nullcontext,
) -> list[dict[str, float]]:
    """Tune ``model`` in place by SGD; its parameters that need no gradient stay.

    Args:
        batches, loss: as for ``train.fit``.
        around: context in which each gradient is taken; PAM moves the weights there and back.

    Returns:
        One dict per epoch: ``epoch`` and the mean of each logged scalar.

    Raises:
        train.Diverged: a loss was not finite; seen at the end of its epoch.
    """
    device = next(model.parameters()).device
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(
        parameters, settings.lr, settings.momentum, weight_decay=settings.weight_decay
    )
    history, step = [], 0
    with seeded(settings.seed, device) as rng:
        for epoch in range(1, settings.epochs + 1):
            model.train()
            good, logs = state(model), []
            for batch in batches(rng):
                with around():
                    with mixed(device, settings.precision):
                        value, log = loss(model, batch)
                    value.backward()
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                logs.append({"finite": torch.isfinite(value.detach()), **log})
                step += 1
            means = {key: torch.stack([log[key].float() for log in logs]) for key in logs[0]}
            means = {key: value.mean().item() for key, value in means.items()}
            if means.pop("finite") < 1:
                raise train.Diverged(step, epoch, good)
            history.append({"epoch": epoch, **means})
    model.eval()
    return history
