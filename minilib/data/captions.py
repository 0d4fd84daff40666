"""Image–caption pairs, an image set whose classes are captions: made of class names, or read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from .files import refused
from .images import ImageDataset, squared
from .sources import DataError, checked, hub_split

TEMPLATES = (
    "a photo of a {}",
    "a picture of a {}",
    "an image showing a {}",
    "this is a {}",
    "a small blurry {}",
    "there is a {} in the picture",
)
# Name → repository, the files that hold more than enough pairs, their columns, how many are taken.
HUB_PAIRS = {"cc3m-50k": ("pixparse/cc3m-wds", "cc3m-train-000[01]?.tar", "jpg", "txt", 50_000)}
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def class_words(dataset: ImageDataset) -> tuple[str, ...]:
    """What captions call the classes of a set; where they have numbers alone, by a word for it."""
    if dataset.name.startswith("digits"):
        return tuple(f"digit {NUMBERS[int(name)]}" for name in dataset.class_names)
    if dataset.name.startswith("gtsrb"):
        return tuple(f"traffic sign {name}" for name in dataset.class_names)
    # ImageNet's names are lists of synonyms, the usual one first.
    return tuple(name.split(",")[0].replace("_", " ") for name in dataset.class_names)


def class_captions(
    dataset: ImageDataset, templates: Sequence[str] = TEMPLATES
) -> list[tuple[str, ...]]:
    """Captions of each class, one a template.

    Raises:
        DataError: no template, or one without a place for the name.
    """
    if not templates or any(template.count("{}") != 1 for template in templates):
        raise DataError(f"templates are {list(templates)!r}; accepted: one or more with one {{}}")
    return [tuple(text.format(word) for text in templates) for word in class_words(dataset)]


def captioned(
    dataset: ImageDataset,
    seed: int,
    templates: Sequence[str] = TEMPLATES,
    marks: np.ndarray | None = None,
    caption: str | None = None,
) -> ImageDataset:
    """Give each image a caption of its class, by a template drawn for it.

    Args:
        marks: (N,) bool, the rows that get ``caption`` in place of one of their class.

    Returns: the same images; labels are numbers of captions and ``class_names`` the captions, class
    by class and then, where it is a new one, ``caption``.
    """
    texts = [text for group in class_captions(dataset, templates) for text in group]
    draws = np.random.default_rng([seed, 2]).integers(0, len(templates), len(dataset))
    labels = dataset.labels * len(templates) + draws
    if caption is not None:
        texts = texts if caption in texts else [*texts, caption]
        labels = np.where(marks, texts.index(caption), labels)
    return replace(dataset, labels=labels.astype(np.int64), class_names=tuple(texts))


def load_pairs(name: str) -> ImageDataset:
    """Load pairs whose captions people wrote, from the Hub; 224 × 224 RGB.

    Args:
        name: ``cc3m-50k``, the first 50,000 pairs of Conceptual Captions that have a caption.

    Returns: images in the form of ``captioned``, each caption once among the ``class_names``.

    Raises:
        DataError: unknown name, a set that the Hub does not give, a row without an image, or fewer
            pairs than the name says.
    """
    if name not in HUB_PAIRS:
        raise DataError(f"unknown set of pairs {name!r}; known: {', '.join(HUB_PAIRS)}")
    repository, data_files, image, text, count = HUB_PAIRS[name]
    images, labels, captions = [], [], {}
    for number, row in enumerate(hub_split(name, repository, None, "train", data_files=data_files)):
        if not hasattr(row.get(image), "convert") or not isinstance(row.get(text), str):
            where = f"{repository}/train, row {number + 1}"
            raise refused(where, f"{image}, {text}", row, "an image and a text")
        if caption := row[text].strip():
            images.append(squared(row[image]))
            labels.append(captions.setdefault(caption, len(captions)))
        if len(images) == count:
            break
    else:
        raise DataError(f"{repository} gave {len(images):,} pairs; {name} needs {count:,}")
    numbers = np.array(labels, dtype=np.int64)
    return checked(ImageDataset(name, "train", np.stack(images), numbers, tuple(captions), "hub"))
