"""BI-BAU: unlearn a backdoor as a blind inversion, by expectation and maximisation.

The E-step makes images that the backdoored model f_b takes for triggered ones and that the current
model still reads; the M-step teaches the current model their true classes, and holds or pushes its
weights. The paper's text has lost its symbols and its released code is not to be had, so formulas
follow our reconstruction and every value that the text lacks is called "ours".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..descent import SgdSettings, descend
from ..images import ImageDataset
from ..vision import (
    ImageBatches,
    ImageClassifier,
    ImageData,
    frozen_copy,
    predict_images,
)
from .common import prepared, require_positive, unit

NORMS = ("linf", "l2")
FISHER_NUMBERS = 2**26  # gradients of single rows held at once: 256 MiB of float32


# ------------------------------------------------------------------------------------- PGD


def project(x: Tensor, shown: Tensor, bound: float, norm: str) -> Tensor:
    """Bring ``shown`` into the ball of ``bound`` around each row of ``x`` and into 0 … 1."""
    delta = shown - x
    if norm == "linf":
        delta = delta.clamp(-bound, bound)
    else:
        delta = delta * (bound / lengths(delta).clamp(min=1e-12)).clamp(max=1)
    return (x + delta).clamp(0, 1)


def lengths(rows: Tensor) -> Tensor:
    """L2 norm of each row, (B, …) → (B, 1, …)."""
    return rows.flatten(1).norm(dim=1).reshape(-1, *[1] * (rows.ndim - 1))


def random_start(x: Tensor, bound: float, norm: str) -> Tensor:
    """Draw a point of the ball around each row of ``x``, uniformly, and cut it to 0 … 1."""
    if norm == "linf":
        delta = torch.empty_like(x).uniform_(-bound, bound)
    else:
        delta = torch.randn_like(x)
        radius = torch.rand(len(x), device=x.device, dtype=x.dtype) ** (1 / x[0].numel())
        delta = delta * (bound * radius.reshape(-1, *[1] * (x.ndim - 1)) / lengths(delta))
    return project(x, x + delta, bound, norm)


def pgd(
    loss: Callable[[Tensor], Tensor],
    x: Tensor,
    steps: int,
    step: float,
    bound: float,
    norm: str = "linf",
    start: str = "random",
    watch: Callable[[Tensor], None] | None = None,
) -> Tensor:
    """Find inputs near ``x`` with a small loss, by projected descent of constant length.

    One call of ``loss`` and one backward pass per step. Rows must not meet in ``loss``: its value
    is their sum, so that the gradient of a row is its own.

    Args:
        loss: (B, …) inputs → (B,) losses in nats. x: (B, …) float in 0 … 1.
        step, bound: largest change of a number per step and in all (``linf``), or L2 length per
            row (``l2``), in units of ``x``.
        start: ``random``, a point of the ball, or ``zero``.
        watch: called with the inputs before each step, and at last with the result.

    Returns: (B, …) in 0 … 1 and in the ball.

    Raises:
        ValueError: unknown norm or start.

    Source: the inner problem of Eq. (26) and appendix D.3, BI-BAU.
    """
    if norm not in NORMS:
        raise ValueError(f"norm is {norm!r}; accepted: {', '.join(NORMS)}")
    if start not in ("random", "zero"):
        raise ValueError(f"start is {start!r}; accepted: random, zero")
    shown = random_start(x, bound, norm) if start == "random" else x
    for _ in range(steps):
        shown = shown.detach().requires_grad_(True)
        if watch:
            watch(shown.detach())
        (slope,) = torch.autograd.grad(loss(shown).sum(), shown)
        line = slope.sign() if norm == "linf" else slope / lengths(slope).clamp(min=1e-12)
        shown = project(x, shown.detach() - step * line, bound, norm)
    if watch:
        watch(shown.detach())
    return shown.detach()


# ----------------------------------------------------------------------- terms of the E-step


def row_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of each row in nats, (B, K) and (B,) → (B,)."""
    return F.cross_entropy(logits, labels, reduction="none")


def soft_distance(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T² · KL(teacher / T ‖ logits / T) of each row in nats, (B, K) and (B, K) → (B,)."""
    ours, theirs = (v.div(temperature).log_softmax(1) for v in (logits, teacher))
    return temperature**2 * (theirs.exp() * (theirs - ours)).sum(1)


def likelihood_loss(
    logits: Tensor,
    labels: Tensor,
    teacher: Tensor,
    hard: float,
    temperature: float,
    loss: Callable[[Tensor, Tensor], Tensor] = row_cross_entropy,
    distance: Callable[[Tensor, Tensor, float], Tensor] = soft_distance,
) -> Tensor:
    """Say how far the current model is from reading a perturbed image as the clean one.

    ``a · CE(f_θ(x'), y) + (1 - a) · T² · KL(f_b(x) / T ‖ f_θ(x') / T)``.

    Args:
        logits: f_θ(x'), (B, K). labels: y, (B,). teacher: f_b(x), (B, K), constant.
        hard: a in 0 … 1. temperature: T above 0.
        loss, distance: what stands for CE and for the KL, row by row.

    Returns: (B,) in nats. Source: Eq. (17), BI-BAU; which of the two terms a weighs is ours.
    """
    return hard * loss(logits, labels) + (1 - hard) * distance(logits, teacher, temperature)


def prior_loss(change: Tensor, features: Tensor, direction: Tensor, eta: float) -> Tensor:
    """Say how badly a perturbation is placed between the backdoor and the clean features.

    ``-(1 - η) · ⟨h(x') - h(x), w_b - w_θ⟩ + η · |cos(h(x') - h(x), h(x))|``: at η = 1 it asks for
    a change of features orthogonal to the clean ones, at η = 0 for one along the backdoor.

    Args:
        change: h(x') - h(x), (B, d). features: h(x), (B, d).
        direction: W_b - W_θ of the class in question, (d,), or of each row's, (B, d).
        eta: η in 0 … 1.

    Returns: (B,), in units of a logit (first term) and in 0 … 1 (second).
    Source: Eq. (20) and (21), BI-BAU; that a class's row stands for the matrix is ours.
    """
    along = (change * direction).sum(1)
    angle = F.cosine_similarity(change, features, dim=1).abs()
    return eta * angle - (1 - eta) * along


# ----------------------------------------------------------------------- terms of the M-step


def fisher_diagonal(
    model: nn.Module, x: Tensor, labels: Tensor | None = None, rows: int | None = None
) -> dict[str, Tensor]:
    """Compute the diagonal of the Fisher information from exact per-row gradients.

    Args:
        model: in eval mode; inputs → logits. x: (N, …) float. labels: (N,) given classes (the
            empirical Fisher); None takes the model's own distribution over classes.
        rows: whose gradients are held at once; default: as many as fit into 256 MiB.

    Returns: name → mean over rows of (∂ log p / ∂θ)², of the parameter's shape.

    Source: F in Eq. (23) and (24), BI-BAU.
    """
    weights = {name: p.detach() for name, p in model.named_parameters()}
    buffers = dict(model.named_buffers())

    def log_p(weights: dict, row: Tensor, label: Tensor) -> Tensor:
        logits = torch.func.functional_call(model, (weights, buffers), (row[None],))
        return logits[0].log_softmax(0).gather(0, label[None])[0]

    slopes = torch.func.vmap(torch.func.grad(log_p), (None, 0, 0))
    rows = rows or max(1, FISHER_NUMBERS // sum(w.numel() for w in weights.values()))
    total = {name: torch.zeros_like(w) for name, w in weights.items()}
    for start in range(0, len(x), rows):
        part = x[start : start + rows]
        if labels is None:
            with torch.no_grad():
                share = model(part).softmax(1)
            asked = [(torch.full_like(p, k, dtype=torch.long), p) for k, p in enumerate(share.T)]
        else:
            asked = [(labels[start : start + rows], part.new_ones(len(part)))]
        for classes, weight in asked:
            with sdpa_kernel(SDPBackend.MATH):  # the one kernel that vmap knows
                found = slopes(weights, part, classes)
            for name, slope in found.items():
                total[name] += torch.einsum("b,b...->...", weight, slope.square())
    return {name: value / len(x) for name, value in total.items()}


Weights = Mapping[str, Tensor]


def ewc(weights: Weights, anchor: Weights, fisher: Weights) -> Tensor:
    """Elastic weight consolidation: Σ F · (θ - θ_b)² over all weights.

    Args:
        weights, anchor, fisher: name → θ, θ_b, F; of one shape each, named as in ``fisher``.

    Returns: a scalar ≥ 0, 0 at the anchor. Source: Eq. (23), BI-BAU.
    """
    parts = [(f * (weights[name] - anchor[name]).square()).sum() for name, f in fisher.items()]
    return torch.stack(parts).sum()


def inverse_ewc(weights: Weights, anchor: Weights, fisher: Weights, ceiling: float) -> Tensor:
    """Reward weights for leaving the anchor: clip(1 / Σ F · (θ - θ_b)², 0, ``ceiling``).

    At the ceiling, so also at the anchor, its gradient is 0. Arguments as for ``ewc``.

    Returns: a scalar in 0 … ``ceiling``. Source: Eq. (24), BI-BAU.
    """
    # As 1 / max(·, 1 / ceiling): the clip of 1 / 0 would have a gradient of 0 · ∞.
    return 1 / ewc(weights, anchor, fisher).clamp(min=1 / ceiling)


# --------------------------------------------------------------------------------- the method


@dataclass(frozen=True)
class BiBauSettings(SgdSettings):
    """Blind inversion and backdoor adversarial unlearning.

    Attributes:
        target: class that the backdoor leads to (the paper's T); None: untargeted (U).
        steps, step, bound, norm, start: of PGD; step and bound in grey levels (0 … 255).
        likelihood, prior: λ1, λ2 of the E-step. ewc, inverse: λ3, λ4 of the M-step.
        hard, temperature: a and T of the likelihood term. eta: η of the prior term.
        ceiling: c, the clip of the inverse EWC.
        sets: which constraints act: A (likelihood, EWC), B (prior, inverse EWC), AB or none.
        features: whose features the prior term speaks of, ``backdoored`` or ``current``.
        fisher: ``labels`` (empirical) or ``model`` (expectation under the model).
        fisher_rows: perturbed rows of an epoch's first batch that F_u is computed on.

    Steps, bound, epochs and batch size are the paper's; all other defaults are ours, chosen by
    ``bi_bau.chosen`` on backdoors planted beside BadNets in digits. F_c is clipped at
    ``0.5 / (lr · ewc)``: a step then brings a weight at most back to its anchor, not beyond.
    """

    epochs: int = 20
    lr: float = 0.005
    batch_size: int = 256
    target: int | None = None
    steps: int = 20
    step: float = 2.0
    bound: float = 25.0
    norm: str = "linf"
    start: str = "random"
    likelihood: float = 1.0
    prior: float = 1.0
    ewc: float = 100.0
    inverse: float = 1.0
    hard: float = 0.5
    temperature: float = 1.0
    eta: float = 0.5
    ceiling: float = 1.0
    sets: str = "AB"
    features: str = "backdoored"
    fisher: str = "labels"
    fisher_rows: int = 256

    def __post_init__(self):
        super().__post_init__()
        require_positive(self, "steps", "step", "bound", "temperature", "ceiling", "fisher_rows")
        for name in ("likelihood", "prior", "ewc", "inverse"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} is {getattr(self, name)!r}; accepted: 0 or above")
        for name in ("hard", "eta"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)!r}; accepted: 0 … 1")
        known = {
            "norm": NORMS,
            "start": ("random", "zero"),
            "sets": ("AB", "A", "B", ""),
            "features": ("backdoored", "current"),
            "fisher": ("labels", "model"),
        }
        for name, names in known.items():
            if getattr(self, name) not in names:
                accepted = ", ".join(repr(n) for n in names)
                raise ValueError(f"{name} is {getattr(self, name)!r}; accepted: {accepted}")

    def weight(self, term: str) -> float:
        """Weight of a term, 0 where its constraint set is switched off."""
        own = "A" if term in ("likelihood", "ewc") else "B"
        return getattr(self, term) if own in self.sets else 0.0


class Known(NamedTuple):
    """What is constant of a batch: x (B, …) in 0 … 1, y (B,), f_b(x) (B, K), h(x) (B, d)."""

    x: Tensor
    labels: Tensor
    logits: Tensor
    features: Tensor


def inversion_terms(
    original: ImageClassifier,
    model: ImageClassifier,
    known: Known,
    settings: BiBauSettings,
    loss: Callable[[Tensor, Tensor], Tensor] = row_cross_entropy,
    distance: Callable[[Tensor, Tensor, float], Tensor] = soft_distance,
) -> Callable[[Tensor], dict[str, Tensor]]:
    """Make the E-step's terms of a batch as a function of the perturbed images.

    Returns: x' → ``trigger``, ``likelihood``, ``prior``, each (B,) and not yet weighted, and
    without those of weight 0. Each model runs at most once, f_θ only where a term needs it.

    Source: Eq. (22) and (27), BI-BAU.
    """
    likelihood, prior = (settings.weight(name) > 0 for name in ("likelihood", "prior"))
    own_features = prior and settings.features == "current"
    goal = None if settings.target is None else torch.full_like(known.labels, settings.target)
    moved = (original.head.weight - model.head.weight).detach().float()  # (K, d)

    def terms(shown: Tensor) -> dict[str, Tensor]:
        features = original.features(shown)
        logits, features = original.head(features).float(), features.float()
        if goal is None:
            found = {"trigger": -loss(logits, known.labels)}
        else:
            found = {"trigger": loss(logits, goal)}
        if likelihood or own_features:
            ours = model.features(shown)
            read, ours = model.head(ours).float(), ours.float()
        if likelihood:
            found["likelihood"] = likelihood_loss(
                read, known.labels, known.logits, settings.hard, settings.temperature, loss,
                distance,
            )  # fmt: skip
        if prior:
            change = (ours if own_features else features) - known.features
            to = leading_wrong(logits, known.labels) if goal is None else goal
            found["prior"] = prior_loss(change, known.features, moved[to], settings.eta)
        return found

    return terms


def leading_wrong(logits: Tensor, labels: Tensor) -> Tensor:
    """The likeliest class that is not the label: where an untargeted perturbation leads, (B,)."""
    true = F.one_hot(labels, logits.shape[1]).bool()
    return logits.detach().masked_fill(true, -torch.inf).argmax(1)


def inverted(
    original: ImageClassifier,
    model: ImageClassifier,
    known: Known,
    settings: BiBauSettings,
    watch: Callable[[Tensor], None] | None = None,
    **losses: Callable,
) -> Tensor:
    """E-step: perturb images so that f_b sees the backdoor in them and f_θ their own class.

    Both models in eval mode, without gradients towards weights. Arguments as for
    ``inversion_terms`` and, ``watch``, ``pgd``. Returns: x' (B, …) in 0 … 1.
    """
    if settings.features == "current" and settings.weight("prior") > 0:
        with torch.no_grad():
            known = known._replace(features=model.features(known.x).float())
    terms = inversion_terms(original, model, known, settings, **losses)

    def objective(shown: Tensor) -> Tensor:
        found = terms(shown)
        value = found.pop("trigger")
        for name, term in found.items():
            value = value + settings.weight(name) * term
        return value

    return pgd(
        objective, known.x, settings.steps, settings.step / 255, settings.bound / 255,
        settings.norm, settings.start, watch,
    )  # fmt: skip


def unlearning_loss(
    original: ImageClassifier,
    data: ImageData,
    settings: BiBauSettings,
    loss: Callable[[Tensor, Tensor], Tensor] = row_cross_entropy,
    distance: Callable[[Tensor, Tensor, float], Tensor] = soft_distance,
) -> Callable:
    """Make the loss of one EM step for ``descend``: invert a batch, then what to learn from it.

    Args:
        original: f_b, frozen, in eval mode; what has ``features`` and a linear ``head`` will do.
        data: the defender's rows, on its device.
        loss, distance: classification loss of a row (another task's in place of CE) and the
            distance to f_b's outputs in the likelihood term.

    Source: Eq. (25) to (27), BI-BAU.
    """
    known_features = predict_images(original, data.images, settings.precision, original.features)
    known_features = known_features.to(data.labels.device)
    with torch.no_grad():
        known_logits = original.head(known_features)
    anchor = {name: p.detach() for name, p in original.named_parameters()}
    pull, push = settings.weight("ewc"), settings.weight("inverse")
    fisher = {"step": 0}
    if pull:
        found = _fisher(original, unit(data.images), data.labels, settings)
        # Beyond this a step of SGD would overshoot the anchor, and the term would diverge.
        most = 0.5 / (settings.lr * pull)
        fisher["clean"] = {name: value.clamp(max=most) for name, value in found.items()}

    def step(model: ImageClassifier, batch) -> tuple[Tensor, dict]:
        rows = torch.as_tensor(batch.rows, device=data.labels.device)
        y = batch.labels
        known = Known(unit(batch.images), y, known_logits[rows], known_features[rows])
        model.eval().requires_grad_(False)  # the images are for the model as it is used
        shown = inverted(original, model, known, settings, loss=loss, distance=distance)
        model.train().requires_grad_(True)
        # A row of the target class has no backdoor to unlearn.
        active = torch.ones_like(y, dtype=torch.bool) if settings.target is None else (
            y != settings.target
        )  # fmt: skip
        if push and fisher["step"] % -(-len(data) // settings.batch_size) == 0:
            some = active.nonzero().flatten()[: settings.fisher_rows]
            if len(some):
                fisher["shown"] = _fisher(original, shown[some], y[some], settings)
        fisher["step"] += 1
        own, other = model(torch.cat([known.x, shown])).float().split(len(y))
        clean = loss(own, y).mean()
        adversarial = (loss(other, y) * active).sum() / active.sum().clamp(min=1)
        value, log = clean + adversarial, {"clean": clean, "adversarial": adversarial}
        weights = dict(model.named_parameters())
        if pull:
            log["ewc"] = ewc(weights, anchor, fisher["clean"])
            value = value + pull * log["ewc"]
        if push and "shown" in fisher:
            log["inverse"] = inverse_ewc(weights, anchor, fisher["shown"], settings.ceiling)
            value = value + push * log["inverse"]
        return value, {name: term.detach() for name, term in log.items()}

    return step


def _fisher(model, x: Tensor, labels: Tensor, settings: BiBauSettings) -> dict[str, Tensor]:
    with torch.autocast(x.device.type, enabled=False):
        return fisher_diagonal(model, x, labels if settings.fisher == "labels" else None)


def blind_inversion(
    model: ImageClassifier, clean: ImageDataset, settings: BiBauSettings
) -> ImageClassifier:
    """BI-BAU: unlearn what only the backdoored model sees in perturbed images.

    Raises:
        ValueError: a target outside the classes.

    Source: section 4.3, BI-BAU.
    """
    if settings.target is not None and not 0 <= settings.target < clean.num_classes:
        raise ValueError(f"target is {settings.target!r}; accepted: 0 … {clean.num_classes - 1}")
    original = frozen_copy(model)
    model, data = prepared(model, clean)
    loss = unlearning_loss(original, data, settings)
    descend(model, ImageBatches(data, settings.batch_size), loss, settings)
    return model
