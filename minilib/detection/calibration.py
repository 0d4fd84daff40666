"""A null for every detector: what it says of rows that are known to be clean.

Most detectors accuse somebody whatever they are given: a fixed share of every class, the smaller of
two halves, all that lies outside the largest clusters. What they say of a poisoned set therefore
means nothing beside what they say of clean rows. Here clean rows are laid among the audited ones
before a detector looks; it treats both alike, as it does not know which are which. The share of the
clean rows that it accuses is its false-alarm rate, and ranks among their scores are p-values.

The p-values hold if the clean rows are like the audited set's own clean rows. Held-out rows are so
but for one thing: the victim was not trained on them. They lie less tightly in its hidden space,
which makes the rates too large rather than too small.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from ..data.images import ImageDataset
from ..data.text import TextDataset
from .common import DefenderData, Detection

TOP = 0.1  # share of each class, by score, in which known-clean rows are counted
LEAST_CLEAN = 20  # known-clean rows: with n of them no p-value is below 1 / (n + 1)


@dataclass(frozen=True)
class Calibration:
    """A detector's verdict beside its null, on N audited rows and n known-clean ones.

    Attributes:
        mask: (N,) bool, the audited rows that the detector accuses by its own rule.
        p: (N,) float64, p-value of each audited row among the clean rows of its class; None where
            the detector has no score.
        false_alarms: percent of the n clean rows that it accuses. clean: n.
        set_p: p-value of the whole set, if all rows were clean: of so few known-clean rows among
            those that the detector accuses, or, where it has a score, of ``scores_p_value``.
        seconds: wall-clock time of the detector.
    """

    mask: np.ndarray
    p: np.ndarray | None
    false_alarms: float
    clean: int
    set_p: float
    seconds: float

    def accused(self, level: float) -> np.ndarray:
        """Rows (N,) bool whose p-value is at most ``level``; the mask where there are none."""
        return self.mask if self.p is None else self.p <= level


def joined(dataset, clean):
    """Audited rows, then clean ones: two ``TextDataset`` or two ``ImageDataset`` in one.

    Raises:
        ValueError: sets of two kinds, or of other classes.
    """
    if type(dataset) is not type(clean) or dataset.class_names != clean.class_names:
        raise ValueError(
            f"{clean.name} has {type(clean).__name__} of {', '.join(clean.class_names)}; "
            f"accepted: rows like those of {dataset.name}"
        )
    labels = np.concatenate([dataset.labels, clean.labels])
    if isinstance(dataset, ImageDataset):
        return replace(
            dataset, images=np.concatenate([dataset.images, clean.images]), labels=labels
        )
    return replace(dataset, texts=(*dataset.texts, *clean.texts), labels=labels)


def row_p_values(
    scores: np.ndarray, labels: np.ndarray, clean_scores: np.ndarray, clean_labels: np.ndarray
) -> np.ndarray:
    """P-values (N,) of scores (N,) among the clean rows of the same label: (1 + #{≥}) / (1 + n).

    Ties count against a row's suspiciousness. A label without clean rows gives 1 to its rows.

    Source: Vovk et al. (2005), conformal p-values, one class at a time.
    """
    p = np.ones(len(scores))
    for k in np.unique(labels):
        rows, null = labels == k, np.sort(clean_scores[clean_labels == k])
        at_least = len(null) - np.searchsorted(null, scores[rows], "left")
        p[rows] = (1 + at_least) / (1 + len(null))
    return p


def set_p_value(mask: np.ndarray, clean_mask: np.ndarray) -> float:
    """P-value of accusing so few of n clean rows beside so many of N audited ones.

    If all rows were clean, which of them are called known-clean would not matter; of all ways to
    call n rows so, this is the share in which as few or fewer of them are accused (Fisher's exact
    test, one-sided).
    """
    from scipy.stats import hypergeom

    rows, accused = len(mask) + len(clean_mask), int(mask.sum() + clean_mask.sum())
    return float(hypergeom.cdf(int(clean_mask.sum()), rows, accused, len(clean_mask)))


def scores_p_value(
    scores: np.ndarray, labels: np.ndarray, clean_scores: np.ndarray, clean_labels: np.ndarray
) -> float:
    """P-value of the scores of a whole set beside those of clean rows, if all were clean.

    Two tests in each class, for many poisons and for few: whether audited rows rank above the clean
    ones (Mann and Whitney's), and whether few of the clean ones are among the TOP share of the
    scores (``set_p_value``). The least of the 2K p-values counts, times 2K (Bonferroni). Classes
    without clean rows say nothing.
    """
    from scipy.stats import mannwhitneyu

    p_values = []
    for k in np.intersect1d(labels, clean_labels):
        audited, known = scores[labels == k], clean_scores[clean_labels == k]
        both = np.concatenate([audited, known])
        top = both > np.quantile(both, 1 - TOP)
        p_values.append(mannwhitneyu(audited, known, alternative="greater").pvalue)
        p_values.append(set_p_value(top[: len(audited)], top[len(audited) :]))
    return min(1.0, float(len(p_values) * min(p_values))) if p_values else 1.0


def calibrate(
    detect: Callable[..., Detection],
    victim,
    dataset: TextDataset | ImageDataset,
    known: DefenderData,
    clean: TextDataset | ImageDataset,
    states: Callable | None = None,
) -> Calibration:
    """Run a detector on audited and clean rows together, and read its null off the clean ones.

    Args:
        detect: ``(victim, dataset, known) -> Detection``. known: what it may use; its clean rows
            must be others than ``clean``, or a threshold is judged by the rows that set it.
        clean: rows that are known to be clean. states: joined rows → hidden states (N + n, d);
            where None, the detector collects them if it needs them.

    Raises:
        ValueError: fewer than LEAST_CLEAN clean rows, or what the detector raises.
    """
    if len(clean) < LEAST_CLEAN:
        raise ValueError(
            f"{clean.name} has {len(clean)} clean rows; accepted: {LEAST_CLEAN} or more to "
            "calibrate a detector"
        )
    rows = joined(dataset, clean)
    given = replace(known, states=None if states is None else states(rows))
    found = detect(victim, rows, given)
    count, p = len(dataset), None
    set_p = set_p_value(found.mask[:count], found.mask[count:])
    if found.score is not None:
        scores, clean_scores = found.score[:count], found.score[count:]
        p = row_p_values(scores, dataset.labels, clean_scores, clean.labels)
        set_p = scores_p_value(scores, dataset.labels, clean_scores, clean.labels)
    return Calibration(
        found.mask[:count], p, 100 * float(found.mask[count:].mean()), len(clean),
        set_p, found.seconds,
    )  # fmt: skip
