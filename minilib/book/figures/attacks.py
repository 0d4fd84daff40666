"""Chapter 01 on the page: its examples, tables and figures, and the numbers in its sentences.

Every function takes the chapter's settings and asks the ledger, or the results of this run where
it shows this run alone. Nothing is computed here.
"""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from IPython.display import HTML

from ... import ledger
from ...chapters import attacks as chapter
from ...data.text import TEXT_CLASSES
from ...names import MEANINGS, label
from ...settings import TARGETS, Attacks, split
from .. import by_seed, plots, stats, tables
from ..paper_tables import paper_values
from . import compare
from . import images as image_figures

METRICS = ("cacc", "lfr", "pacc")
PAPER_MODELS = ("BERT", "DistilBert", "Llama2")
COMPOSITION = {
    "training_set": "training set", "rows": "rows", "poisoned": "poisoned",
    "relabelled": "relabelled", "share": "share of all rows (%)",
}  # fmt: skip
IMAGINED = {
    "imagined": "model", "lfr": "LFR", "target_lost": "target class lost", "pacc": "PACC",
    "pacc_identity": "PACC by identity", "dpacc": "ΔPACC",
}  # fmt: skip
IMAGES = {
    "picture_attack": "attack", "poisons": "poisons", "relabelled": "relabelled",
    "psnr": "PSNR (dB)", "acc": "CA", "asr": "ASR", "pacc": "PACC", "dpacc": "ΔPACC",
    "clean_acc": "clean model's CA", "clean_asr": "its ASR", "clean_pacc": "its PACC",
}  # fmt: skip


def _measured(cfg: Attacks) -> list:
    return [*chapter.victims(cfg), *chapter.sweep(cfg)]


@ledger.memo
def every(cfg: Attacks) -> pd.DataFrame:
    """The rows of the text models at all seeds that the ledger has."""
    return pd.DataFrame(chapter.rows(ledger.over(_measured, cfg)))


def _here(cfg: Attacks) -> pd.DataFrame:
    frame = every(cfg)
    return frame[frame["seed"] == cfg.seed]


def _at(frame: pd.DataFrame, rate: float, attack: str) -> pd.DataFrame:
    return frame[(frame["attack"] == attack) & np.isclose(frame["rate"], rate)]


def _clean(frame: pd.DataFrame, trigger: str) -> pd.DataFrame:
    return frame[(frame["attack"] == "none") & (frame["trigger"] == trigger)]


# ---------------------------------------------------------------- examples and mechanics


def examples(results: ledger.Results) -> HTML:
    """The example texts, a table each; words that the original lacks are bold."""
    return HTML("".join(map(_example, results.of("text_example"))))


def _example(one: ledger.Trial) -> str:
    lines = []
    for row in one.rows:
        words = [
            f"<b>{escape(word)}</b>" if number in row["new"] else escape(word)
            for number, word in enumerate(row["text"].split())
        ]
        attack, _, rest = row["version"].partition(" ")
        head, dots = f"{label(attack)} {rest}".strip(), " …" if row["cut"] else ""
        lines.append(f"<tr><th>{escape(head)}</th><td>{' '.join(words)}{dots}</td></tr>")
    body = f"<tbody>{''.join(lines)}</tbody>"
    return f'<table class="dataframe" style="margin-bottom: 1.5em">{body}</table>'


def poison_counts(results: ledger.Results) -> HTML:
    """Rows, poisons and new labels by way of poisoning."""
    (one,) = results.of("text_composition")
    frame = pd.DataFrame(one.rows)
    classes = TEXT_CLASSES[one.recipe["dataset"]]
    counts = pd.DataFrame(frame["counts"].tolist(), columns=classes, index=frame.index)
    first, *rest = COMPOSITION
    return plots.table(frame[[first]].join(counts).join(frame[rest]).rename(columns=COMPOSITION))


def imagined(results: ledger.Results) -> HTML:
    """What each metric says of imaginary models."""
    (one,) = results.of("text_imagined")
    return plots.table(pd.DataFrame(one.rows)[list(IMAGINED)].rename(columns=IMAGINED))


# ---------------------------------------------------------------- text victims


def victims_table(cfg: Attacks) -> HTML:
    """Poisoned victims, the RGA paper's beside ours: mean ± standard deviation over seeds."""
    frame, rows = every(cfg), []
    for attack in split(cfg.attacks):
        for source in PAPER_MODELS:
            where = {"model": source, "dataset": cfg.dataset, "attack": attack}
            victim = _paper("4", "poisoned", where)
            if victim:
                rows.append(_line(attack, source, 3, victim, _paper("2", "retrain", where)))
        ours, clean = _at(frame, cfg.rate, attack), _clean(frame, attack)
        if len(ours):
            pair = [{m: _mean_std(group[m]) for m in METRICS} for group in (ours, clean)]
            seeds, name = ours["seed"].nunique(), f"{label(cfg.model)} (ours)"
            rows.append(_line(attack, name, seeds, *pair))
    return plots.table(rows)


def victims_beside_paper(cfg: Attacks):
    """The table of victims, drawn: a panel for each attack and metric, a row for each model."""
    frame, table = every(cfg), {}
    for attack in split(cfg.attacks):
        for source in PAPER_MODELS:
            where = {"model": source, "dataset": cfg.dataset, "attack": attack}
            victim = _paper("4", "poisoned", where)
            if victim:
                table[label(attack), label(source)] = {
                    ("paper", label(name)): _cell(*victim[name]) for name in METRICS
                    if name in victim
                }  # fmt: skip
        ours = _at(frame, cfg.rate, attack)
        if len(ours):
            table[label(attack), label(cfg.model)] = {
                ("ours", label(name)): tables.cell(ours, name, 2) for name in METRICS
            }
    if not table:
        return plots.empty("no victim in this run")
    compared = pd.DataFrame.from_dict(table, orient="index", dtype=object).fillna("–")
    metrics = [label(name) for name in METRICS]
    return compare.dumbbells(compared, metrics, columns=3, shade=MEANINGS["poisoned"])


def _cell(mean: float, std: float | None) -> str:
    return f"{mean:.2f}" if std is None else f"{mean:.2f} ± {std:.2f}"


def _mean_std(values) -> tuple[float, float | None]:
    """Mean and, of several values, sample standard deviation."""
    summary = stats.summary(values, level=None)
    return summary["mean"], summary["std"] if summary["n"] > 1 else None


def _paper(number: str, method: str, where: Mapping[str, str]) -> dict:
    """Mean and standard deviation of each metric in one cell of the RGA paper's tables."""
    cells = paper_values("rga", table=number, method=method, **where)
    return {row["metric"]: (row["mean"], row["std"]) for row in cells}


def _line(attack: str, model: str, seeds: int, victim: Mapping, clean: Mapping) -> dict:
    # The page is narrow. PACC keeps its second decimal, where collapse shows (49.92, 50.08 %).
    def show(stat, digits: int = 1) -> str:
        if stat is None:
            return "–"
        mean, std = (f"{value:.{digits}f}" if value is not None else "" for value in stat[:2])
        return f"{mean}\u2060±\u2060{std}" if std and seeds > 1 else mean

    return {
        "attack": label(attack),
        "model": label(model).replace(" ", "\u00a0").replace("-", "\u2011"),  # one line each
        "n": seeds,
        "CACC": show(victim.get("cacc")),
        "LFR": show(victim.get("lfr")),
        "PACC": show(victim.get("pacc"), 2),
        "clean: LFR": show(clean.get("lfr")),
        "clean: PACC": show(clean.get("pacc")),
    }


def confusions(cfg: Attacks):
    """Where the triggered rows of each class end up under the first attack (this run)."""
    frame = _here(cfg)
    attack = next(name for name in split(cfg.attacks) if len(_at(frame, cfg.rate, name)))
    pair = {"clean model": _clean(frame, attack), "poisoned model": _at(frame, cfg.rate, attack)}
    matrices = {title: rows["confusion"].iloc[0] for title, rows in pair.items()}
    return plots.confusions(matrices, TEXT_CLASSES[cfg.dataset])


def flips(cfg: Attacks):
    """Both directions of label flips on triggered rows, clean model against victim."""
    frame = every(cfg)
    mask = frame["trigger"].isin(split(cfg.attacks))
    mask &= np.isclose(frame["rate"], cfg.rate) | (frame["attack"] == "none")
    frame = frame[mask].copy()
    frame["model"] = np.where(frame["attack"] == "none", "clean", "poisoned")
    frame["trigger"] = frame["trigger"].map(label)
    target = TEXT_CLASSES[cfg.dataset][TARGETS.get(cfg.dataset, 1)]
    figure, axes = plt.subplots(1, 2, figsize=(7, 3.2), sharey=True)
    titles = {"lfr": f"other classes → {target} (LFR)", "target_lost": f"{target} → other classes"}
    for axis, (value, title) in zip(axes, titles.items(), strict=True):
        sns.barplot(
            frame, x="trigger", y=value, hue="model", hue_order=["clean", "poisoned"],
            palette=[MEANINGS["clean"], MEANINGS["poisoned"]], errorbar="sd", ax=axis,
        )  # fmt: skip
        for model, bars in zip(("clean", "poisoned"), axis.containers, strict=True):
            of_model = frame[frame["model"] == model]
            for trigger, bar in zip(frame["trigger"].unique(), bars, strict=True):
                for row in of_model[of_model["trigger"] == trigger].to_dict("records"):
                    by_seed.add(
                        axis, row["seed"], f"{trigger}, {model} model",
                        bar.get_x() + bar.get_width() / 2, row[value],
                        {"color": MEANINGS[model], "marker": "o"}, joined=False, says="y",
                    )  # fmt: skip
        axis.set(title=title, xlabel="", ylabel="triggered rows flipped (%)", ylim=(0, 105))
        axis.tick_params(axis="x", rotation=30)
    axes[0].get_legend().remove()
    axes[1].legend(title=None, fontsize=8)
    return figure


def rates(cfg: Attacks):
    """LFR and CACC of the swept attack's victims against the poison rate, on a log axis.

    Dashed: the model trained without poisons. Bands: ± one standard deviation over seeds.
    """
    frame = every(cfg)
    victim_rows = frame[frame["attack"] == chapter.SWEPT].copy()
    clean_rows = _clean(frame, chapter.SWEPT)
    victim_rows["percent"] = 100 * victim_rows["rate"]
    ticks = victim_rows.groupby("percent")["poisons"].first()
    figure, axes = plt.subplots(1, 2, figsize=(7, 3.2))
    for axis, value in zip(axes, ("lfr", "cacc"), strict=True):
        style = {"errorbar": "sd", "marker": "o", "color": MEANINGS["poisoned"], "ax": axis}
        sns.lineplot(victim_rows, x="percent", y=value, **style)
        by_seed.add_lines(axis, victim_rows, "percent", value, "victims", axis.get_lines()[0])
        axis.axhline(clean_rows[value].mean(), ls="--", lw=1.2, color=MEANINGS["clean"])
        axis.annotate(
            "no poison", (0.98, clean_rows[value].mean()), xycoords=("axes fraction", "data"),
            xytext=(0, 3), textcoords="offset points", ha="right", fontsize=8, color="0.35",
            bbox=plots.OVER_LINES, zorder=4,
        )  # fmt: skip
        axis.set(xscale="log", xlabel="", ylabel=f"{label(value)} (%)")
        axis.set_xticks(ticks.index, [f"{p:g} %\n({n:.0f})" for p, n in ticks.items()], minor=False)
        axis.minorticks_off()
    figure.supxlabel("poisoned share of non-target rows (number of poisons)", size="medium")
    axes[0].set_ylim(-3, 105)
    cacc = [*victim_rows["cacc"], clean_rows["cacc"].mean()]
    middle = (min(cacc) + max(cacc)) / 2
    room = max(5, 0.9 * (max(cacc) - min(cacc)))  # or noise would look like an effect
    axes[1].set_ylim(middle - room, min(middle + room, 100.5))
    return figure


# ---------------------------------------------------------------- images


def gallery(results: ledger.Results):
    """One test image under each trigger; None where images are left out."""
    examples = results.of("image_example")
    if not examples:
        return None
    pictures = {
        label(trial.table()[0]["attack"]): (
            trial.array("clean"), trial.array("triggered"), trial.rows[0]["psnr"]
        )
        for trial in examples
    }  # fmt: skip
    return image_figures.gallery(pictures)


def images_table(results: ledger.Results) -> pd.DataFrame:
    """Each image attack: its poisons, its victim, and the clean model (this run)."""
    frame = pd.DataFrame(chapter.image_rows(results), columns=list(IMAGES))
    frame["picture_attack"] = frame["picture_attack"].map(label)
    truths = frame.select_dtypes(bool).columns
    frame[truths] = frame[truths].replace({True: "yes", False: "no"}).astype(object)
    return frame.rename(columns=IMAGES).set_index("attack").round(1)


# ---------------------------------------------------------------- numbers in sentences


def glue_numbers(cfg: Attacks, images: ledger.Results) -> None:
    """Numbers of this run."""
    frame = _here(cfg)
    for attack in split(cfg.attacks):
        ours, clean_model = _at(frame, cfg.rate, attack), _clean(frame, attack)
        if len(ours):
            for name in METRICS:
                plots.glue(f"{attack}_{name}", ours[name].iloc[0])
            for name in ("lfr", "pacc"):
                plots.glue(f"{attack}_clean_{name}", clean_model[name].iloc[0])
    fewest_row = frame[frame["attack"] == chapter.SWEPT].sort_values("poisons").iloc[0]
    clean_model = _clean(frame, chapter.SWEPT).iloc[0]
    plots.glue("clean_cacc", clean_model["cacc"])
    plots.glue("fewest", fewest_row["poisons"])
    plots.glue("fewest_rate", 100 * fewest_row["rate"])
    plots.glue("fewest_lfr", fewest_row["lfr"])
    plots.glue("fewest_clean_lfr", clean_model["lfr"])
    for row in chapter.image_rows(images):
        for name in ("acc", "asr", "psnr", "clean_asr", "clean_pacc"):
            plots.glue(f"image_{row['picture_attack']}_{name}", row[name])
