"""Figures that stand where a reader compares: ours beside a paper's, before beside after.

All draw what tables of the same page say, so that a table may fold. They take plain frames; the
chapters' own figures ask the ledger.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.lines import Line2D

from ...names import INK, MEANINGS, UNLEARNED, colour, label
from .. import by_seed, plots

PAPER = MEANINGS["paper"]
OURS = "os^v"  # marks of ours, filled; a second and third where a paper's number has several
PAPERS = "D<>"  # marks of a paper's, hollow; likewise
NEAR = 14.0  # points around its target that a plane shows enlarged
NO_PERCENT = (label("bec"), label("ppl"))
CELL = re.compile(r"(-?\d+(?:\.\d+)?)(?: ± (\d+(?:\.\d+)?))?")


def number(cell: object) -> tuple[float, float]:
    """Mean and spread of a table's cell "mean ± spread"; NaN for what is not there.

    A loss that has diverged ("over 10⁶") is not there either: no axis could show it.
    """
    match = CELL.fullmatch(str(cell))
    if match is None:
        return math.nan, math.nan
    return float(match[1]), float(match[2] or math.nan)


def _seeds(cell: object) -> Mapping[int, float]:
    """What single seeds have where a table's cell has their mean, as far as it knows."""
    return getattr(cell, "by_seed", {})


def dumbbells(
    table: pd.DataFrame,
    metrics: Sequence[str],
    columns: int = 4,
    title: str | None = None,
    shade: str = MEANINGS["unlearned"],
    of: str | None = None,
) -> plt.Figure:
    """Draw each row of a table that sets ours beside a paper's as a dumbbell with its spread.

    A filled mark is ours, a hollow one the paper's, a bar ± one standard deviation over seeds, as
    far as a rate can go; a mark without a bar is one seed or was published without a spread. Ours
    have the colour of the method that the row names, or else the metric or the source.

    Args:
        table: cells "mean ± spread"; columns (source, metric), where a source is the paper's if its
            name begins with "paper"; rows (group, row) or row. A group has a panel per metric.
            Where the rows have a name, it stands beside them.
        metrics: as the columns name them.
        columns: panels beside each other. title: of the panel of a table without groups.
        shade: the colour of ours where none of them names a method of the book.
        of: the metric of all columns where they name methods or settings: each is then the title of
            its panel, and all have one scale.
    """
    groups = {title or "": table}
    if table.index.nlevels > 1:
        groups = {}
        for name in dict.fromkeys(row[:-1] for row in table.index):
            rows = table[[row[:-1] == name for row in table.index]]
            groups[",\n".join(map(str, name))] = rows.set_axis(rows.index.get_level_values(-1))
    order = list(dict.fromkeys(str(row) for rows in groups.values() for row in rows.index))
    panels = [(group, metric) for group in groups for metric in metrics]
    columns = min(columns, len(panels))
    height = -(-len(panels) // columns)
    figure, axes = plt.subplots(
        height, columns, figsize=(7, height * (0.75 + 0.23 * len(order))), sharey=True,
        squeeze=False, layout="constrained",
    )  # fmt: skip
    sources = list(dict.fromkeys(source for source, _ in table.columns))
    for axis, (group, metric) in zip(axes.flat, panels, strict=False):
        _dumbbell_panel(axis, groups[group], order, sources, metric, shade)
        axis.set_title(metric if of else group, fontsize=9)
        unit = "" if metric in NO_PERCENT else " (%)"
        axis.set_xlabel(f"{of or metric}{unit}", fontsize=8)
        axis.set_xlim(*_limits(table, metrics if of else [metric]))
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    axes[0, 0].set_yticks(range(len(order)), order, fontsize=8)
    axes[0, 0].set_ylim(len(order) - 0.5, -0.5)
    if table.index.names[-1]:
        figure.supylabel(table.index.names[-1], fontsize=8)
    drawn = {source for source, metric in table.columns if metric in metrics}
    key = []
    for source, mark in _marks(sources).items():
        face, edge = ("white", PAPER) if mark in PAPERS else (INK, INK)
        style = {"marker": mark, "ls": "", "ms": 5, "mfc": face, "mec": edge}
        key += [Line2D([], [], label=str(source), **style)] * (source in drawn)
    ncols = min(3, len(key))
    figure.legend(handles=key, loc="outside upper center", ncols=ncols, fontsize=8)
    return figure


def _marks(sources: Sequence[str]) -> dict[str, str]:
    """A mark for each source."""
    ours, papers = iter(OURS), iter(PAPERS)
    return {name: next(papers if str(name).startswith("paper") else ours) for name in sources}


def _dumbbell_panel(
    axis: plt.Axes, rows: pd.DataFrame, order: Sequence[str], sources: Sequence[str], metric: str,
    shade: str,
) -> None:  # fmt: skip
    ends: dict[str, list[float]] = {}
    for source, mark in _marks(sources).items():
        if (source, metric) not in rows:
            continue
        is_paper = mark in PAPERS
        for row, cell in rows[source, metric].items():
            mean, spread = number(cell)
            if math.isnan(mean):
                continue
            named = next(filter(None, map(colour, (str(row), metric, str(source)))), shade)
            # Its name stands beside it, so that one colour serves for all that was unlearned.
            ours = UNLEARNED[0] if named in UNLEARNED else named
            own = PAPER if is_paper else ours
            # The paper's are hollow and beneath: where both agree, both can be seen.
            low, high = _bar(mean, spread, metric)
            axis.errorbar(
                mean, order.index(str(row)), xerr=[[mean - low], [high - mean]], fmt=mark,
                ms=5 if is_paper else 4.5, color=own, mfc="white" if is_paper else own,
                elinewidth=1.2, mew=1.3, zorder=2 + (not is_paper), label=str(source),
            )  # fmt: skip
            ends.setdefault(str(row), []).append(mean)
            name = str(row) if str(source) == "ours" else f"{row}, {source}"
            for seed, value in _seeds(cell).items():
                by_seed.add(axis, seed, name, value, order.index(str(row)),
                            {"color": own, "marker": mark}, joined=False, says="x")  # fmt: skip
    for row, values in ends.items():
        axis.hlines(order.index(row), min(values), max(values), color="0.85", lw=2.5, zorder=1)
    axis.grid(axis="y", lw=0.4)
    axis.tick_params(labelsize=8)


def _bar(mean: float, spread: float, metric: str) -> tuple[float, float]:
    """Where a bar ends: a spread of shares would go beyond what a share can be."""
    spread = 0 if math.isnan(spread) else spread
    if metric in NO_PERCENT or not 0 <= mean <= 100:
        return mean - spread, mean + spread
    return max(mean - spread, 0), min(mean + spread, 100)


def _limits(table: pd.DataFrame, metrics: Sequence[str]) -> tuple[float, float]:
    """What all panels of some metrics show: dots and bars, and a little more."""
    ends = [
        end
        for column in table.columns
        if column[1] in metrics
        for cell in table[column]
        for mean, spread in [number(cell)]
        if not math.isnan(mean)
        for end in (*_bar(mean, spread, column[1]), *_seeds(cell).values())
    ]
    low, high = max(min(ends, default=0), 0), max(ends, default=100)
    room = max(1.5, 0.07 * (high - low))
    return low - room, high + room


def plane(
    frame: pd.DataFrame,
    methods: Sequence[str],
    x: str = "lfr",
    y: str = "pacc",
    target: str = "retrain",
    paper: Mapping[str, tuple[float, float]] | None = None,
) -> plt.Figure:
    """Draw every method as a point between two metrics, its seeds around it, and what it aims at.

    A small dot is a seed, a large one their mean, the star the target's mean; a hollow diamond of
    the same colour is the paper's.

    Args:
        frame: rows with ``method``, ``seed``, ``x`` and ``y`` in percent. methods: drawn, in order.
        target: the method that all are measured by. paper: method → (x, y), as published.
    """
    figure, axes = plt.subplots(
        1, 2, figsize=(7, 3.7), layout="constrained", width_ratios=(1.25, 1)
    )
    aim = frame.loc[frame["method"] == target, [x, y]].mean()
    colours, marks = plots.palette(methods), plots.markers(methods)
    for name in methods:
        rows = frame[frame["method"] == name].dropna(subset=[x, y])
        shade = colours[name]
        if not len(rows):
            continue
        mean = rows[[x, y]].mean()
        mark = {"marker": "*", "ms": 16} if name == target else {"marker": marks[name], "ms": 8}
        for axis in axes:
            axis.plot(rows[x], rows[y], ".", ms=6, color=shade, alpha=0.6, zorder=3)
            axis.plot(mean[x], mean[y], ls="", color=shade, label=label(name), mec="white",
                      zorder=4, **mark)  # fmt: skip
            for seed, row in rows.set_index("seed").iterrows() if "seed" in rows else ():
                like = {"color": shade, "marker": mark["marker"]}
                by_seed.add(axis, seed, label(name), row[x], row[y], like, joined=False)
            if paper and name in paper:
                theirs = paper[name]
                axis.plot(*theirs, "D", ms=6, mfc="none", mec=shade, mew=1.5, zorder=3)
                axis.plot([mean[x], theirs[0]], [mean[y], theirs[1]], color=shade, lw=0.8,
                          alpha=0.5, zorder=2)  # fmt: skip
    if paper:
        axes[0].plot([], [], "D", ls="", mfc="none", mec="0.4", mew=1.5, ms=6, label="paper's")
    for axis in axes:
        for draw, value in ((axis.axvline, aim[x]), (axis.axhline, aim[y])):
            draw(value, color=colour(target, INK), lw=1, ls="--", zorder=1)
        axis.set_xlabel(f"{label(x)} (%)")
    axes[0].set(ylabel=f"{label(y)} (%)", title="all")
    axes[0].margins(0.08)
    axes[1].set(
        title=f"near {label(target)}", xlim=(aim[x] - NEAR, aim[x] + NEAR),
        ylim=(aim[y] - NEAR, aim[y] + NEAR),
    )  # fmt: skip
    figure.legend(*axes[0].get_legend_handles_labels(), fontsize=8, loc="outside lower center",
                  ncols=min(5, len(methods) + bool(paper)))  # fmt: skip
    return figure


def slopes(
    frame: pd.DataFrame,
    methods: Sequence[str],
    left: str = "asr",
    right: str = "r_asr",
    bold: Sequence[str] = (),
    control: Mapping[str, float] | None = None,
) -> plt.Figure:
    """Draw how far each method's rate climbs from ``left`` to ``right``, a panel per attack.

    A line per method joins its means over seeds; a flat line at the bottom is what one wants.

    Args:
        frame: rows with ``attack``, ``method``, ``left`` and ``right`` in percent. bold: methods
            that the chapter is about, in full colour. control: attack → what ``right`` is for a
            model that was never attacked, drawn as a broken line.
    """
    attacks = list(dict.fromkeys(frame["attack"]))
    figure, axes = plt.subplots(
        1, len(attacks), figsize=(7, 3.9), sharey=True, squeeze=False, layout="constrained"
    )
    for axis, attack in zip(axes[0], attacks, strict=True):
        rows = frame[(frame["attack"] == attack) & frame["method"].isin(methods)]
        means = rows.groupby("method")[[left, right]].mean().dropna()
        tags = means[right].sort_values()
        for (name, height), place in zip(tags.items(), _apart(tags.to_numpy(), 5.6), strict=True):
            is_bold = name in bold
            shade = colour(name, UNLEARNED[4])
            shade = UNLEARNED[4] if shade in UNLEARNED and not is_bold else shade
            axis.plot(
                [0, 1], means.loc[name, [left, right]], "o-", color=shade, ms=4,
                lw=2.4 if is_bold else 1.1, zorder=3 if is_bold else 2,
            )  # fmt: skip
            axis.annotate(
                label(name), (1, height), xytext=(1.3, place), fontsize=7.5,
                color=shade if is_bold else INK, va="center",
                fontweight="bold" if is_bold else "normal",
                arrowprops={"arrowstyle": "-", "lw": 0.5, "color": "0.75", "relpos": (0, 0.5)},
            )  # fmt: skip
        if control and attack in control:
            # It ends before the names, which it would strike through.
            ends = {"color": MEANINGS["clean"], "lw": 1, "ls": ":", "zorder": 1}
            axis.plot([-0.12, 1.06], [control[attack]] * 2, **ends)
        axis.set(title=label(attack), xlim=(-0.12, 1.95), ylim=(-6, 106))
        axis.set_xticks([0, 1], [label(left), label(right)])
        axis.grid(axis="x", lw=0.4)
    axes[0, 0].set_ylabel("percent")
    return figure


def _apart(heights: np.ndarray, gap: float) -> list[float]:
    """Places of labels for ascending heights, at least ``gap`` apart and as near as that allows."""
    # Labels that touch form a group, which stands around the mean of what its members ask for.
    groups: list[list[float]] = []
    for height in heights:
        groups.append([float(height)])
        while len(groups) > 1 and _ends(groups[-2], gap)[1] + gap > _ends(groups[-1], gap)[0]:
            groups[-2:] = [groups[-2] + groups[-1]]
    return [_ends(group, gap)[0] + gap * number for group in groups for number in range(len(group))]


def _ends(group: Sequence[float], gap: float) -> tuple[float, float]:
    middle, half = sum(group) / len(group), gap * (len(group) - 1) / 2
    low = max(min(middle - half, 101.0 - 2 * half), -3.0)  # a label stays in its panel
    return low, low + 2 * half
