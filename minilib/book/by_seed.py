"""What the figures of means hold of single seeds, so that a page can offer a choice of them.

A figure draws its means and bands as ever, and beside them a line for each seed that no eye sees.
What shows the figure takes these lines along as JSON, with the place of each panel in the picture.
The page lays the line of the seed that a reader picks over the picture
(`book/_static/components.js`). On paper and without a script there are the means and bands.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython import get_ipython
from matplotlib.colors import to_hex
from matplotlib.lines import Line2D

KIND = "application/vnd.minilib.seeds"  # of an output of a notebook, beside its image/png
MARK = "seed "  # what the gid of an unseen line begins with
DIGITS = 6


def add(
    axis: plt.Axes,
    seed: int,
    name: str,
    x: object,
    y: object,
    like: Line2D | Mapping[str, object],
    joined: bool = True,
    says: str = "xy",
) -> None:
    """Add what one seed has where the figure has a mean.

    Args:
        axis: the mean's panel. name: of the mean, as the legend has it. x, y: numbers, one each or
            (n,), in the panel's units. like: the mean's line, or its ``color`` and ``marker``.
        joined: whether the points make a line. says: which of both numbers a reader is told.
    """
    if isinstance(like, Line2D):
        like = {
            "color": like.get_color(), "marker": like.get_marker(),
            "linestyle": "--" if like.is_dashed() else "-", "zorder": like.get_zorder(),
        }  # fmt: skip
    x, y = (np.atleast_1d(np.asarray(values, float)) for values in (x, y))
    known = np.isfinite(x) & np.isfinite(y)
    if not known.any():  # what was not measured is not drawn
        return
    style = {"linestyle": "-", **like} if joined else {**like, "linestyle": ""}
    line = Line2D(
        x[known], y[known], label=f"_{name}", gid=f"{MARK}{int(seed)}", visible=False, **style
    )
    line.says = says
    axis.add_line(line)
    axis.autoscale_view()


def add_lines(
    axis: plt.Axes, frame: pd.DataFrame, x: str, y: str, name: str, like: Line2D | Mapping
) -> None:
    """Add a line for each seed of the rows whose mean over seeds a panel draws; see ``add``."""
    if "seed" not in frame:
        return
    for seed, rows in frame.dropna(subset=[y]).groupby("seed"):
        values = rows.groupby(x)[y].mean()
        add(axis, seed, name, values.index, values, like)


def described(figure: plt.Figure) -> dict:
    """The seeds of a figure and their lines, panel by panel; empty where there are not two seeds.

    ``size`` is the picture's in points of the layout (width, height). Of a panel, ``box`` is left,
    top, width and height as shares of the picture; ``x`` and ``y`` are what its edges stand for,
    and ``log`` names the axes on which these are logarithms to base 10.
    """
    every = [line for axis in figure.axes for line in _unseen(axis)]
    seeds = sorted({_seed(line) for line in every})
    if len(seeds) < 2:
        return {}
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # laid out once more, its panels would move
    # As the picture is cut when a notebook shows it (IPython.core.pylabtools.print_figure).
    cut = figure.get_tightbbox().padded(plt.rcParams["savefig.pad_inches"])
    panels = []
    for axis in figure.axes:
        lines = _unseen(axis)
        if not lines:
            continue
        place = axis.get_window_extent().transformed(figure.dpi_scale_trans.inverted())
        box = ((place.x0 - cut.x0) / cut.width, (cut.y1 - place.y1) / cut.height,
               place.width / cut.width, place.height / cut.height)  # fmt: skip
        log = "".join(one for one in "xy" if getattr(axis, f"get_{one}scale")() == "log")
        ends = {"x": axis.get_xlim(), "y": axis.get_ylim()}
        panels.append({
            "box": [round(float(share), 5) for share in box], "log": log,
            **{one: _short(np.log10(ends[one]) if one in log else ends[one]) for one in "xy"},
            "title": " ".join(axis.get_title().split()),
            "names": [axis.get_xlabel(), axis.get_ylabel()],
            "lines": [_written(line) for line in lines],
        })  # fmt: skip
    size = [round(float(length), 1) for length in (72 * cut.width, 72 * cut.height)]
    return {"seeds": seeds, "size": size, "panels": panels}


def _unseen(axis: plt.Axes) -> list[Line2D]:
    lines = [line for line in axis.get_lines() if (line.get_gid() or "").startswith(MARK)]
    return sorted(lines, key=lambda line: line.zorder)


def _seed(line: Line2D) -> int:
    return int(line.get_gid().removeprefix(MARK))


def _short(values: object) -> list[float]:
    return [float(f"{value:.{DIGITS}g}") for value in np.asarray(values, float)]


def _written(line: Line2D) -> dict:
    x, y = line.get_data()
    style = {"-": "solid", "--": "broken"}.get(line.get_linestyle(), "")
    mark = line.get_marker()
    return {
        "seed": _seed(line), "name": line.get_label().removeprefix("_"), "line": style,
        "mark": mark if mark and mark != "None" else "", "colour": to_hex(line.get_color()),
        "says": line.says, "x": _short(x), "y": _short(y),
    }  # fmt: skip


def take_along() -> None:
    """From now on the notebook's figures take their seeds along; outside of one nothing is done."""
    shell = get_ipython()
    if shell is not None:
        shell.display_formatter.mimebundle_formatter.for_type(plt.Figure, _bundle)


def _bundle(figure: plt.Figure) -> dict[str, str]:
    found = described(figure)
    # As text: a notebook would give each number a line of its own.
    return {KIND: json.dumps(found, separators=(",", ":"))} if found else {}
