"""The bound: unlearning by one who has the attacker's own poison."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checks import above_zero
from ..data.images import ImageDataset
from ..models.images import ImageClassifier
from ..training.fitting import SgdSettings, fit
from ..training.images import ImageBatches, image_data
from .common import prepared

# --------------------------------------------------------------------------------------- IBU


@dataclass(frozen=True)
class IbuSettings(SgdSettings):
    """Ideal unlearning.

    Attributes:
        poison: triggered images with their *true* labels, which no defender has.
        weight: of the loss on them; the loss on clean images has weight 1. The paper's two weights
            are lost, 1 is ours.
    """

    epochs: int = 20
    batch_size: int = 128
    poison: ImageDataset | None = None
    weight: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        above_zero(self, "weight")


def ideal_unlearning(
    model: ImageClassifier, clean: ImageDataset, settings: IbuSettings
) -> ImageClassifier:
    """IBU: fine-tune on clean images and on true poison with its original labels, the bound.

    Source: Eq. (49) and (50), BI-BAU.

    Raises:
        ValueError: no poison among the settings.
    """
    if settings.poison is None or not len(settings.poison):
        raise ValueError(
            "ibu needs the true poison: IbuSettings(poison=triggered images, labelled)"
        )
    model, data = prepared(model, clean)
    poison = image_data(settings.poison, data.labels.device)

    def loss(model: nn.Module, batch) -> tuple[Tensor, dict]:
        rows = torch.randint(len(poison), (len(batch.labels),), device=data.labels.device)
        logits = model(torch.cat([batch.images, poison.images[rows]])).float()
        clean_logits, triggered_logits = logits.split(len(rows))
        value = F.cross_entropy(clean_logits, batch.labels)
        poison_loss = F.cross_entropy(triggered_logits, poison.labels[rows])
        return value + settings.weight * poison_loss, {"loss": value.detach()}

    fit(model, ImageBatches(data, settings.batch_size), loss, settings)
    return model
