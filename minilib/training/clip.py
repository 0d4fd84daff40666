"""Contrastive training: the loss of image–caption pairs, for ``fit``."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..data.images import ImageDataset
from ..models.clip import Clip
from .fitting import SgdSettings, TrainSettings, fit
from .images import ImageBatch, ImageBatches, image_data


def batch_similarities(logits: Tensor, captions: Tensor) -> Tensor:
    """Similarity of each image of a batch with each of the batch's captions, (B, M) → (B, B).

    Args:
        logits: scale · cosine with each caption known. captions: (B,) the number of each image's.

    Raises:
        ValueError: fewer than two pairs, or one kind of caption: there is nothing to tell apart.
    """
    if len(captions) < 2 or (captions == captions[0]).all():
        raise ValueError(
            f"a batch of {len(captions)} pairs with {len(captions.unique())} kind of caption; "
            "accepted: two pairs or more, with two kinds or more"
        )
    return logits[:, captions]


def contrastive_rows(logits: Tensor, captions: Tensor) -> Tensor:
    """Contrastive loss of each pair of a batch in nats, (B, M) and (B,) → (B,).

    The mean of both directions: an image's own caption among those of the batch, and a caption's
    own image. An equal caption of another image counts as another one.

    Source: Eq. (41) to (43), BI-BAU; Radford et al. (2021).
    """
    similarity = batch_similarities(logits, captions)
    own = torch.arange(len(captions), device=logits.device)
    to_text = F.cross_entropy(similarity, own, reduction="none")
    to_image = F.cross_entropy(similarity.T, own, reduction="none")
    return (to_text + to_image) / 2


def contrastive(clip: Clip, captions: Sequence[str]) -> Callable:
    """Make the contrastive loss of pairs for ``fit``; both encoders are trained.

    Args:
        captions: what the labels of a batch are numbers of.
    """
    ids, mask = (rows.to(clip.mean.device) for rows in clip.tokens(captions))

    def loss(model: Clip, batch: ImageBatch) -> tuple[Tensor, dict[str, Tensor]]:
        kinds, places = batch.labels.unique(return_inverse=True)
        text = model.token_features(ids[kinds], mask[kinds])
        logits = model.scale * model.image_features(batch.images) @ text.T
        value = contrastive_rows(logits.float(), places).mean()
        return value, {"loss": value.detach()}

    return loss


def fit_pairs(
    clip: Clip,
    pairs: ImageDataset,
    settings: TrainSettings | SgdSettings,
    loss: Callable | None = None,
    crop: int = 0,
    flip: bool = False,
) -> list[dict]:
    """Train a CLIP in place on pairs as ``data.captions.captioned`` makes them; its history."""
    data = image_data(pairs, clip.mean.device)
    batches = ImageBatches(data, settings.batch_size, crop, flip)
    return fit(clip, batches, loss or contrastive(clip, pairs.class_names), settings)
