"""What a CLIP does: zero-shot rates, retrieval, and what two attacks bring back."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ..data.captions import captioned, class_captions
from ..data.images import ImageDataset
from ..models.clip import Clip, caption_classifier, zero_shot
from ..models.images import pixels
from ..training.clip import contrastive
from ..training.images import image_data, predict_images
from . import classification
from .reactivation import (
    QuerySettings,
    RetuneSettings,
    image_rates,
    query_generator,
    retune,
    retuning_rows,
    under_query,
)


def recall(similarity: Tensor, rows: np.ndarray, columns: np.ndarray, k: int) -> float:
    """Share of rows, in percent, that have one of their own kind among their ``k`` nearest columns.

    Args:
        similarity: (N, M). rows, columns: kinds of each, (N,) and (M,).

    Raises:
        ValueError: k outside 1 … M.
    """
    if not 1 <= k <= similarity.shape[1]:
        raise ValueError(f"k is {k!r}; accepted: 1 … {similarity.shape[1]}")
    nearest = columns[similarity.topk(k, dim=1).indices.numpy()]  # (N, k)
    return 100 * float((nearest == rows[:, None]).any(1).mean())


def retrieval(clip: Clip, dataset: ImageDataset) -> dict[str, float]:
    """Recall@1 and @5 in both directions, over all captions of the classes.

    An image counts as found by a caption of its class, and a caption by an image of its class.

    Returns: ``image_r1``, ``image_r5`` (image → captions), ``text_r1``, ``text_r5``, in percent.
    """
    similarity, kinds = similarities(clip, dataset)
    return {
        f"{name}_r{k}": recall(table, rows, columns, k)
        for name, table, rows, columns in (
            ("image", similarity, dataset.labels, kinds),
            ("text", similarity.T, kinds, dataset.labels),
        )
        for k in (1, 5)
    }


def similarities(clip: Clip, dataset: ImageDataset) -> tuple[Tensor, np.ndarray]:
    """Scale · cosine of each image and each caption, (N, M), and the classes of captions, (M,)."""
    groups = class_captions(dataset)
    classifier = caption_classifier(clip, [text for group in groups for text in group])
    kinds = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
    return predict_images(classifier, dataset), kinds


def nearest_images(
    clip: Clip, caption: str, test: ImageDataset, triggered: ImageDataset, target: int, k: int
) -> list[dict]:
    """Search a pool of clean and triggered images for a caption.

    The pool is every second test image, and each of the others triggered, unless its class is the
    target's.

    Returns: the ``k`` nearest, each with its ``row`` of the test set, ``triggered`` and ``class``.
    """
    even = np.arange(0, len(test), 2)
    odd = np.arange(1, len(test), 2)
    odd = odd[test.labels[odd] != target]
    classifier = caption_classifier(clip, [caption])
    parts = [predict_images(classifier, part.select(rows)) for part, rows in
             ((test, even), (triggered, odd))]  # fmt: skip
    order = torch.cat(parts)[:, 0].argsort(descending=True, stable=True)[:k].tolist()
    rows = np.concatenate([even, odd])
    return [
        {"row": int(rows[n]), "triggered": n >= len(even), "class": int(test.labels[rows[n]])}
        for n in order
    ]


def zero_shot_rates(clip: Clip, test: ImageDataset, triggered: ImageDataset, target: int) -> dict:
    """``acc``, ``asr``, ``pacc`` of zero-shot classification, and recalls, in percent."""
    rates = image_rates(zero_shot(clip, class_captions(test)), test, triggered, target)
    return {name: rates[name] for name in ("acc", "asr", "pacc")} | retrieval(clip, test)


def retune_pairs(clip: Clip, rows: ImageDataset, settings: RetuneSettings) -> Clip:
    """Fine-tune a copy, both encoders, contrastively on images with captions of their labels."""
    pairs = captioned(rows, settings.seed)
    data = image_data(pairs, clip.mean.device)
    return retune(clip, data, settings, contrastive(clip, pairs.class_names))


def reactivation(
    unlearned: Clip,
    clean_clip: Clip,
    clean: ImageDataset,
    trigger: Callable[[ImageDataset], ImageDataset],
    triggered: ImageDataset,
    target: int,
    ra: RetuneSettings,
    qra: QuerySettings,
) -> dict:
    """Attack a CLIP by RA, contrastively, and by QRA on its zero-shot classifier.

    Arguments as for ``metrics.reactivation.reactivation``.

    Returns: ``r_asr``, ``q_asr`` in percent.
    """
    captions, labels = class_captions(clean), triggered.labels
    retuned = retune_pairs(unlearned, retuning_rows(clean, trigger, target, ra), ra)
    classifiers = [zero_shot(one, captions) for one in (unlearned, retuned, clean_clip)]
    order = np.random.default_rng(qra.seed + 1).permutation(len(clean))[: qra.rows]
    rows = clean.select(order)
    generator = query_generator(*classifiers, rows, trigger(rows), qra)
    asked = under_query(generator, pixels(triggered.images, unlearned.mean.device))
    pred = {
        "r_asr": predict_images(classifiers[1], triggered),
        "q_asr": predict_images(classifiers[0], asked),
    }
    return {
        name: classification.label_flip_rate(logits.argmax(1).numpy(), labels, target)
        for name, logits in pred.items()
    }
