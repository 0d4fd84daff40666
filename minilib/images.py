"""Image data sets by their field's name: built-in digits, a local mirror, or the Hub.

Images are uint8 (N, H, W, C) on the host, as they are stored and drawn; what trains or triggers
them turns them into (N, C, H, W) once, on the device (``vision.pixels``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from .data import DataError, TextDataset, hub_split, mirror_file

MIRROR_IMAGES = {
    "cifar10": ("cifar10_small.npz", "cifar10_small_b.npz"),
    "gtsrb": ("gtsrb_small.npz",),
}
# (repository, image column, label column, name of the test split)
HUB_IMAGES = {
    "cifar10": ("uoft-cs/cifar10", "img", "label", "test"),
    "gtsrb": ("tanganke/gtsrb", "image", "label", "test"),
    "tiny-imagenet": ("zh-plus/tiny-imagenet", "image", "label", "valid"),
}
SIDE = 32  # pixels: all real sets are squeezed to this, Table 8 of the BI-BAU paper
DIGITS_SIDE = 16  # pixels: scikit-learn's 8 × 8 digits, enlarged so that a warp has room


@dataclass(frozen=True)
class ImageDataset:
    """Labelled images.

    Attributes:
        images: (N, H, W, C) uint8, 0 … 255; C is 1 or 3.
        labels: (N,) int64 in ``0 … len(class_names) - 1``.
        source: where the rows came from: "built-in", "mirror" or "hub".

    Raises:
        DataError: another dtype or shape, or labels that do not fit.
    """

    name: str
    split: str
    images: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]
    source: str

    def __post_init__(self):
        images, labels = self.images, self.labels
        if images.ndim != 4 or images.shape[3] not in (1, 3) or images.dtype != np.uint8:
            raise DataError(
                f"{self.name}: images {images.shape} {images.dtype}; "
                "accepted: (N, H, W, 1 or 3) uint8 in 0 … 255"
            )
        if len(images) != len(labels):
            raise DataError(f"{self.name}: {len(images)} images but {len(labels)} labels")
        if len(labels) and not 0 <= labels.min() <= labels.max() < self.num_classes:
            raise DataError(
                f"{self.name}: labels {labels.min()} … {labels.max()}; "
                f"accepted: 0 … {self.num_classes - 1}"
            )

    def __len__(self) -> int:
        return len(self.images)

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height, width of one image, in a network's order."""
        height, width, channels = self.images.shape[1:]
        return channels, height, width

    @property
    def sha256(self) -> str:
        digest = hashlib.sha256(np.ascontiguousarray(self.labels, dtype="<i8").tobytes())
        digest.update(np.ascontiguousarray(self.images).tobytes())
        return digest.hexdigest()

    def select(self, index: Sequence[int] | np.ndarray) -> ImageDataset:
        """Return the rows at ``index`` (integers or a boolean mask), in that order."""
        index = np.asarray(index)
        index = np.flatnonzero(index) if index.dtype == bool else index.astype(np.int64)
        return replace(self, images=self.images[index], labels=self.labels[index])

    info = TextDataset.info


def load_images(name: str, split: str) -> ImageDataset:
    """Load an image set by its field's name.

    Args:
        name: ``digits`` (built in: scikit-learn's, enlarged to 16 × 16, grey), ``cifar10``,
            ``gtsrb`` or ``tiny-imagenet`` (32 × 32 RGB; the last from the Hub only).
        split: ``train`` or ``test``.

    Raises:
        DataError: unknown name or split, or a set that neither the mirror nor the Hub can give.
    """
    if split not in ("train", "test"):
        raise DataError(f"unknown split {split!r} of {name}; known: train, test")
    if name == "digits":
        images, labels = _digits(split)
        return ImageDataset(name, split, images, labels, tuple("0123456789"), "built-in")
    if name not in HUB_IMAGES:
        raise DataError(f"unknown image data set {name!r}; known: digits, {', '.join(HUB_IMAGES)}")
    paths = [mirror_file(file) for file in MIRROR_IMAGES.get(name, ())]
    if paths and all(paths):
        return _mirror_images(name, split, paths)
    return _hub_images(name, split)


def _mirror_images(name: str, split: str, paths: list) -> ImageDataset:
    parts = [np.load(path, allow_pickle=False) for path in paths]
    images = np.concatenate([part[f"x_{split}"] for part in parts])
    labels = np.concatenate([part[f"y_{split}"] for part in parts]).astype(np.int64)
    if "class_names" in parts[0].files:
        classes = tuple(str(text) for text in parts[0]["class_names"])
    else:
        classes = _numbered(labels)
    return ImageDataset(name, split, images, labels, classes, "mirror")


def _hub_images(name: str, split: str) -> ImageDataset:
    repository, image, label, test = HUB_IMAGES[name]
    rows = hub_split(name, repository, None, test if split == "test" else split)
    images = [np.asarray(row[image].convert("RGB").resize((SIDE, SIDE))) for row in rows]
    labels = np.array([row[label] for row in rows], dtype=np.int64)
    known = getattr(rows, "features", {}).get(label)
    classes = tuple(getattr(known, "names", None) or _numbered(labels))
    return ImageDataset(name, split, np.stack(images), labels, classes, "hub")


def _numbered(labels: np.ndarray) -> tuple[str, ...]:
    return tuple(str(k) for k in range(int(labels.max()) + 1))


def _digits(split: str) -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    side = bunch.images.shape[1]
    # Linear interpolation along each axis, as one matrix; pixel centres stay where they were.
    at = np.clip((np.arange(DIGITS_SIDE) + 0.5) * side / DIGITS_SIDE - 0.5, 0, side - 1)
    weight = np.maximum(0, 1 - np.abs(at[:, None] - np.arange(side)))  # (16, 8)
    large = weight @ bunch.images @ weight.T  # (N, 16, 16), 0 … 16
    images = np.rint(large * (255 / 16)).astype(np.uint8)[..., None]
    order = np.random.default_rng(0).permutation(len(images))
    keep = order[:1297] if split == "train" else order[1297:]
    return images[keep], bunch.target[keep].astype(np.int64)


def defender_rows(dataset: ImageDataset, share: float = 0.05, seed: int = 0) -> ImageDataset:
    """Draw the clean rows that a defender owns: ``share`` of each class, at least one row.

    Source: BI-BAU paper, section 5.1: 5 % of the clean training data.

    Raises:
        ValueError: a share outside (0, 1].
    """
    if not 0 < share <= 1:
        raise ValueError(f"share is {share!r}; accepted: in (0, 1]")
    rng, kept = np.random.default_rng(seed), []
    for label in np.unique(dataset.labels):
        rows = rng.permutation(np.flatnonzero(dataset.labels == label))
        kept.append(rows[: max(1, round(share * len(rows)))])
    return dataset.select(np.sort(np.concatenate(kept)))
