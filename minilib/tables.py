"""Tables of results: this run beside recorded runs of other seeds, and ours beside the paper's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict

import pandas as pd

from . import metrics, runs, stats
from .plots import label


def across_seeds(
    chapter: str, settings, rows: Sequence[Mapping], free: Sequence[str] = ()
) -> pd.DataFrame:
    """Return this run's metric rows, and those of recorded runs that differ only in the seed.

    A chapter run is one seed; mean and spread come from the records of the other seeds. ``free``
    names parameters that may differ too, because they say which rows there are and not what is in
    them.
    """
    params = {k: v for k, v in asdict(settings).items() if k not in free}
    seed = params.pop("seed")
    mine = pd.DataFrame(rows).assign(seed=seed)
    others = runs.load(chapter, **params)
    others = others[others["seed"] != seed]
    # Wall-clock times of other runs may be of other machines; they stay with their own record.
    shared = [column for column in mine if column in others and column != "seconds"]
    return pd.concat([mine, others[shared]] if len(others) else [mine], ignore_index=True)


def spread(values: pd.Series, digits: int = 2) -> str:
    """Format values as mean ± sample standard deviation; a single one without a spread."""
    return stats.text(stats.summary(values.dropna(), level=None), digits, count=False)


def cell(frame: pd.DataFrame, value: str, digits: int = 1, **where) -> str:
    """Return ``spread`` of a column over the rows that match, "–" where there are none."""
    for column, wanted in where.items():
        if column not in frame:
            return "–"
        frame = frame[frame[column] == wanted]
    return spread(frame[value], digits) if value in frame else "–"


def summary(
    frame: pd.DataFrame, by: str, values: Sequence[str], order: Sequence, digits: int = 2
) -> pd.DataFrame:
    """Return one row per value of ``by`` (in ``order``), mean ± std over seeds per metric."""
    rows = {
        label(str(key)): {label(v): spread(frame.loc[frame[by] == key, v], digits) for v in values}
        for key in order
        if (frame[by] == key).any()
    }
    return pd.DataFrame.from_dict(rows, orient="index")


def paper_summary(
    paper: str, by: str, values: Sequence[str], order: Sequence, **where: str
) -> pd.DataFrame:
    """Return the paper's numbers in the shape of ``summary``: mean ± std as published."""
    cells = metrics.paper_values(paper, **where)
    rows: dict[str, dict[str, str]] = {}
    for key in order:
        found = {cell["metric"]: cell for cell in cells if cell[by] == str(key)}
        if found:
            rows[label(str(key))] = {
                label(v): _published(found[v]) if v in found else "–" for v in values
            }
    return pd.DataFrame.from_dict(rows, orient="index")


def _published(cell: Mapping) -> str:
    if cell["std"] is None:
        return f"{cell['mean']:.2f}"
    return f"{cell['mean']:.2f} ± {cell['std']:.2f}"


def beside(ours: pd.DataFrame, paper: pd.DataFrame, names=("ours", "paper")) -> pd.DataFrame:
    """Put two summaries side by side; a cell that one of them lacks shows a dash."""
    both = pd.concat({names[0]: ours, names[1]: paper.reindex(ours.index)}, axis=1)
    return both.fillna("–")


def recorded(chapter: str, **params) -> pd.DataFrame:
    """Return the metric rows of recorded runs with these parameters; says how to make them."""
    frame = runs.load(chapter, **params)
    if frame.empty:
        print("No such runs are recorded here yet; the text names the sweep that makes them.")
    return frame


def varied(
    chapter: str, settings, rows: Sequence[Mapping], free: Sequence[str], unread: Sequence[str] = ()
) -> pd.DataFrame:
    """Return this run's metric rows and those of recorded runs that differ in ``free`` or the seed.

    Every row carries the parameters ``free`` and ``seed``, by which to group. ``unread`` names
    parameters that do not matter to the rows that will be read, and may differ too. A row may
    occur several times, for runs with the same settings may differ in which rows they have; this
    run's come first.
    """
    params = asdict(settings)
    mine = pd.DataFrame(rows).assign(**{name: params[name] for name in (*free, "seed")})
    same = {k: v for k, v in params.items() if k not in {*free, *unread, "seed"}}
    others = runs.load(chapter, **same)
    for name in others.columns.intersection([*free, "seed"]):
        others = others.astype({name: mine[name].dtype})
    return pd.concat([mine, others], ignore_index=True)
