"""Tables of results: means over seeds, and ours beside the paper's."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence

import pandas as pd

from ..names import label
from . import paper_tables, stats

# Decimals where a metric is no percentage: of those one says all that three seeds can.
DIGITS = {"poisoned_loss": 2, "ppl": 2, "bec": 2}


class Cell(str):
    """A cell "mean ± spread" that knows its seeds: seed → value, where each has one."""

    by_seed: Mapping[int, float] = {}


def spread(values: pd.Series, digits: int = 2, seeds: pd.Series | None = None) -> Cell:
    """Format values as mean ± sample standard deviation; a single one without a spread.

    Args:
        values: of one setting. seeds: of the values, for figures that show single seeds.
    """
    values = values.dropna()
    cell = Cell(stats.text(stats.summary(values, level=None), digits, count=False))
    if seeds is not None and (seeds := seeds[values.index]).is_unique:
        cell.by_seed = dict(zip(map(int, seeds), map(float, values), strict=True))
    return cell


def cell(frame: pd.DataFrame, value: str, digits: int = 1, **where) -> str:
    """Return ``spread`` of a column over the rows that match, "–" where there are none."""
    for column, expected in where.items():
        if column not in frame:
            return "–"
        frame = frame[frame[column] == expected]
    return spread(frame[value], digits, frame.get("seed")) if value in frame else "–"


def summary(frame: pd.DataFrame, by: str, values: Sequence[str], order: Sequence) -> pd.DataFrame:
    """Return one row per value of ``by`` (in ``order``), mean ± std over seeds per metric."""
    rows = {
        label(str(key)): {label(v): cell(frame, v, DIGITS.get(v, 1), **{by: key}) for v in values}
        for key in order
        if (frame[by] == key).any()
    }
    return pd.DataFrame.from_dict(rows, orient="index", dtype=object)  # or cells forget their seeds


def paper_summary(
    paper: str, by: str, values: Sequence[str], order: Sequence, **where: str
) -> pd.DataFrame:
    """Return the paper's numbers in the shape of ``summary``: mean ± std as published."""
    cells = paper_tables.paper_values(paper, **where)
    rows: dict[str, dict[str, str]] = {}
    for key in order:
        by_metric = {cell["metric"]: cell for cell in cells if cell[by] == str(key)}
        if by_metric:
            rows[label(str(key))] = {
                label(v): _published(by_metric[v], DIGITS.get(v, 1)) if v in by_metric else "–"
                for v in values
            }
    return pd.DataFrame.from_dict(rows, orient="index")


def _published(cell: Mapping, digits: int) -> str:
    if cell["std"] is None:
        return f"{cell['mean']:.{digits}f}"
    return f"{cell['mean']:.{digits}f} ± {cell['std']:.{digits}f}"


def beside(ours: pd.DataFrame, paper: pd.DataFrame, names=("ours", "paper")) -> pd.DataFrame:
    """Put two summaries side by side; a cell that one of them lacks shows a dash."""
    table = pd.concat({names[0]: ours, names[1]: paper.reindex(ours.index)}, axis=1)
    return table.fillna("–")


def below(by_source: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Put summaries under each other, method by method, in the order of the first one's rows.

    What ``beside`` shows in columns stands in rows here, for more sources than fit on a page.
    """
    rows = next(iter(by_source.values())).index
    table = pd.concat(by_source).swaplevel()
    keys = [(row, source) for row in rows for source in by_source if (row, source) in table.index]
    return table.loc[keys].fillna("–")


def over_seeds(
    frame: pd.DataFrame, settings: Collection[str], leading: Sequence[str]
) -> pd.DataFrame:
    """Return mean ± std (n) over seeds of every measured column of a sweep's rows.

    Args:
        frame: one row per row of a trial, with the columns ``chapter`` and ``key``; of a curve,
            the last epoch counts. settings: its columns that nothing was measured in. leading:
            those that tell rows apart before the others do.
    """
    values = [name for name in frame.select_dtypes("number") if name not in settings]
    values = [name for name in values if not re.search("seconds|epoch$|seed$", name)]
    labels = ["chapter"]  # and as few more as tell all rows apart, but for seeds and epochs
    for name in sorted(frame, key=lambda name: (name not in leading, name in settings)):
        is_short = frame[name].astype(str).str.len().max() < 40  # no text that a row quotes
        if is_short and name not in values and not re.search("seconds|epoch$|seed$|^key$", name):
            groups = [frame.groupby(by, dropna=False).ngroups for by in (labels, [*labels, name])]
            labels += [name] if groups[1] > groups[0] else []
    by_label = frame.groupby(labels, dropna=False)
    if "epoch" in frame:  # where each of the rows' curves ends
        ends = by_label["epoch"].transform("max")
        by_label = frame[frame["epoch"].eq(ends) | ends.isna()].groupby(labels, dropna=False)
    return by_label[values].agg(lambda group: stats.text(stats.summary(group.dropna(), None)))
