"""What detectors share: what they are given, what they return, and how that is judged."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import nn

from ..data.text import TextDataset
from ..models.text import HiddenStates, TextClassifier
from ..training.text import encode, predict


@dataclass(frozen=True)
class DefenderData:
    """What a defender has beside the victim and its training rows.

    Attributes:
        clean: rows known to be clean (a dev split); needed by STRIP, RAP and ONION.
        states: (N, d) float32 of ``hidden_states``, so that detectors share them; collected anew
            where None.
        model: name of the pre-trained model, as in ``models.text.text_classifier``; needed by MF.
        seed: of every random choice.
    """

    clean: TextDataset | None = None
    states: np.ndarray | None = field(default=None, repr=False)
    model: str = "minilm"
    seed: int = 0


@dataclass(frozen=True)
class Detection:
    """A detector's verdict on N training rows.

    Attributes:
        mask: (N,) bool, True where a row is suspect: the rows that unlearning forgets.
        score: (N,) float64, larger where more suspicious; None where a detector has no such score.
        seconds: wall-clock time, without collecting hidden states that were given.
        extra: what else is worth showing, by name.
    """

    name: str
    mask: np.ndarray
    score: np.ndarray | None
    seconds: float
    extra: dict[str, Any] = field(default_factory=dict, repr=False)


def hidden_states(victim: TextClassifier, dataset: TextDataset, precision="auto") -> np.ndarray:
    """Return last-layer states (N, d) float32 of [CLS], or of the last token of a causal model.

    Batched by tokens on the victim's device.

    Raises:
        ValueError: a victim without hidden states.
    """
    return states_of(victim, dataset.texts, precision)


def states_of(victim: TextClassifier, texts, precision="auto") -> np.ndarray:
    """``hidden_states`` of bare texts."""
    check_states(victim)
    device = next(victim.parameters()).device
    data = encode(texts, np.zeros(len(texts), np.int64), victim.tokenizer, device=device)
    return predict(HiddenStates(victim), data, precision).numpy()


def check_states(victim: nn.Module) -> None:
    """Raise ValueError unless hidden states can be had from ``victim``."""
    if not callable(getattr(victim, "features", None)):
        kind = type(victim).__name__
        raise ValueError(
            f"the victim, a {kind}, has no hidden states; "
            "accepted: a TextClassifier, or a module with features(input_ids, attention_mask)"
        )


def check_rows(dataset: TextDataset, least: int = 2, what: str = "one per class") -> None:
    """Raise ValueError for a set of a single class, or of fewer rows than ``least``."""
    if len(dataset) < least:
        raise ValueError(
            f"{dataset.name} has {len(dataset)} rows; accepted: at least {least} ({what})"
        )
    classes = np.unique(dataset.labels)
    if len(classes) < 2:
        name = dataset.class_names[classes[0]]
        raise ValueError(
            f"{dataset.name} has rows of a single class ({name}); accepted: two classes or more"
        )


def clean_rows(known: DefenderData, detector: str) -> TextDataset:
    """Return the defender's clean rows; raise ValueError where there are none."""
    if known.clean is None or not len(known.clean):
        raise ValueError(f"{detector} has no clean rows; accepted: one or more in known.clean")
    return known.clean


def clean_threshold(clean_scores: np.ndarray, frr: float) -> float:
    """Score that only the share ``frr`` of the clean rows exceeds (false rejection rate)."""
    if not 0 <= frr < 1:
        raise ValueError(f"frr is {frr!r}; accepted: a share in [0, 1)")
    return float(np.quantile(clean_scores, 1 - frr, method="higher"))


def quality(mask: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Precision, recall, F1 and false-positive rate of a mask, in percent, and its ``suspects``.

    Precision without suspects is 0; precision, recall and F1 without poison are NaN, because only
    the false-positive rate means something there.
    """
    mask, truth = np.asarray(mask, bool), np.asarray(truth, bool)
    if mask.shape != truth.shape or mask.ndim != 1:
        raise ValueError(f"mask {mask.shape} and truth {truth.shape}; accepted: two equal (N,)")
    hits, suspects, poisons = (int(m.sum()) for m in (mask & truth, mask, truth))
    nan = float("nan")
    return {
        "precision": 100 * hits / max(suspects, 1) if poisons else nan,
        "recall": 100 * hits / poisons if poisons else nan,
        "f1": 200 * hits / (suspects + poisons) if poisons else nan,
        "fpr": 100 * (suspects - hits) / max(len(truth) - poisons, 1),
        "suspects": suspects,
    }


def ranking(score: np.ndarray | None, truth: np.ndarray) -> dict[str, float]:
    """Areas under the ROC and precision-recall curves, in percent; NaN without score or poison."""
    if score is None or not truth.any():
        return {"auroc": float("nan"), "ap": float("nan")}
    from sklearn.metrics import average_precision_score, roc_auc_score

    return {
        "auroc": 100 * float(roc_auc_score(truth, score)),
        "ap": 100 * float(average_precision_score(truth, score)),
    }


def degrade(
    truth: np.ndarray,
    precision: float,
    recall: float,
    seed: int,
    among: np.ndarray | None = None,
) -> np.ndarray:
    """Spoil the oracle's mask to a given precision and recall (shares in (0, 1]).

    A random ``recall`` of the poisons stays; clean rows are added until ``precision`` holds, to the
    nearest row.

    Args:
        truth: (N,) bool. among: (N,) bool, the rows that false positives come from; all if None.

    Raises:
        ValueError: a share out of range, no poison, or too few clean rows for the precision.
    """
    for name, share in (("precision", precision), ("recall", recall)):
        if not 0 < share <= 1:
            raise ValueError(f"{name} is {share!r}; accepted: a share in (0, 1]")
    poisons = np.flatnonzero(truth)
    if not len(poisons):
        raise ValueError("the mask has no poison to keep; accepted: one True or more")
    candidates = np.flatnonzero(~truth if among is None else ~truth & among)
    rng = np.random.default_rng(seed)
    hits = max(1, round(recall * len(poisons)))
    errors = round(hits * (1 / precision - 1))
    if errors > len(candidates):
        raise ValueError(
            f"precision is {precision!r}: {errors} false positives wanted of {len(candidates)} "
            "clean rows"
        )
    mask = np.zeros(len(truth), bool)
    mask[rng.permutation(poisons)[:hits]] = True
    mask[rng.permutation(candidates)[:errors]] = True
    return mask
