"""Images kept on the device and augmented there; training and prediction."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.images import ImageDataset
from ..models.images import ImageClassifier, check_images, pixels
from ..models.loading import in_eval
from . import devices, fitting
from .fitting import TrainSettings

EVAL_IMAGES = 500  # images per forward-only batch


class ImageBatch(NamedTuple):
    """``images`` (B, C, H, W) uint8, ``labels`` (B,) int64, ``marks`` (B,) bool, ``rows`` (B,)."""

    images: Tensor
    labels: Tensor
    marks: Tensor
    rows: np.ndarray


@dataclass(frozen=True)
class ImageData:
    """Images on the device: uint8 (N, C, H, W), labels (N,) int64.

    ``marks`` (N,) bool is whatever the loss wants to know of a row, e.g. that it is poisoned.
    """

    images: Tensor
    labels: Tensor
    marks: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, rows: np.ndarray) -> ImageBatch:
        index = torch.as_tensor(rows, device=self.labels.device)
        return ImageBatch(self.images[index], self.labels[index], self.marks[index], rows)


def image_data(
    dataset: ImageDataset, device: torch.device | str = "cpu", marks: np.ndarray | None = None
) -> ImageData:
    """Put an image set on the device.

    Raises:
        ValueError: an empty set, or as many marks as there are not rows.
    """
    if not len(dataset):
        raise ValueError(f"{dataset.name} has no rows; accepted: one or more")
    marks = np.zeros(len(dataset), bool) if marks is None else np.asarray(marks, bool)
    if len(marks) != len(dataset):
        raise ValueError(f"{len(marks)} marks for {len(dataset)} rows; accepted: one a row")
    labels = torch.as_tensor(dataset.labels, device=device)
    return ImageData(pixels(dataset.images, device), labels, torch.as_tensor(marks, device=device))


@dataclass(frozen=True)
class ImageBatches:
    """One pass over ``data`` in random batches of nearly equal size, augmented on the device.

    Attributes:
        crop: pixels of zero padding on each side of which a random window is cut; 0: none.
        flip: mirror half of the images left to right.
        cutout: side in pixels of the grey square laid over each image; 0: none.
    """

    data: ImageData
    batch_size: int
    crop: int = 0
    flip: bool = False
    cutout: int = 0

    def __len__(self) -> int:
        return -(-len(self.data) // self.batch_size)

    def __call__(self, rng: np.random.Generator) -> Iterator[ImageBatch]:
        # Equal parts rather than a short last one: batch norm cannot do with a single row.
        for rows in np.array_split(rng.permutation(len(self.data)), len(self)):
            batch = self.data.batch(rows)
            if self.crop or self.flip:
                batch = batch._replace(images=augment(batch.images, self.crop, self.flip, rng))
            if self.cutout:
                batch = batch._replace(images=cut_out(batch.images, self.cutout, rng))
            yield batch


def augment(images: Tensor, crop: int, flip: bool, rng: np.random.Generator) -> Tensor:
    """Cut random windows out of zero-padded images and mirror half of them, in one gather.

    Args:
        images: (B, C, H, W), any dtype. crop: padding in pixels. flip: mirror left to right.
    """
    count, _, height, width = images.shape
    offsets = rng.integers(0, 2 * crop + 1, (count, 2))
    mirrored = rng.random(count) < (0.5 if flip else 0.0)
    columns = np.where(mirrored[:, None], np.arange(width)[::-1], np.arange(width))  # (B, W)
    y = torch.as_tensor(offsets[:, :1] + np.arange(height), device=images.device)
    x = torch.as_tensor(offsets[:, 1:] + columns, device=images.device)
    padded = F.pad(images, (crop,) * 4).permute(0, 2, 3, 1)  # (B, H + 2p, W + 2p, C)
    rows = torch.arange(count, device=images.device)
    return padded[rows[:, None, None], y[:, :, None], x[:, None, :]].permute(0, 3, 1, 2)


def cut_out(images: Tensor, side: int, rng: np.random.Generator) -> Tensor:
    """Lay a grey square over each image, its centre anywhere, so that the border may cut it.

    Args:
        images: (B, C, H, W) uint8; 128 is grey. side: of the square in pixels.

    Source: DeVries and Taylor (2017), arXiv:1708.04552.
    """
    count, _, *sizes = images.shape
    starts = rng.integers(0, sizes, (count, 2)) - side // 2
    inside = [
        (np.arange(size) >= start[:, None]) & (np.arange(size) < start[:, None] + side)
        for size, start in zip(sizes, starts.T, strict=True)
    ]
    square = inside[0][:, None, :, None] & inside[1][:, None, None, :]  # (B, 1, H, W)
    return images.masked_fill(torch.as_tensor(square, device=images.device), 128)


# -------------------------------------------------------------------------- training, prediction


def image_cross_entropy(model: nn.Module, batch: ImageBatch) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean cross-entropy in nats."""
    value = F.cross_entropy(model(batch.images).float(), batch.labels)
    return value, {"loss": value.detach()}


def fit_images(
    model: nn.Module,
    data: ImageData,
    settings: TrainSettings | fitting.SgdSettings,
    crop: int = 0,
    flip: bool = False,
    loss: Callable = image_cross_entropy,
    on_epoch: Callable[[nn.Module, int], dict] | None = None,
    cutout: int = 0,
) -> list[dict]:
    """Train all parameters in place with ``training.fitting.fit``; returns its history.

    The papers train with SGD and steps of the learning rate over 200 epochs. AdamW with linear
    decay reaches the same place in a tenth of them, which is what this book can afford.

    Raises:
        ValueError: a label that is no class of the model, which a GPU would not survive.
    """
    most = int(data.labels.max())
    if isinstance(model, ImageClassifier) and most >= model.head.out_features:
        classes = model.head.out_features
        raise ValueError(f"a label is {most}; accepted: 0 … {classes - 1}, the model's classes")
    return fitting.fit(
        model, ImageBatches(data, settings.batch_size, crop, flip, cutout), loss, settings, on_epoch
    )


def predict_images(
    model: nn.Module,
    images: Tensor | ImageDataset,
    precision: str = "auto",
    output: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Return logits (N, K) float32 on the CPU, or what ``output(batch)`` gives in their place.

    Args:
        images: an image set, or (N, C, H, W) uint8 or float in 0 … 1 on the model's device.
        output: e.g. ``model.features``.

    Raises:
        ValueError: images of another kind, or none.
        NotFinite: outputs that are no numbers, in single precision too.
    """
    device = next(model.parameters()).device
    if isinstance(images, ImageDataset):
        images = pixels(images.images, device)
    if not len(check_images(images)):
        raise ValueError("no images to predict; accepted: one or more")
    forward = output or model
    batches = images.chunk(math.ceil(len(images) / EVAL_IMAGES))
    devices.keep_heap(device)

    def run(precision: str) -> Tensor:
        with in_eval(model), torch.inference_mode(), devices.autocast(device, precision):
            outputs = [forward(batch.to(device)).float() for batch in batches]
        return torch.cat(outputs).cpu()  # outside, so that a loss may be built on it

    return devices.finite(run, precision, device)
