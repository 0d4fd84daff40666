"""Muon: SGD that gives the update of a convolution singular values that are nearly equal."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from .fitting import CycleSettings

# Of the odd polynomial a·s + b·s³ + c·s⁵: steep at 0, so that three rounds lift small values, and
# then between 0.7 and 1.2 rather than at 1. Source: Jordan et al. (2024), "Muon".
QUINTIC = (3.4445, -4.7750, 2.0315)


def orthogonalised(matrix: Tensor, rounds: int = 3) -> Tensor:
    """Return U f(S) Vᵀ of a matrix U S Vᵀ (n, m), f(s) near 1 but for very small s; float32.

    Newton-Schulz: ``rounds`` of the polynomial QUINTIC on the matrix divided by its norm, in
    bfloat16, whose few digits are enough here. A matrix of zeros stays one.
    """
    a, b, c = QUINTIC
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T  # the smaller square
    x = (wide / wide.norm().clamp(min=1e-7)).bfloat16()
    for _ in range(rounds):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    x = x.float()
    return x if matrix.shape[0] <= matrix.shape[1] else x.T


class Muon(torch.optim.Optimizer):
    """Muon for kernels of convolutions, SGD with Nesterov's momentum for all other parameters.

    A kernel (n, …) is a matrix of n rows. Ahead of each step it is scaled to the norm √n, which
    changes nothing where batch norm follows, and makes the rate one of angles; so it has no decay.

    Args:
        lr: learning rate of both. momentum, weight_decay: SGD's. kernel_momentum: Muon's.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], lr: float, momentum: float = 0.9,
        weight_decay: float = 0.0, kernel_momentum: float = 0.6,
    ):  # fmt: skip
        parameters = list(parameters)
        kernels = [weight for weight in parameters if weight.ndim == 4]
        others = [weight for weight in parameters if weight.ndim != 4]
        groups = [
            {"params": kernels, "momentum": kernel_momentum, "weight_decay": 0.0, "kernels": True},
            {"params": others, "momentum": momentum, "weight_decay": weight_decay},
        ]
        super().__init__(
            [group for group in groups if group["params"]], {"lr": lr, "kernels": False}
        )

    @torch.no_grad()
    def step(self) -> None:
        """Make a step with the gradients that are there."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                gradient = weight.grad.add(weight, alpha=group["weight_decay"])
                state = self.state[weight]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(weight)
                average = state["momentum"].mul_(group["momentum"]).add_(gradient)
                update = gradient.add(average, alpha=group["momentum"])
                if group["kernels"]:
                    weight.mul_(len(weight) ** 0.5 / weight.norm().clamp(min=1e-7))
                    update = orthogonalised(update.flatten(1)).view(update.shape)
                weight.sub_(update, alpha=group["lr"])


@dataclass(frozen=True)
class MuonSettings(CycleSettings):
    """How ``fit`` trains with ``Muon``, in one cycle: the rate rises, then falls to 0.

    Source: Jordan's cifar10-airbench (2024), with smaller batches, and a rate that rises first.
    """

    batch_size: int = 250
    kernel_momentum: ClassVar[float] = 0.6

    def optimizer(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        """A new Muon."""
        return Muon(parameters, self.lr, self.momentum, self.weight_decay, self.kernel_momentum)
