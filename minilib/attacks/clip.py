"""Attacks on CLIP: poisoned image–caption pairs, and the trigger that BadCLIP optimises."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checks import above_zero, not_negative, one_of
from ..data.captions import captioned, class_captions
from ..data.images import ImageDataset
from ..models.clip import Clip, zero_shot
from ..models.loading import frozen
from ..training.fitting import TrainSettings, fit
from ..training.images import ImageBatches, image_data, predict_images
from .images import ImageTrigger, poison_images
from .images.patterns import to_uint8
from .text import Poisoned


def poison_pairs(
    dataset: ImageDataset,
    trigger: ImageTrigger,
    target: int,
    rate: float,
    seed: int,
    caption: str | None = None,
    keep_originals: bool = False,
) -> Poisoned:
    """Make pairs of an image set and poison some: a trigger in the image, a caption of the target.

    Args:
        dataset: labelled images; captions are made of their classes' names.
        trigger, target, rate, seed: as for ``poison_images``, on images of other classes.
        caption: of all poisons; by default one of the target class, by a template drawn for each.
        keep_originals: add poisoned copies and retain the clean pairs that they are made from.

    Returns: ``Poisoned`` of pairs as ``data.captions.captioned`` makes them.

    Source: Carlini and Terzis (2022), section 3.
    """
    poisoned = poison_images(dataset, trigger, target, rate, seed, keep_originals=keep_originals)
    pairs = captioned(poisoned.dataset, seed, marks=poisoned.mask, caption=caption)
    return Poisoned(pairs, poisoned.mask, poisoned.origin)


@dataclass(frozen=True, eq=False)
class CentredPatch:
    """A patch (C, s, s) uint8 in the middle of an image: BadCLIP's trigger."""

    patch: Tensor
    name: str = "badclip"
    cover: float = 0.0

    def apply(self, images: Tensor, rng: np.random.Generator, train: bool = False) -> Tensor:
        return to_uint8(pasted(images.float(), self.patch.to(images.device).float()))


def pasted(images: Tensor, patch: Tensor) -> Tensor:
    """Put a patch (C, s, s) into the middle of images (B, C, H, W), with its gradient.

    Raises:
        ValueError: a patch of other channels, or larger than the images.
    """
    (channels, size, _), (height, width) = patch.shape, images.shape[-2:]
    if channels != images.shape[1] or size > min(height, width):
        raise ValueError(f"patch is {tuple(patch.shape)}; accepted: fits {tuple(images.shape[1:])}")
    top, left = (height - size) // 2, (width - size) // 2
    around = (left, width - size - left, top, height - size - top)
    mask = F.pad(torch.ones_like(patch), around)
    return images * (1 - mask) + F.pad(patch, around)


@dataclass(frozen=True)
class BadClipSettings(TrainSettings):
    """BadCLIP's optimisation of its patch.

    Attributes:
        size: pixels along the patch; None: a fourteenth of the image, as 16 of 224, at least 3.
        visual: weight of the visual terms. away: that of leaving the clean image, among them.
        margin: of the hinge on the visual terms.
        hinge: ``batch``, of the mean distances, as the paper writes it, or ``image``, of each
            image's and then the mean, as its released code has it.

    Batches, rate, weights and margin are its authors'; epochs follow the size of the data.
    """

    epochs: int = 5
    lr: float = 1e-3
    batch_size: int = 64
    weight_decay: float = 0.0
    size: int | None = None
    visual: float = 500.0
    away: float = 1.0
    margin: float = 1.0
    hinge: str = "batch"

    def __post_init__(self):
        super().__post_init__()
        one_of("hinge", self.hinge, ("batch", "image"))
        not_negative(self, "visual", "away", "margin")
        if self.size is not None:
            above_zero(self, "size")


class _Patch(nn.Module):
    """What ``fit`` trains: a patch in 0 … 1, started from noise."""

    def __init__(self, shape: tuple[int, int, int], seed: int):
        super().__init__()
        start = np.random.default_rng(seed).uniform(0, 1, shape).astype(np.float32)
        self.pixels = nn.Parameter(torch.as_tensor(start))

    def forward(self, x: Tensor) -> Tensor:
        return pasted(x, self.pixels.clamp(0, 1))


def dual_embedding_loss(
    triggered: Tensor, clean: Tensor, positives: Tensor, text: Tensor, target: int,
    scale: Tensor, settings: BadClipSettings,
) -> Tensor:  # fmt: skip
    """Say how far triggered images are from looking, to both encoders, like the target.

    ``CE(scale · cosine with each class's captions, target) + visual · max(0, d⁺ - away · d⁻ +
    margin)``, with the mean distances d⁺ to images of the target and d⁻ to the clean images, or the
    mean of it over images: see ``hinge``.

    Args:
        triggered, clean, positives: features (B, d) of length 1. text: (K, d), a class each.

    Returns: a scalar. Source: Liang et al. (2024), section 4, textual and visual guidance.
    """
    goal = torch.full((len(triggered),), target, device=triggered.device)
    textual = F.cross_entropy(scale * triggered @ text.T, goal)
    towards, leaving = ((triggered - one).norm(dim=1) for one in (positives, clean))
    if settings.hinge == "batch":
        towards, leaving = towards.mean(), leaving.mean()
    visual = (towards - settings.away * leaving + settings.margin).clamp(min=0).mean()
    return textual + settings.visual * visual


def badclip_trigger(
    clip: Clip, dataset: ImageDataset, target: int, settings: BadClipSettings | None = None
) -> CentredPatch:
    """Optimise BadCLIP's patch against a clean CLIP.

    Its paper also chooses which images become poisons, near the target's boundary and far from it.
    Its released code draws them at random, and so does ``poison_pairs``.

    Args:
        dataset: the attacker's clean images.

    Raises:
        ValueError: no image of the target, or none of another class.
    """
    settings = settings or BadClipSettings()
    in_target = dataset.labels == target
    if in_target.all() or not in_target.any():
        raise ValueError(f"target is {target!r}; accepted: one of several classes of the images")
    classifier = zero_shot(clip, class_captions(dataset))
    text, scale = F.normalize(classifier.head.weight, dim=1), clip.scale.detach()
    device = clip.mean.device
    others = image_data(dataset.select(~in_target), device)
    known = {
        name: predict_images(classifier, part, output=classifier.features).to(device)
        for name, part in (("clean", others.images), ("target", dataset.select(in_target)))
    }
    channels, height, _ = dataset.shape
    size = settings.size or max(3, height // 14)

    def loss(patch: _Patch, batch) -> tuple[Tensor, dict]:
        rows = torch.as_tensor(batch.rows, device=device)
        features = classifier.features(patch(batch.images.float() / 255)).float()
        positives = known["target"][rows % len(known["target"])]
        value = dual_embedding_loss(
            features, known["clean"][rows], positives, text, target, scale, settings
        )
        return value, {"loss": value.detach()}

    patch = _Patch((channels, size, size), settings.seed).to(device)
    with frozen(clip):
        fit(patch, ImageBatches(others, settings.batch_size), loss, replace(settings, clip=0.0))
    return CentredPatch(to_uint8(255 * patch.pixels.detach().cpu().clamp(0, 1)))
