"""Chapter 04 on the page: its figures, tables and the numbers in its sentences.

Every function takes the chapter's settings and asks the ledger: for this run's trials, for other
seeds, and for the other settings that a table varies. Nothing is computed here.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns

from ... import ledger
from ...chapters import btu as chapter
from ...names import MEANINGS, colour, label
from ...settings import DEFENCES, TOKEN_METHODS, Btu, split
from .. import by_seed, plots, tables
from . import compare

PARTS = {"embeddings": "word embeddings only", "all": "all parameters"}
BACKDOOR, CLEAN = MEANINGS["poisoned"], MEANINGS["clean"]
METRICS = ["cacc", "lfr", "pacc", "dpacc"]
BOTH = "btu,btu-code"  # the paper's threshold and the released code's


@ledger.memo
def _seeds() -> tuple[int, ...]:
    """Every seed that the ledger has token unlearning with."""
    return tuple(sorted(ledger.known_seeds({"token_unlearning", "token_exposure"})))


@ledger.memo
def every(cfg: Btu) -> pd.DataFrame:
    """The chapter's rows at all seeds that the ledger has."""
    frame = pd.DataFrame(chapter.rows(ledger.over(chapter.trials, cfg, _seeds())))
    if "rga_epochs" in frame:  # a longer run of RGA serves too, as far as this one goes
        frame = frame[frame["rga_epochs"].isna() | (frame["rga_epochs"] == cfg.rga_epochs)]
    return frame


def _here(cfg: Btu) -> pd.DataFrame:
    frame = every(cfg)
    return frame[frame["seed"] == cfg.seed]


def _varied(cfg: Btu, parts: Sequence[Callable], points: Sequence[dict]) -> pd.DataFrame:
    """Rows of some parts of the chapter at other settings, each with the settings that vary."""
    rows = []
    for point in points:
        point_cfg = replace(cfg, **point)
        plan = lambda one: [item for part in parts for item in part(one)]  # noqa: E731
        point_rows = chapter.rows(ledger.over(plan, point_cfg, _seeds()))
        rows += [row | point for row in point_rows]
    names = dict.fromkeys(name for point in points for name in point)
    columns = dict.fromkeys(("method", "seed", "cacc", "lfr", *names))
    return pd.DataFrame(rows) if rows else pd.DataFrame(columns=list(columns))


def _grid(**values: Sequence) -> list[dict]:
    return [dict(zip(values, point, strict=True)) for point in itertools.product(*values.values())]


# ---------------------------------------------------------------- the victim


def _oracle(cfg: Btu) -> dict:
    return ledger.get(chapter.oracle(cfg)[0]).rows[0]


def start(cfg: Btu) -> pd.DataFrame:
    """ReTrain and the poisoned model of this run, and the oracle's list of tokens."""
    oracle = _oracle(cfg)
    print(f"{oracle['poisons']} of {oracle['rows']} training rows are poisoned")
    print(f"tokens that tell them apart (an oracle's list): {' '.join(oracle['tokens'])}")
    table = _here(cfg).drop_duplicates("method").set_index("method")
    table = table.loc[["retrain", "poisoned"], METRICS].astype(float)
    return table.rename(label).rename(label, axis=1).round(1).rename_axis(None)


def seeds(cfg: Btu) -> None:
    """Say which seeds the figures and tables rest on."""
    print(f"seeds in the figures and tables below: {sorted(every(cfg)['seed'].unique().tolist())}")


# ---------------------------------------------------------------- which rows move


def exposure(cfg: Btu):
    """How far backdoor and clean rows have moved, embeddings only against all parameters.

    Bands are ± one standard deviation over seeds.
    """
    frame = every(cfg).dropna(subset=["trained"])
    figure, axes = plt.subplots(1, 2, figsize=(7, 3.2), sharey=True)
    for axis, (trained, title) in zip(axes, PARTS.items(), strict=True):
        rows = frame[frame["trained"] == trained]
        for value, shade in (("backdoor", BACKDOOR), ("clean", CLEAN)):
            name, style = f"{value} tokens", {"color": shade, "marker": ""}
            sns.lineplot(rows, x="step", y=value, errorbar="sd", color=shade, label=name, ax=axis)
            by_seed.add_lines(axis, rows, "step", value, name, style)
        axis.set(title=title, xlabel="optimiser steps", ylabel="mean row change")
        axis.legend(fontsize=8)
    return figure


def _ends(cfg: Btu) -> pd.DataFrame:
    """Where the curves end, per seed and part, with the gap between backdoor and clean rows."""
    frame = every(cfg).dropna(subset=["trained"])
    last = frame.groupby(["seed", "trained"])[["backdoor", "clean"]].last()
    return last.assign(gap=last["backdoor"] - last["clean"])


def ends(cfg: Btu) -> pd.DataFrame:
    """Where the curves end: means over seeds."""
    table = _ends(cfg).groupby("trained").mean().rename(PARTS).rename_axis(None)
    return table.rename({"backdoor": "backdoor rows", "clean": "other rows"}, axis=1).round(3)


def flagged(cfg: Btu):
    """What each round of this run flagged."""
    rows = _here(cfg).dropna(subset=["round"])[["round", "flagged", "hits", "tokens"]]
    return plots.table(rows.astype({"round": int, "flagged": int, "hits": int}))


def ranks(cfg: Btu) -> pd.DataFrame:
    """Where the backdoor's tokens stand in each round of this run."""
    rows = ledger.get(chapter.tokens(cfg)[1]).rows[:-1]
    table = pd.DataFrame(
        [row["ranks"] for row in rows],
        index=[row["token"] for row in rows],
        columns=[f"round {number}" for number in split(cfg.rounds)],
    )
    return table.rename_axis("backdoor token, rank by row change")


def _counts(cfg: Btu) -> dict:
    return ledger.get(chapter.tokens(cfg)[0]).rows[-1]


def company(cfg: Btu) -> pd.DataFrame:
    """How many of the flagged tokens are the backdoor's, and how many are flagged anyway."""
    print("only flagged with the attack:")
    print(ledger.get(chapter.tokens(cfg)[1]).rows[-1]["only"])
    captions = {
        "flagged": "flagged",
        "hits": "of them in the oracle's list",
        "innocent": "of them flagged without the attack too",
    }
    counts = _counts(cfg)
    return pd.Series({text: counts[name] for name, text in captions.items()}).to_frame("tokens")


def quantities(cfg: Btu):
    """The trigger's row change, labels poisoned and kept, beside the average row's (this run)."""
    frame = _here(cfg).dropna(subset=["labels"])
    changes = frame.melt(["labels", "inserted"], ["backdoor", "average"], "moved", "change")
    average = changes["moved"] == "average"
    changes["rows"] = np.where(average, "average row", "trigger, labels " + changes["labels"])
    changes["inserted"] = [f"{share:g} %" for share in changes["inserted"]]
    order = ["trigger, labels dirty", "trigger, labels clean", "average row"]
    figure, axis = plt.subplots(figsize=(7, 3.2))
    sns.barplot(
        changes, x="inserted", y="change", hue="rows", hue_order=order, errorbar="sd",
        palette=[BACKDOOR, colour("q_asr"), CLEAN], ax=axis,
    )  # fmt: skip
    axis.set(xlabel="rows with the trigger, as a share of the non-target rows", ylabel="row change")
    axis.legend(title=None, fontsize=8)
    return figure


def state_maps(cfg: Btu):
    """Hidden states before and after embedding-only training, side by side (this run)."""
    trial = chapter.exposures(cfg)[0]
    kinds = ledger.array(trial, "kind")
    names = [str(kind) for kind in dict.fromkeys(kinds) if kind != "poisoned"]
    shades = dict(zip(names, sns.light_palette(CLEAN, len(names) + 1)[1:], strict=True))
    figure, axes = plt.subplots(1, 2, figsize=(7, 3.4))
    titles = {"before": "pre-trained", "after": "embeddings trained"}
    for axis, (name, title) in zip(axes, titles.items(), strict=True):
        points = ledger.array(trial, name)
        for kind, shade in (shades | {"poisoned": BACKDOOR}).items():
            x, y = points[kinds == kind].T
            marker = "x" if kind == "poisoned" else "o"
            axis.scatter(x, y, s=14, color=shade, marker=marker, lw=0.9, label=kind)
        axis.set(title=title, xticks=[], yticks=[])
    axes[0].legend(fontsize=8, title=None)
    return figure


# ---------------------------------------------------------------- overwriting


def methods(cfg: Btu) -> pd.DataFrame:
    """Every way of overwriting: threshold, dimensions changed and metrics over seeds."""
    frame, order = every(cfg), ["retrain", "poisoned", *split(cfg.methods)]
    table = tables.summary(frame, "method", ["replaced", *METRICS], order)
    cuts = [tables.cell(frame, "threshold", 5, method=method) for method in order]
    table.insert(0, "threshold", cuts)
    return table.rename({"replaced": "dimensions changed (%)"}, axis=1)


def outcome(cfg: Btu):
    """Where every way of overwriting ends between LFR and PACC, seed by seed."""
    methods = ["poisoned", *split(cfg.methods), "rga", "retrain"]
    return compare.plane(every(cfg), methods)


def dumbbells(cfg: Btu, table: str, *metrics: str):
    """One of the tables that set ours beside the paper's, by its name, drawn."""
    compared = TABLES[table](cfg)
    if not isinstance(compared, pd.DataFrame):
        return plots.empty("not computed yet: the table says which sweep computes it")
    return compare.dumbbells(compared, metrics)


def variants(cfg: Btu):
    """Table 5: the variants on two attacks."""
    attacks = ["addsent", "hiddenkiller"]
    wide_cfg = replace(cfg, methods=",".join(TOKEN_METHODS))
    frame = _varied(wide_cfg, (chapter.start, chapter.unlearnings), _grid(attack=attacks))
    order = ["poisoned", "btu", "btu-code", "btu-dim", "pn", "pr-1", "pr-2", "recover"]
    table = _beside_paper(frame, "5", "method", order, attacks, cfg.dataset)
    return _shown(table, "sweeps/btu_attacks.yml")


OTHERS = [name for name in DEFENCES if name != "none"]


def defences(cfg: Btu):
    """Table 1: BTU beside other training-time defences, attack by attack."""
    attacks = ["badnets", "addsent", "stylebkd", "hiddenkiller"]
    wide_cfg = replace(cfg, methods=BOTH, defences=",".join(OTHERS))
    parts = (chapter.start, chapter.unlearnings, chapter.defences)
    frame = _varied(wide_cfg, parts, _grid(attack=attacks))
    order = ["retrain", "poisoned", *OTHERS, "st", "tg", "dpoe", "btu", "btu-code"]
    table = _beside_paper(frame, "1", "method", order, attacks, cfg.dataset)
    return _shown(table, "sweeps/btu_defences.yml")


# ---------------------------------------------------------------- when things change


def alphas(cfg: Btu):
    """Table 4: how many tokens each round flags."""
    shares, attacks = [0.03, 0.05, 0.1], ["addsent", "hiddenkiller"]
    frame = _varied(
        replace(cfg, methods=BOTH), (chapter.unlearnings,), _grid(alpha=shares, attack=attacks)
    )
    table = _beside_paper(frame, "4", "alpha", shares, attacks, cfg.dataset)
    return _shown(table.rename_axis(["attack", "α (%)"]), "sweeps/btu_alpha.yml")


def rounds(cfg: Btu):
    """Table 6: which rounds run."""
    sets, attacks = ["1", "2", "2,3", "1,2", "1,2,3", "1,1,2,3"], ["badnets", "hiddenkiller"]
    frame = _varied(
        replace(cfg, methods=BOTH), (chapter.unlearnings,), _grid(rounds=sets, attack=attacks)
    )
    table = _beside_paper(frame, "6", "rounds", sets, attacks, cfg.dataset)
    return _shown(table.rename_axis(["attack", "rounds"]), "sweeps/btu_rounds.yml")


def adaptive(cfg: Btu):
    """Table 3: a trigger that occurs seldom, and one that acts only as a whole."""
    points = [{"attack": "addsent", "rate": 0.007}, {"attack": "sos", "rate": 0.1}]
    wide_cfg = replace(cfg, methods=BOTH, defences=",".join(OTHERS))
    parts = (chapter.start, chapter.unlearnings, chapter.defences)
    frame = _varied(wide_cfg, parts, points)
    order = ["retrain", "poisoned", *OTHERS, "btu", "btu-code"]
    table = _beside_paper(frame, "3", "method", order, ["addsent", "sos"], cfg.dataset)
    return _shown(table, "sweeps/btu_adaptive.yml")


def several(cfg: Btu):
    """Table 9: several triggers at once."""
    modes, attacks = ["single", "all2one-3", "all2one-5", "all2all-2"], ["badnets", "addsent"]
    frame = _varied(
        replace(cfg, methods=BOTH), (chapter.unlearnings,), _grid(triggers=modes, attack=attacks)
    )
    table = _beside_paper(frame, "9", "triggers", modes, attacks, cfg.dataset)
    return _shown(table, "sweeps/btu_triggers.yml")


def datasets(cfg: Btu):
    """Tables 1 and 11: other data."""
    attacks, order = ["badnets", "addsent"], ["retrain", "poisoned", "btu", "btu-code"]
    by_dataset = {}
    for name in ("hsol", "olid", "agnews-8k", "imdb-2500"):
        data_cfg = replace(cfg, dataset=name, methods=BOTH)
        frame = _varied(data_cfg, (chapter.start, chapter.unlearnings), _grid(attack=attacks))
        table = "11" if name == "imdb-2500" else "1"
        by_dataset[label(name)] = _beside_paper(frame, table, "method", order, attacks, name)
    return _shown(pd.concat(by_dataset), "sweeps/btu_datasets.yml")


def recoveries(cfg: Btu):
    """Recovery switched off, and at the rate of fine-tuning, for the seeds that all three have."""
    frames = {}
    for point in ({}, {"recovery": 0}, {"recovery_lr": 2e-5}):
        one = replace(cfg, **point)
        name = f"{one.recovery} rows at {one.recovery_lr:.0e}" if one.recovery else "none"
        frame = _varied(one, (chapter.unlearnings,), [{}])
        frames |= {name: frame} if len(frame) else {}
    seeds = set.intersection(*(set(frame["seed"]) for frame in frames.values())) if frames else ()
    means = {
        name: frame[frame["seed"].isin(seeds)].groupby("method", sort=False)[["cacc", "lfr"]].mean()
        for name, frame in frames.items()
    }
    columns = {
        (label(value), name): mean[value].round(1)
        for value in ("cacc", "lfr")
        for name, mean in means.items()
    }
    table = pd.DataFrame(columns).reindex(split(cfg.methods))
    return table.rename(label).rename_axis(None).astype(object).fillna("–")


def layers(cfg: Btu):
    """Table 10: the same idea in a transformer layer."""
    attacks = ["badnets", "hiddenkiller"]
    frame = _varied(cfg, (chapter.start, chapter.layers), _grid(attack=attacks))
    order = ["poisoned", *(f"layer-{number}" for number in split(cfg.layers))]
    table = _beside_paper(frame, "10", "method", order, attacks, cfg.dataset)
    return _shown(table, "sweeps/btu_attacks.yml")


TABLES = {
    "variants": variants, "defences": defences, "alphas": alphas, "rounds": rounds,
    "adaptive": adaptive, "several": several, "datasets": datasets, "layers": layers,
}  # fmt: skip


def _chain(cfg: Btu) -> str:
    return f"{cfg.then_rga}+rga"


def then_rga(cfg: Btu) -> pd.DataFrame:
    """RGA alone, and after BTU."""
    order = ["retrain", "poisoned", "btu", "btu-code", "rga", _chain(cfg)]
    return tables.summary(every(cfg), "method", METRICS, order)


def _beside_paper(
    frame: pd.DataFrame,
    table: str,
    by: str,
    order: Sequence,
    attacks: Sequence[str],
    dataset: str,
) -> pd.DataFrame:
    """Set ours beside a table of the paper, attack by attack; rows that neither has are left out.

    Args:
        frame: rows with ``attack`` and ``by``, what a row of the table is about (a setting, or
            "method"). A row about a setting shows both thresholds; the paper's is its "btu".
    """
    values, by_attack = ["cacc", "lfr"], {}
    for attack in attacks:
        rows = frame[frame["attack"] == attack].dropna(subset=["method", "cacc"])
        kinds = {"ours": rows}
        if by != "method":
            kinds = {label(name): rows[rows["method"] == name] for name in split(BOTH)}
        summaries = {
            name: tables.summary(group, by, values, order) for name, group in kinds.items()
        }
        where = {"table": table, "dataset": dataset, "attack": attack}
        where |= {} if by == "method" else {"method": "btu"}
        summaries["paper"] = tables.paper_summary("btu", by, values, order, **where)
        index = [label(str(key)) for key in order]
        columns = [label(value) for value in values]
        by_attack[label(attack)] = pd.concat(
            {name: one.reindex(index=index, columns=columns) for name, one in summaries.items()},
            axis=1,
        )
    # A dash alone, from either side, says nothing.
    return pd.concat(by_attack).replace("–", np.nan).dropna(how="all")


def _shown(table: pd.DataFrame, sweep: str):
    return table.astype(object).fillna("–") if len(table) else plots.not_run(sweep)


# ---------------------------------------------------------------- numbers in sentences


def glue_numbers(cfg: Btu) -> None:
    """The numbers in the chapter's sentences."""
    frame, oracle, counts = every(cfg), _oracle(cfg), _counts(cfg)
    gaps = _ends(cfg)["gap"].unstack()
    plots.glue("gap_embeddings", tables.spread(gaps["embeddings"], 3))
    plots.glue("gap_all", tables.spread(gaps["all"], 3))
    plots.glue("gap_ratio", tables.spread(gaps["embeddings"] / gaps["all"], 1))
    steps = oracle["rows"] * cfg.round_epochs / cfg.batch_size
    plots.glue("ceiling", round(cfg.round_lr * steps * oracle["width"] ** 0.5, 3))
    maps = _here(cfg).dropna(subset=["map"])["purity"]
    share = 100 * float((ledger.array(chapter.exposures(cfg)[0], "kind") == "poisoned").mean())
    for name, purity in zip(("before", "after"), maps, strict=True):
        plots.glue(f"purity_{name}", round(purity, 1))
        plots.glue(f"purity_{name}_base", round(share, 1))
    change = ledger.get(chapter.changes(cfg)[0]).rows[0]
    for name in ("entry_max", "flagged_max", "mean_row"):
        plots.glue(name, f"{change[name]:.4f}")
    for method in ("retrain", "poisoned", "btu", "btu-code", "btu-dim", "pr-1", "pr-2", "recover"):
        for value in (*METRICS, "replaced"):
            name = f"{method.replace('-', '_')}_{value}"
            plots.glue(name, tables.cell(frame, value, method=method))
    for name, method in (("chain", _chain(cfg)), ("rga", "rga")):
        for value in METRICS:
            plots.glue(f"{name}_{value}", tables.cell(frame, value, method=method))
    plots.glue("flagged", counts["flagged"])
    plots.glue("innocent", counts["innocent"])
    plots.glue("hits", f"{counts['hits']} of {len(oracle['ids'])}")
    for name in ("model", "dataset", "attack"):
        plots.glue(name, label(getattr(cfg, name)))
    plots.glue("recovery", cfg.recovery)
    plots.glue("seeds", int(frame.dropna(subset=["method"])["seed"].nunique()))
