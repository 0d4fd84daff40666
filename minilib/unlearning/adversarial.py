"""Adversarial unlearning: I-BAU (one universal perturbation), SAU (shared adversarial images)."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain, count, islice

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checks import above_zero, not_negative
from ..data.images import ImageDataset
from ..models.images import ImageClassifier, frozen_copy
from ..training.fitting import SgdSettings, fit, seeded
from ..training.images import EVAL_IMAGES, ImageBatches
from .common import prepared, unit
from .pgd import pgd, signed

# ------------------------------------------------------------------------------------- I-BAU


@dataclass(frozen=True)
class IBauSettings:
    """Implicit backdoor adversarial unlearning.

    Attributes:
        rounds: of finding a perturbation and unlearning it.
        lr: of Adam on the weights. batch_size: images per outer step.
        outer_steps: of each round; None: one pass over the images. It takes tens of them.
        inner_steps, inner_lr: gradient ascent on the perturbation, from 0, each round.
        bound: largest L2 norm of the perturbation, images in 0 … 1.
        decay: weight of the perturbation's squared norm in the inner problem, which makes its map a
            contraction. terms: K of the fixed-point iteration for the hypergradient.
        portion: share of an outer batch that is shown with the perturbation, at least one image.
        released: how the released code finds the perturbation: raw gradient steps on the model's
            own classes, projected to the ball once, after the last, and never to 0 … 1. Steps of
            one length, projected each time, find another direction: not the backdoor's.

    ``RELEASED_I_BAU`` has what else differs there: one image in a hundred carries the perturbation,
    inner steps have rate 10, and a round has fifty outer ones. There, both numbers of steps are
    those of batches in one pass over 5,000 images: with fewer images that code makes fewer steps,
    and what it leaves then differs from one order of the images to another.
    """

    rounds: int = 5
    lr: float = 1e-3
    batch_size: int = 100
    inner_steps: int = 50
    inner_lr: float = 1.0
    bound: float = 10.0
    decay: float = 1e-3
    terms: int = 5
    portion: float = 1.0
    released: bool = False
    outer_steps: int | None = None
    seed: int = 0

    def __post_init__(self):
        above_zero(self, "rounds", "lr", "batch_size", "inner_steps", "inner_lr", "bound")
        if self.outer_steps is not None:
            above_zero(self, "outer_steps")
        not_negative(self, "decay")
        if not self.terms >= 1:
            raise ValueError(f"terms is {self.terms!r}; accepted: 1 or more")
        if not 0 < self.portion <= 1:
            raise ValueError(f"portion is {self.portion!r}; accepted: above 0, at most 1")


RELEASED_I_BAU = {"released": True, "portion": 0.01, "inner_lr": 10.0, "outer_steps": 50}


def universal_perturbation(
    model: nn.Module, images: Tensor, labels: Tensor, settings: IBauSettings
) -> Tensor:
    """Find one perturbation (1, C, H, W) that hurts ``model`` most on these images.

    Ascends the mean CE less ``decay · ‖δ‖²``, a hundred images a step, within an L2 ball.
    ``images``: (N, C, H, W) float in 0 … 1.
    """
    starts, rate, released = count(step=100), settings.inner_lr, settings.released

    def loss(delta: Tensor) -> Tensor:
        start = next(starts) % len(images)
        rows = slice(start, start + 100)
        value = F.cross_entropy(model(_shown(images[rows] + delta, released)), labels[rows])
        return settings.decay * delta.square().sum() - value

    def into_ball(delta: Tensor) -> Tensor:
        return delta * (settings.bound / delta.norm().clamp(min=1e-12)).clamp(max=1)

    start = torch.zeros_like(images[:1])
    if released:
        return into_ball(pgd(loss, start, settings.inner_steps, lambda slope: rate * slope))
    return pgd(
        loss, start, settings.inner_steps, lambda slope: rate * slope / (slope.norm() + 1e-12),
        into_ball,
    )  # fmt: skip


def _shown(images: Tensor, released: bool) -> Tensor:
    """Perturbed images as they are put in; the released code lets pixels leave 0 … 1."""
    return images if released else images.clamp(0, 1)


def hypergradient(
    model: nn.Module,
    weights: list[Tensor],
    delta: Tensor,
    images: Tensor,
    labels: Tensor,
    settings: IBauSettings,
    inner: tuple[Tensor, Tensor] | None = None,
    rate: float = 0.1,
) -> tuple[Tensor, list[Tensor]]:
    """Outer loss at ``delta`` and its total gradient, in which δ follows the weights.

    The first ``portion`` of the images carry δ in the outer loss, all of them in the inner one.

    With Φ(δ, θ) = δ - rate · ∂(−CE + decay · ‖δ‖²)/∂δ, one step of the inner problem, the implicit
    term is ``(∂Φ/∂θ)ᵀ v`` where v solves ``v = (∂Φ/∂δ)ᵀ v + ∂CE/∂δ``, iterated ``terms`` times.

    Args:
        inner: images and labels of the inner problem, where they are not the outer batch.

    Source: Zeng et al. (2022), the fixed-point variant.
    """
    delta, released = delta.detach().requires_grad_(True), settings.released
    inner_images, inner_labels = inner or (images, labels)
    inner_loss = F.cross_entropy(model(_shown(inner_images + delta, released)), inner_labels)
    slope, *direct_slopes = torch.autograd.grad(inner_loss, [delta, *weights], create_graph=True)
    phi = delta - rate * (2 * settings.decay * delta - slope)
    outer_loss, outer_slope = inner_loss, slope.detach()
    if settings.portion < 1 or inner is not None:
        carriers = max(1, round(settings.portion * len(images)))
        mixed_images = _shown(torch.cat([images[:carriers] + delta, images[carriers:]]), released)
        outer_loss = F.cross_entropy(model(mixed_images), labels)
        outer_slope, *direct_slopes = torch.autograd.grad(outer_loss, [delta, *weights])
    v = outer_slope
    for _ in range(settings.terms - 1):
        (pulled,) = torch.autograd.grad(phi, delta, v, retain_graph=True)
        v = pulled + outer_slope
    implicit_slopes = torch.autograd.grad(phi, weights, v, allow_unused=True)
    total_slopes = [
        d.detach() if i is None else d.detach() + i
        for d, i in zip(direct_slopes, implicit_slopes, strict=True)
    ]
    return outer_loss.detach(), total_slopes


def implicit_unlearning(
    model: ImageClassifier, clean: ImageDataset, settings: IBauSettings
) -> ImageClassifier:
    """I-BAU: unlearn the worst universal perturbation, by the implicit hypergradient.

    Batch norms' statistics stay frozen; fp32, for second derivatives.

    Source: Zeng et al. (2022).
    """
    model, data = prepared(model, clean)
    weights = list(model.parameters())
    optimizer = torch.optim.Adam(weights, settings.lr)
    batches = ImageBatches(data, settings.batch_size)
    with seeded(settings.seed, data.labels.device) as rng:
        for _ in range(settings.rounds):
            order = torch.as_tensor(rng.permutation(len(data)), device=data.labels.device)
            images, labels = unit(data.images[order]), data.labels[order]
            model.requires_grad_(False)
            if settings.released:
                labels = torch.cat([model(rows).argmax(1) for rows in images.split(EVAL_IMAGES)])
            delta = universal_perturbation(model, images, labels, settings)
            model.requires_grad_(True)
            inner = None
            if settings.released:  # its inner problem is the first batch's, whichever is unlearned
                first = order[: settings.batch_size]
                inner = images[: len(first)], data.labels[first]
            passes = chain.from_iterable(batches(rng) for _ in count())
            for rows in islice(passes, settings.outer_steps or len(batches)):
                _, slopes = hypergradient(
                    model, weights, delta, unit(rows.images), rows.labels, settings, inner
                )
                for weight, slope in zip(weights, slopes, strict=True):
                    weight.grad = slope
                optimizer.step()
    return model.eval()


# --------------------------------------------------------------------------------------- SAU


@dataclass(frozen=True)
class SauSettings(SgdSettings):
    """Shared adversarial unlearning.

    Attributes:
        bound: L∞, images in 0 … 1. steps, step: of the inner ascent.
        clean_weight, shared_weight: λ1, λ2 of the outer loss.
        adversarial_weight, share_weight: λ3, λ4 of the inner one.
        released: as the released code does it: Adam; batch norm keeps its statistics; the ascent
            starts at the bound, leaves 0 … 1 where it wants to, and adds no cross-entropy for a
            model that is fooled; what counts as fooled is another class than the model's own of the
            clean image, not than the label; and the second loss is divided by all images.

    ``RELEASED_SAU`` has what else differs there: a hundred passes at a rate of 0.0001.
    """

    epochs: int = 20
    batch_size: int = 256
    bound: float = 0.2
    steps: int = 5
    step: float = 0.2
    clean_weight: float = 1.0
    shared_weight: float = 1.0
    adversarial_weight: float = 0.01
    share_weight: float = 1.0
    released: bool = False

    def __post_init__(self):
        super().__post_init__()
        above_zero(self, "bound", "steps", "step")

    def optimizer(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        """A new SGD, or the released code's Adam, which keeps the largest second moment."""
        if self.released:
            return torch.optim.Adam(parameters, self.lr, amsgrad=True)
        return super().optimizer(parameters)


RELEASED_SAU = {"released": True, "epochs": 100, "lr": 1e-4}


def shared_divergence(logits: Tensor, reference: Tensor) -> Tensor:
    """Jensen-Shannon divergence per row of two models' softmax, in nats, 0 … log 2.

    Source: Wei et al. (2023).
    """
    p, q = logits.log_softmax(1), reference.log_softmax(1)
    middle = torch.logaddexp(p, q) - torch.log(torch.tensor(2.0, device=p.device, dtype=p.dtype))
    return 0.5 * ((p.exp() * (p - middle)).sum(1) + (q.exp() * (q - middle)).sum(1))


def shared_images(
    model: nn.Module, reference: nn.Module, x: Tensor, y: Tensor, settings: SauSettings
) -> Tensor:
    """Find perturbed images that fool model and reference alike, by signed ascent.

    Ascends ``λ3 · (CE(model) + CE(reference)) / 2 - λ4 · JS(model, reference)``, the divergence
    over images that are not shared yet (both wrong, and in the same class).

    Args:
        x: (B, C, H, W) float in 0 … 1. Both models in eval mode, no gradients to weights needed.

    Returns: (B, C, H, W) float in 0 … 1. Source: Wei et al. (2023).
    """

    if settings.released:
        with torch.no_grad():
            own, reference_own = model(x).argmax(1), reference(x).argmax(1)

    def loss(delta: Tensor) -> Tensor:
        logits, reference_logits = model(x + delta).float(), reference(x + delta).float()
        classes, reference_classes = logits.argmax(1), reference_logits.argmax(1)
        unshared = classes != reference_classes
        if settings.released:
            fooled, reference_fooled = classes != own, reference_classes != reference_own
            unshared = unshared | ~fooled | ~reference_fooled
            cross_entropy = (
                F.cross_entropy(logits, y, reduction="none") * ~fooled
                + F.cross_entropy(reference_logits, y, reduction="none") * ~reference_fooled
            ).mean() / 2
        else:
            unshared = unshared | (classes == y)
            cross_entropy = (F.cross_entropy(logits, y) + F.cross_entropy(reference_logits, y)) / 2
        divergence = (shared_divergence(logits, reference_logits) * unshared).mean()
        return settings.share_weight * divergence - settings.adversarial_weight * cross_entropy

    def project(delta: Tensor) -> Tensor:
        delta = delta.clamp(-settings.bound, settings.bound)
        return delta if settings.released else (x + delta).clamp(0, 1) - x

    move = signed(settings.step)
    if settings.released:
        start = torch.full_like(x, settings.bound)
        return x + pgd(loss, start, settings.steps, move, project)
    start = project(torch.empty_like(x).uniform_(-settings.bound, settings.bound))
    return (x + pgd(loss, start, settings.steps, move, project)).clamp(0, 1)


def shared_unlearning(
    model: ImageClassifier, clean: ImageDataset, settings: SauSettings
) -> ImageClassifier:
    """SAU: on images that fool both the model and the backdoored one, unlearn the shared class.

    Minimises ``λ1 · CE(x, y) - λ2 · log(1 - p(ỹ | x + δ))`` with ỹ the backdoored model's class,
    over the perturbed images where ỹ is wrong.

    Source: Wei et al. (2023).
    """
    reference = frozen_copy(model)
    model, data = prepared(model, clean)

    def loss(model: nn.Module, batch) -> tuple[Tensor, dict]:
        x, y = unit(batch.images), batch.labels
        model.eval().requires_grad_(False)  # the examples are for the model as it is used
        perturbed_images = shared_images(model, reference, x, y, settings)
        model.train(not settings.released).requires_grad_(True)
        with torch.no_grad():
            reference_classes = reference(perturbed_images).argmax(1)
            active = reference_classes != y
            if settings.released:
                active &= reference_classes != reference(x).argmax(1)
        clean_logits, perturbed_logits = (
            model(torch.cat([x, perturbed_images])).float().split(len(x))
        )
        clean_loss = F.cross_entropy(clean_logits, y)
        forget_losses = _unlikeliness(perturbed_logits, reference_classes, settings.released)
        count = len(x) if settings.released else active.sum().clamp(min=1)
        shared_loss = (forget_losses * active.float()).sum() / count
        value = settings.clean_weight * clean_loss + settings.shared_weight * shared_loss
        return value, {"clean": clean_loss.detach(), "shared": shared_loss.detach()}

    fit(model, ImageBatches(data, settings.batch_size), loss, settings)
    return model


def _unlikeliness(logits: Tensor, classes: Tensor, released: bool) -> Tensor:
    """``- log(1 - p)`` of each row (B,), p the softmax of the row's class.

    From the other classes' logits, for 1 - p is 0 in float where p is near 1. The released code
    takes the mean of that logarithm in two forms, and neither has a slope below one per cent of p
    or where the rest of it is a millionth.
    """
    others = F.one_hot(classes, logits.shape[1]).bool()
    if not released:
        return logits.logsumexp(1) - logits.masked_fill(others, -torch.inf).logsumexp(1)
    p = logits.softmax(1)
    rest, own = p.masked_fill(others, 0).sum(1), p.gather(1, classes[:, None])[:, 0]
    return -((1e-6 + rest.clamp(max=0.999)).log() + (1 + 1e-6 - own.clamp(min=0.001)).log()) / 2
