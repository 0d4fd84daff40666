"""Projected gradient descent: the one loop of all that is found by its gradient in the inputs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..checks import one_of

NORMS = ("linf", "l2")


def pgd(
    loss: Callable[[Tensor], Tensor],
    x: Tensor,
    steps: int,
    move: Callable[[Tensor], Tensor],
    project: Callable[[Tensor], Tensor] | None = None,
    watch: Callable[[Tensor], None] | None = None,
) -> Tensor:
    """Descend ``loss`` from ``x``. One call of it and one backward pass per step.

    Args:
        loss: x → a scalar, or one value per row; rows that do not meet in it each descend their
            own, for the gradient is that of the sum. Where they do, as in a contrastive loss, the
            batch is one input.
        x: where to start, any shape. steps: how many.
        move: gradient → what is taken off x: ``signed``, ``straight``, or a function of one's own.
        project: brings x back to where it may be, after each step; None: it may be anywhere.
        watch: called with x before each step, and at last with the result.

    Returns: of the shape of x, detached.

    Source: the inner problem of Eq. (26) and appendix D.3, BI-BAU.
    """
    for _ in range(steps):
        x = x.detach().requires_grad_(True)
        if watch:
            watch(x.detach())
        (slope,) = torch.autograd.grad(loss(x).sum(), x)
        x = x.detach() - move(slope)
        if project:
            x = project(x)
    if watch:
        watch(x.detach())
    return x.detach()


def signed(step: float) -> Callable[[Tensor], Tensor]:
    """A step of this length in every number, for L∞."""
    return lambda slope: step * slope.sign()


def straight(step: float) -> Callable[[Tensor], Tensor]:
    """A step of this L2 length in every row, along its gradient."""
    return lambda slope: step * (slope / lengths(slope).clamp(min=1e-12))


def ball(x: Tensor, bound: float, norm: str = "linf") -> Callable[[Tensor], Tensor]:
    """The projection into the ball of ``bound`` around each row of ``x`` and into 0 … 1.

    Args:
        x: (B, …) in 0 … 1. bound: L∞, or L2 per row, in units of ``x``. norm: one of NORMS.

    Raises:
        ValueError: unknown norm.
    """
    one_of("norm", norm, NORMS)

    def project(inputs: Tensor) -> Tensor:
        delta = inputs - x
        if norm == "linf":
            delta = delta.clamp(-bound, bound)
        else:
            delta = delta * (bound / lengths(delta).clamp(min=1e-12)).clamp(max=1)
        return (x + delta).clamp(0, 1)

    return project


def random_start(x: Tensor, bound: float, norm: str = "linf") -> Tensor:
    """Draw a point of the ball around each row of ``x``, uniformly, and cut it to 0 … 1."""
    if norm == "linf":
        delta = torch.empty_like(x).uniform_(-bound, bound)
    else:
        delta = torch.randn_like(x)
        radius = torch.rand(len(x), device=x.device, dtype=x.dtype) ** (1 / x[0].numel())
        delta = delta * (bound * radius.reshape(-1, *[1] * (x.ndim - 1)) / lengths(delta))
    return ball(x, bound, norm)(x + delta)


def lengths(rows: Tensor) -> Tensor:
    """L2 norm of each row, (B, …) → (B, 1, …)."""
    return rows.flatten(1).norm(dim=1).reshape(-1, *[1] * (rows.ndim - 1))
