"""Chapter 02 on the page: its figures, tables and the numbers in its sentences.

Every function takes the chapter's settings and asks the ledger: for this run's trials, and for
other seeds where a table has means. Nothing is computed here, but for scores and masks where a
published trial came without them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from html import escape

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from IPython.display import HTML

from ... import ledger, names
from ...chapters import detection as chapter
from ...settings import ATTACKS, DETECTOR_NAMES, DetectionChapter, split
from .. import plots, tables
from ..paper_tables import paper_values
from . import compare
from .images import feature_maps

QUALITY = ["precision", "recall", "f1", "fpr", "auroc", "ap"]
AFTER = ["mask_precision", "mask_recall", "cacc", "lfr", "pacc", "dpacc"]
POISON = names.MEANINGS["poisoned"]


@ledger.memo
def _rows(cfg: DetectionChapter, plan: Callable) -> pd.DataFrame:
    """The rows of a part of the chapter's trials at all seeds that the ledger has."""
    return pd.DataFrame(chapter.rows(ledger.over(plan, cfg)))


def _here(cfg: DetectionChapter, plan: Callable) -> pd.DataFrame:
    return pd.DataFrame(chapter.rows(ledger.available(plan(cfg))))


def _names(cfg: DetectionChapter) -> list[str]:
    return chapter.detectors(cfg, chapter.first(cfg))


def _cubes(cfg: DetectionChapter) -> list[str]:
    return [name for name in _names(cfg) if name.startswith("cube")]


def _labelled(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.rename(names.label).rename(names.label, axis=1)


def _dashes(frame: pd.DataFrame, digits: int = 1) -> pd.DataFrame:
    return frame.round(digits).astype(object).where(frame.notna(), "–")


# ---------------------------------------------------------------- maps


def _attack_of(one: ledger.Trial) -> str:
    return one.table()[0]["attack"]


def counts(cfg: DetectionChapter) -> None:
    """Say how many rows each attack poisons."""
    for one in ledger.available(chapter.maps(cfg)):
        row = one.rows[0]
        attack = names.label(_attack_of(one))
        print(f"{attack}: {row['poisons']} of {row['rows']} rows are poisoned")


def maps(cfg: DetectionChapter) -> plt.Figure:
    """The hidden states of each attack's rows."""
    trials = ledger.available(chapter.maps(cfg))
    return hidden_maps({names.label(_attack_of(one)): one for one in trials})


def embeddings(cfg: DetectionChapter) -> plt.Figure:
    """The first attack's rows by two ways of training and two of flattening."""
    trainings = {"all": "all parameters", "embeddings": "embeddings only"}
    reductions = {"umap": "UMAP", "tsne": "t-SNE"}
    by_title = {}
    for trial in ledger.available(chapter.embeddings(cfg)):
        row = trial.table()[0]
        by_title[f"{trainings[row['trained']]}, {reductions[row['how']]}"] = trial
    return hidden_maps(by_title)


def hidden_maps(titled: Mapping[str, ledger.Trial], columns: int = 2) -> plt.Figure:
    """Draw hidden spaces, one panel a map: clean rows by label, poisons on top.

    Args:
        titled: title → trial with the arrays ``points`` (n, 2), ``labels`` and ``truth`` (n,).
    """
    figure, axes = plots.panels(len(titled), columns, 2.9)
    for axis, (title, trial) in zip(axes.flat, titled.items(), strict=False):
        points, labels = trial.array("points").astype(float), trial.array("labels")
        truth, classes = trial.array("truth").astype(bool), trial.rows[0]["classes"]
        for number, name in enumerate(classes):
            group = points[(labels == number) & ~truth]
            axis.scatter(*group.T, s=3, color=_shades(classes)[number], label=name, linewidths=0)
        axis.scatter(
            *points[truth].T, s=6, color=POISON, marker="x", linewidths=0.6, label="poisoned"
        )
        axis.set(title=title, xticks=[], yticks=[])
    axes[0][0].legend(fontsize=7, markerscale=2, loc="best")
    return figure


def _shades(classes: Sequence[str]) -> list[str]:
    return sns.color_palette("Blues", len(classes) + 2).as_hex()[1:-1]


def texts(cfg: DetectionChapter) -> HTML:
    """Some rows of the first attack's map, each with its text, and a table of the same rows.

    Poisons are orange; what the first detector suspects has a ring.
    """
    excerpt, hidden_map = (
        ledger.available(plan(cfg)[:1])[0] for plan in (chapter.excerpts, chapter.maps)
    )
    detection = chapter.detections(cfg)[0]
    rows = excerpt.array("rows")
    positions = {row: number for number, row in enumerate(hidden_map.array("rows").tolist())}
    frame = pd.DataFrame(
        {
            "text": excerpt.array("texts"),
            "label": [excerpt.rows[0]["classes"][number] for number in excerpt.array("labels")],
            "poisoned": excerpt.array("truth").astype(bool),
            "suspect": ledger.array(detection, "mask")[rows].astype(bool),
        }
    )
    points = hidden_map.array("points").astype(float)[[positions[row] for row in rows.tolist()]]
    frame["x"], frame["y"] = _stretched(points[:, 0], 684), 384 - _stretched(points[:, 1], 368)
    return HTML(_drawing(frame, excerpt.rows[0]["classes"]) + _table(frame))


def _stretched(values: np.ndarray, length: int) -> np.ndarray:
    low, high = values.min(), values.max()
    return (8 + (values - low) / max(high - low, 1e-9) * (length - 8)).round(1)


def _drawing(frame: pd.DataFrame, classes: Sequence[str]) -> str:
    """The points as SVG, whose tooltips need no script."""
    colours = dict(zip(classes, _shades(classes), strict=True))
    ring = ' stroke="currentColor" stroke-width="1.2"'
    marks = [
        f'<circle cx="{row.x}" cy="{row.y}" r="4" '
        f'fill="{POISON if row.poisoned else colours[row.label]}"{ring if row.suspect else ""}>'
        f"<title>labelled {escape(row.label)}: {escape(row.text)}</title></circle>"
        for row in frame.sort_values("poisoned").itertuples()
    ]
    title = "Map of hidden states; pointing at a mark shows the text of its row"
    key = {**{f"clean, {name}": colour for name, colour in colours.items()}, "poisoned": POISON}
    legend = " ".join(
        f'<span style="white-space: nowrap"><span style="color: {colour}">●</span> '
        f"{escape(name)}</span>"
        for name, colour in key.items()
    )
    return (
        f'<p class="hover-key">{legend} <span style="white-space: nowrap">○ ring: suspect'
        f'</span></p><svg class="hover-map" viewBox="0 0 692 392" role="img" aria-label="{title}" '
        'style="width: 100%; height: auto">' + "".join(marks) + "</svg>"
    )


def _table(frame: pd.DataFrame) -> str:
    body = "".join(
        f"<tr><td>{'poisoned' if row.poisoned else 'clean'}</td><td>{escape(row.label)}</td>"
        f"<td>{'yes' if row.suspect else ''}</td><td>{escape(row.text)}</td></tr>"
        for row in frame.itertuples()
    )
    head = "".join(f"<th>{name}</th>" for name in ("row", "labelled", "suspect", "text"))
    return (
        f"<details><summary>The same {len(frame)} rows as a table</summary>"
        '<div tabindex="0" role="region" aria-label="Rows of the map" '
        'style="max-height: 24em; overflow: auto"><table class="dataframe">'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div></details>"
    )


# ---------------------------------------------------------------- who finds what


def _judged(cfg: DetectionChapter) -> pd.DataFrame:
    return _rows(cfg, chapter.detections)


def quality(cfg: DetectionChapter) -> pd.DataFrame:
    """Every detector on every attack, means over seeds."""
    return pd.concat(
        {
            names.label(attack): tables.summary(rows, "detector", QUALITY, _names(cfg))
            for attack, rows in _judged(cfg).groupby("attack", sort=False)
        }
    )


def who_finds_what(cfg: DetectionChapter) -> plt.Figure:
    """F1 of the table, drawn."""
    table = quality(cfg)
    ours = pd.concat({"ours": table}, axis=1)
    return compare.dumbbells(ours, [names.label("f1")], shade=names.INK)


def cube_beside_paper(cfg: DetectionChapter) -> plt.Figure:
    """CUBE's F1 of the table, drawn: a row for each attack."""
    table, f1 = beside_paper(cfg), names.label("f1")
    columns = {
        (f"{source}, {names.label(name)}", f1): table[source, name]
        for source, name in table.columns
    }
    drawn = pd.DataFrame(columns).rename_axis(None)
    return compare.dumbbells(drawn, [f1], title="CUBE", shade=names.INK)


def beside_paper(cfg: DetectionChapter) -> pd.DataFrame:
    """CUBE's F1, ours and the paper's (Table 5)."""
    frame = _judged(cfg)
    columns = {
        ("ours", names.label(name)): {
            names.label(attack): tables.cell(frame, "f1", attack=attack, detector=name)
            for attack in split(cfg.attacks)
        }
        for name in _cubes(cfg)
    }
    for source in ("BERT", "DistilBert", "Llama2"):
        cells = _table_5(cfg.dataset, model=source)
        if cells:
            columns["paper", source] = {
                names.label(cell["attack"]): f"{100 * cell['mean']:.1f}" for cell in cells
            }
    return pd.DataFrame(columns, dtype=object).rename_axis("F1 (%)").fillna("–")


def _table_5(dataset: str, **where: str) -> list[dict]:
    return paper_values("rga", table="5", dataset=dataset, method="cube", metric="f1", **where)


def curves(cfg: DetectionChapter) -> plt.Figure:
    """ROC and precision-recall curves of the detectors that have a score, on the first attack."""
    from sklearn.metrics import precision_recall_curve, roc_curve

    figure, axes = plt.subplots(1, 2, figsize=(7, 3.2))
    recipes = chapter.detections(cfg)
    first_recipes = [recipe for recipe in recipes if recipe.victim == recipes[0].victim]
    styles = itertools.product((names.INK, names.TEAL), ("-", "--", "-.", ":"))
    for recipe, (shade, dashes) in zip(first_recipes, itertools.cycle(styles), strict=False):
        trial = ledger.look(recipe)
        if trial is None or "score" not in trial.arrays:
            continue
        truth, score = trial.array("truth").astype(bool), trial.array("score")
        fpr, tpr, _ = roc_curve(truth, score)
        precision, recall, _ = precision_recall_curve(truth, score)
        axes[0].plot(fpr, tpr, dashes, color=shade, label=names.label(recipe.detector.name))
        axes[1].plot(recall, precision, dashes, color=shade)
        axes[1].axhline(truth.mean(), ls=":", color="0.6", lw=1)
    axes[0].plot([0, 1], [0, 1], ls=":", color="0.6", lw=1)
    axes[0].set(xlabel="false-positive rate", ylabel="recall")
    axes[1].set(xlabel="recall", ylabel="precision", ylim=(-0.03, 1.05))
    if axes[0].get_legend_handles_labels()[0]:
        axes[0].legend(fontsize=7)
    return figure


def seconds(cfg: DetectionChapter) -> pd.DataFrame:
    """What a look costs, in this run."""
    frame = _here(cfg, chapter.detections)
    return _dashes(
        _labelled(
            frame.pivot_table(index="detector", columns="attack", values="seconds", sort=False)
        )
    )


def clean_victims(cfg: DetectionChapter) -> pd.DataFrame:
    """Whom the detectors accuse in a set without poison."""
    frame = _here(cfg, chapter.clean_victims).set_index("detector")[["suspects", "fpr"]]
    return _labelled(frame.astype({"suspects": int}).round(1)).rename_axis(None)


# ---------------------------------------------------------------- what they say of clean rows

LEVEL = 5.0  # percent: of trials.nulls.DetectorNull


@ledger.memo
def _nulls(cfg: DetectionChapter) -> pd.DataFrame:
    return pd.DataFrame(chapter.null_rows(ledger.over(chapter.nulls, cfg)))


def false_alarms(cfg: DetectionChapter) -> plt.Figure:
    """Percent of clean rows that each detector accuses by its own rule, and once calibrated."""
    frame = _nulls(cfg)
    if not len(frame):
        return plots.empty("no null has been computed: see chapters.detection.nulls")
    frame = frame[~frame["poisoned"]]
    kinds = list(frame["of"].unique())
    counts = [frame.loc[frame["of"] == kind, "detector"].nunique() for kind in kinds]
    figure, axes = plt.subplots(
        len(kinds), 1, figsize=(7, 0.9 + 0.24 * sum(counts)), sharex=True, squeeze=False,
        height_ratios=counts,
    )  # fmt: skip
    marks = {"fpr": ("own rule", "o", names.INK), "calibrated_fpr": ("calibrated", "s", names.TEAL)}
    for axis, kind in zip(axes.flat, kinds, strict=True):
        rows = frame[frame["of"] == kind]
        order = list(rows["detector"].unique())[::-1]
        for value, (title, mark, colour) in marks.items():
            height = rows["detector"].map(order.index) + (0.14 if value == "fpr" else -0.14)
            axis.plot(rows[value].astype(float), height, mark, ms=5, color=colour, label=title)
        axis.axvline(LEVEL, ls="--", lw=1, color="0.4")
        axis.set(yticks=range(len(order)), yticklabels=[names.label(n) for n in order], ylabel=kind)
        axis.set_xlim(left=-0.5)
        axis.set_ylim(-0.6, len(order) - 0.4)
    axes.flat[0].legend(fontsize=8)
    axes.flat[-1].set_xlabel("clean training rows accused (%)")
    return figure


def nulls(cfg: DetectionChapter) -> pd.DataFrame:
    """Each detector on sets without and with poison: its own rule, and at a p-value of 5 %."""
    frame = _nulls(cfg)
    if not len(frame):
        return frame
    columns = {
        (False, "fpr"): ("no poison", "accused"),
        (False, "calibrated_fpr"): ("no poison", "calibrated"),
        (False, "set_p"): ("no poison", "p ≤ 0.05"),
        (True, "recall"): ("BadNets", "recall"),
        (True, "fpr"): ("BadNets", "false alarms"),
        (True, "calibrated_recall"): ("BadNets", "calibrated recall"),
        (True, "calibrated_fpr"): ("BadNets", "calibrated false alarms"),
        (True, "set_p"): ("BadNets", "p ≤ 0.05"),
    }
    table: dict[tuple, dict] = {}
    for (kind, name), rows in frame.groupby(["of", "detector"], sort=False):
        cells = {}
        for (poisoned, value), title in columns.items():
            values = rows.loc[rows["poisoned"] == poisoned, value].astype(float)
            few = f"{(values <= LEVEL / 100).sum()}\u00a0of\u00a0{len(values)}"
            cells[title] = few if value == "set_p" else tables.spread(values, 1)
        table[kind, names.label(name)] = cells
    return pd.DataFrame.from_dict(table, orient="index").fillna("–")


def _glue_nulls(cfg: DetectionChapter) -> None:
    """The worst and the mean false alarms before and after, and what clustering finds in images."""
    frame = _nulls(cfg)
    plots.glue("null_seeds", int(frame["seed"].nunique()) if len(frame) else 0)
    clean = frame[~frame["poisoned"]] if len(frame) else frame
    scored = clean[clean["calibrated_fpr"].notna()] if len(clean) else clean
    for value in ("fpr", "calibrated_fpr"):
        at = scored[value].astype(float) if len(scored) else pd.Series(dtype=float)
        plots.glue(f"null_{value}_low", float(at.min()) if len(at) else "–")
        plots.glue(f"null_{value}_high", float(at.max()) if len(at) else "–")
    alarms = int((clean["set_p"] <= LEVEL / 100).sum()) if len(clean) else 0
    plots.glue("null_set_alarms", alarms)
    plots.glue("null_sets", len(clean))
    found = frame[frame["poisoned"]] if len(frame) else frame
    plots.glue("null_set_found", int((found["set_p"] <= LEVEL / 100).sum()) if len(found) else 0)
    plots.glue("null_poisoned_sets", len(found))
    for value in ("recall", "calibrated_recall"):
        where = {"of": "images", "detector": "activation", "poisoned": True}
        plots.glue(f"null_activation_{value}", tables.cell(frame, value, **where))


# ---------------------------------------------------------------- the tree of clusters


def tree(cfg: DetectionChapter) -> plt.Figure:
    """The tree that CUBE cuts its clusters from: density upwards, a branch as wide as its rows."""
    trials = ledger.available(chapter.trees(cfg))
    if not trials:
        return plots.empty("none of the detectors grows a tree: see chapters.detection.trees")
    branches = trials[0].rows[1:]
    figure, axis = plt.subplots(figsize=(7, 3.8))
    lefts = _lefts(branches)
    floor = min((one["born"] for one in branches if one["born"] > 0), default=1.0) / 2
    for one in branches:
        rows, poisons = np.array(one["rows"]), np.array(one["poisons"])
        densities = np.geomspace(one["born"] or floor, one["died"], len(rows))
        left = lefts[one["branch"]] + (rows[0] - rows) / 2
        is_cluster = one["cluster"] is not None
        clean_rows = rows - poisons if is_cluster else rows
        colour = _shades("cd")[1] if is_cluster else "0.85"
        axis.fill_betweenx(densities, left, left + clean_rows, color=colour, lw=0)
        axis.fill_betweenx(densities, left + clean_rows, left + rows, color=POISON, lw=0)
        if is_cluster:
            axis.annotate(
                f"{rows[0]} rows\n{poisons[0]} poisoned",
                (left[0] + rows[0] / 2, one["died"]), xytext=(0, 3), textcoords="offset points",
                ha="center", va="bottom", fontsize=8,
                bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1},
            )  # fmt: skip
    top = max(one["died"] for one in branches)
    axis.set(yscale="log", ylim=(floor, 2.5 * top), xlabel="training rows", ylabel="density λ")
    axis.grid(False)
    return figure


def _lefts(branches: Sequence[Mapping]) -> dict[int, float]:
    """Where each branch begins: the first of those that split off at its parent's left edge."""
    lefts: dict[int, float] = {}
    taken: dict[int, float] = {}
    for one in branches:  # parents stand before those that split off from them
        parent = one["parent"]
        start = 0.0 if parent is None else lefts[parent] + taken.get(parent, 0.0)
        taken[parent] = taken.get(parent, 0.0) + one["rows"][0]
        lefts[one["branch"]] = start
    return lefts


def tree_table(cfg: DetectionChapter) -> pd.DataFrame:
    """The clusters of every tree: what they hold, and what of the test rows falls in them."""
    frame = _trees(cfg)
    if not len(frame):
        return frame
    frame = frame[frame["cluster"].notna()].copy()
    frame["poisons"], frame["rows"] = frame["poisons"].str[0], frame["rows"].str[0]
    columns = {
        "seed": "seed", "rows": "rows", "poisons": "poisoned", "firmness": "mean membership",
        "test_clean": "clean test rows", "test_triggered": "triggered test rows",
    }  # fmt: skip
    whole = {name: int for name in columns if name != "firmness"}
    table = frame[list(columns)].astype(whole).round({"firmness": 2})
    return table.rename(columns=columns).set_index("seed")


@ledger.memo
def _trees(cfg: DetectionChapter) -> pd.DataFrame:
    """A row for each set, and one for each branch of its tree, at all seeds."""
    rows = (row for trial in ledger.over(chapter.trees, cfg) for row in trial.table())
    return pd.DataFrame(rows)


def _glue_tree(cfg: DetectionChapter) -> None:
    frame = _trees(cfg)
    frame = frame[frame["branch"].isna()] if len(frame) else frame
    for name in ("noise", "moved", "noise_approximate", "test_recall", "test_fpr"):
        plots.glue(f"tree_{name}", tables.cell(frame, name))


# ---------------------------------------------------------------- what errors cost


def costs(cfg: DetectionChapter) -> plt.Figure:
    """ΔPACC and LFR after RGA over the list's precision and recall, as heat maps."""
    frame, shades = _costs(cfg), sns.light_palette(names.MEANINGS["unlearned"], as_cmap=True)
    figure, axes = plt.subplots(1, 2, figsize=(7, 2.9), squeeze=False)
    for axis, value in zip(axes[0], ("dpacc", "lfr"), strict=True):
        grid = frame.pivot_table(index="asked_precision", columns="asked_recall", values=value)
        sns.heatmap(
            grid.sort_index(ascending=False), annot=True, fmt=".1f", cmap=shades, ax=axis,
            xticklabels=[f"{v:.0f}" for v in grid.columns],
            yticklabels=[f"{v:.0f}" for v in sorted(grid.index, reverse=True)],
        )  # fmt: skip
        axis.set(title=names.label(value), xlabel="recall of the mask (%)", ylabel="precision (%)")
    return figure


def _costs(cfg: DetectionChapter) -> pd.DataFrame:
    """This run's true and spoilt lists, of those in its grid."""
    frame = _here(cfg, chapter.costs)
    for name, shares in (("precision", cfg.precisions), ("recall", cfg.recalls)):
        percent = [100 * float(share) for share in split(shares)]
        mask = np.isclose(frame[f"asked_{name}"].to_numpy()[:, None], percent).any(1)
        frame = frame[mask]
    return frame.round({"asked_precision": 6, "asked_recall": 6, "dpacc": 6, "lfr": 6})


def _lists(cfg: DetectionChapter) -> list:
    return [chapter.unlearning(cfg, "oracle"), *chapter.real_lists(cfg)]


def _by_list(cfg: DetectionChapter) -> pd.DataFrame:
    frame = _rows(cfg, _lists)
    return frame[frame["epochs"] == cfg.unlearn_epochs]  # a longer run ends elsewhere


def by_list(cfg: DetectionChapter) -> pd.DataFrame:
    """RGA with the lists that CUBE made, means over seeds."""
    return tables.summary(_by_list(cfg), "mask", AFTER, ["oracle", *_cubes(cfg)])


# ---------------------------------------------------------------- where CUBE may fail


def hard(cfg: DetectionChapter) -> pd.DataFrame:
    """CUBE at low rates and with clean labels, in this run."""
    frame = _here(cfg, chapter.hard)
    frame["detector"] = frame["detector"].map(names.label)
    columns = ["poisoning", "poisons", "detector", "precision", "recall", "f1", "fpr"]
    return frame[columns].set_index("poisoning").rename(names.label, axis=1).round(1)


def _other_victims(cfg: DetectionChapter) -> pd.DataFrame:
    return _rows(cfg, chapter.other_victims)


def other_victims(cfg: DetectionChapter):
    """CUBE on other data and models, means over seeds."""
    frame = _other_victims(cfg)
    if not len(frame):
        return "no other data or model in this run"
    columns = ["cacc", "lfr", "precision", "recall", "f1"]
    table = {
        (names.label(data), names.label(model), names.label(name)): {
            names.label(value): tables.spread(rows[value], 1) for value in columns
        }
        for (data, model, name), rows in frame.groupby(["data", "victim", "detector"], sort=False)
    }
    return pd.DataFrame(table).T.rename_axis(["data", "model", "detector"])


def paper_hsol(cfg: DetectionChapter) -> pd.DataFrame:
    """CUBE's F1 on HSOL in the paper (Table 5), by model."""
    table: dict[str, dict] = {}
    for cell in _table_5("hsol"):
        text = f"{100 * cell['mean']:.0f} ± {100 * cell['std']:.0f}"
        table.setdefault(cell["model"], {})[names.label(cell["attack"])] = text
    return pd.DataFrame(table).rename_axis("paper, HSOL: F1 (%)")


# ---------------------------------------------------------------- images


def image_maps(cfg: DetectionChapter):
    """The features of each image attack's training set."""
    trials = ledger.available(chapter.image_maps(cfg))
    if not trials:
        return plots.empty("no map of images has been computed: see chapters.detection.image_maps")
    by_attack = {_attack_of(trial): trial for trial in trials}
    points, truth, labels = (
        {attack: trial.array(name) for attack, trial in by_attack.items()}
        for name in ("points", "truth", "labels")
    )
    truth = {attack: values.astype(bool) for attack, values in truth.items()}
    points = {attack: values.astype(float) for attack, values in points.items()}
    return feature_maps(points, truth, labels, trials[0].rows[0]["classes"])


def image_table(cfg: DetectionChapter):
    """Who finds the poisoned images, in this run."""
    frame = _here(cfg, chapter.images)
    if not len(frame):
        return "no images in this run"
    frame = frame.round({"silhouette": 2})
    frame["attack"] = frame["picture_attack"].map(names.label)
    frame["detector"] = frame["detector"].map(names.label)
    table = frame.pivot_table(
        index=["attack", "silhouette"], columns="detector", values=["f1", "fpr"], sort=False
    )
    return table.rename(names.label, axis=1, level=0).round(1)


# ---------------------------------------------------------------- numbers in sentences


def glue_numbers(cfg: DetectionChapter) -> None:
    """All numbers of the chapter's sentences."""
    frame, first_attack = _judged(cfg), chapter.first(cfg)
    for attack in ATTACKS:
        for name in DETECTOR_NAMES:
            value = tables.cell(frame, "f1", attack=attack, detector=name)
            plots.glue(f"{attack}_{name}_f1", value)
    other_rows = frame[
        ~frame["detector"].str.startswith("cube") & (frame["attack"] == first_attack)
    ]
    means = other_rows.groupby("detector")["f1"].mean().sort_values()
    plots.glue("best_other", names.label(str(means.index[-1])))
    plots.glue("best_other_f1", float(means.iloc[-1]))
    plots.glue("first_attack", names.label(first_attack))
    clean_fpr = _here(cfg, chapter.clean_victims).set_index("detector")["fpr"].astype(float)
    plots.glue("worst_fpr", float(clean_fpr.max()))
    plots.glue("worst_name", names.label(str(clean_fpr.idxmax())))
    plots.glue("cost_epochs", cfg.unlearn_epochs)
    plots.glue("detection_model", names.label(cfg.model))
    plots.glue("detection_dataset", names.label(cfg.dataset))
    plots.glue("detection_seeds", int(frame["seed"].nunique()))
    _glue_tree(cfg)
    _glue_nulls(cfg)
    _glue_costs(cfg, first_attack)
    _glue_other_victims(cfg)
    pictures = _here(cfg, chapter.images)
    for attack, silhouette in pictures.groupby("picture_attack")["silhouette"].first().items():
        plots.glue(f"image_{attack}_silhouette", silhouette)
    for row in pictures.to_dict("records"):
        plots.glue(f"image_{row['picture_attack']}_{row['detector']}_f1", row["f1"])


def _glue_costs(cfg: DetectionChapter, first: str) -> None:
    for precision, recall in ((100, 100), (100, 40), (50, 100), (50, 40)):
        for name in ("dpacc", "lfr"):
            at = {"asked_precision": precision, "asked_recall": recall}
            value = tables.cell(_costs(cfg), name, **at)
            plots.glue(f"cost_{precision}_{recall}_{name}", value)
    for name in ("mask_precision", "dpacc"):
        plots.glue(f"by_cube_{name}", tables.cell(_by_list(cfg), name, mask="cube", attack=first))


def _glue_other_victims(cfg: DetectionChapter) -> None:
    frame = _other_victims(cfg)
    for pair in ("hsol/minilm", "sst2/small-causal", "hsol/small-causal"):
        data, model = pair.split("/")
        conditions = {"data": data, "victim": model}
        plots.glue(f"{pair}_lfr", tables.cell(frame, "lfr", detector="cube", **conditions))
        for name in ("cube", "cube-code"):
            plots.glue(f"{pair}_{name}", tables.cell(frame, "f1", detector=name, **conditions))
