"""The metrics of the backdoor literature, in percent (0–100).

CACC: accuracy on clean test rows. LFR: share of triggered non-target rows that the model puts into
the target class. PACC: accuracy on a test set in which the rows of *all* classes carry the trigger
and keep their labels. ΔPACC: |PACC of the re-trained model − PACC of this one|. Source: RGA paper,
section 6.1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from torch import nn

from ..training import text as text_training
from ..victims.text import Scenario


def _pair(pred, labels) -> tuple[np.ndarray, np.ndarray]:
    pred, labels = np.asarray(pred), np.asarray(labels)
    if pred.shape != labels.shape or pred.ndim != 1 or not len(pred):
        raise ValueError(
            f"predictions {pred.shape} and labels {labels.shape}; accepted: two equal (N,), N ≥ 1"
        )
    for name, values in (("predictions", pred), ("labels", labels)):
        if values.dtype.kind not in "biu":  # none of them would equal the others: a rate of 0
            raise ValueError(f"{name} are {values.dtype}; accepted: whole numbers, a class each")
    return pred.astype(np.int64), labels.astype(np.int64)


def _class(target) -> int:
    """The number of a class; of anything else no prediction would be, and the rate 0."""
    if not isinstance(target, int | np.integer) or target < 0:
        raise ValueError(f"target is {target!r}; accepted: the number of a class, 0 or above")
    return int(target)


def accuracy(pred, labels) -> float:
    """Share of rows predicted right; ``pred`` and ``labels`` are (N,) integers."""
    pred, labels = _pair(pred, labels)
    return float(100 * np.mean(pred == labels))


def confusion(pred, labels, num_classes: int) -> np.ndarray:
    """Count matrix (K, K) int64: row = true class, column = predicted class.

    Raises:
        ValueError: a prediction or a label that is none of 0 … K - 1.
    """
    pred, labels = _pair(pred, labels)
    for name, values in (("predictions", pred), ("labels", labels)):
        if values.min() < 0 or values.max() >= num_classes:  # they would count in another cell
            span = f"{values.min()} … {values.max()}"
            raise ValueError(f"{name} span {span}; accepted: 0 … {num_classes - 1}")
    counts = np.bincount(labels * num_classes + pred, minlength=num_classes**2)
    return counts.reshape(num_classes, num_classes)


def label_flip_rate(pred, labels, target: int) -> float:
    """LFR on triggered rows: share of the rows of other classes that land in ``target``.

    RGA's code and its tables of AG News average *any* error over the non-target classes instead:
    see ``error_rate``. The two agree for two classes. ASR, of images and of chat, is this share.

    Raises:
        ValueError: no row of another class, or a target that is no class's number.
    """
    pred, labels = _pair(pred, labels)
    other_rows = labels != _class(target)
    if not other_rows.any():
        raise ValueError(f"no row of a class other than the target {target}; LFR is undefined")
    return float(100 * np.mean(pred[other_rows] == target))


attack_success_rate = label_flip_rate  # ASR of the vision papers: one formula, two names


def error_rate(pred, labels, target: int) -> float:
    """The RGA code's LFR: per non-target class the share of errors of any kind, then the mean."""
    pred, labels = _pair(pred, labels)
    classes = [k for k in np.unique(labels) if k != _class(target)]
    if not classes:
        raise ValueError(f"no row of a class other than the target {target}; LFR is undefined")
    return float(np.mean([100 * np.mean(pred[labels == k] != k) for k in classes]))


pacc = accuracy  # on the all-classes triggered test set that attacks.text.trigger_all makes


def delta_pacc(pacc_model: float, pacc_retrain: float) -> float:
    """ΔPACC in percentage points."""
    return abs(pacc_retrain - pacc_model)


def imaginary_models(labels, target: int, num_classes: int) -> list[dict]:
    """Measure four imaginary models on triggered rows: what LFR sees of them, and what PACC does.

    Args:
        labels: (N,) true classes of the triggered rows, of all classes. target: the attacker's.

    Returns:
        Dicts of ``imagined`` (the model), ``lfr``, ``target_lost`` (share of the target class that
        leaves it), ``pacc``, ``pacc_identity`` = Σ_k π_k (1 − ε_k), with π_k the share of class k
        and ε_k its error rate, and ``dpacc``.
    """
    labels = np.asarray(labels)
    other_class = (target + 1) % num_classes
    models = {
        "ideal: ignores the trigger": labels,
        "backdoored: trigger → target": np.full_like(labels, target),
        "shifted: trigger → another class": np.full_like(labels, other_class),
        "trigger → guess": np.random.default_rng(0).integers(0, num_classes, len(labels)),
    }
    share = np.bincount(labels, minlength=num_classes) / len(labels)
    rows = []
    for name, pred in models.items():
        counts = confusion(pred, labels, num_classes)
        error = 1 - counts.diagonal() / counts.sum(1).clip(1)
        rows.append(
            {
                "imagined": name,
                "lfr": label_flip_rate(pred, labels, target),
                "target_lost": float(100 * error[target]),
                "pacc": pacc(pred, labels),
                "pacc_identity": float(100 * share @ (1 - error)),
                "dpacc": delta_pacc(pacc(pred, labels), 100.0),
            }
        )
    return rows


def majority_share(labels: Sequence[int], cls: int) -> float:
    """Accuracy in percent of a model that puts every row into class ``cls``: the collapse value."""
    labels = np.asarray(labels)
    return float(100 * np.mean(labels == cls))


def evaluator(case: Scenario, tokenizer, device) -> Callable[[nn.Module], dict]:
    """Return a function that measures a model on the scenario's test sets.

    Tokenises once. The function returns ``cacc``, ``dev_cacc``, ``lfr``, ``pacc`` (percent) and
    ``confusion`` on the triggered rows (nested list, row = true class).
    """
    sets = {
        name: text_training.encode(rows.texts, rows.labels, tokenizer, device=device)
        for name, rows in (("test", case.test), ("dev", case.dev), ("triggered", case.triggered))
    }
    classes = case.clean.num_classes

    def evaluate(model: nn.Module) -> dict:
        pred = {
            name: text_training.predict(model, data).argmax(1).numpy()
            for name, data in sets.items()
        }
        labels = case.triggered.labels
        return {
            "cacc": accuracy(pred["test"], case.test.labels),
            "dev_cacc": accuracy(pred["dev"], case.dev.labels),
            "lfr": label_flip_rate(pred["triggered"], labels, case.target),
            "pacc": pacc(pred["triggered"], labels),
            "confusion": confusion(pred["triggered"], labels, classes).tolist(),
        }

    return evaluate
