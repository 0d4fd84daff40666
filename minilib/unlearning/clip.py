"""Defences of a CLIP with a few clean pairs: fine-tuning, CleanCLIP, and BI-BAU on both modalities.

Each is ``defence(clip, pairs, settings) -> clip``: a copy is changed, never the input. Pairs are as
``data.captions.captioned`` makes them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..checks import not_negative, one_of
from ..data.images import ImageDataset
from ..models.clip import PAD, Clip, caption_classifier, check_pairs
from ..models.images import frozen_copy, model_copy, pixels
from ..training.clip import batch_similarities, contrastive, contrastive_rows, fit_pairs
from ..training.fitting import TrainSettings, fit
from ..training.images import ImageBatch, ImageBatches, augment, image_data
from .bi_bau import BiBauSettings, unlearning_loss


@dataclass(frozen=True)
class PairTuneSettings(TrainSettings):
    """Contrastive fine-tuning of both encoders on clean pairs; the values are ours."""

    epochs: int = 10
    lr: float = 3e-4
    batch_size: int = 64
    schedule: str = "cosine"


@dataclass(frozen=True)
class CleanClipSettings(PairTuneSettings):
    """CleanCLIP.

    Attributes:
        within: weight of the two in-modal terms, each beside the contrastive one (its paper: 1).
        crop: pixels of the random crops of an image's other view. flip: whether it is mirrored.
    """

    within: float = 1.0
    crop: int = 2
    flip: bool = False

    def __post_init__(self):
        super().__post_init__()
        not_negative(self, "within", "crop")


def fine_tuning(clip: Clip, pairs: ImageDataset, settings: PairTuneSettings) -> Clip:
    """Fine-tune a copy, both encoders, contrastively."""
    tuned = _prepared(clip, pairs)
    fit_pairs(tuned, pairs, settings)
    return tuned


# -------------------------------------------------------------------------------- CleanCLIP


def in_modal(features: Tensor, others: Tensor, scale: Tensor) -> Tensor:
    """Contrast two views of each row of one modality, (B, d) and (B, d) → a scalar in nats."""
    logits = (scale * features @ others.T).float()
    return contrastive_rows(logits, torch.arange(len(features), device=features.device)).mean()


def other_words(ids: Tensor, rng: np.random.Generator, ends: tuple[int, int]) -> Tensor:
    """Leave one word out of each caption and let two others change places: another view of it.

    Args:
        ids: (M, L) token numbers. ends: those of the tokens at a caption's two ends, which stay;
            what stands behind the second is padding, which OpenAI's tokeniser calls an end, too.

    Returns: (M, L). A caption of one word stays as it is. Of easy data augmentation (Wei and Zou,
    2019) these are the two operations that need no list of synonyms.
    """
    out = torch.full_like(ids, PAD)
    for row, caption in zip(out, ids.tolist(), strict=True):
        words = caption[1 : caption.index(ends[1], 1)]
        if len(words) > 1:
            words.pop(rng.integers(len(words)))
            a, b = rng.integers(len(words), size=2)
            words[a], words[b] = words[b], words[a]
        row[: len(words) + 2] = torch.tensor([caption[0], *words, ends[1]])
    return out


def clean_clip_loss(clip: Clip, captions, settings: CleanClipSettings) -> Callable:
    """Make CleanCLIP's loss for ``fit``: contrast across the modalities and within each.

    Source: Bansal et al. (2023), section 4.
    """
    across = contrastive(clip, captions)
    device = clip.mean.device
    ids, mask = clip.tokens(captions)
    ends = int(ids[0, 0]), int(ids[0, mask[0].sum() - 1])
    rng = np.random.default_rng([settings.seed, 3])

    def loss(model: Clip, batch: ImageBatch) -> tuple[Tensor, dict]:
        value, log = across(model, batch)
        view = augment(batch.images, settings.crop, settings.flip, rng)
        both = model.image_features(torch.cat([batch.images, view]))
        image = in_modal(*both.chunk(2), model.scale)
        kinds = batch.labels.unique().cpu()
        changed = other_words(ids[kinds], rng, ends)
        both = torch.cat([ids[kinds], changed]).to(device)
        masks = torch.cat([mask[kinds], _until(changed, ends[1])]).to(device)
        text = in_modal(*model.token_features(both, masks).chunk(2), model.scale)
        log = {**log, "image": image.detach(), "text": text.detach()}
        return value + settings.within * (image + text), log

    return loss


def _until(ids: Tensor, end: int) -> Tensor:
    """Mask of the tokens up to the last ``end`` of each row, (M, L) int64."""
    return (ids == end).long().flip(1).cummax(1).values.flip(1)


def clean_clip(clip: Clip, pairs: ImageDataset, settings: CleanClipSettings) -> Clip:
    """CleanCLIP: fine-tune a copy, both encoders, so that each modality also agrees with itself."""
    tuned = _prepared(clip, pairs)
    fit_pairs(tuned, pairs, settings, clean_clip_loss(tuned, pairs.class_names, settings))
    return tuned


# ---------------------------------------------------------------------------------- BI-BAU


def relational_distance(
    logits: Tensor, teacher: Tensor, temperature: float, captions: Tensor
) -> Tensor:
    """Compare two batches' pairwise similarities, (B, M) and (B, M) → (B,) in nats.

    ``T² · KL(softmax(S_b / T) ‖ softmax(S / T))`` of each image's similarities with the captions of
    the batch and of each caption's with its images; the mean of both.

    Source: Eq. (44), BI-BAU; the direction of the KL and that both sides count are ours.
    """
    ours, theirs = (batch_similarities(v, captions) / temperature for v in (logits, teacher))
    sides = ((ours, theirs), (ours.T, theirs.T))
    parts = [_kl(a.log_softmax(1), b.log_softmax(1)) for a, b in sides]
    return temperature**2 * (parts[0] + parts[1]) / 2


def _kl(ours: Tensor, theirs: Tensor) -> Tensor:
    return (theirs.exp() * (theirs - ours)).sum(1)


def blind_inversion(clip: Clip, pairs: ImageDataset, settings: BiBauSettings) -> Clip:
    """BI-BAU on a CLIP: the visual encoder alone is trained, against the defender's captions.

    The fixed captions are the linear head that ``bi_bau.unlearning_loss`` speaks of. The head's
    change, the backdoor's direction in the prior, is therefore 0: what stays of the prior is the
    angle between the change of the visual features and the clean ones.

    Raises:
        ValueError: a target: where all captions are one, a contrastive loss has nothing to tell
            apart.

    Source: appendix C, BI-BAU.
    """
    if settings.target is not None:
        raise ValueError(f"target is {settings.target!r}; accepted: None (untargeted)")
    unlearned = _prepared(clip, pairs)
    model = caption_classifier(unlearned, pairs.class_names)  # shares the visual encoder
    data = image_data(pairs, clip.mean.device)
    loss = unlearning_loss(
        frozen_copy(model), data, settings, contrastive_rows, relational_distance
    )
    fit(model, ImageBatches(data, settings.batch_size), loss, settings)
    return unlearned.eval()


DEFENCES = {
    "ft": (fine_tuning, PairTuneSettings),
    "cleanclip": (clean_clip, CleanClipSettings),
    "bi-bau-u": (blind_inversion, BiBauSettings),
}


def defend(method: str, clip: Clip, pairs: ImageDataset, settings=None) -> Clip:
    """Defend a copy of a CLIP; arguments as for ``unlearning.defend``.

    Raises:
        ValueError: unknown method, settings of another method, pairs that do not fit.
    """
    one_of("method", method, DEFENCES)
    run, kind = DEFENCES[method]
    settings = kind() if settings is None else settings
    if type(settings) is not kind:
        raise ValueError(f"settings are {type(settings).__name__}; accepted: {kind.__name__}")
    return run(clip, pairs, settings)


def _prepared(clip: Clip, pairs: ImageDataset) -> Clip:
    """Check the pairs, and copy the CLIP to be changed."""
    check_pairs(clip, pixels(pairs.images[:1]))
    if len(pairs) < 2:
        raise ValueError(f"{len(pairs)} pairs; accepted: two or more")
    return model_copy(clip).requires_grad_(True).eval()
