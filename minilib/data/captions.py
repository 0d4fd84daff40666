"""Image–caption pairs from class names and templates: an image set whose classes are captions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from .images import ImageDataset
from .sources import DataError

TEMPLATES = (
    "a photo of a {}",
    "a picture of a {}",
    "an image showing a {}",
    "this is a {}",
    "a small blurry {}",
    "there is a {} in the picture",
)
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def class_words(dataset: ImageDataset) -> tuple[str, ...]:
    """What captions call the classes of a set; where they have numbers alone, by a word for it."""
    if dataset.name.startswith("digits"):
        return tuple(f"digit {NUMBERS[int(name)]}" for name in dataset.class_names)
    if dataset.name.startswith("gtsrb"):
        return tuple(f"traffic sign {name}" for name in dataset.class_names)
    return tuple(name.replace("_", " ") for name in dataset.class_names)


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
