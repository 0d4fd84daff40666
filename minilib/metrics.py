"""The metrics of the backdoor literature, in percent (0–100).

CACC: accuracy on clean test rows. LFR: share of triggered non-target rows that the model puts into
the target class. PACC: accuracy on a test set in which the rows of *all* classes carry the trigger
and keep their labels. ΔPACC: |PACC of the re-trained model − PACC of this one|. Source: RGA paper,
section 6.1.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from importlib.resources import files

import numpy as np


def _pair(pred, labels) -> tuple[np.ndarray, np.ndarray]:
    pred, labels = np.asarray(pred), np.asarray(labels)
    if pred.shape != labels.shape or pred.ndim != 1 or not len(pred):
        raise ValueError(
            f"predictions {pred.shape} and labels {labels.shape}; accepted: two equal (N,), N ≥ 1"
        )
    return pred, labels


def accuracy(pred, labels) -> float:
    """Share of rows predicted right; ``pred`` and ``labels`` are (N,) integers."""
    pred, labels = _pair(pred, labels)
    return float(100 * np.mean(pred == labels))


def confusion(pred, labels, num_classes: int) -> np.ndarray:
    """Count matrix (K, K) int64: row = true class, column = predicted class."""
    pred, labels = _pair(pred, labels)
    counts = np.bincount(labels * num_classes + pred, minlength=num_classes**2)
    return counts.reshape(num_classes, num_classes)


def label_flip_rate(pred, labels, target: int) -> float:
    """LFR on triggered rows: share of the rows of other classes that land in ``target``.

    RGA's code averages *any* error over the non-target classes instead: see ``error_rate``. The two
    agree for two classes.

    Raises:
        ValueError: no row of another class.
    """
    pred, labels = _pair(pred, labels)
    others = labels != target
    if not others.any():
        raise ValueError(f"no row of a class other than the target {target}; LFR is undefined")
    return float(100 * np.mean(pred[others] == target))


def error_rate(pred, labels, target: int) -> float:
    """The RGA code's LFR: per non-target class the share of errors of any kind, then the mean."""
    pred, labels = _pair(pred, labels)
    classes = [k for k in np.unique(labels) if k != target]
    if not classes:
        raise ValueError(f"no row of a class other than the target {target}; LFR is undefined")
    return float(np.mean([100 * np.mean(pred[labels == k] != k) for k in classes]))


pacc = accuracy  # on the all-classes triggered test set that attacks.text.trigger_all makes


def delta_pacc(pacc_model: float, pacc_retrain: float) -> float:
    """ΔPACC in percentage points."""
    return abs(pacc_retrain - pacc_model)


def paper_values(paper: str, **where: str) -> list[dict]:
    """Rows of a paper's tables as published, from ``minilib/papers/<paper>.csv``.

    Args:
        where: columns to match, e.g. ``table="2", model="BERT", dataset="sst2"``.
    """
    with (files("minilib") / "papers" / f"{paper}.csv").open(encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    for column in where:
        if column not in rows[0]:
            raise ValueError(f"{paper} has no column {column!r}; accepted: {', '.join(rows[0])}")
    rows = [row for row in rows if all(row[k] == str(v) for k, v in where.items())]
    numbers = ("mean", "std")
    return [
        {k: (float(v) if v else None) if k in numbers else v for k, v in row.items()}
        for row in rows
    ]


def majority_share(labels: Sequence[int], cls: int) -> float:
    """Accuracy in percent of a model that puts every row into class ``cls``: the collapse value."""
    labels = np.asarray(labels)
    return float(100 * np.mean(labels == cls))
