"""Trigger synthesis: Neural Cleanse (NC), and inversion by decoupled benign features (BTI-DBF)."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checks import above_zero, not_negative
from ..data.images import ImageDataset
from ..models.images import ImageClassifier, ImageToImage, frozen_copy, model_copy
from ..training.devices import autocast
from ..training.fitting import SgdSettings, TrainSettings, fit, seeded
from ..training.images import ImageBatches, ImageData, fit_images, image_data, predict_images
from .common import check_clean, forever, prepared, unit
from .trigger_test import anomaly_indices, index_note

# ------------------------------------------------------------------------------ Neural Cleanse


@dataclass(frozen=True)
class CleanseSettings(SgdSettings):
    """Neural Cleanse.

    Attributes:
        steps: of Adam per class; step: its learning rate.
        images: images per class and step.
        success: share of images that a reversed trigger must turn before it is made smaller.
        cost: first weight of the mask's size, multiplied or divided by ``factor`` as the trigger
            succeeds or fails.
        threshold: anomaly index above which a class is flagged.
        share: of each batch that carries a reversed trigger while it is unlearned.
    """

    epochs: int = 10
    steps: int = 500
    step: float = 0.1
    images: int = 32
    success: float = 0.99
    cost: float = 1e-3
    factor: float = 1.5
    threshold: float = 2.0
    share: float = 0.2

    def __post_init__(self):
        super().__post_init__()
        above_zero(self, "steps", "step", "images", "success", "cost", "threshold", "share")
        if not self.factor > 1:
            raise ValueError(f"factor is {self.factor!r}; accepted: above 1")


def reverse_triggers(
    model: ImageClassifier, data: ImageData, settings: CleanseSettings
) -> tuple[Tensor, Tensor]:
    """Find the smallest mask and pattern that lead to each class, all classes at once.

    Minimises ``CE(f((1 - m_k) · x + m_k · p_k), k) + cost_k · |m_k|₁`` over the K masks and
    patterns. Of each class the smallest mask that reached ``success`` is kept.

    Returns:
        masks (K, 1, H, W) and patterns (K, C, H, W), float in 0 … 1.

    Source: Wang et al. (2019). One forward serves all classes; their code visits the
    classes one after another.
    """
    model = frozen_copy(model)
    device, classes = data.labels.device, model.head.out_features
    _, channels, height, width = data.images.shape
    with seeded(settings.seed, device) as rng:
        raw_triggers = torch.rand(classes, channels + 1, height, width, device=device) - 0.5
        raw_triggers[:, 0] -= 2.0  # masks start at an opacity of about 0.1
        raw_triggers.requires_grad_(True)
        optimizer = torch.optim.Adam([raw_triggers], settings.step, betas=(0.5, 0.9))
        cost = torch.full((classes,), settings.cost, device=device)
        hit_rates = torch.zeros(classes, device=device)  # running share of images turned
        best_triggers, smallest_sizes = (
            raw_triggers.detach().sigmoid(),
            torch.full((classes,), torch.inf, device=device),
        )
        batches = forever(data, min(settings.images, len(data)), rng)
        goals = torch.arange(classes, device=device)
        for step in range(settings.steps):
            images = unit(next(batches).images)
            mask, pattern = raw_triggers.sigmoid().split([1, channels], 1)
            patched_images = images + mask[:, None] * (pattern[:, None] - images)  # (K, B, C, H, W)
            with autocast(device, settings.precision, scaled=False):
                logits = model(patched_images.flatten(0, 1)).float()
            labels = goals.repeat_interleave(len(images))
            errors = F.cross_entropy(logits, labels, reduction="none").view(classes, -1).mean(1)
            size = mask.sum((1, 2, 3))
            (raw_triggers.grad,) = torch.autograd.grad((errors + cost * size).sum(), raw_triggers)
            with torch.no_grad():
                rates = (logits.argmax(1) == labels).view(classes, -1).float().mean(1)
                hit_rates = 0.7 * hit_rates + 0.3 * rates
                better = (hit_rates >= settings.success) & (size < smallest_sizes)
                best_triggers = torch.where(
                    better[:, None, None, None], raw_triggers.sigmoid(), best_triggers
                )
                smallest_sizes = torch.where(better, size, smallest_sizes)
                if step % 10 == 9:
                    up = hit_rates >= settings.success
                    cost = torch.where(up, cost * settings.factor, cost / settings.factor)
            optimizer.step()
        # A class that nothing small leads to keeps what its last trigger came to.
        last = raw_triggers.detach().sigmoid()
        best_triggers = torch.where(
            smallest_sizes.isinf()[:, None, None, None], last, best_triggers
        )
    return best_triggers[:, :1], best_triggers[:, 1:]


def outliers(sizes: Tensor, threshold: float) -> Tensor:
    """Classes (indices) whose mask is far smaller than the others'.

    The anomaly index is the distance to the median in units of 1.4826 · median absolute deviation.
    ``sizes`` (K,). Source: Wang et al. (2019).
    """
    distance = sizes.median() - sizes
    spread = 1.4826 * distance.abs().median()
    return torch.where(distance > threshold * spread.clamp(min=1e-12))[0]


def neural_cleanse(
    model: ImageClassifier, clean: ImageDataset, settings: CleanseSettings
) -> ImageClassifier:
    """NC: reverse a trigger for each class, flag outliers, unlearn theirs with true labels.

    Where no class is flagged the model comes back unchanged, as in the paper. With classes too few
    for the test (INDEX_CLASSES) it says so in a warning, with the largest index.

    Source: Wang et al. (2019).
    """
    model, data = prepared(model, clean)
    masks, patterns = reverse_triggers(model, data, settings)
    if note := index_note(clean.num_classes):
        index = anomaly_indices(masks.sum((1, 2, 3)).tolist()).max()
        warnings.warn(f"{note}; the largest index here is {index:.2f}", stacklevel=3)
    flagged_classes = outliers(masks.sum((1, 2, 3)), settings.threshold)
    if not len(flagged_classes):
        return model

    def loss(model: nn.Module, batch) -> tuple[Tensor, dict]:
        x = unit(batch.images)
        classes = flagged_classes[torch.randint(len(flagged_classes), (len(x),), device=x.device)]
        carriers = torch.rand(len(x), 1, 1, 1, device=x.device) < settings.share
        mixed_images = torch.where(carriers, x + masks[classes] * (patterns[classes] - x), x)
        value = F.cross_entropy(model(mixed_images).float(), batch.labels)
        return value, {"loss": value.detach()}

    fit(model, ImageBatches(data, settings.batch_size), loss, settings)
    return model


# ------------------------------------------------------------------------------------ BTI-DBF


@dataclass(frozen=True)
class BtiSettings(SgdSettings):
    """Inversion by decoupled benign features, and unlearning of what it makes.

    Attributes:
        mask_steps: of Adam (0.01) on the mask over features.
        slack: the mask shrinks to as few features as keep the clean loss within this many
            nats of the unmasked one (ours); None is the paper's objective alone.
        generator: how the generator is trained, each round.
        bound: largest change of a pixel, in units of 255.
        rounds: the generator is made anew for the model as it then is; epochs are per round.
    """

    epochs: int = 5
    mask_steps: int = 500
    generator: TrainSettings = field(
        default_factory=lambda: TrainSettings(10, 2e-3, 64, schedule="linear")
    )
    slack: float | None = 0.1
    bound: float = 0.3
    rounds: int = 3

    def __post_init__(self):
        super().__post_init__()
        above_zero(self, "mask_steps", "bound", "rounds")
        if self.slack is not None:
            not_negative(self, "slack")


def benign_mask(
    model: ImageClassifier,
    data: ImageData,
    steps: int,
    slack: float | None = None,
    step: float = 0.01,
) -> Tensor:
    """Tell benign features from the rest: a mask (d,) in 0 … 1.

    Minimises ``CE(head(m · h), y) - CE(head((1 - m) · h), y)``. The features h are constant and
    computed once; only the head runs in the loop.

    A feature that sleeps on clean images, as a backdoor's does, changes neither term: the objective
    leaves it where it began, and a mask of ones makes the generator the identity. With ``slack``
    (nats) a weight on the mask's mean grows while the first term is within it of its value
    unmasked and shrinks while it is not, which closes all that the clean task can do without.

    Source: Xu et al. (2024).
    """
    features = predict_images(model, data.images, output=model.features).to(data.labels.device)
    head = model.head
    mask = torch.ones(features.shape[1], device=features.device, requires_grad=True)
    optimizer = torch.optim.Adam([mask], step)
    limit = F.cross_entropy(head(features), data.labels).detach() + (slack or 0.0)
    weight = torch.tensor(0.0 if slack is None else 0.1, device=features.device)
    for _ in range(steps):
        benign_loss = F.cross_entropy(head(mask * features), data.labels)
        rest_loss = F.cross_entropy(head((1 - mask) * features), data.labels)
        (mask.grad,) = torch.autograd.grad(benign_loss - rest_loss + weight * mask.mean(), mask)
        optimizer.step()
        if slack is not None:
            weight = weight * torch.where(benign_loss.detach() < limit, 1.02, 1 / 1.02)
        # Clipped, not squashed: a squashed mask that once went to 1 for all would stay there.
        mask.data.clamp_(0, 1)
    return mask.detach()


def decoupled_inversion(
    model: ImageClassifier, clean: ImageDataset, settings: BtiSettings
) -> Callable[[Tensor], Tensor]:
    """Train a generator of backdoor-like images: benign features stay, the others move.

    Minimises ``‖m · (h(x) - h(G(x)))‖ - ‖(1 - m) · (h(x) - h(G(x)))‖``, the mean over images, with
    ``|G(x) - x| ≤ bound`` by construction (the authors punish larger changes instead).

    Returns:
        ``make(x)``: float images in 0 … 1 → the same, eval mode, no gradient needed.

    Source: Xu et al. (2024).
    """
    check_clean(model, clean)
    model = frozen_copy(model)
    device = next(model.parameters()).device
    data = image_data(clean, device)
    mask = benign_mask(model, data, settings.mask_steps, settings.slack)
    with seeded(settings.seed, device):
        generator = ImageToImage(clean.shape[0], clean.shape[0]).to(device)
    clean_features = predict_images(model, data.images, output=model.features).to(device)

    def change(network: nn.Module, x: Tensor) -> Tensor:
        return (x + settings.bound * network(2 * x - 1).float().tanh()).clamp(0, 1)

    def loss(network: nn.Module, batch) -> tuple[Tensor, dict]:
        generated_images = change(network, unit(batch.images))
        feature_change = (
            clean_features[torch.as_tensor(batch.rows, device=device)]
            - model.features(generated_images).float()
        )
        # The norm of a difference that is exactly 0 has no gradient.
        benign_norms, other_norms = (
            (part.square().sum(1) + 1e-8).sqrt() for part in _split(mask, feature_change)
        )
        value = (benign_norms - other_norms).mean()
        return value, {"benign": benign_norms.detach().mean(), "other": other_norms.detach().mean()}

    fit_images(generator, data, settings.generator, loss=loss)
    generator.requires_grad_(False)
    return lambda x: change(generator, x)


def _split(mask: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
    return mask * features, (1 - mask) * features


def decoupled_unlearning(
    model: ImageClassifier, clean: ImageDataset, settings: BtiSettings
) -> ImageClassifier:
    """BTI-DBF: unlearn the generator's images with true labels, renewing the generator each round.

    Source: Xu et al. (2024), the unlearning variant.
    """
    model, data = prepared(model, clean)
    for _ in range(settings.rounds):
        make = decoupled_inversion(model_copy(model), clean, settings)

        def loss(model: nn.Module, batch, make=make) -> tuple[Tensor, dict]:
            x = unit(batch.images)
            with torch.no_grad():
                generated_images = make(x)
            logits = model(torch.cat([x, generated_images])).float()
            value = F.cross_entropy(logits, batch.labels.repeat(2))
            return value, {"loss": value.detach()}

        fit(model, ImageBatches(data, settings.batch_size), loss, settings)
    return model
