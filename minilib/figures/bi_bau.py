"""Figures of chapter 06: two tasks in both orders, inverted images, what stays, what it costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from torch import Tensor

from .. import tables
from ..images import ImageDataset
from ..plots import LABELS, label
from .vision import _picture

PALETTE = sns.color_palette("colorblind")
RATES = {"acc": PALETTE[0], "asr": PALETTE[3], "r_asr": PALETTE[1], "q_asr": PALETTE[4]}
LABELS.update(
    {
        "acc": "CA", "asr": "ASR", "r_asr": "R-ASR", "q_asr": "Q-ASR", "bec": "BEC",
        "shift": "largest shift", "seconds": "seconds", "eta": "η",
        "clean": "clean model", "victim": "no defence", "ft": "FT", "nc": "NC",
        "bti-dbf": "BTI-DBF", "anp": "ANP", "ep": "EP", "rnp": "RNP", "clp": "CLP",
        "i-bau": "I-BAU", "i-bau-code": "I-BAU (code)", "sau": "SAU", "pam": "PAM",
        "ibu": "IBU (bound)", "bi-bau-u": "BI-BAU (U)", "bi-bau-t": "BI-BAU (T)",
        "at": "base AT", "at-a": "AT + A", "at-b": "AT + B",
    }
)  # fmt: skip
PANELS = 5  # beside each other
AMPLIFY = 4  # a perturbation is drawn this many times as large


def orders(frame: pd.DataFrame, first: int) -> plt.Figure:
    """Draw CA and ASR over epochs, one panel per order of the two tasks.

    Args:
        frame: rows with ``order``, ``epoch``, ``acc``, ``asr``. first: epochs of the backdoor task.
    """
    titles = list(dict.fromkeys(frame["order"]))
    figure, axes = plt.subplots(1, len(titles), figsize=(7, 2.6), sharey=True, squeeze=False)
    last = frame["epoch"].max()
    switch = {"backdoor first": first, "clean first": last - first}
    for axis, title in zip(axes[0], titles, strict=True):
        here = frame[frame["order"] == title]
        for value in ("acc", "asr"):
            axis.plot(here["epoch"], here[value], color=RATES[value], label=label(value))
        if title in switch:
            axis.axvline(switch[title] + 0.5, color="grey", lw=1, ls=":")
        axis.set(title=title, xlabel="epoch", ylim=(-3, 103))
        axis.xaxis.get_major_locator().set_params(integer=True)
    axes[0, 0].set_ylabel("percent")
    axes[0, 0].legend(fontsize=8)
    return figure


def inversion(stories: Mapping[str, Sequence[Mapping]]) -> plt.Figure:
    """Draw what both models say of the images after each PGD step, one panel per story."""
    lines = {
        "backdoored_true": ("backdoored model, true class", PALETTE[0], "-"),
        "backdoored_other": ("backdoored model, class aimed at", PALETTE[3], "-"),
        "current_true": ("current model, true class", PALETTE[2], "--"),
    }
    figure, axes = plt.subplots(1, len(stories), figsize=(7, 2.8), sharey=True, squeeze=False)
    for axis, (title, rows) in zip(axes[0], stories.items(), strict=True):
        frame = pd.DataFrame(rows)
        for value, (name, colour, style) in lines.items():
            axis.plot(frame["step"], frame[value], style, color=colour, label=name)
        axis.set(title=title, xlabel="PGD step", ylim=(-3, 103))
    axes[0, 0].set_ylabel("mean probability (%)")
    axes[0, -1].legend(fontsize=7)
    return figure


def perturbed(dataset: ImageDataset, shown: Mapping[str, Tensor], count: int = 5) -> plt.Figure:
    """Draw images, their perturbed versions, and the differences × 4 around mid-grey.

    The images are spread evenly over ``dataset``, whose rows may lie by class.

    Args:
        shown: title → (N, C, H, W) float in 0 … 1, row for row the images of ``dataset``.
    """
    columns, before = min(count, len(dataset)), dataset.images.astype(float)
    height = 1 + 2 * len(shown)
    figure, axes = plt.subplots(
        height, columns, figsize=(min(7, 1.1 * columns + 1), 0.8 * height), squeeze=False,
        layout="constrained",
    )  # fmt: skip
    for column, row in enumerate(np.linspace(0, len(dataset) - 1, columns).astype(int)):
        _picture(axes[0, column], before[row])
        for k, images in enumerate(shown.values()):
            after = 255 * images[row].permute(1, 2, 0).cpu().numpy()
            _picture(axes[1 + 2 * k, column], after)
            _picture(axes[2 + 2 * k, column], 127.5 + AMPLIFY * (after - before[row]))
    names = ["clean", *(text for title in shown for text in (title, f"× {AMPLIFY}"))]
    for axis, name in zip(axes[:, 0], names, strict=True):
        axis.set_ylabel(name, fontsize=7, rotation=0, ha="right", va="center")
    return figure


def security(frame: pd.DataFrame, methods: Sequence[str]) -> plt.Figure:
    """Draw what each method leaves (ASR) and what comes back (R-ASR, Q-ASR), a panel per attack.

    Args:
        frame: rows with ``attack``, ``method``, ``asr``, ``r_asr``, ``q_asr``; means over seeds
            are drawn, single seeds small beneath them. methods: from top to bottom.
    """
    attacks = list(dict.fromkeys(frame["attack"]))
    columns = min(len(attacks), PANELS)
    lines = -(-len(attacks) // columns)
    figure, axes = plt.subplots(
        lines, columns, figsize=(7, lines * (0.9 + 0.2 * len(methods))), sharex=True, sharey=True,
        squeeze=False, layout="constrained",
    )  # fmt: skip
    rows = np.arange(len(methods))
    for axis, attack in zip(axes.flat, attacks, strict=False):
        seeds = frame[(frame["attack"] == attack) & frame["method"].isin(methods)]
        here = seeds.groupby("method")[["asr", "r_asr", "q_asr"]].mean().reindex(list(methods))
        seeds = seeds[seeds["method"].duplicated(keep=False)]
        places = seeds["method"].map(list(methods).index)
        axis.hlines(rows, here["asr"], here["r_asr"], color=RATES["r_asr"], lw=1.5, alpha=0.6)
        for value, mark in (("q_asr", "|"), ("r_asr", "D"), ("asr", "o")):
            axis.plot(seeds[value], places, mark, ms=2.5, color=RATES[value], alpha=0.5)
            axis.plot(
                here[value], rows, mark, ms=5, mew=1.5, color=RATES[value], label=label(value)
            )
        axis.set(title=label(attack), xlim=(-5, 105))
        axis.grid(axis="y", lw=0.4)
    for axis in axes.flat[len(attacks) :]:
        axis.set_visible(False)
    axes[0, 0].set_yticks(rows, [label(name) for name in methods])
    axes[0, 0].invert_yaxis()
    figure.supxlabel("percent", fontsize=9)
    handles, names = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles[::-1], names[::-1], loc="outside upper center", ncols=3, fontsize=8)
    return figure


def by_poisons(frame: pd.DataFrame) -> plt.Figure:
    """Draw R-ASR over the number of poisons, a line per model.

    Args:
        frame: rows with ``method``, ``poisons``, ``r_asr``, ``seed``.
    """
    figure, axis = plt.subplots(figsize=(7, 2.8))
    for number, (name, part) in enumerate(frame.groupby("method", sort=False)):
        colour = "0.4" if name == "clean" else PALETTE[number % len(PALETTE)]
        with_seeds(axis, part, "poisons", "r_asr", color=colour, label=label(name))
    axis.set(xlabel="poisons", ylabel="R-ASR (%)", ylim=(-3, 103))
    axis.set_xticks(sorted(frame["poisons"].unique()))
    axis.legend(fontsize=8)
    return figure


def with_seeds(axis: plt.Axes, frame: pd.DataFrame, over: str, value: str, **style) -> None:
    """Draw ``value`` over ``over``: a thin line per seed, a thick one for the mean.

    The mean leaves out what some of the seeds lack, for it would jump there.
    """
    seeds = frame.pivot_table(index=over, columns="seed", values=value)
    mean = seeds.dropna().mean(axis=1)
    axis.plot(seeds.index, seeds, ".-", ms=3, lw=0.8, alpha=0.5, color=style["color"])
    axis.plot(mean.index, mean, "o-", ms=4, **style)


def over_eta(frame: pd.DataFrame) -> plt.Figure:
    """Draw CA and the three attack rates against η, one panel per attack.

    Args:
        frame: rows with ``attack``, ``eta``, ``acc``, ``asr``, ``r_asr``, ``q_asr``, ``seed``.
    """
    attacks = list(dict.fromkeys(frame["attack"]))
    figure, axes = plt.subplots(1, len(attacks), figsize=(7, 2.8), sharey=True, squeeze=False)
    for axis, attack in zip(axes[0], attacks, strict=True):
        here = frame[frame["attack"] == attack]
        for value, colour in RATES.items():
            with_seeds(axis, here, "eta", value, color=colour, label=label(value))
        axis.set(title=label(attack), xlabel="η", ylim=(-3, 103))
    axes[0, 0].set_ylabel("percent")
    axes[0, 0].legend(fontsize=8)
    return figure


def sensitivity(frame: pd.DataFrame) -> plt.Figure:
    """Draw what each candidate does to the proxy: held-out CA, ASR and R-ASR, a row each.

    A candidate that diverged has a row without a mark.
    """
    figure, axis = plt.subplots(figsize=(7, min(4, 0.8 + 0.25 * len(frame))))
    for value, mark in (("acc", "o"), ("asr", "s"), ("r_asr", "D")):
        axis.plot(
            frame[value].astype(float),
            np.arange(len(frame)),
            mark,
            ms=5,
            color=RATES[value],
            label=label(value),
        )
    axis.set(xlabel="percent, on the defender's own rows and backdoor", xlim=(-3, 103))
    axis.set_yticks(np.arange(len(frame)), frame["candidate"])
    axis.margins(y=0.15)
    axis.invert_yaxis()
    axis.legend(fontsize=8)
    return figure


def costs(frame: pd.DataFrame, methods: Sequence[str]) -> plt.Figure:
    """Draw the seconds that each method takes, on a log axis."""
    mean = frame.groupby("method")["seconds"].mean().reindex(methods).dropna()
    figure, axis = plt.subplots(figsize=(7, min(4, 0.8 + 0.3 * len(mean))))
    axis.barh([label(name) for name in mean.index], mean, color=PALETTE[0])
    axis.set(xlabel="seconds", xscale="log")
    axis.invert_yaxis()
    return figure


def feature_map(
    features: Mapping[str, np.ndarray], labels: np.ndarray, target: int, seed: int = 0
) -> plt.Figure:
    """Draw clean and triggered rows in the victim's feature space by t-SNE, a panel per attack.

    Args:
        features: attack → (2N, d): those of N clean rows, then of the same rows triggered.
        labels: (N,) true classes. target: the attack's.
    """
    from sklearn.manifold import TSNE

    figure, axes = plt.subplots(1, len(features), figsize=(7, 3.2), squeeze=False)
    for axis, (attack, rows) in zip(axes[0], features.items(), strict=True):
        near = min(30, len(rows) // 4)
        points = TSNE(2, perplexity=near, init="pca", random_state=seed).fit_transform(rows)
        clean, shown = np.split(points, 2)
        own = labels == target
        for part, colour, name in (
            (clean[~own], "lightgrey", "clean, other classes"),
            (shown[~own], PALETTE[3], "triggered"),
            (clean[own], PALETTE[0], "clean, target class"),  # few, so on top
        ):
            axis.scatter(*part.T, s=5, color=colour, label=name)
        axis.set(title=label(attack), xticks=[], yticks=[])
    axes[0, 0].legend(fontsize=7)
    return figure


def beside_paper(
    frame: pd.DataFrame,
    number: str,
    values: Sequence[str],
    methods: Sequence[str],
    digits: int = 1,
) -> pd.DataFrame:
    """Show our rates beside one of the paper's tables: a row per attack and method.

    Args:
        frame: rows with ``attack``, ``method`` and ``values``. number: of the paper's table.
        digits: decimals of our numbers.
    """
    parts = {}
    for attack in dict.fromkeys(frame["attack"]):
        ours = tables.summary(frame[frame["attack"] == attack], "method", values, methods, digits)
        theirs = tables.paper_summary(
            "bibau", "method", values, methods, table=number, attack=attack
        )
        parts[label(attack)] = tables.beside(ours, theirs)
    return pd.concat(parts, names=["attack", ""])
