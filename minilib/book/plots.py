"""Figures of the book: one style, colour-blind palette, white background, at most 7 × 4 inches."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Mapping, Sequence
from html import escape

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from IPython.display import HTML, Code, display
from matplotlib.patches import Rectangle

from ..names import COLOURS, INK, MEANINGS, UNLEARNED, colour, label
from . import by_seed

# Behind words that stand over lines, so that no line strikes them out.
OVER_LINES = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.6}


def style() -> None:
    """Set the book's figure style for this notebook, whose figures take their seeds along."""
    by_seed.take_along()
    sns.set_theme(context="notebook", style="whitegrid", palette="colorblind", font_scale=0.9)
    plt.rcParams.update(
        {
            "figure.figsize": (7, 3.5),
            "figure.dpi": 110,
            "figure.facecolor": "white",
            "savefig.facecolor": "white",
            "figure.constrained_layout.use": True,
            "axes.titlesize": "medium",
        }
    )


def glue(name: str, value: float | str) -> None:
    """Glue a number for use in the prose by ``{glue:text}`` without importing myst-nb.

    Colab has no myst-nb; the mime bundle with the metadata it looks for is all that is needed.
    """
    if isinstance(value, np.generic):
        value = value.item()  # a NumPy scalar's repr would be glued with its type's name
    data = {"application/papermill.record/text/plain": repr(value)}
    metadata = {"scrapbook": {"name": name, "mime_prefix": "application/papermill.record/"}}
    display(data, metadata=metadata, raw=True)


def source(*functions: Callable) -> Code:
    """The code of some functions of the library, as a page shows it."""
    return Code("\n\n".join(map(inspect.getsource, functions)), language="python")


def not_run(sweep: str) -> HTML:
    """What stands in the place of a table or figure whose trials the ledger does not have."""
    return HTML(f"<p>Not computed yet: <code>minilib sweep {escape(sweep)}</code></p>")


def empty(text: str) -> plt.Figure:
    """A figure that says why nothing is drawn, so that what refers to it still finds it."""
    figure, axis = plt.subplots(figsize=(7, 1))
    axis.text(0.5, 0.5, text, ha="center", va="center", fontsize=9)
    axis.set_axis_off()
    return figure


def confusions(matrices: Mapping[str, Sequence[Sequence[int]]], class_names: Sequence[str]):
    """Draw confusion matrices side by side.

    Args:
        matrices: title → (K, K) counts, row = true class, column = predicted class. A matrix has
            the colour of the method that its title names.
    """
    figure, axes = plt.subplots(1, len(matrices), figsize=(7, 0.9 + 4.8 / len(matrices)))
    for axis, (title, counts) in zip(np.atleast_1d(axes), matrices.items(), strict=True):
        counts = np.asarray(counts)
        share = counts / counts.sum(1, keepdims=True).clip(1)  # of the true class
        shade = colour(title.removesuffix(" model"), colour(title, MEANINGS["unlearned"]))
        sns.heatmap(
            share,
            annot=counts,
            fmt="d",
            cmap=sns.light_palette(shade, as_cmap=True),
            vmin=0,
            vmax=1,
            cbar=False,
            square=True,
            ax=axis,
            xticklabels=class_names,
            yticklabels=class_names,
        )
        axis.set(title=title, xlabel="predicted")
        axis.tick_params(axis="x", rotation=30)
        axis.tick_params(axis="y", rotation=0)
    np.atleast_1d(axes)[0].set_ylabel("true")
    for axis in np.atleast_1d(axes)[1:]:
        axis.set_yticklabels([])
    return figure


BROKEN = ("dga",)  # DGA is RGA without one small term, and lies where RGA does


def palette(methods: Sequence[str]) -> dict[str, str]:
    """The colour of each method; no two share one, and what the book does not know takes others."""
    known = [COLOURS.get(name) for name in methods]
    paler = sns.light_palette(UNLEARNED[0], len(methods) + 4).as_hex()[-2:2:-1]
    spare = iter([shade for shade in (*UNLEARNED, *paler) if shade not in known])
    fresh = [shade is not None and shade not in known[:k] for k, shade in enumerate(known)]
    return {
        name: shade if keeps else next(spare)
        for name, shade, keeps in zip(methods, known, fresh, strict=True)
    }


def markers(names: Sequence[str]) -> dict[str, str]:
    """A mark for each line of a figure, so that a shade need not tell two of them apart."""
    return dict(zip(names, itertools.cycle("os^vPX<>h"), strict=False))


def bounded(axis, low: float, high: float) -> None:
    """End the bands of a panel where its values do: a spread of shares would go beyond them."""
    here = Rectangle((0, low), 1, high - low, transform=axis.get_yaxis_transform())
    for band in axis.collections:
        band.set_clip_path(here)


def lines(frame, values: Sequence[str], x: str = "epoch", hue: str = "method", marks=None):
    """Draw one panel per value: its mean over seeds against ``x``, a line per ``hue``.

    Bands are ± one standard deviation over the rows that share (hue, x), i.e. over seeds.

    Args:
        frame: tidy DataFrame. marks: value → {name: height} of dashed reference lines.
    """
    figure, axes = plt.subplots(1, len(values), figsize=(7, 3.2), squeeze=False)
    every = list(frame[hue].unique())
    shades, shapes = palette(every), markers(every)  # in all panels the same, as the legend has it
    for axis, value in zip(axes[0], values, strict=True):
        rows = frame.dropna(subset=[value])
        names = list(rows[hue].unique())
        sns.lineplot(
            rows,
            x=x,
            y=value,
            hue=hue,
            hue_order=names,
            palette=[shades[name] for name in names] if hue == "method" else None,
            style=hue,  # what would lie beneath another line is broken and on top of it
            style_order=names,
            dashes={name: (3, 2) if name in BROKEN else "" for name in names},
            markers=shapes,
            errorbar="sd",
            markersize=4,
            ax=axis,
        )
        for line, name in zip(axis.get_lines(), names, strict=False):
            line.set_zorder(3 if name in BROKEN else 2)
            by_seed.add_lines(axis, rows[rows[hue] == name], x, value, label(name), line)
        if value == "lam":
            axis.set_ylim(-0.04, 1.04)
            bounded(axis, 0, 1)
        for name, height in (marks or {}).get(value, {}).items():
            axis.axhline(height, ls="--", lw=1.2, color=colour(name, INK))
            axis.annotate(
                label(name),
                (1, height),
                xycoords=("axes fraction", "data"),
                xytext=(0, 2),
                textcoords="offset points",
                ha="right",
                va="bottom",
                fontsize=8,
                bbox=OVER_LINES,
                zorder=4,
            )
        axis.set(xlabel=x, ylabel=label(value))
    if axes[0][0].get_legend():  # above the panels: within them it would lie over data
        handles, names = axes[0][0].get_legend_handles_labels()
        shown = dict(loc="outside upper center", ncols=len(names), frameon=False)
        figure.legend(handles, map(label, names), **shown)
    for axis in axes[0]:
        if axis.get_legend():
            axis.get_legend().remove()
    return figure


# ------------------------------------------------------------------------- 03, GA vs RGA


def pushes(losses, by_method: Mapping[str, Sequence[float]]):
    """Draw how hard each method pushes against the poisoned loss; the undecided point is marked."""
    figure, axis = plt.subplots(figsize=(7, 3.2))
    for mark, (name, values) in zip("os^vP", by_method.items(), strict=False):
        has_colour = name in COLOURS
        axis.plot(
            losses,
            values,
            label=label(name) if has_colour else "descent on the other label",
            color=COLOURS.get(name, "0.35"),
            ls="-" if has_colour else "--",
            marker=mark if has_colour else "",
            markevery=(20, 60),
            ms=5,
        )
    axis.axvline(np.log(2), color="0.6", lw=1, ls=":")
    axis.annotate("undecided", (np.log(2), 1.02), fontsize=8, color="0.35")
    axis.set(xlabel="poisoned loss (nats)", ylabel="push on the log-odds", ylim=(-0.03, 1.1))
    axis.legend(fontsize=8)
    return figure


def shift_study(frame):
    """Draw ΔPACC over optimiser steps for each condition of the shifting study.

    Args:
        frame: GA's rows, with the parameters rate, position, lr and reset_optimizer.
    """
    frame = frame.dropna(subset=["dpacc"]).copy()
    frame["optimiser"] = np.where(frame["reset_optimizer"].astype(bool), "re-created", "kept")
    frame["poisoned"] = [f"{100 * rate:.0f} %" for rate in frame["rate"]]
    frame["learning rate"] = [f"{lr:.0e}" for lr in frame["lr"]]
    # seaborn lays a grid out itself, and complains where matplotlib was asked to
    with plt.rc_context({"figure.constrained_layout.use": False}):
        grid = sns.relplot(
            frame,
            kind="line",
            x="steps",
            y="dpacc",
            hue="optimiser",
            style="learning rate",
            col="position",
            row="poisoned",
            errorbar="sd",
            palette=list(UNLEARNED[:2]),
            markers=True,
            height=2,
            aspect=1.5,
        )
    grid.set_axis_labels("optimiser steps", "ΔPACC (points)")
    grid.set_titles("{row_name} poisoned, trigger {col_name}", size=9)
    return grid.figure


def table(rows, digits: int = 2) -> HTML:
    """Show rows (dicts, or a DataFrame) as a plain table; floats get ``digits`` decimals."""
    frame = pd.DataFrame(rows)
    return HTML(
        frame.to_html(index=False, border=0, justify="left", float_format=f"{{:.{digits}f}}".format)
    )


def panels(count: int, columns: int, height: float):
    """Return a figure of the book's width and its axes (lines, columns), those not used hidden.

    Args:
        count: axes to draw on. columns: at most so many side by side. height: of a line, in inches.
    """
    columns = min(columns, count)
    lines = -(-count // columns)
    figure, axes = plt.subplots(lines, columns, figsize=(7, height * lines), squeeze=False)
    for axis in axes.flat[count:]:
        axis.set_axis_off()
    return figure, axes
