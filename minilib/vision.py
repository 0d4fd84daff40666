"""Image classifiers, the device-resident batches they train on, and how they are trained.

An image is uint8 in 0 … 255 or float in 0 … 1, (B, C, H, W); a model normalises it itself, with its
own mean and deviation, so that attacks and defences speak of pixels whatever the model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import train
from .images import ImageDataset
from .train import TrainSettings

EVAL_IMAGES = 500  # images per forward-only batch


class ImageClassifier(nn.Module):
    """An encoder, a linear head, and the normalisation that they were trained with.

    Args:
        encoder: normalised images (B, C, H, W) → features (B, d).
        head: linear layer d → K.
        mean, std: of the training pixels in units of 1 (= 255), one value or one per channel.

    ``forward(x)``: uint8 in 0 … 255 or float in 0 … 1 → logits (B, K).
    ``features(x)``: the same → (B, d), what the head sees.

    Raises:
        ValueError: a head that is not linear, or a deviation that is not above 0.
    """

    def __init__(
        self,
        encoder: nn.Module,
        head: nn.Linear,
        mean: float | Sequence[float] = 0.5,
        std: float | Sequence[float] = 0.25,
    ):
        super().__init__()
        if not isinstance(head, nn.Linear):
            raise ValueError(f"head is {type(head).__name__}; accepted: torch.nn.Linear")
        self.encoder, self.head = encoder, head
        for name, value in (("mean", mean), ("std", std)):
            value = torch.as_tensor(value, dtype=torch.float32).reshape(1, -1, 1, 1)
            self.register_buffer(name, value)
        if not (self.std > 0).all():
            raise ValueError(f"std is {std!r}; accepted: above 0")

    def features(self, x: Tensor) -> Tensor:
        x = x.to(self.mean.dtype).div(255) if x.dtype == torch.uint8 else x
        return self.encoder((x - self.mean) / self.std)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


def wrap(
    network: nn.Module,
    head: str,
    mean: float | Sequence[float],
    std: float | Sequence[float],
) -> ImageClassifier:
    """Turn a network made elsewhere into an ImageClassifier, weights shared.

    Args:
        head: name of its last, linear layer, e.g. ``"fc"`` or ``"classifier.6"``; everything
            before it is the encoder. The network must not transform the head's output.
        mean, std: the normalisation the network expects.

    Raises:
        ValueError: no such layer, or one that is not linear.
    """
    modules = dict(network.named_modules())
    layer = modules.get(head)
    if not isinstance(layer, nn.Linear):
        linear = [name for name, module in modules.items() if isinstance(module, nn.Linear)]
        raise ValueError(f"head {head!r} is no linear layer; accepted: {', '.join(linear)}")
    parent, _, name = head.rpartition(".")
    setattr(modules[parent], name, nn.Identity())
    return ImageClassifier(network, layer, mean, std)


# ---------------------------------------------------------------------------------- encoders


class ResidualBlock(nn.Module):
    """Two 3 × 3 convolutions and a shortcut; ``before`` puts norm and ReLU ahead of each (v2)."""

    def __init__(self, inner: int, outer: int, stride: int, before: bool):
        super().__init__()
        self.before = before
        self.conv1 = nn.Conv2d(inner, outer, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner if before else outer)
        self.conv2 = nn.Conv2d(outer, outer, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outer)
        self.shortcut = nn.Sequential()
        if stride != 1 or inner != outer:
            self.shortcut.append(nn.Conv2d(inner, outer, 1, stride, bias=False))
            if not before:
                self.shortcut.append(nn.BatchNorm2d(outer))

    def forward(self, x: Tensor) -> Tensor:
        if self.before:
            out = F.relu(self.bn1(x))
            short = self.shortcut(out) if len(self.shortcut) else x
            return self.conv2(F.relu(self.bn2(self.conv1(out)))) + short
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class ResNet18(nn.Module):
    """ResNet-18 for small images: a 3 × 3 stem of stride 1, no pooling after it; d = 8 · width.

    20 convolutions: the stem, 16 in blocks, 3 in shortcuts. Source: He et al. (2016a; b for
    ``before``).
    """

    def __init__(self, channels: int = 3, width: int = 64, before: bool = False):
        super().__init__()
        self.stem = nn.Conv2d(channels, width, 3, 1, 1, bias=False)
        self.norm = nn.BatchNorm2d(8 * width if before else width)
        self.before, blocks, inner = before, [], width
        for stage in range(4):
            outer = width * 2**stage
            for stride in (1 if stage == 0 else 2, 1):
                blocks.append(ResidualBlock(inner, outer, stride, before))
                inner = outer
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.blocks(x) if self.before else self.blocks(F.relu(self.norm(x)))
        if self.before:
            x = F.relu(self.norm(x))
        return x.mean((2, 3))


VGG19 = (64, 64, 0, 128, 128, 0, 256, 256, 256, 256, 0, 512, 512, 512, 512, 0, 512, 512, 512, 512)


def vgg19(channels: int = 3, width: float = 1.0) -> nn.Sequential:
    """Make the convolutions of VGG-19 with batch norm; d = 512 · width (Simonyan et al., 2014)."""
    layers, inner = [], channels
    for size in VGG19:
        if size == 0:
            layers.append(nn.MaxPool2d(2, ceil_mode=True))  # 16 × 16 images reach 1 × 1 early
            continue
        outer = max(8, int(size * width))
        layers += [nn.Conv2d(inner, outer, 3, 1, 1, bias=False), nn.BatchNorm2d(outer), nn.ReLU()]
        inner = outer
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


class VisionTransformer(nn.Module):
    """A small ViT: patches, learned positions, pre-norm layers, the mean of all tokens.

    Source: Dosovitskiy et al. (2020), with mean pooling in place of a class token.
    """

    def __init__(self, shape: tuple[int, int, int], dim: int = 192, depth: int = 6, patch: int = 4):
        super().__init__()
        channels, height, width = shape
        self.patches = nn.Conv2d(channels, dim, patch, patch)
        tokens = (height // patch) * (width // patch)
        self.positions = nn.Parameter(0.02 * torch.randn(1, tokens, dim))
        layer = nn.TransformerEncoderLayer(
            dim, max(1, dim // 64), 2 * dim, 0.0, F.gelu, batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2) + self.positions  # (B, tokens, dim)
        return self.norm(self.layers(x)).mean(1)


def small_cnn(channels: int = 1, width: float = 1.0) -> nn.Sequential:
    """Make three convolutions with batch norm, for digits; d = 64 · width."""
    layers, inner = [], channels
    for size, stride in ((16, 1), (32, 2), (64, 2)):
        outer = max(4, int(size * width))
        layers += [
            nn.Conv2d(inner, outer, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outer),
            nn.ReLU(),
        ]
        inner = outer
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


class ImageToImage(nn.Module):
    """A small U-Net, half the resolution inside: what draws triggers, for attack and defence.

    ``forward``: (B, ``inner``, H, W) → (B, ``outer``, H, W), unbounded; H and W even.
    """

    def __init__(self, inner: int, outer: int, width: int = 16):
        super().__init__()

        def block(a: int, b: int, stride: int = 1) -> nn.Sequential:
            return nn.Sequential(
                nn.Conv2d(a, b, 3, stride, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU()
            )

        self.top = block(inner, width)
        self.down = nn.Sequential(block(width, 2 * width, 2), block(2 * width, 2 * width))
        self.up = block(3 * width, width)
        self.last = nn.Conv2d(width, outer, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        top = self.top(x)
        low = F.interpolate(self.down(top), top.shape[-2:])
        return self.last(self.up(torch.cat([top, low], 1)))


IMAGE_MODELS = ("cnn", "resnet18", "preresnet18", "vgg19", "vit")


def image_classifier(
    name: str,
    num_classes: int,
    shape: tuple[int, int, int] = (3, 32, 32),
    width: float = 1.0,
    seed: int = 0,
) -> ImageClassifier:
    """Make an untrained image classifier, its weights drawn under ``seed``.

    Args:
        name: ``cnn`` (three convolutions), ``resnet18``, ``preresnet18``, ``vgg19``, ``vit``.
        shape: channels, height, width of an image.
        width: factor on the number of channels (of the ViT's 192 dimensions).

    Raises:
        ValueError: unknown name, or a width that is not above 0.
    """
    if name not in IMAGE_MODELS:
        raise ValueError(f"image model is {name!r}; accepted: {', '.join(IMAGE_MODELS)}")
    if not width > 0:
        raise ValueError(f"width is {width!r}; accepted: a factor above 0")
    channels, size = shape[0], max(8, int(64 * width))
    make = {
        "cnn": lambda: small_cnn(channels, width),
        "resnet18": lambda: ResNet18(channels, size),
        "preresnet18": lambda: ResNet18(channels, size, before=True),
        "vgg19": lambda: vgg19(channels, width),
        "vit": lambda: VisionTransformer(shape, max(32, int(192 * width))),
    }[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = make().eval()
        with torch.no_grad():
            dim = encoder(torch.zeros(1, *shape)).shape[1]
        model = ImageClassifier(encoder, nn.Linear(dim, num_classes))
    return model.to(memory_format=torch.channels_last)


def frozen_copy(model: ImageClassifier) -> ImageClassifier:
    """Copy a model for reference: eval mode, no gradients towards its weights."""
    copy = model_copy(model).eval()
    return copy.requires_grad_(False)


def model_copy(model: nn.Module) -> nn.Module:
    """Copy a model, its weights and its mode; every defence works on such a copy."""
    import copy

    return copy.deepcopy(model)


# -------------------------------------------------------------------------- data on the device


def pixels(images: np.ndarray, device: torch.device | str = "cpu") -> Tensor:
    """Turn (N, H, W, C) uint8 into (N, C, H, W) uint8 on the device, channels last in memory.

    Raises:
        ValueError: another dtype or number of axes.
    """
    if images.ndim != 4 or images.dtype != np.uint8:
        raise ValueError(f"images are {images.shape} {images.dtype}; accepted: (N, H, W, C) uint8")
    return torch.as_tensor(images, device=device).permute(0, 3, 1, 2)


def check_images(images: Tensor) -> Tensor:
    """Return ``images`` if they are what a model takes.

    Raises:
        ValueError: not (B, C, H, W), or neither uint8 nor float in 0 … 1.
    """
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(f"images have shape {tuple(images.shape)}; accepted: (B, 1 or 3, H, W)")
    if images.dtype == torch.uint8:
        return images
    if not images.is_floating_point():
        raise ValueError(f"images are {images.dtype}; accepted: uint8, or float in 0 … 1")
    low, high = (v.item() for v in images.aminmax()) if images.numel() else (0.0, 0.0)
    if not 0 <= low <= high <= 1:
        raise ValueError(
            f"float images span {low:.3g} … {high:.3g}; accepted: 0 … 1 (or uint8 in 0 … 255)"
        )
    return images


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
    """

    data: ImageData
    batch_size: int
    crop: int = 0
    flip: bool = False

    def __len__(self) -> int:
        return -(-len(self.data) // self.batch_size)

    def __call__(self, rng: np.random.Generator) -> Iterator[ImageBatch]:
        # Equal parts rather than a short last one: batch norm cannot do with a single row.
        for rows in np.array_split(rng.permutation(len(self.data)), len(self)):
            batch = self.data.batch(rows)
            if self.crop or self.flip:
                batch = batch._replace(images=augment(batch.images, self.crop, self.flip, rng))
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
    each = torch.arange(count, device=images.device)
    return padded[each[:, None, None], y[:, :, None], x[:, None, :]].permute(0, 3, 1, 2)


# -------------------------------------------------------------------------- training, prediction


def image_cross_entropy(model: nn.Module, batch: ImageBatch) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean cross-entropy in nats."""
    value = F.cross_entropy(model(batch.images).float(), batch.labels)
    return value, {"loss": value.detach()}


def fit_images(
    model: nn.Module,
    data: ImageData,
    settings: TrainSettings,
    crop: int = 0,
    flip: bool = False,
    loss: Callable = image_cross_entropy,
    on_epoch: Callable[[nn.Module, int], dict] | None = None,
) -> list[dict]:
    """Train all parameters in place with ``train.fit`` (AdamW); returns its history.

    The papers train with SGD and steps of the learning rate over 200 epochs. AdamW with linear
    decay reaches the same place in a tenth of them, which is what this book can afford.
    """
    return train.fit(
        model, ImageBatches(data, settings.batch_size, crop, flip), loss, settings, on_epoch
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
    """
    device = next(model.parameters()).device
    if isinstance(images, ImageDataset):
        images = pixels(images.images, device)
    if not len(check_images(images)):
        raise ValueError("no images to predict; accepted: one or more")
    training = model.training
    model.eval()
    call = output or model
    parts = math.ceil(len(images) / EVAL_IMAGES)
    train.keep_heap(device)
    with torch.inference_mode(), train.autocast(device, train.resolve_precision(precision, device)):
        found = [call(part.to(device)).float() for part in images.chunk(parts)]
    model.train(training)
    return torch.cat(found).cpu()  # outside, so that a loss may be built on it
