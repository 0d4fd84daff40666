"""Adversarial unlearning: I-BAU (one universal perturbation), SAU (shared adversarial images)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..descent import SgdSettings, descend, seeded
from ..images import ImageDataset
from ..vision import ImageBatches, ImageClassifier, frozen_copy
from .common import prepared, require_positive, unit

# ------------------------------------------------------------------------------------- I-BAU


@dataclass(frozen=True)
class IBauSettings:
    """Implicit backdoor adversarial unlearning.

    Attributes:
        rounds: of finding a perturbation and unlearning it, one epoch each.
        lr: of Adam on the weights. batch_size: images per outer step.
        inner_steps, inner_lr: gradient ascent on the perturbation, from 0, each round.
        bound: largest L2 norm of the perturbation, images in 0 … 1.
        decay: weight of the perturbation's squared norm in the inner problem, which makes its map a
            contraction. terms: K of the fixed-point iteration for the hypergradient.
        portion: share of an outer batch that is shown with the perturbation, at least one image.
            The paper perturbs all; its released code one in a hundred.
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
    seed: int = 0

    def __post_init__(self):
        require_positive(self, "rounds", "lr", "batch_size", "inner_steps", "inner_lr", "bound")
        if not self.terms >= 1:
            raise ValueError(f"terms is {self.terms!r}; accepted: 1 or more")
        if not 0 < self.portion <= 1:
            raise ValueError(f"portion is {self.portion!r}; accepted: above 0, at most 1")


def universal_perturbation(
    model: nn.Module, images: Tensor, labels: Tensor, settings: IBauSettings
) -> Tensor:
    """Find one perturbation (1, C, H, W) that hurts ``model`` most on these images.

    Ascends the mean CE less ``decay · ‖δ‖²`` by normalised steps, projected to the L2 ball.
    ``images``: (N, C, H, W) float in 0 … 1.
    """
    delta = torch.zeros_like(images[:1])
    for step in range(settings.inner_steps):
        delta.requires_grad_(True)
        rows = slice(step * 100 % len(images), step * 100 % len(images) + 100)
        value = F.cross_entropy(model((images[rows] + delta).clamp(0, 1)), labels[rows])
        (slope,) = torch.autograd.grad(value - settings.decay * delta.square().sum(), delta)
        delta = (delta + settings.inner_lr * slope / (slope.norm() + 1e-12)).detach()
        delta = delta * (settings.bound / delta.norm().clamp(min=1e-12)).clamp(max=1)
    return delta


def hypergradient(
    model: nn.Module,
    weights: list[Tensor],
    delta: Tensor,
    images: Tensor,
    labels: Tensor,
    decay: float,
    terms: int,
    rate: float = 0.1,
    portion: float = 1.0,
) -> tuple[Tensor, list[Tensor]]:
    """Outer loss at ``delta`` and its total gradient, in which δ follows the weights.

    The first ``portion`` of the images carry δ in the outer loss, all of them in the inner one.

    With Φ(δ, θ) = δ - rate · ∂(−CE + decay · ‖δ‖²)/∂δ, one step of the inner problem, the implicit
    term is ``(∂Φ/∂θ)ᵀ v`` where v solves ``v = (∂Φ/∂δ)ᵀ v + ∂CE/∂δ``, iterated ``terms`` times.

    Source: Zeng et al. (2022), the fixed-point variant.
    """
    delta = delta.detach().requires_grad_(True)
    outer = F.cross_entropy(model((images + delta).clamp(0, 1)), labels)
    slope, *direct = torch.autograd.grad(outer, [delta, *weights], create_graph=True)
    phi = delta - rate * (2 * decay * delta - slope)
    wanted = slope.detach()
    if portion < 1:
        some = max(1, round(portion * len(images)))
        shown = torch.cat([images[:some] + delta, images[some:]]).clamp(0, 1)
        outer = F.cross_entropy(model(shown), labels)
        wanted, *direct = torch.autograd.grad(outer, [delta, *weights])
    v = wanted
    for _ in range(terms - 1):
        (pulled,) = torch.autograd.grad(phi, delta, v, retain_graph=True)
        v = pulled + wanted
    implicit = torch.autograd.grad(phi, weights, v, allow_unused=True)
    total = [
        d.detach() if i is None else d.detach() + i for d, i in zip(direct, implicit, strict=True)
    ]
    return outer.detach(), total


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
    with seeded(settings.seed, data.labels.device) as rng:
        for _ in range(settings.rounds):
            order = torch.as_tensor(rng.permutation(len(data)), device=data.labels.device)
            images, labels = unit(data.images[order]), data.labels[order]
            model.requires_grad_(False)
            delta = universal_perturbation(model, images, labels, settings)
            model.requires_grad_(True)
            for rows in ImageBatches(data, settings.batch_size)(rng):
                _, total = hypergradient(
                    model, weights, delta, unit(rows.images), rows.labels,
                    settings.decay, settings.terms, portion=settings.portion,
                )  # fmt: skip
                for weight, slope in zip(weights, total, strict=True):
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

    def __post_init__(self):
        super().__post_init__()
        require_positive(self, "bound", "steps", "step")


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
    delta = torch.empty_like(x).uniform_(-settings.bound, settings.bound)
    for _ in range(settings.steps):
        delta = ((x + delta).clamp(0, 1) - x).requires_grad_(True)
        ours, theirs = model(x + delta).float(), reference(x + delta).float()
        fool = (F.cross_entropy(ours, y) + F.cross_entropy(theirs, y)) / 2
        found = ours.argmax(1)
        open_ = (found != theirs.argmax(1)) | (found == y)
        apart = (shared_divergence(ours, theirs) * open_).mean()
        value = settings.adversarial_weight * fool - settings.share_weight * apart
        (slope,) = torch.autograd.grad(value, delta)
        delta = (delta + settings.step * slope.sign()).detach()
        delta = delta.clamp(-settings.bound, settings.bound)
    return (x + delta).clamp(0, 1)


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
        shown = shared_images(model, reference, x, y, settings)
        model.train().requires_grad_(True)
        with torch.no_grad():
            wrong = reference(shown).argmax(1)
        logits, other = model(torch.cat([x, shown])).float().split(len(x))
        right = F.cross_entropy(logits, y)
        # log(1 - p) from the other classes' logits, for 1 - p is 0 in float where p is near 1.
        rest = other.masked_fill(F.one_hot(wrong, other.shape[1]).bool(), -torch.inf)
        forget = other.logsumexp(1) - rest.logsumexp(1)
        active = (wrong != y).float()
        shared = (forget * active).sum() / active.sum().clamp(min=1)
        value = settings.clean_weight * right + settings.shared_weight * shared
        return value, {"clean": right.detach(), "shared": shared.detach()}

    descend(model, ImageBatches(data, settings.batch_size), loss, settings)
    return model
