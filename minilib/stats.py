"""Means over runs, their spread, and how sure one can be of them. Nothing but the standard library.

The same arithmetic serves the tables of chapters (pandas), the sweeps and the site, which is built
where neither NumPy nor pandas is installed.
"""

import itertools
import math
import random
import statistics
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


def text(row: Mapping, digits: int = 2, count: bool = True) -> str:
    """`mean ± std (n)`; without a spread where there is one value, a dash where there is none.

    From a million on, as a loss that diverged may have it, in powers of ten.
    """
    if not row["n"]:
        return "–"
    form = f".{digits}f" if abs(row["mean"]) < 1e6 else ".1e"
    spread = f" ± {row['std']:{form}}" if row["n"] > 1 else ""
    return f"{row['mean']:{form}}{spread}" + (f" ({row['n']:.0f})" if count else "")
