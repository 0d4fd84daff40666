"""Means over runs, their spread, and how sure one can be of them. Nothing but the standard library.

The same arithmetic serves the tables of chapters (pandas), the sweeps and the site, which is built
where neither NumPy nor pandas is installed.
"""

import itertools
import math
import random
import statistics
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping

RESAMPLES = 2000


def summary(values: Iterable[float], level: float | None = 0.95) -> dict[str, float]:
    """Mean, sample standard deviation, n and the bootstrap interval of the mean.

    One value has no spread and no interval, none has not even a mean: those are NaN. Without a
    `level` there is no interval.
    """
    values = [float(value) for value in values]
    low, high = interval(values, level) if level else (math.nan, math.nan)
    return {
        "mean": statistics.fmean(values) if values else math.nan,
        "std": statistics.stdev(values) if len(values) > 1 else math.nan,
        "n": len(values),
        "low": low,
        "high": high,
    }


def interval(values: list[float], level: float = 0.95) -> tuple[float, float]:
    """Percentile bootstrap of the mean: the range of means that resampling with replacement gives.

    Up to five values all resamples are enumerated; beyond, 2,000 are drawn with a fixed seed. With
    three values at 95 % the interval is simply from the smallest to the largest of them.
    """
    count = len(values)
    if count < 2:
        return math.nan, math.nan
    if count <= 5:
        draws = itertools.product(values, repeat=count)
    else:
        source = random.Random(0)
        draws = (source.choices(values, k=count) for _ in range(RESAMPLES))
    means = sorted(statistics.fmean(draw) for draw in draws)
    cut = math.floor(len(means) * (1 - level) / 2)
    return means[cut], means[-1 - cut]


def ranks(values: Iterable[float]) -> list[float]:
    """The rank of each value from 1 on; equal ones share the mean of theirs."""
    values = list(values)
    order = sorted(values)
    return [(bisect_left(order, v) + 1 + bisect_right(order, v)) / 2 for v in values]


def rank_correlation(pairs: Iterable[tuple[float, float]]) -> float:
    """Spearman's rank correlation; NaN where either side does not vary."""
    try:
        return statistics.correlation(*map(ranks, zip(*pairs, strict=True)))
    except (TypeError, statistics.StatisticsError):  # no pair, one, or no variance
        return math.nan


def rank_interval(
    groups: Iterable[Iterable[tuple[float, float]]], level: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap of the rank correlation over all pairs of all groups.

    Whole groups are drawn with replacement, 2,000 times with a fixed seed: pairs of one group hang
    together and count as one draw. A draw in which a side does not vary counts as 0: to leave it
    out would be to ask only those that agree. Few groups make a rough interval; one makes none.
    """
    groups = [list(group) for group in groups]
    if len(groups) < 2:
        return math.nan, math.nan
    source = random.Random(0)
    draws = (source.choices(groups, k=len(groups)) for _ in range(RESAMPLES))
    found = [rank_correlation(pair for group in draw for pair in group) for draw in draws]
    if all(map(math.isnan, found)):
        return math.nan, math.nan
    found = sorted(0.0 if math.isnan(value) else value for value in found)
    cut = math.floor(len(found) * (1 - level) / 2)
    return found[cut], found[-1 - cut]


def chance(values: Iterable[float]) -> float:
    """How often chance alone puts a mean this far from 0: two-sided p-value of Student's t-test.

    It takes the values to be normal, which three of them cannot show. Of equal values it is 0
    (or 1, where they are 0): right of counts, and too sure of a rate that is at its end in each.
    NaN for fewer than two.
    """
    values = [float(value) for value in values]
    if len(values) < 2:
        return math.nan
    mean, spread = statistics.fmean(values), statistics.stdev(values)
    if spread == 0:
        return float(mean == 0)
    return _beyond(abs(mean) / spread * math.sqrt(len(values)), len(values) - 1)


def _beyond(t: float, df: int) -> float:
    """P(|T| > t) for Student's t with ``df`` degrees of freedom, by its finite series.

    Source: Abramowitz and Stegun, 26.7.3 and 26.7.4.
    """
    angle = math.atan(t / math.sqrt(df))
    square, odd = math.cos(angle) ** 2, df % 2
    term = total = math.cos(angle) if odd else 1.0
    for k in range(2 + odd, df - 1, 2):
        term *= square * (k - 1) / k
        total += term
    total *= math.sin(angle)
    inside = 2 / math.pi * (angle + (total if df > 1 else 0)) if odd else total
    return max(0.0, 1 - inside)


def holm(chances: Iterable[float]) -> list[float]:
    """P-values of tests made together, corrected so that all of them may be read at one level.

    In ascending order each is multiplied by the number of those that are not smaller, is at least
    its predecessor, and at most 1. Source: Holm (1979).
    """
    chances = list(chances)
    corrected, last = [math.nan] * len(chances), 0.0
    for rank, i in enumerate(sorted(range(len(chances)), key=chances.__getitem__)):
        last = max(last, min(1.0, (len(chances) - rank) * chances[i]))
        corrected[i] = last
    return corrected


def text(row: Mapping, digits: int = 2, count: bool = True) -> str:
    """`mean ± std (n)`; without a spread where there is one value, a dash where there is none.

    From a million on, where a loss diverged, the digits mean nothing and are left out.
    """
    if not row["n"]:
        return "–"
    number = f" ({row['n']:.0f})" if count else ""
    if abs(row["mean"]) >= 1e6:
        return f"{'−' if row['mean'] < 0 else ''}over 10⁶{number}"
    spread = f" ± {row['std']:.{digits}f}" if row["n"] > 1 else ""
    return f"{row['mean']:.{digits}f}{spread}{number}"
