"""What the defences share: checks, the defender's data on the device, batch-norm layers."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from ..data.images import ImageDataset
from ..models.images import ImageClassifier, model_copy
from ..training.images import ImageBatch, ImageData, image_data


def check_clean(model: nn.Module, clean: ImageDataset) -> None:
    """Raise one clear line unless ``clean`` has rows of every class that fit the model."""
    if not isinstance(model, ImageClassifier):
        raise ValueError(
            f"the model is a {type(model).__name__}; accepted: ImageClassifier (models.images.wrap "
            "makes one of any network that ends in a linear layer)"
        )
    if not len(clean):
        raise ValueError(f"the clean set ({clean.name}) is empty; accepted: one row or more")
    if clean.num_classes != model.head.out_features:
        raise ValueError(
            f"{clean.name} has {clean.num_classes} classes, the model {model.head.out_features}"
        )
    absent = [name for k, name in enumerate(clean.class_names) if not (clean.labels == k).any()]
    if absent:
        raise ValueError(
            f"{clean.name} has no rows of class {', '.join(absent)}; accepted: one of each or more"
        )
    channels = model.mean.shape[1]
    if channels not in (1, clean.shape[0]):
        raise ValueError(f"{clean.name} has {clean.shape[0]} channels, the model {channels}")


def prepared(model: ImageClassifier, clean: ImageDataset) -> tuple[ImageClassifier, ImageData]:
    """Check, and return a copy of the model to unlearn and the clean images on its device."""
    check_clean(model, clean)
    copy = model_copy(model).requires_grad_(True).eval()
    return copy, image_data(clean, next(copy.parameters()).device)


def forever(data: ImageData, batch_size: int, rng: np.random.Generator) -> Iterator[ImageBatch]:
    """Yield random batches without end, a new order each time all rows were seen."""
    batch_count = -(-len(data) // batch_size)
    while True:
        for rows in np.array_split(rng.permutation(len(data)), batch_count):
            yield data.batch(rows)


def batch_norms(model: nn.Module, method: str) -> dict[str, nn.BatchNorm2d]:
    """Name → layer of every affine batch norm over maps.

    Raises:
        ValueError: none; the method then has no channels to judge.
    """
    norms = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.BatchNorm2d) and module.affine
    }
    if not norms:
        raise ValueError(f"{method} needs batch norm over maps, and the model has none")
    return norms


def unit(images: Tensor) -> Tensor:
    """Turn uint8 images into float32 in 0 … 1."""
    return images.float() / 255


def accuracy_on(model: nn.Module, data: ImageData, call=None) -> float:
    """Share of rows (0 … 1) that ``call``, or the model, gets right; eval mode is the caller's."""
    call = call or model
    with torch.inference_mode():
        correct_counts = [
            (call(images).argmax(1) == labels).sum()
            for images, labels in zip(data.images.split(500), data.labels.split(500), strict=True)
        ]
    return float(torch.stack(correct_counts).sum()) / len(data)
