"""Trigger synthesis: Neural Cleanse (NC), and inversion by decoupled benign features (BTI-DBF)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..descent import SgdSettings, descend, mixed, seeded
from ..images import ImageDataset
from ..train import TrainSettings
from ..vision import (
    ImageBatches,
    ImageClassifier,
    ImageData,
    ImageToImage,
    fit_images,
    frozen_copy,
    image_data,
    model_copy,
    predict_images,
)
from .common import check_clean, forever, prepared, require_positive, unit

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
        require_positive(self, "steps", "step", "images", "success", "cost", "threshold", "share")


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
        raw = torch.rand(classes, channels + 1, height, width, device=device) - 0.5
        raw[:, 0] -= 2.0  # masks start at an opacity of about 0.1
        raw.requires_grad_(True)
        optimizer = torch.optim.Adam([raw], settings.step, betas=(0.5, 0.9))
        cost = torch.full((classes,), settings.cost, device=device)
        hit = torch.zeros(classes, device=device)  # running share of images turned
        best, smallest = raw.detach().sigmoid(), torch.full((classes,), torch.inf, device=device)
        batches = forever(data, min(settings.images, len(data)), rng)
        goals = torch.arange(classes, device=device)
        for step in range(settings.steps):
            images = unit(next(batches).images)
            mask, pattern = raw.sigmoid().split([1, channels], 1)
            shown = images + mask[:, None] * (pattern[:, None] - images)  # (K, B, C, H, W)
            with mixed(device, settings.precision):
                logits = model(shown.flatten(0, 1)).float()
            labels = goals.repeat_interleave(len(images))
            errors = F.cross_entropy(logits, labels, reduction="none").view(classes, -1).mean(1)
            size = mask.sum((1, 2, 3))
            (raw.grad,) = torch.autograd.grad((errors + cost * size).sum(), raw)
            with torch.no_grad():
                turned = (logits.argmax(1) == labels).view(classes, -1).float().mean(1)
                hit = 0.7 * hit + 0.3 * turned
                better = (hit >= settings.success) & (size < smallest)
                best = torch.where(better[:, None, None, None], raw.sigmoid(), best)
                smallest = torch.where(better, size, smallest)
                if step % 10 == 9:
                    up = hit >= settings.success
                    cost = torch.where(up, cost * settings.factor, cost / settings.factor)
            optimizer.step()
        # A class that nothing small leads to keeps what its last trigger came to.
        last = raw.detach().sigmoid()
        best = torch.where(smallest.isinf()[:, None, None, None], last, best)
    return best[:, :1], best[:, 1:]


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

    Where no class is flagged the model comes back unchanged, as in the paper.

    Source: Wang et al. (2019).
    """
    model, data = prepared(model, clean)
    masks, patterns = reverse_triggers(model, data, settings)
    flagged = outliers(masks.sum((1, 2, 3)), settings.threshold)
    if not len(flagged):
        return model

    def loss(model: nn.Module, batch) -> tuple[Tensor, dict]:
        x = unit(batch.images)
        which = flagged[torch.randint(len(flagged), (len(x),), device=x.device)]
        carries = torch.rand(len(x), 1, 1, 1, device=x.device) < settings.share
        shown = torch.where(carries, x + masks[which] * (patterns[which] - x), x)
        value = F.cross_entropy(model(shown).float(), batch.labels)
        return value, {"loss": value.detach()}

    descend(model, ImageBatches(data, settings.batch_size), loss, settings)
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
        require_positive(self, "mask_steps", "bound", "rounds")


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
        kept = F.cross_entropy(head(mask * features), data.labels)
        left = F.cross_entropy(head((1 - mask) * features), data.labels)
        (mask.grad,) = torch.autograd.grad(kept - left + weight * mask.mean(), mask)
        optimizer.step()
        if slack is not None:
            weight = weight * torch.where(kept.detach() < limit, 1.02, 1 / 1.02)
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
    known = predict_images(model, data.images, output=model.features).to(device)

    def change(network: nn.Module, x: Tensor) -> Tensor:
        return (x + settings.bound * network(2 * x - 1).float().tanh()).clamp(0, 1)

    def loss(network: nn.Module, batch) -> tuple[Tensor, dict]:
        shown = change(network, unit(batch.images))
        moved = known[torch.as_tensor(batch.rows, device=device)] - model.features(shown).float()
        # The norm of a difference that is exactly 0 has no gradient.
        benign, other = ((part.square().sum(1) + 1e-8).sqrt() for part in _split(mask, moved))
        value = (benign - other).mean()
        return value, {"benign": benign.detach().mean(), "other": other.detach().mean()}

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
                shown = make(x)
            logits = model(torch.cat([x, shown])).float()
            value = F.cross_entropy(logits, batch.labels.repeat(2))
            return value, {"loss": value.detach()}

        descend(model, ImageBatches(data, settings.batch_size), loss, settings)
    return model
