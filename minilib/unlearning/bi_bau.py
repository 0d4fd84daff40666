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

from ..checks import above_zero, not_negative
from ..data.images import ImageDataset
from ..models.images import ImageClassifier, frozen_copy
from ..models.loading import default_device
from ..settings import BiBauTerms
from ..training.fitting import SgdSettings, fit, seeded
from ..training.images import (
    ImageBatches,
    ImageData,
    image_data,
    predict_images,
)
from .common import prepared, unit
from .pgd import NORMS, ball, pgd, random_start, signed, straight

FISHER_NUMBERS = 2**26  # gradients of single rows held at once: 256 MiB of float32


# ----------------------------------------------------------------------- terms of the E-step


def row_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of each row in nats, (B, K) and (B,) → (B,)."""
    return F.cross_entropy(logits, labels, reduction="none")


def soft_distance(
    logits: Tensor, teacher: Tensor, temperature: float, labels: Tensor | None = None
) -> Tensor:
    """T² · KL(teacher / T ‖ logits / T) of each row in nats, (B, K) and (B, K) → (B,).

    ``labels`` (B,) are not asked here; a distance between relations of rows needs them.
    """
    ours, theirs = (v.div(temperature).log_softmax(1) for v in (logits, teacher))
    return temperature**2 * (theirs.exp() * (theirs - ours)).sum(1)


def likelihood_loss(
    logits: Tensor,
    labels: Tensor,
    teacher: Tensor,
    hard: float,
    temperature: float,
    loss: Callable[[Tensor, Tensor], Tensor] = row_cross_entropy,
    distance: Callable[[Tensor, Tensor, float, Tensor], Tensor] = soft_distance,
) -> Tensor:
    """Say how far the current model is from reading a perturbed image as the clean one.

    ``a · CE(f_θ(x'), y) + (1 - a) · T² · KL(f_b(x) / T ‖ f_θ(x') / T)``.

    Args:
        logits: f_θ(x'), (B, K). labels: y, (B,). teacher: f_b(x), (B, K), constant.
        hard: a in 0 … 1. temperature: T above 0.
        loss, distance: what stands for CE and for the KL, row by row.

    Returns: (B,) in nats. Source: Eq. (17), BI-BAU; which of the two terms a weighs is ours.
    """
    return hard * loss(logits, labels) + (1 - hard) * distance(logits, teacher, temperature, labels)


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
    sums = {name: torch.zeros_like(w) for name, w in weights.items()}
    for start in range(0, len(x), rows):
        inputs = x[start : start + rows]
        if labels is None:
            with torch.no_grad():
                probabilities = model(inputs).softmax(1)
            weighted_classes = [
                (torch.full_like(p, k, dtype=torch.long), p) for k, p in enumerate(probabilities.T)
            ]
        else:
            weighted_classes = [(labels[start : start + rows], inputs.new_ones(len(inputs)))]
        for classes, weight in weighted_classes:
            with sdpa_kernel(SDPBackend.MATH):  # the one kernel that vmap knows
                row_slopes = slopes(weights, inputs, classes)
            for name, slope in row_slopes.items():
                sums[name] += torch.einsum("b,b...->...", weight, slope.square())
    return {name: value / len(x) for name, value in sums.items()}


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
class BiBauSettings(BiBauTerms, SgdSettings):
    """Blind inversion and backdoor adversarial unlearning.

    Attributes:
        target: class that the backdoor leads to (the paper's T); None: untargeted (U).
        fooled: which model the perturbation is to fool, ``backdoored`` (the paper's condition) or
            ``current``, which makes plain adversarial training of base AT.
        steps, step, norm, start: of PGD; step in grey levels (0 … 255).
        bound, likelihood … ceiling: see ``BiBauTerms``.
        sets: which constraints act: A (likelihood, EWC), B (prior, inverse EWC), AB or none.
        features: whose features the prior term speaks of, ``backdoored`` or ``current``.
        fisher: ``labels`` (empirical) or ``model`` (expectation under the model).
        scale: ``maximum`` divides the Fisher of each set by its largest entry, so that a weight
            means the same for any network and loss; ``raw`` leaves it, and 100 of it is what the
            published trials have, many times the cross-entropy of the good solutions.
        fisher_rows: perturbed rows that F_u is computed on, once an epoch.

    Steps, bound, epochs and batch size are the paper's; all other defaults are ours. λ3 is such
    that EWC prices the weights of a model that has lost its backdoor at some tenths of a nat: from
    about one nat on it holds the backdoor. F_c is clipped at
    ``0.5 / (lr · ewc)``: a step then brings a weight at most back to its anchor, not beyond.
    """

    epochs: int = 20
    lr: float = 0.005
    batch_size: int = 256
    target: int | None = None
    steps: int = 20
    step: float = 2.0
    norm: str = "linf"
    start: str = "random"
    ewc: float = 0.1
    sets: str = "AB"
    fooled: str = "backdoored"
    features: str = "backdoored"
    fisher: str = "labels"
    scale: str = "maximum"
    fisher_rows: int = 256

    def __post_init__(self):
        super().__post_init__()
        above_zero(self, "steps", "step", "bound", "temperature", "ceiling", "fisher_rows")
        not_negative(self, "likelihood", "prior", "ewc", "inverse")
        for name in ("hard", "eta"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)!r}; accepted: 0 … 1")
        choices = {
            "norm": NORMS,
            "start": ("random", "zero"),
            "sets": ("AB", "A", "B", ""),
            "fooled": ("backdoored", "current"),
            "features": ("backdoored", "current"),
            "scale": ("maximum", "raw"),
            "fisher": ("labels", "model"),
        }
        for name, names in choices.items():
            if getattr(self, name) not in names:
                accepted = ", ".join(repr(n) for n in names)
                raise ValueError(f"{name} is {getattr(self, name)!r}; accepted: {accepted}")

    def weight(self, term: str) -> float:
        """Weight of a term, 0 where its constraint set is switched off."""
        constraint_set = "A" if term in self.A else "B"
        return getattr(self, term) if constraint_set in self.sets else 0.0


class CleanBatch(NamedTuple):
    """What is constant of a batch: x (B, …) in 0 … 1, y (B,), f_b(x) (B, K), h(x) (B, d)."""

    x: Tensor
    labels: Tensor
    logits: Tensor
    features: Tensor


def inversion_terms(
    original: ImageClassifier,
    model: ImageClassifier,
    known: CleanBatch,
    settings: BiBauSettings,
    loss: Callable[[Tensor, Tensor], Tensor] = row_cross_entropy,
    distance: Callable[[Tensor, Tensor, float, Tensor], Tensor] = soft_distance,
) -> Callable[[Tensor], dict[str, Tensor]]:
    """Make the E-step's terms of a batch as a function of the perturbed images.

    Returns: x' → ``trigger``, ``likelihood``, ``prior``, each (B,) and not yet weighted, and
    without those of weight 0. Each model runs at most once, f_θ only where a term needs it.

    Source: Eq. (22) and (27), BI-BAU.
    """
    likelihood, prior = (settings.weight(name) > 0 for name in ("likelihood", "prior"))
    models = {"backdoored": original, "current": model}
    runs = {settings.fooled} | ({"current"} if likelihood else set())
    runs |= {settings.features} if prior else set()
    goal = None if settings.target is None else torch.full_like(known.labels, settings.target)
    head_change = (original.head.weight - model.head.weight).detach().float()  # (K, d)

    def terms(perturbed_images: Tensor) -> dict[str, Tensor]:
        features = {name: models[name].features(perturbed_images) for name in sorted(runs)}
        logits = {name: models[name].head(value).float() for name, value in features.items()}
        attacked = logits[settings.fooled]
        if goal is None:
            row_losses = {"trigger": -loss(attacked, known.labels)}
        else:
            row_losses = {"trigger": loss(attacked, goal)}
        if likelihood:
            row_losses["likelihood"] = likelihood_loss(
                logits["current"], known.labels, known.logits, settings.hard, settings.temperature,
                loss, distance,
            )  # fmt: skip
        if prior:
            change = features[settings.features].float() - known.features
            classes = leading_wrong(attacked, known.labels) if goal is None else goal
            row_losses["prior"] = prior_loss(
                change, known.features, head_change[classes], settings.eta
            )
        return row_losses

    return terms


def leading_wrong(logits: Tensor, labels: Tensor) -> Tensor:
    """The likeliest class that is not the label: where an untargeted perturbation leads, (B,)."""
    true = F.one_hot(labels, logits.shape[1]).bool()
    return logits.detach().masked_fill(true, -torch.inf).argmax(1)


def inverted(
    original: ImageClassifier,
    model: ImageClassifier,
    known: CleanBatch,
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

    def objective(perturbed_images: Tensor) -> Tensor:
        row_losses = terms(perturbed_images)
        value = row_losses.pop("trigger")
        for name, term in row_losses.items():
            value = value + settings.weight(name) * term
        return value

    norm, bound, step = settings.norm, settings.bound / 255, settings.step / 255
    start = random_start(known.x, bound, norm) if settings.start == "random" else known.x
    move = signed(step) if norm == "linf" else straight(step)
    return pgd(objective, start, settings.steps, move, ball(known.x, bound, norm), watch)


def unlearning_loss(
    original: ImageClassifier,
    data: ImageData,
    settings: BiBauSettings,
    loss: Callable[[Tensor, Tensor], Tensor] = row_cross_entropy,
    distance: Callable[[Tensor, Tensor, float, Tensor], Tensor] = soft_distance,
) -> Callable:
    """Make the loss of one EM step for ``fit``: invert a batch, then what to learn from it.

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
    ewc_weight, inverse_weight = settings.weight("ewc"), settings.weight("inverse")
    fisher = {"step": 0, "due": False}
    if ewc_weight:
        clean_fisher = _fisher(original, unit(data.images), data.labels, settings)
        # Beyond this a step of SGD would overshoot the anchor, and the term would diverge.
        limit = 0.5 / (settings.lr * ewc_weight)
        fisher["clean"] = {name: value.clamp(max=limit) for name, value in clean_fisher.items()}

    def step(model: ImageClassifier, batch) -> tuple[Tensor, dict]:
        rows = torch.as_tensor(batch.rows, device=data.labels.device)
        y = batch.labels
        known = CleanBatch(unit(batch.images), y, known_logits[rows], known_features[rows])
        model.eval().requires_grad_(False)  # the images are for the model as it is used
        perturbed_images = inverted(original, model, known, settings, loss=loss, distance=distance)
        model.train().requires_grad_(True)
        # A row of the target class has no backdoor to unlearn.
        mask = torch.ones_like(y, dtype=torch.bool) if settings.target is None else (
            y != settings.target
        )  # fmt: skip
        if fisher["step"] % -(-len(data) // settings.batch_size) == 0:
            fisher["due"] = True  # once an epoch, on its first batch that has a row to unlearn
        fisher["step"] += 1
        fisher_rows = mask.nonzero().flatten()[: settings.fisher_rows]
        if inverse_weight and fisher["due"] and len(fisher_rows):
            fisher["shown"] = _fisher(
                original, perturbed_images[fisher_rows], y[fisher_rows], settings
            )
            fisher["due"] = False
        clean_logits, perturbed_logits = (
            model(torch.cat([known.x, perturbed_images])).float().split(len(y))
        )
        clean = loss(clean_logits, y).mean()
        adversarial = (loss(perturbed_logits, y) * mask).sum() / mask.sum().clamp(min=1)
        value, log = clean + adversarial, {"clean": clean, "adversarial": adversarial}
        weights = dict(model.named_parameters())
        if ewc_weight:
            log["ewc"] = ewc(weights, anchor, fisher["clean"])
            value = value + ewc_weight * log["ewc"]
        if inverse_weight and "shown" in fisher:
            log["inverse"] = inverse_ewc(weights, anchor, fisher["shown"], settings.ceiling)
            value = value + inverse_weight * log["inverse"]
        return value, {name: term.detach() for name, term in log.items()}

    return step


def _fisher(model, x: Tensor, labels: Tensor, settings: BiBauSettings) -> dict[str, Tensor]:
    with torch.autocast(x.device.type, enabled=False):
        fisher = fisher_diagonal(model, x, labels if settings.fisher == "labels" else None)
    if settings.scale == "raw":
        return fisher
    largest = torch.stack([value.max() for value in fisher.values()]).max().clamp(min=1e-30)
    return {name: value / largest for name, value in fisher.items()}


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
    fit(model, ImageBatches(data, settings.batch_size), loss, settings)
    return model


# ------------------------------------------------------------------- what the E-step makes


def clean_batch(original: ImageClassifier, dataset: ImageDataset) -> CleanBatch:
    """Compute what is constant of some rows: x, y, f_b(x), h(x)."""
    data = image_data(dataset, next(original.parameters()).device)
    x = unit(data.images)
    with torch.no_grad():
        features = original.features(x)
        return CleanBatch(x, data.labels, original.head(features), features)


def inversion_steps(
    original: ImageClassifier, model: ImageClassifier, dataset: ImageDataset, plan: BiBauSettings
) -> tuple[Tensor, list[dict]]:
    """Follow an E-step: what both models say of the images after each PGD step.

    Rows of the target class are left out where there is one.

    Returns:
        x', (N, C, H, W) in 0 … 1, and one dict per step: ``step``; mean probabilities in percent,
        ``backdoored_true``, ``backdoored_other`` (the target, or the likeliest wrong class) and
        ``current_true``; ``angle``, the mean absolute cosine between change and clean features.
    """
    if plan.target is not None:
        dataset = dataset.select(dataset.labels != plan.target)
    original, model = frozen_copy(original), frozen_copy(model)
    known, rows = clean_batch(original, dataset), []

    @torch.no_grad()
    def watch(perturbed_images: Tensor) -> None:
        probabilities = original(perturbed_images).softmax(1)
        true_probability = probabilities.gather(1, known.labels[:, None])
        if plan.target is None:
            wrong_probability = probabilities.scatter(1, known.labels[:, None], 0).amax(1)
        else:
            wrong_probability = probabilities[:, plan.target]
        current_probability = model(perturbed_images).softmax(1).gather(1, known.labels[:, None])
        change = original.features(perturbed_images) - known.features
        angle = F.cosine_similarity(change, known.features, dim=1).abs()
        means = {
            "backdoored_true": true_probability,
            "backdoored_other": wrong_probability,
            "current_true": current_probability,
        }
        means = {name: 100 * value.mean().item() for name, value in means.items()}
        rows.append({"step": len(rows), **means, "angle": angle.mean().item()})

    with seeded(plan.seed, known.x.device):
        perturbed_images = inverted(original, model, known, plan, watch)
    return perturbed_images, rows


def noise(dataset: ImageDataset, plan: BiBauSettings) -> Tensor:
    """Add uniform noise of the plan's bound, where PGD starts; (N, C, H, W) in 0 … 1."""
    x = unit(image_data(dataset, default_device()).images)
    with seeded(plan.seed, x.device):
        return random_start(x, plan.bound / 255, plan.norm)


def likeness_to_trigger(
    original: ImageClassifier, dataset: ImageDataset, triggered: ImageDataset, shown: Tensor
) -> dict:
    """Compare a perturbation with the true trigger in the backdoored model's feature space.

    For the book, not for the defender, who has no trigger.

    Args:
        dataset, triggered: the same rows without and with it. shown: the same rows perturbed.

    Returns: mean cosines of the feature change: ``to_trigger`` (with the trigger's own change) and
    ``to_clean`` (absolute, with the clean features).
    """
    known = clean_batch(original, dataset)
    shown = shown.to(known.x.device)
    with torch.no_grad():
        trigger_change = clean_batch(original, triggered).features - known.features
        change = original.features(shown) - known.features
        return {
            "to_trigger": F.cosine_similarity(change, trigger_change, dim=1).mean().item(),
            "to_clean": F.cosine_similarity(change, known.features, dim=1).abs().mean().item(),
        }
