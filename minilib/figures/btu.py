"""Figures of chapter 04: how far rows move, and where poisoned texts lie."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns

from .. import tables
from ..plots import label

PARTS = {"embeddings": "word embeddings only", "all": "all parameters"}
BACKDOOR, CLEAN = sns.color_palette("colorblind")[3], sns.color_palette("colorblind")[0]


def exposure(frame):
    """Draw how far backdoor and clean rows have moved, embeddings only against all parameters.

    Args:
        frame: rows with ``trained`` (embeddings, all), ``step``, ``backdoor`` and ``clean``; bands
            are ± one standard deviation over rows that share part and step, i.e. over seeds.
    """
    figure, axes = plt.subplots(1, 2, figsize=(7, 3.2), sharey=True)
    for axis, (part, title) in zip(axes, PARTS.items(), strict=True):
        here = frame[frame["trained"] == part]
        for value, colour in (("backdoor", BACKDOOR), ("clean", CLEAN)):
            sns.lineplot(
                here, x="step", y=value, errorbar="sd", color=colour, label=f"{value} tokens",
                ax=axis,
            )  # fmt: skip
        axis.set(title=title, xlabel="optimiser steps", ylabel="mean row change")
        axis.legend(fontsize=8)
    return figure


def state_maps(maps: Mapping[str, Mapping]):
    """Draw maps of hidden states side by side: title → what ``btu_study.state_map`` returned."""
    figure, axes = plt.subplots(1, len(maps), figsize=(7, 3.4), squeeze=False)
    for axis, (title, points) in zip(axes[0], maps.items(), strict=True):
        kinds = np.array(points["kind"])
        x, y = np.array(points["x"]), np.array(points["y"])
        names = [kind for kind in dict.fromkeys(kinds) if kind != "poisoned"]
        colours = dict(zip(names, sns.color_palette("colorblind"), strict=False))
        colours["poisoned"] = "0.1"
        for kind, colour in colours.items():
            here = kinds == kind
            marker = "x" if kind == "poisoned" else "o"
            axis.scatter(x[here], y[here], s=14, color=colour, marker=marker, lw=0.9, label=kind)
        axis.set(title=title, xticks=[], yticks=[])
    axes[0][0].legend(fontsize=8, title=None)
    return figure


def quantities(frame):
    """Draw the trigger's row change, labels poisoned and kept, beside the average row's.

    Args:
        frame: rows of ``btu_study.quantities``; ``inserted`` in percent.
    """
    figure, axis = plt.subplots(figsize=(7, 3.2))
    shown = frame.melt(["labels", "inserted"], ["backdoor", "average"], "tokens", "change")
    average = shown["tokens"] == "average"
    shown["rows"] = np.where(average, "average row", "trigger, labels " + shown["labels"])
    shown["inserted"] = [f"{share:g} %" for share in shown["inserted"]]
    order = ["trigger, labels dirty", "trigger, labels clean", "average row"]
    sns.barplot(
        shown, x="inserted", y="change", hue="rows", hue_order=order, errorbar="sd",
        palette=[BACKDOOR, CLEAN, "0.6"], ax=axis,
    )  # fmt: skip
    axis.set(xlabel="rows with the trigger, as a share of the non-target rows", ylabel="row change")
    axis.legend(title=None, fontsize=8)
    return figure


def beside_paper(
    frame: pd.DataFrame,
    table: str,
    by: str,
    order: Sequence,
    attacks: Sequence[str],
    dataset: str,
    methods: Sequence[str] = ("btu", "btu-code"),
) -> pd.DataFrame:
    """Set ours beside a table of the paper, attack by attack; rows that neither has are left out.

    Args:
        frame: rows of ``tables.varied`` with ``attack`` and ``by``. by: what a row of the table is
            about (a parameter, or "method"). methods: ours to show where ``by`` is a parameter.
    """
    values, parts = ["cacc", "lfr"], {}
    for attack in attacks:
        here = frame[frame["attack"] == attack].dropna(subset=["method", "cacc"])
        here = here.drop_duplicates(["method", by, "seed"])  # the same run made for two sweeps
        # A row about a parameter shows one method, and the paper's is its "btu".
        kinds = {"ours": here} if by == "method" else {}
        for method in methods if by != "method" else ():
            kinds[label(method)] = here[here["method"] == method]
        found = {name: tables.summary(part, by, values, order) for name, part in kinds.items()}
        where = {"table": table, "dataset": dataset, "attack": attack}
        where |= {} if by == "method" else {"method": "btu"}
        found["paper"] = tables.paper_summary("btu", by, values, order, **where)
        index = [label(str(key)) for key in order]
        columns = [label(value) for value in values]
        parts[label(attack)] = pd.concat(
            {name: one.reindex(index=index, columns=columns) for name, one in found.items()}, axis=1
        )
    # A dash alone, from either side, says nothing.
    table = pd.concat(parts).replace("–", np.nan).dropna(how="all")
    if table.empty:
        print("No such runs are recorded here yet; the text names the sweep that makes them.")
    return table.astype(object).fillna("–")
