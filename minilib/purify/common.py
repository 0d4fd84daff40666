"""What the defences share: checks, the defender's data on the device, batch-norm layers."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from ..images import ImageDataset
from ..vision import ImageBatch, ImageClassifier, ImageData, image_data, model_copy


def check_clean(model: nn.Module, clean: ImageDataset) -> None:
    """Raise one clear line unless ``clean`` has rows that fit the model."""
    if not isinstance(model, ImageClassifier):
        raise ValueError(
            f"the model is a {type(model).__name__}; accepted: ImageClassifier (vision.wrap makes "
            "one of any network that ends in a linear layer)"
        )
    if not len(clean):
        raise ValueError(f"the clean set ({clean.name}) is empty; accepted: one row or more")
    if clean.num_classes != model.head.out_features:
        raise ValueError(
            f"{clean.name} has {clean.num_classes} classes, the model {model.head.out_features}"
        )
    channels = model.mean.shape[1]
    if channels not in (1, clean.shape[0]):
        raise ValueError(f"{clean.name} has {clean.shape[0]} channels, the model {channels}")


def prepared(model: ImageClassifier, clean: ImageDataset) -> tuple[ImageClassifier, ImageData]:
    """Check, and return a copy of the model to purify and the clean images on its device."""
    check_clean(model, clean)
    copy = model_copy(model).requires_grad_(True).eval()
    return copy, image_data(clean, next(copy.parameters()).device)


def forever(data: ImageData, batch_size: int, rng: np.random.Generator) -> Iterator[ImageBatch]:
    """Yield random batches without end, a new order each time all rows were seen."""
    parts = -(-len(data) // batch_size)
    while True:
        for rows in np.array_split(rng.permutation(len(data)), parts):
            yield data.batch(rows)


def batch_norms(model: nn.Module, method: str) -> dict[str, nn.BatchNorm2d]:
    """Name → layer of every affine batch norm over maps.

    Raises:
        ValueError: none; the method then has no channels to judge.
    """
    found = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.BatchNorm2d) and module.affine
    }
    if not found:
        raise ValueError(f"{method} needs batch norm over maps, and the model has none")
    return found


def unit(images: Tensor) -> Tensor:
    """Turn uint8 images into float32 in 0 … 1."""
    return images.float() / 255


def require_positive(settings, *names: str) -> None:
    """Raise one line for the first of these settings that is not above 0."""
    for name in names:
        if not getattr(settings, name) > 0:
            raise ValueError(f"{name} is {getattr(settings, name)!r}; accepted: above 0")


def accuracy_on(model: nn.Module, data: ImageData, call=None) -> float:
    """Share of rows (0 … 1) that ``call``, or the model, gets right; eval mode is the caller's."""
    call = call or model
    with torch.inference_mode():
        right = [
            (call(images).argmax(1) == labels).sum()
            for images, labels in zip(data.images.split(500), data.labels.split(500), strict=True)
        ]
    return float(torch.stack(right).sum()) / len(data)
