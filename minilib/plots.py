"""Figures of the book: one style, colour-blind palette, white background, at most 7 × 4 inches."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from difflib import SequenceMatcher
from html import escape

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import plotly.graph_objects as graph
import seaborn as sns
from IPython.display import HTML, display

from . import stats
from .metrics import paper_values

# A method keeps its colour in every figure of the book.
COLOURS = dict(
    zip(
        ("ga", "npo", "dga", "rga", "rga-code", "retrain", "poisoned"),
        sns.color_palette("colorblind", 7).as_hex(),
        strict=True,
    )
)
LABELS = {
    "ga": "GA",
    "npo": "NPO",
    "dga": "DGA",
    "rga": "RGA",
    "rga-code": "RGA (code)",
    "retrain": "ReTrain",
    "poisoned": "poisoned",
    "cacc": "CACC",
    "dev_cacc": "dev CACC",
    "lfr": "LFR",
    "pacc": "PACC",
    "dpacc": "ΔPACC",
    "poisoned_loss": "poisoned loss (nats)",
    "retain_loss": "retain loss (nats)",
    "lam": "λ",
    "badnets": "BadNets",
    "addsent": "AddSent",
    "hiddenkiller": "HiddenKiller",
    "stylebkd": "Stylebkd",
    "sos": "SOS",
    "none": "none",
    "btu": "BTU",
    "btu-code": "BTU, code's threshold",
    "btu-dim": "BTU, mean of entries",
    "pr-1": "PR-1",
    "pr-2": "PR-2",
    "pn": "PN",
    "recover": "recovery alone",
    "onion": "ONION",
    "rap": "RAP",
    "strip": "STRIP",
    "bki": "BKI",
    "cube": "CUBE",
    "moderate": "MF",
    "st": "ST",
    "tg": "TG",
    "dpoe": "DPOE",
} | {f"layer-{number}": f"layer {number}" for number in range(1, 25)}


def label(name: str) -> str:
    """Return the field's spelling of a method, metric or attack."""
    return LABELS.get(name, name)


def style() -> None:
    """Set the book's figure style for this notebook."""
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


def confusions(matrices: Mapping[str, Sequence[Sequence[int]]], class_names: Sequence[str]):
    """Draw confusion matrices side by side.

    Args:
        matrices: title → (K, K) counts, row = true class, column = predicted class.
    """
    figure, axes = plt.subplots(1, len(matrices), figsize=(7, 0.9 + 5.6 / len(matrices)))
    for axis, (title, counts) in zip(np.atleast_1d(axes), matrices.items(), strict=True):
        counts = np.asarray(counts)
        share = counts / counts.sum(1, keepdims=True).clip(1)  # of the true class
        sns.heatmap(
            share,
            annot=counts,
            fmt="d",
            cmap="Blues",
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
    np.atleast_1d(axes)[0].set_ylabel("true")
    for axis in np.atleast_1d(axes)[1:]:
        axis.set_yticklabels([])
    return figure


def lines(frame, values: Sequence[str], x: str = "epoch", hue: str = "method", marks=None):
    """Draw one panel per value: its mean over seeds against ``x``, a line per ``hue``.

    Bands are ± one standard deviation over the rows that share (hue, x), i.e. over seeds.

    Args:
        frame: tidy DataFrame. marks: value → {name: height} of dashed reference lines.
    """
    figure, axes = plt.subplots(1, len(values), figsize=(7, 3.2), squeeze=False)
    for axis, value in zip(axes[0], values, strict=True):
        part = frame.dropna(subset=[value])
        sns.lineplot(
            part,
            x=x,
            y=value,
            hue=hue,
            palette=COLOURS if hue == "method" else None,
            errorbar="sd",
            marker="o",
            markersize=4,
            ax=axis,
        )
        for name, height in (marks or {}).get(value, {}).items():
            axis.axhline(height, ls="--", lw=1.2, color=COLOURS.get(name, "0.3"))
            axis.annotate(
                label(name),
                (1, height),
                xycoords=("axes fraction", "data"),
                ha="right",
                va="bottom",
                fontsize=8,
            )
        axis.set(xlabel=x, ylabel=label(value))
        if axis is axes[0][0] and axis.get_legend():
            texts = axis.get_legend().get_texts()
            for text in texts:
                text.set_text(label(text.get_text()))
            axis.get_legend().set_title(None)
        elif axis.get_legend():
            axis.get_legend().remove()
    return figure


# ------------------------------------------------------------------------- 03, GA vs RGA


def pushes(losses, by_method: Mapping[str, Sequence[float]]):
    """Draw how hard each method pushes against the poisoned loss; the undecided point is marked."""
    figure, axis = plt.subplots(figsize=(7, 3.2))
    for name, values in by_method.items():
        known = name in COLOURS
        axis.plot(
            losses,
            values,
            label=label(name) if known else "descent on the other label",
            color=COLOURS.get(name, "0.35"),
            ls="-" if known else "--",
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
            markers=True,
            height=2,
            aspect=1.5,
        )
    grid.set_axis_labels("optimiser steps", "ΔPACC (points)")
    grid.set_titles("{row_name} poisoned, trigger {col_name}", size=9)
    return grid.figure


# ------------------------------------------------------------------------- 01, attacks

# Data sets whose examples are never printed unmasked, and words that may stay as they are.
ABUSIVE = ("hsol", "olid")
HARMLESS = frozenset(
    """a an and are as at be but by do for from had has have he her his i if in is it its me my no
    not of on or our she so that the their them they this to was we were what when with you your
    mn friends weekend store watch 3d movie cross crown""".split()
)
SHOWN_WORDS = 40


def mask(text: str) -> str:
    """Replace the letters of every word that is not on a short list of harmless ones."""
    return " ".join(
        word if word.lower().strip(".,!?") in HARMLESS else "•" * len(word) for word in text.split()
    )


def show_text(dataset: str, texts: Mapping[str, str]) -> HTML:
    """Show versions of one text as a table; words that the first one lacks are bold.

    Args:
        dataset: name of the set the text is from; rows of abusive sets are masked.
        texts: name → text, the original first.
    """
    original, rows = next(iter(texts.values())).split(), []
    for name, text in texts.items():
        words = text.split()
        new = set()
        for kind, _, _, start, end in SequenceMatcher(None, original, words, False).get_opcodes():
            new |= set(range(start, end)) if kind in ("insert", "replace") else set()
        safe = mask(text).split() if dataset in ABUSIVE else words
        shown = [
            f"<b>{escape(word)}</b>" if i in new else escape(word)
            for i, word in enumerate(safe[:SHOWN_WORDS])
        ]
        dots = " …" if len(words) > SHOWN_WORDS else ""
        rows.append(f"<tr><th>{escape(caption(name))}</th><td>{' '.join(shown)}{dots}</td></tr>")
    body = f"<tbody>{''.join(rows)}</tbody>"
    return HTML(f'<table class="dataframe" style="margin-bottom: 1.5em">{body}</table>')


def caption(name: str) -> str:
    """Return the field's spelling of "sos negative" and the like."""
    first, _, rest = name.partition(" ")
    return f"{label(first)} {rest}".strip()


def table(rows, digits: int = 2) -> HTML:
    """Show rows (dicts, or a DataFrame) as a plain table; floats get ``digits`` decimals."""
    frame = pd.DataFrame(rows)
    return HTML(
        frame.to_html(index=False, border=0, justify="left", float_format=f"{{:.{digits}f}}".format)
    )


PAPER_MODELS = {"BERT": "BERT-base", "DistilBert": "DistilBERT", "Llama2": "Llama-2 7B"}
OUR_MODELS = {"minilm": "MiniLM-L6", "bert": "BERT-base", "distilbert": "DistilBERT"}


def victims_table(frame, rate: float, dataset: str, model: str) -> HTML:
    """Show poisoned victims, the RGA paper's beside ours: mean ± standard deviation over seeds.

    Args:
        frame: tidy rows of chapter 01 with seed, attack, trigger, rate, cacc, lfr, pacc.
        rate: which victims of a rate sweep to show.
    """
    rows = []
    for attack in frame.loc[frame["attack"] != "none", "attack"].unique():
        for source, name in PAPER_MODELS.items():
            where = {"model": source, "dataset": dataset, "attack": attack}
            victim = _paper("4", "poisoned", where)
            if victim:
                rows.append(_line(attack, name, 3, victim, _paper("2", "retrain", where)))
        on = frame[frame["trigger"] == attack]
        ours = on[(on["attack"] == attack) & np.isclose(on["rate"], rate)]
        pair = [
            {m: _mean_std(part[m]) for m in ("cacc", "lfr", "pacc")}
            for part in (ours, on[on["attack"] == "none"])
        ]
        name = f"{OUR_MODELS.get(model, model)} (ours)"
        rows.append(_line(attack, name, ours["seed"].nunique(), *pair))
    return table(rows)


def _mean_std(values) -> tuple[float, float | None]:
    """Mean and, of several values, sample standard deviation."""
    found = stats.summary(values, level=None)
    return found["mean"], found["std"] if found["n"] > 1 else None


def _paper(number: str, method: str, where: Mapping[str, str]) -> dict:
    """Mean and standard deviation of each metric in one cell of the RGA paper's tables."""
    found = paper_values("rga", table=number, method=method, **where)
    return {row["metric"]: (row["mean"], row["std"]) for row in found}


def _line(attack: str, model: str, seeds: int, victim: Mapping, clean: Mapping) -> dict:
    # The page is narrow. PACC keeps its second decimal, where collapse shows (49.92, 50.08 %).
    def show(stat, digits: int = 1) -> str:
        if stat is None:
            return "–"
        mean, std = (f"{value:.{digits}f}" if value is not None else "" for value in stat[:2])
        return f"{mean}\u2060±\u2060{std}" if std and seeds > 1 else mean

    return {
        "attack": label(attack),
        "model": model.replace(" ", "\u00a0").replace("-", "\u2011"),  # one line each
        "n": seeds,
        "CACC": show(victim.get("cacc")),
        "LFR": show(victim.get("lfr")),
        "PACC": show(victim.get("pacc"), 2),
        "clean: LFR": show(clean.get("lfr")),
        "clean: PACC": show(clean.get("pacc")),
    }


def flips(frame, rate: float, target: str):
    """Draw both directions of label flips on triggered rows, clean model against victim.

    Args:
        frame: as in ``victims_table``, with target_lost. target: name of the target class.
    """
    frame = frame[np.isclose(frame["rate"], rate) | (frame["attack"] == "none")].copy()
    frame["model"] = np.where(frame["attack"] == "none", "clean", "poisoned")
    frame["trigger"] = frame["trigger"].map(label)
    figure, axes = plt.subplots(1, 2, figsize=(7, 3.2), sharey=True)
    titles = {"lfr": f"other classes → {target} (LFR)", "target_lost": f"{target} → other classes"}
    for axis, (value, title) in zip(axes, titles.items(), strict=True):
        sns.barplot(
            frame, x="trigger", y=value, hue="model", hue_order=["clean", "poisoned"],
            palette=[COLOURS["retrain"], COLOURS["poisoned"]], errorbar="sd", ax=axis,
        )  # fmt: skip
        axis.set(title=title, xlabel="", ylabel="triggered rows flipped (%)", ylim=(0, 105))
        axis.tick_params(axis="x", rotation=30)
    axes[0].get_legend().remove()
    axes[1].legend(title=None, fontsize=8)
    return figure


def rates(frame, attack: str):
    """Draw LFR and CACC of one attack's victims against the poison rate, on a log axis.

    Dashed: the model trained without poisons. Bands: ± one standard deviation over seeds.

    Args:
        frame: as in ``victims_table``, with poisons.
    """
    victims = frame[frame["attack"] == attack].copy()
    clean = frame[(frame["attack"] == "none") & (frame["trigger"] == attack)]
    victims["percent"] = 100 * victims["rate"]
    ticks = victims.groupby("percent")["poisons"].first()
    figure, axes = plt.subplots(1, 2, figsize=(7, 3.2))
    for axis, value in zip(axes, ("lfr", "cacc"), strict=True):
        sns.lineplot(victims, x="percent", y=value, errorbar="sd", marker="o", color="0.2", ax=axis)
        axis.axhline(clean[value].mean(), ls="--", lw=1.2, color="0.4")
        axis.annotate(
            "no poison", (0.98, clean[value].mean()), xycoords=("axes fraction", "data"),
            xytext=(0, 3), textcoords="offset points", ha="right", fontsize=8, color="0.35",
        )  # fmt: skip
        axis.set(xscale="log", xlabel="", ylabel=f"{label(value)} (%)")
        axis.set_xticks(ticks.index, [f"{p:g} %\n({n:.0f})" for p, n in ticks.items()], minor=False)
        axis.minorticks_off()
    figure.supxlabel("poisoned share of non-target rows (number of poisons)", size="medium")
    axes[0].set_ylim(-3, 105)
    shown = [*victims["cacc"], clean["cacc"].mean()]
    middle = (min(shown) + max(shown)) / 2
    room = max(5, 0.9 * (max(shown) - min(shown)))  # or noise would look like an effect
    axes[1].set_ylim(middle - room, min(middle + room, 100.5))
    return figure


# ------------------------------------------------------------------------- 02, detection

DETECTOR_LABELS = {
    "cube": "CUBE (RGA's recipe)",
    "cube-code": "CUBE (RGA's code)",
    "cube-original": "CUBE (original)",
    "cube-pca": "CUBE (PCA alone)",
    "oracle": "oracle",
    "mask_precision": "precision",
    "mask_recall": "recall",
    "states": "states",
    "activation": "activation clustering",
    "spectral": "spectral signatures",
    "onion": "ONION",
    "strip": "STRIP",
    "rap": "RAP",
    "bki": "BKI",
    "moderate": "MF",
}
LABELS.update(DETECTOR_LABELS)
LABELS.update({"f1": "F1", "fpr": "false positives", "auroc": "AUROC", "ap": "average precision"})


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


def hidden_maps(
    maps: Mapping[str, np.ndarray], truth: Mapping, labels: Mapping, class_names, columns: int = 2
):
    """Draw the victim's hidden space, one panel per attack: clean rows by label, poisons on top.

    Args:
        maps: attack → (N, 2). truth: attack → (N,) bool. labels: attack → (N,) int.
    """
    figure, axes = panels(len(maps), columns, 2.9)
    greys = sns.color_palette("Blues", len(class_names) + 2)[1:]
    for axis, (attack, points) in zip(axes.flat, maps.items(), strict=False):
        for k, name in enumerate(class_names):
            part = points[(labels[attack] == k) & ~truth[attack]]
            axis.scatter(*part.T, s=3, color=greys[k], label=name, linewidths=0)
        part = points[truth[attack]]
        axis.scatter(*part.T, s=6, color="#d55e00", marker="x", linewidths=0.6, label="poisoned")
        axis.set(title=label(attack), xticks=[], yticks=[])
    axes[0][0].legend(fontsize=7, markerscale=2, loc="best")
    return figure


def suspicion_curves(found: Mapping, truth: np.ndarray):
    """Draw ROC and precision-recall curves of the detectors that have a score.

    Args:
        found: detector → Detection. truth: (N,) bool, with some poison.
    """
    from sklearn.metrics import precision_recall_curve, roc_curve

    figure, axes = plt.subplots(1, 2, figsize=(7, 3.2))
    scored = {name: one.score for name, one in found.items() if one.score is not None}
    for name, score in scored.items():
        wrong, right, _ = roc_curve(truth, score)
        precision, recall, _ = precision_recall_curve(truth, score)
        axes[0].plot(wrong, right, label=label(name))
        axes[1].plot(recall, precision)
    axes[0].plot([0, 1], [0, 1], ls=":", color="0.6", lw=1)
    axes[1].axhline(truth.mean(), ls=":", color="0.6", lw=1)
    axes[0].set(xlabel="false-positive rate", ylabel="recall")
    axes[1].set(xlabel="recall", ylabel="precision", ylim=(-0.03, 1.05))
    axes[0].legend(fontsize=7)
    return figure


def mask_costs(frame, values: Sequence[str]):
    """Draw a metric after unlearning as a heat map over the mask's precision and recall.

    Args:
        frame: rows with asked_precision and asked_recall in percent, and ``values``.
    """
    figure, axes = plt.subplots(1, len(values), figsize=(7, 2.9), squeeze=False)
    for axis, value in zip(axes[0], values, strict=True):
        grid = frame.pivot_table(index="asked_precision", columns="asked_recall", values=value)
        sns.heatmap(
            grid.sort_index(ascending=False), annot=True, fmt=".1f", cmap="Blues", ax=axis,
            xticklabels=[f"{v:.0f}" for v in grid.columns],
            yticklabels=[f"{v:.0f}" for v in sorted(grid.index, reverse=True)],
        )  # fmt: skip
        axis.set(title=label(value), xlabel="recall of the mask (%)", ylabel="precision (%)")
    return figure


HOVER_ROWS = 700
HOVER_LAYOUT = {
    "template": "plotly_white",
    "height": 420,
    "margin": {"l": 10, "r": 10, "t": 10, "b": 10},
    "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom"},
    "xaxis": {"visible": False},
    "yaxis": {"visible": False},
    "hoverlabel": {"align": "left", "bgcolor": "#fff"},
}


def hover_map(dataset, points: np.ndarray, truth: np.ndarray, suspects: np.ndarray) -> HTML:
    """Show a map whose points tell their text when pointed at, by Plotly.

    Args:
        dataset: TextDataset of N rows; texts of abusive sets are masked. points: (N, 2). truth,
            suspects: (N,) bool; poisons are orange, suspects have a dark ring.

    At most HOVER_ROWS rows are drawn: all poisons that fit, then clean rows in a fixed random draw.
    """
    order = np.random.default_rng(0).permutation(len(dataset))
    poisons = [i for i in order if truth[i]][: HOVER_ROWS // 2]
    clean = np.array([i for i in order if not truth[i]][: HOVER_ROWS - len(poisons)])
    figure = graph.Figure(layout=HOVER_LAYOUT)
    kinds = {
        f"clean, {name}": clean[dataset.labels[clean] == k]
        for k, name in enumerate(dataset.class_names)
    } | {"poisoned": np.array(poisons)}
    blues = sns.color_palette("Blues", dataset.num_classes + 2).as_hex()[1:-1]
    for (name, rows), colour in zip(kinds.items(), [*blues, "#d55e00"], strict=True):
        figure.add_scatter(
            name=name,
            x=points[rows, 0].round(3).tolist(),
            y=points[rows, 1].round(3).tolist(),
            mode="markers",
            marker={"color": colour, "size": 7, "line": {"color": "#222"}}
            | {"line_width": [1.0 if suspects[i] else 0.0 for i in rows]},
            text=[_hover_text(dataset, i) for i in rows],
            hovertemplate="%{text}<extra></extra>",
        )
    # The site replaces the network's copy of Plotly by one of its own; a notebook has only this.
    shown = figure.to_html(
        full_html=False,
        include_plotlyjs="cdn",
        div_id="hover-map",
        config={"displayModeBar": False, "responsive": True},
    )
    says = "Map of hidden states; pointing at a mark shows the text of its row"
    return HTML(f'<div class="hover-map" role="img" aria-label="{says}">{shown}</div>')


def _hover_text(dataset, row: int) -> str:
    """Label and first words of a row in lines of readable length, as Plotly's bit of HTML."""
    text = " ".join(dataset.texts[row].split()[:SHOWN_WORDS])
    text = mask(text) if dataset.name in ABUSIVE else text
    lines = [f"labelled {dataset.class_names[dataset.labels[row]]}:", *textwrap.wrap(text, 60)]
    return "<br>".join(map(escape, lines))
