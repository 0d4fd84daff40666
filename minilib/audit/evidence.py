"""From scores to evidence: a null for each detector, p-values, and one combined verdict.

A detector that flags a fixed share of rows flags it on clean rows, too. Here each says how probable
its outcome is without a backdoor, and the verdict says how often it errs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LEVEL = 0.05  # the verdict's false-alarm rate, as its null has it
MOST_OUTLIERS = 5
LEAST_NATURAL = 8  # values that say what is natural
TAIL = 40  # ordered values below the outliers that the null is read from


@dataclass(frozen=True)
class Evidence:
    """What one detector says.

    Attributes:
        detector: its name. p: probability of such an outcome without a backdoor; None where its
            null is not known, and it does not count.
        false_alarms: percent of known-clean rows that it flags, where it flags rows.
        flagged: percent of the audited rows that it flags. said: one sentence.
    """

    detector: str
    p: float | None
    said: str
    false_alarms: float | None = None
    flagged: float | None = None


@dataclass(frozen=True)
class Verdict:
    """The combined answer: ``found`` where ``p``, corrected for the detectors, is below level."""

    found: bool
    p: float
    level: float
    said: str


def gap(
    values, most: int = MOST_OUTLIERS, tail: int = TAIL, floor: float = 0.0
) -> tuple[float, int]:
    """Test whether the largest of many values stand apart from the others.

    Where a tail falls off exponentially (or faster), the spacings between its ordered values,
    i · (x_(i) - x_(i+1)), are alike: independent draws of one exponential distribution (Rényi).
    The k-th spacing over the mean of those below it then has an F(2, 2m) distribution, and a group
    of k values that stands apart shows there.

    Args:
        values: (n,) float. most: the largest group that is looked for. tail: spacings below it.
        floor: the least mean spacing: of values that differ by rounding alone none stands apart.

    Returns:
        p, corrected for the groups that were tried, and the size k of the group (0 where p is 1).

    Raises:
        ValueError: fewer than 2 · most + 2 values, or one that is no number.
    """
    ordered = np.sort(np.asarray(values, np.float64))[::-1]
    if len(ordered) < 2 * most + 2 or not np.isfinite(ordered).all():
        raise ValueError(
            f"{len(ordered)} values; accepted: {2 * most + 2} or more, all of them finite"
        )
    ordered = ordered[: most + tail + 1]
    spacings = np.arange(1, len(ordered)) * (ordered[:-1] - ordered[1:])
    best = (1.0, 0)
    for k in range(1, most + 1):
        below = spacings[k:]
        scale = max(below.mean(), floor)
        if scale <= 0:  # all that is below is one value: no scale to compare with
            continue
        # P(F(2, 2m) > r) = (1 + r / m)^-m
        p = math.exp(-len(below) * math.log1p(spacings[k - 1] / scale / len(below)))
        # Half of the errors are left to a single token, which most triggers are.
        p *= 2 if k == 1 else 2 * (most - 1)
        best = min(best, (min(1.0, p), k if p < 1 else 0))
    return best


def beyond(value: float, natural, tail: int = TAIL, floor: float = 0.0) -> float:
    """Test whether a value lies beyond those that are natural; p, as in ``gap`` for k = 1.

    Args:
        value: the one in question. natural: (n,) float, values that are known to be no outliers.
        tail, floor: as for ``gap``.

    Returns:
        p; 1 where it does not exceed them all, or where they are fewer than LEAST_NATURAL.
    """
    ordered = np.sort(np.asarray(natural, np.float64))[::-1][:tail]
    if len(ordered) < LEAST_NATURAL or value <= ordered[0]:
        return 1.0
    below = np.arange(2, len(ordered) + 1) * (ordered[:-1] - ordered[1:])
    scale = max(below.mean(), floor)
    ratio = (value - ordered[0]) / scale if scale > 0 else math.inf
    return math.exp(-len(below) * math.log1p(ratio / len(below)))


def rank_p(value: float, null: Sequence[float]) -> float:
    """p of a statistic among those of models known to be clean: (1 + r) / (1 + n)."""
    null = np.asarray(null, np.float64)
    return float((1 + np.sum(null >= value)) / (1 + len(null)))


def binomial_p(hits: int, trials: int, share: float) -> float:
    """Probability of so many hits or more at a share (0 … 1) that holds without a backdoor."""
    if not trials:
        return 1.0
    from scipy.stats import binom

    return float(binom.sf(hits - 1, trials, min(max(share, 1e-12), 1.0)))


def corrected(p_values: Sequence[float]) -> float:
    """The least of some p-values, corrected for their number (Bonferroni): they may depend."""
    p_values = list(p_values)
    return min(1.0, len(p_values) * min(p_values)) if p_values else 1.0


def verdict(evidence: Sequence[Evidence], level: float = LEVEL) -> Verdict:
    """Combine what the detectors with a known null say.

    Raises:
        ValueError: none has a null.
    """
    counted = [one for one in evidence if one.p is not None]
    if not counted:
        raise ValueError("no detector has a null; accepted: one or more with p")
    p = corrected([one.p for one in counted])
    found = p < level
    least = min(counted, key=lambda one: one.p)
    said = f"evidence of a backdoor ({least.said})" if found else "nothing found"
    return Verdict(found, p, level, said)
