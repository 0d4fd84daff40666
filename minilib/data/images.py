"""Image data sets by their field's name: built-in digits, a local mirror, or the Hub.

Images are uint8 (N, H, W, C) on the host, as they are stored and drawn; what trains or triggers
them turns them into (N, C, H, W) once, on the device (``models.images.pixels``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from .. import names
from .files import DataError, checked_labels, chosen_rows, opened_archive, refused
from .sources import checked, hub_split, mirror_files, no_revision
from .text import TextDataset

MIRROR_IMAGES = {
    "cifar10-10k": ("cifar10_small.npz", "cifar10_small_b.npz"),
    "gtsrb-3k": ("gtsrb_small.npz",),
}
IMAGE_CLASSES = {"cifar10": 10, "gtsrb": 43, "tiny-imagenet": 200, "imagenet": 1000}
# (repository, image column, label column, name of the test split)
HUB_IMAGES = {
    "cifar10": ("uoft-cs/cifar10", "img", "label", "test"),
    "gtsrb": ("tanganke/gtsrb", "image", "label", "test"),
    "tiny-imagenet": ("zh-plus/tiny-imagenet", "image", "label", "valid"),
    "imagenet-50k": ("ILSVRC/imagenet-1k", "image", "label", "validation"),
}
SIDE = 32  # pixels: real sets are squeezed to this, Table 8 of the BI-BAU paper
CLIP_SIDE = 224  # pixels of what OpenAI's CLIP is shown: the middle square, as it was trained
EACH = {"imagenet-50k": 50}  # training images of each class, the first ones
# Rows of the built-in sets; the short one is for what is asked often, as golden numbers are.
DIGITS_ROWS = {"digits": {"train": 1297, "test": 500}, "digits-300": {"train": 300, "test": 120}}
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
            raise DataError(
                f"{self.name}: {len(images)} images but {len(labels)} labels; accepted: one each"
            )
        labels = checked_labels(f"{self.name}/{self.split}", labels, self.num_classes)
        object.__setattr__(self, "labels", labels)

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
        index = chosen_rows(f"{self.name}/{self.split}", index, len(self))
        return replace(self, images=self.images[index], labels=self.labels[index])

    info = TextDataset.info


def load_images(name: str, split: str, revision: str | None = None) -> ImageDataset:
    """Load an image set by its field's name.

    Args:
        name: ``digits`` (built in: scikit-learn's, enlarged to 16 × 16, grey), ``digits-300`` (the
            first of them); 32 × 32 RGB:
            ``cifar10-10k`` and ``gtsrb-3k``, the mirror's parts, or from the Hub ``cifar10``,
            ``gtsrb`` and ``tiny-imagenet``; 224 × 224 RGB: ``imagenet-50k``, the first 50 training
            images of each class of ImageNet-1K, tested on its validation images.
        split: ``train`` or ``test``. revision: commit, tag or branch of a set from the Hub.

    Raises:
        DataError: unknown name or split, or a set that neither the mirror nor the Hub can give.
    """
    if split not in ("train", "test"):
        raise DataError(f"unknown split {split!r} of {name}; known: train, test")
    if name not in HUB_IMAGES:
        no_revision(name, "built-in sets" if name in DIGITS_ROWS else "mirror", revision)
    if name in DIGITS_ROWS:
        images, labels = (part[: DIGITS_ROWS[name][split]] for part in _digits(split))
        return checked(ImageDataset(name, split, images, labels, tuple("0123456789"), "built-in"))
    if name in MIRROR_IMAGES:
        paths = mirror_files(name, MIRROR_IMAGES[name])
        return checked(_mirror_images(name, split, paths))
    if name not in HUB_IMAGES:
        known = ", ".join((*DIGITS_ROWS, *MIRROR_IMAGES, *HUB_IMAGES))
        raise DataError(f"unknown image data set {name!r}; known: {known}")
    return checked(_hub_images(name, split, revision))


def _mirror_images(name: str, split: str, paths: list) -> ImageDataset:
    images, labels, classes = [], [], _numbered(name)
    for path in paths:
        with opened_archive(path) as (array, inside):
            images.append(array(f"x_{split}"))
            labels.append(array(f"y_{split}"))
            given = array("class_names") if "class_names" in inside else np.array(classes)
        if given.shape != (len(classes),) or given.dtype.kind != "U":
            raise refused(path.name, "class_names", given, f"{len(classes)} texts")
        classes = tuple(map(str, given))
        # Each file by itself, so that a message can name it.
        ImageDataset(path.name, split, images[-1], labels[-1], classes, "mirror")
        if not len(images[-1]) or images[-1].shape[1:] != images[0].shape[1:]:
            raise DataError(
                f"{path.name}: x_{split} is {images[-1].shape}; accepted: one image or more, "
                f"all of one size, {images[0].shape[1:]}"
            )
    labels = np.concatenate(labels).astype(np.int64)
    return ImageDataset(name, split, np.concatenate(images), labels, classes, "mirror")


def _hub_images(name: str, split: str, revision: str | None) -> ImageDataset:
    repository, image, label, test = HUB_IMAGES[name]
    hub_name = test if split == "test" else split
    rows = hub_split(name, repository, None, hub_name, revision=revision)
    if split == "train" and name in EACH:
        rows = rows.select(_first_of_each(rows[label], EACH[name]))
    images, labels, shaped = [], [], squared if name in EACH else _squeezed
    for number, row in enumerate(rows, start=1):
        if not hasattr(row.get(image), "convert") or type(row.get(label)) is not int:
            where = f"{repository}/{split}, row {number}"
            raise refused(where, f"{image}, {label}", row, "an image and a whole number")
        images.append(shaped(row[image]))
        labels.append(row[label])
    if not images:
        raise DataError(f"{repository}/{split} has no rows; accepted: one or more")
    feature = getattr(rows, "features", {}).get(label)
    classes = tuple(getattr(feature, "names", None) or _numbered(name))
    labels = np.array(labels, dtype=np.int64)
    return ImageDataset(name, split, np.stack(images), labels, classes, "hub")


def squared(image) -> np.ndarray:
    """Turn a PIL image into its middle square, (CLIP_SIDE, CLIP_SIDE, 3) uint8."""
    from PIL import Image, ImageOps

    size = CLIP_SIDE, CLIP_SIDE
    return np.asarray(ImageOps.fit(image.convert("RGB"), size, Image.Resampling.BICUBIC))


def _squeezed(image) -> np.ndarray:
    """Turn a PIL image into (SIDE, SIDE, 3) uint8, all of it."""
    return np.asarray(image.convert("RGB").resize((SIDE, SIDE)))


def _first_of_each(labels: Sequence[int], count: int) -> np.ndarray:
    """Indices of the first ``count`` rows of each class, in the order of the rows."""
    labels = np.asarray(labels)
    by_class = [np.flatnonzero(labels == label)[:count] for label in np.unique(labels)]
    return np.sort(np.concatenate(by_class))


def _numbered(name: str) -> tuple[str, ...]:
    """Names of a data set's classes where its source gives none: their numbers."""
    return tuple(map(str, range(IMAGE_CLASSES[names.whole(name)])))


def _digits(split: str) -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    side = bunch.images.shape[1]
    # Linear interpolation along each axis, as one matrix; pixel centres stay where they were.
    positions = np.clip((np.arange(DIGITS_SIDE) + 0.5) * side / DIGITS_SIDE - 0.5, 0, side - 1)
    weight = np.maximum(0, 1 - np.abs(positions[:, None] - np.arange(side)))  # (16, 8)
    enlarged = weight @ bunch.images @ weight.T  # (N, 16, 16), 0 … 16
    images = np.rint(enlarged * (255 / 16)).astype(np.uint8)[..., None]
    order = np.random.default_rng(0).permutation(len(images))
    rows = order[:1297] if split == "train" else order[1297:]
    return images[rows], bunch.target[rows].astype(np.int64)


def defender_rows(
    dataset: ImageDataset, share: float = 0.05, seed: int | Sequence[int] = 0
) -> ImageDataset:
    """Draw the clean rows that a defender owns: ``share`` of each class, at least one row.

    Source: BI-BAU paper, section 5.1; the share is lost in the text that we have, 5 % is ours.

    Raises:
        ValueError: a share outside (0, 1].
    """
    return dataset.select(_owned(dataset.labels, share, seed))


def further_rows(dataset: ImageDataset, share: float, more: float, seed: int = 0) -> ImageDataset:
    """Draw ``more`` of each class beside what the defender with ``share`` owns, to judge by.

    A class with few rows may have none of them.

    Raises:
        ValueError: shares that are not in (0, 1] together, or nothing beyond the first.
    """
    rows = _owned(dataset.labels, share + more, seed)
    rows = np.setdiff1d(rows, _owned(dataset.labels, share, seed))
    if not len(rows):
        raise ValueError(f"more is {more!r} beside {share!r}: no row; accepted: a larger share")
    return dataset.select(rows)


def _owned(labels: np.ndarray, share: float, seed: int | Sequence[int]) -> np.ndarray:
    """Sorted rows of a share of each class; those of a larger share have them among them."""
    if not 0 < share <= 1:
        raise ValueError(f"share is {share!r}; accepted: in (0, 1]")
    rng, rows_by_class = np.random.default_rng(seed), []
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        rows_by_class.append(rows[: max(1, round(share * len(rows)))])
    return np.sort(np.concatenate(rows_by_class))
