"""Chapter 03 on the page: its figures, tables and the numbers in its sentences.

Every function takes the chapter's settings and asks the ledger: for this run's trials, for other
seeds, and for the other settings that a study varies. Nothing is computed here.
"""

from __future__ import annotations

import math

import pandas as pd
import torch

from ... import ledger, names
from ...chapters import ga_rga as chapter
from ...data.text import TEXT_CLASSES
from ...settings import GaRga, split
from ...unlearning import gradient_ascent
from .. import plots, tables
from ..paper_tables import paper_values
from . import compare

METRICS = ["cacc", "lfr", "pacc", "dpacc"]
ALPHAS = (1.0, 2.0, 3.0, 4.0)
RATES = (1e-5, 2e-5, 5e-5, 1e-4)


@ledger.memo
def every(cfg: GaRga) -> pd.DataFrame:
    """The chapter's rows at all seeds that the ledger has."""
    return pd.DataFrame(chapter.rows(ledger.over(chapter.trials, cfg)))


def _methods(cfg: GaRga) -> list[str]:
    return list(split(cfg.methods))


def _at_the_end(frame: pd.DataFrame, cfg: GaRga) -> pd.DataFrame:
    references = frame["method"].isin(["retrain", "poisoned"])
    return frame[references | (frame["epoch"] == cfg.epochs)]


def _here(cfg: GaRga) -> pd.DataFrame:
    frame = every(cfg)
    return frame[frame["seed"] == cfg.seed]


# ---------------------------------------------------------------- the victim


def start(cfg: GaRga) -> pd.DataFrame:
    """ReTrain and the poisoned model of this run."""
    frame = _here(cfg).drop_duplicates("method").set_index("method")
    poisoned = frame.loc["poisoned"]
    print(f"{poisoned['poisons']:.0f} of {poisoned['rows']:.0f} training rows are poisoned")
    table = frame.loc[["retrain", "poisoned"], METRICS[:3]].astype(float)
    return table.rename(names.label).rename(names.label, axis=1).round(1).rename_axis(None)


# ---------------------------------------------------------------- closed forms


def identity_gaps() -> pd.DataFrame:
    """How far Proposition 1 and its form for four classes are from equality, and R's bound."""
    odds = torch.linspace(-30, 30, 6001, dtype=torch.float64)
    log_p1, log_p0 = torch.nn.functional.logsigmoid(odds), torch.nn.functional.logsigmoid(-odds)
    rest = log_p0 + log_p1
    draw = torch.Generator().manual_seed(0)
    log_p = torch.randn(6001, 4, dtype=torch.float64, generator=draw).mul(5).log_softmax(-1)
    rest_4 = log_p.sum(-1)
    gaps = (
        (log_p1 - (-log_p0 + rest)).abs().max(),
        (log_p[:, 1] - (-(rest_4 - log_p[:, 1]) + rest_4)).abs().max(),
    )
    log_quarter = math.log(0.25)
    table = {
        "largest gap in the identity": [f"{gap.item():.0e}" for gap in gaps],
        "largest R": [f"{rest.max().item():.3f}", f"{rest_4.max().item():.3f}"],
        "bound on R": [f"{log_quarter:.3f}", f"{4 * log_quarter:.3f}"],
    }
    return pd.DataFrame(table, index=["two classes", "four classes"])


def pushes(cfg: GaRga):
    """How hard each method's term pushes, against the poisoned loss."""
    losses = torch.linspace(0.001, 6, 240)
    plan, npo = chapter.unlearning(cfg, "rga"), chapter.unlearning(cfg, "npo")
    settings = {"npo": npo}
    names = ("ce", "ga", "npo", "rga", "rga-code")
    return plots.pushes(
        losses,
        {
            name: gradient_ascent.push(name, losses, settings.get(name, plan), ref_loss=0.001)
            for name in names
        },
    )


# ---------------------------------------------------------------- unlearning


def _curves(cfg: GaRga) -> pd.DataFrame:
    frame = every(cfg)
    return frame[frame["method"].isin(_methods(cfg))]


def losses(cfg: GaRga):
    """Losses and λ over the epochs, means over seeds."""
    frame = _curves(cfg)
    values = ("poisoned_loss", "retain_loss", "lam")
    return plots.lines(frame, [value for value in values if value in frame])


def accuracies(cfg: GaRga):
    """Clean and triggered accuracy over the epochs, with ReTrain's and the poisoned model's."""
    means = every(cfg).groupby("method")[["cacc", "pacc"]].mean()
    references = means.loc[["retrain", "poisoned"]]
    marks = {
        "pacc": references["pacc"].to_dict(),
        "cacc": {"retrain": references.loc["retrain", "cacc"]},
    }
    figure = plots.lines(_curves(cfg), ["cacc", "pacc"], marks=marks)
    for axis in figure.axes:
        axis.set_ylabel(f"{axis.get_ylabel()} (%)")
    return figure


def confusions(cfg: GaRga):
    """Where the triggered rows of each class end up: ReTrain, poisoned, GA and RGA (this run)."""
    frame = _at_the_end(_here(cfg), cfg)
    if "confusion" not in frame:
        return None
    by_method = frame.dropna(subset=["confusion"]).set_index("method")["confusion"]
    methods = [name for name in ("ga", "rga") if name in by_method] or _methods(cfg)[:2]
    order = [name for name in ("retrain", "poisoned", *methods) if name in by_method]
    matrices = {names.label(name): by_method[name] for name in order}
    return plots.confusions(matrices, TEXT_CLASSES[cfg.dataset])


@ledger.memo
def _masks(cfg: GaRga) -> pd.DataFrame:
    """The last epoch's rows with every mask that the ledger has, all seeds; by ``mask``."""
    frame = pd.DataFrame(chapter.rows(ledger.over(chapter.other_masks, cfg)))
    return _at_the_end(frame, cfg)


def beside_paper(cfg: GaRga) -> pd.DataFrame:
    """The paper's Table 2 (and 4 for the poisoned model) under ours, by mask."""
    order = ["retrain", *_methods(cfg)]
    paper = {"model": "BERT", "dataset": cfg.dataset, "attack": cfg.attack}
    masks = _masks(cfg)
    frames = {
        f"ours, {names.label(cfg.mask)}": _at_the_end(every(cfg), cfg),
        "ours, CUBE": masks[masks["mask"] == "cube"],
    }
    by_source = {
        name: tables.summary(rows, "method", METRICS, ["poisoned", *order])
        for name, rows in frames.items()
        if len(rows)
    }
    by_source["paper, CUBE"] = pd.concat(
        [
            tables.paper_summary("rga", "method", METRICS[:3], ["poisoned"], table="4", **paper),
            tables.paper_summary("rga", "method", METRICS, order, table="2", **paper),
        ]
    )
    return tables.below(by_source)


def outcome(cfg: GaRga):
    """Where every method ends between LFR and PACC, seed by seed; the paper's (Tables 2 and 4)."""
    where = {"model": "BERT", "dataset": cfg.dataset, "attack": cfg.attack}
    cells = paper_values("rga", table="2", **where)
    cells += paper_values("rga", table="4", method="poisoned", **where)
    published: dict[str, dict[str, float]] = {}
    for cell in cells:
        published.setdefault(cell["method"], {})[cell["metric"]] = cell["mean"]
    paper = {name: (row["lfr"], row["pacc"]) for name, row in published.items()}
    methods = ["poisoned", *_methods(cfg), "retrain"]
    return compare.plane(_at_the_end(every(cfg), cfg), methods, paper=paper)


def over_epochs(cfg: GaRga):
    """How far each method is from ReTrain after 10, 20 and all epochs, beside the paper's."""
    frame, methods = _curves(cfg), _methods(cfg)
    paper = {"model": "BERT", "dataset": cfg.dataset, "attack": cfg.attack}
    by_epoch = {}
    for epoch, table in ((10, "7"), (20, "8"), (30, "2")):
        rows = frame[(frame["epoch"] == epoch) & frame["pacc"].notna()]
        if len(rows):
            by_epoch[f"after {epoch} epochs"] = tables.beside(
                tables.summary(rows, "method", ["dpacc"], methods),
                tables.paper_summary("rga", "method", ["dpacc"], methods, table=table, **paper),
            )
    if not by_epoch:
        return plots.empty("no measurement at epoch 10, 20 or 30 in this run")
    return compare.dumbbells(pd.concat(by_epoch), [names.label("dpacc")])


def earlier(cfg: GaRga):
    """The same after 10 and 20 epochs (Tables 7 and 8)."""
    frame, order = _curves(cfg), ["retrain", *_methods(cfg)]
    values, by_epoch = METRICS[1:], {}
    paper = {"model": "BERT", "dataset": cfg.dataset, "attack": cfg.attack}
    for epoch, table in ((10, "7"), (20, "8")):
        rows = frame[(frame["epoch"] == epoch) & frame["pacc"].notna()]
        if len(rows):
            ours = tables.summary(rows, "method", values, order)
            theirs = tables.paper_summary("rga", "method", values, order, table=table, **paper)
            by_epoch[f"{epoch} epochs"] = tables.beside(ours, theirs)
    return pd.concat(by_epoch) if by_epoch else "no measurement at epoch 10 or 20 in this run"


def by_mask(cfg: GaRga):
    """GA and RGA with every mask that the ledger has."""
    frame = _masks(cfg)
    frame = frame[frame["method"].isin(["ga", "rga"])]
    values = ["mask_precision", "mask_recall", *METRICS]
    summaries = {
        names.label(name): tables.summary(rows, "method", values, ["ga", "rga"])
        for name, rows in frame.groupby("mask", sort=False)
    }
    return pd.concat(summaries) if summaries else "neither GA nor RGA in this run"


def cost(cfg: GaRga) -> pd.DataFrame:
    """Seconds per epoch of this run, and the paper's shares (Table 9)."""
    times = _here(cfg).groupby("method", sort=False)["epoch_seconds"].median()
    table = pd.DataFrame(
        {"median s per epoch": times, "share of a ReTrain epoch": times / times["retrain"]}
    )
    cells = paper_values("rga", table="9", dataset=cfg.dataset, attack=cfg.attack)
    if cells:
        theirs = pd.DataFrame(cells).set_index("method")["mean"]
        table["paper: share"] = theirs / theirs["retrain"]
    table = table.round(3).astype(object)
    return table.where(table.notna(), "–").rename(names.label)


# ---------------------------------------------------------------- when does it shift?


def _power(rate: float) -> str:
    """A learning rate on one line."""
    return f"{rate:.0e}".replace("-", "\u2011")


FACTORS = ["rate", "position", "lr", "reset_optimizer"]


@ledger.memo
def _shifts(cfg: GaRga) -> pd.DataFrame:
    seeds = sorted(ledger.known_seeds({"text_unlearning"}))
    trials = ledger.available(chapter.shift_study(cfg, seeds))
    last_epochs = {tuple(cell[name] for name in FACTORS): cell["epochs"] for cell in chapter.SHIFT}
    rows = [row for row in chapter.rows(trials) if row["method"] == "ga"]
    # A longer run that is alike serves too, as far as its cell goes.
    rows = [row | {"last": last_epochs[tuple(row[name] for name in FACTORS)]} for row in rows]
    return pd.DataFrame([row for row in rows if row["epoch"] <= row["last"]])


def _shift_ends(cfg: GaRga) -> pd.DataFrame:
    frame = _shifts(cfg)
    return frame[frame["epoch"] == frame["last"]] if len(frame) else frame


def shift_curves(cfg: GaRga):
    """ΔPACC over optimiser steps for each condition."""
    frame = _shifts(cfg)
    return plots.shift_study(frame) if len(frame) else plots.not_run("sweeps/rga_shift.yml")


def shift_table(cfg: GaRga):
    """The same at the end of each run."""
    ends = _shift_ends(cfg)
    if not len(ends):
        return plots.not_run("sweeps/rga_shift.yml")
    cells = ends.groupby(FACTORS)
    columns = ["steps", "poisoned_loss", *METRICS]
    table = cells[columns].agg(lambda values: tables.spread(values, 1))
    table["steps"], table["n"] = cells["steps"].first(), cells.size()
    words = {"rate": lambda rate: f"{100 * rate:g} %", "lr": _power,
             "reset_optimizer": {True: "re-created", False: "kept"}}  # fmt: skip
    for factor, to in words.items():
        table = table.rename(to, level=factor)
    heads = ["poison", "trigger", "learning rate", "AdamW"]
    return table.rename_axis(heads).rename(names.label, axis=1)


# ---------------------------------------------------------------- its settings


def _varied(cfg: GaRga, seeds=None, **values) -> pd.DataFrame:
    return pd.DataFrame(chapter.rows(ledger.over(chapter.trials, cfg, seeds, **values)))


def alphas(cfg: GaRga) -> pd.DataFrame:
    """RGA after ten epochs over α (Table 3)."""
    frame = _varied(cfg, alpha=sorted({*ALPHAS, cfg.alpha}))
    frame = frame[(frame["method"] == "rga") & (frame["epoch"] == 10)]
    levels = sorted(frame["alpha"].unique())
    conditions = {"table": "3", "model": "Llama2", "dataset": cfg.dataset, "attack": cfg.attack}
    paper_table = tables.paper_summary(
        "rga", "alpha", METRICS, [f"{a:g}" for a in levels], **conditions
    )
    our_table = tables.summary(frame, "alpha", METRICS, levels)
    our_table.index = [f"{float(a):g}" for a in our_table.index]
    names = ("ours, 10 epochs", "paper, Llama-2")
    return tables.beside(our_table, paper_table, names).rename_axis("α")


def over_alpha(cfg: GaRga):
    """The table of α as dumbbells."""
    metrics = [names.label(name) for name in ("lfr", "dpacc")]
    return compare.dumbbells(alphas(cfg), metrics, title="α, from 1 to 4")


@ledger.memo
def _searched(cfg: GaRga) -> pd.DataFrame:
    """Ten epochs at each learning rate, this seed; one row per method and rate."""
    frame = _varied(cfg, seeds=[cfg.seed], lr=sorted({*RATES, cfg.lr}))
    frame = frame[(frame["epoch"] == 10) & frame["method"].isin(_methods(cfg))]
    return frame.dropna(subset=["pacc"]).drop_duplicates(["method", "lr"])


def _chosen(cfg: GaRga) -> pd.Series:
    """Method → the rate that the defender's rule takes."""
    frame = _searched(cfg)
    usable = frame[frame["poisoned_loss"].astype(float) > math.log(2)]
    return usable.sort_values("dev_cacc").groupby("method")["lr"].last()


def _dev_gap(frame: pd.DataFrame) -> str:
    """The largest distance over methods between the dev accuracies of their best two rates."""
    best = frame.groupby("method")["dev_cacc"].nlargest(2).groupby("method")
    return f"{(best.max() - best.min()).max():.1f}"


def rates(cfg: GaRga):
    """The search over learning rates."""
    frame = _searched(cfg)
    if not len(frame):
        return plots.not_run("sweeps/rga_lr.yml")
    columns = ["poisoned_loss", "dev_cacc", *METRICS]
    table = frame.set_index(["method", "lr"]).sort_index().rename(_power, level="lr")
    table = table.rename(names.label, level="method")[columns].rename(names.label, axis=1)
    return table.rename_axis(["method", "learning rate"]).astype(float).round(1)


def over_rate(cfg: GaRga):
    """What a defender sees of a learning rate, and what it hides: dev CACC and ΔPACC."""
    frame = _searched(cfg)
    if not len(frame):
        return plots.empty("not computed yet: minilib sweep sweeps/rga_lr.yml")
    columns = ["method", "lr", "dev_cacc", "dpacc"]
    figure = plots.lines(frame[columns].sort_values("lr"), ["dev_cacc", "dpacc"], x="lr")
    for axis, value in zip(figure.axes, ("dev_cacc", "dpacc"), strict=True):
        axis.set(xscale="log", xlabel="learning rate", ylabel=f"{names.label(value)} (%)")
    return figure


@ledger.memo
def _own(cfg: GaRga) -> pd.DataFrame:
    frame, best_rates = _varied(cfg, lr=sorted({*RATES, cfg.lr})), _chosen(cfg)
    frame = frame[frame["epoch"] == cfg.epochs]
    return frame[frame["lr"] == frame["method"].map(best_rates)].drop_duplicates(["method", "seed"])


def own_rates(cfg: GaRga):
    """Every method at the rate that the rule takes for it, all epochs and seeds."""
    frame, best_rates = _own(cfg), _chosen(cfg)
    if not len(frame):
        return plots.not_run("sweeps/rga_own_rate.yml")
    table = tables.summary(frame, "method", ["poisoned_loss", *METRICS], _methods(cfg))
    methods = [name for name in _methods(cfg) if (frame["method"] == name).any()]
    table.insert(0, "rate", [_power(best_rates[name]) for name in methods])
    return table


def topics(cfg: GaRga):
    """Four classes: AG News beside the paper's Table 7, whose LFR counts any error."""
    order = ["retrain", *_methods(cfg)]
    frame = pd.DataFrame(chapter.rows(ledger.over(chapter.trials, chapter.four_classes(cfg))))
    if not len(frame):
        return plots.not_run("sweeps/rga_agnews.yml")
    ends = frame[(frame["epoch"] == 10) | frame["method"].isin(["retrain", "poisoned"])]
    where = {"table": "7", "model": "BERT", "dataset": "agnews", "attack": "badnets"}
    paper = tables.paper_summary("rga", "method", METRICS, order, **where)
    values = [name for name in ("cacc", "lfr", "error", "pacc", "dpacc") if name in ends]
    return tables.beside(
        tables.summary(ends, "method", values, ["poisoned", *order]),
        paper.rename(columns={names.label("lfr"): names.label("error")}),
        ("ours, 10 epochs", "paper, 10 epochs"),
    )


def topics_beside_paper(cfg: GaRga):
    """The table of four classes as dumbbells."""
    table = topics(cfg)
    if not isinstance(table, pd.DataFrame):
        return plots.empty("not computed yet: minilib sweep sweeps/rga_agnews.yml")
    metrics = [names.label(name) for name in ("cacc", "pacc", "dpacc")]
    return compare.dumbbells(table, metrics)


# ---------------------------------------------------------------- numbers in sentences


def glue_shift(cfg: GaRga) -> None:
    """Numbers of the study of the shift."""
    ends = _shift_ends(cfg)
    for optimiser, reset in (("new", True), ("kept", False)):
        means = pd.Series(dtype=float)
        if len(ends):
            rows = ends[(ends["reset_optimizer"] == reset) & (ends["lr"] == cfg.lr)]
            means = rows.groupby(FACTORS)["dpacc"].mean()
        plots.glue(f"shift_{optimiser}_dpacc", tables.spread(means, 1))
        for share in (0.1, 0.5):
            conditions = {
                "rate": share,
                "reset_optimizer": reset,
                "lr": cfg.lr,
                "position": "random",
            }
            for value in ("dpacc", "poisoned_loss", "lfr"):
                name = f"shift_{100 * share:.0f}_{optimiser}_{value}"
                plots.glue(name, tables.cell(ends, value, **conditions))


def glue_rates(cfg: GaRga) -> None:
    """Numbers of the search over learning rates."""
    trial = ledger.look(chapter.trials(cfg)[0])
    infos = [info for info in trial.data if "+" not in info["name"]]
    dev_rows = next(info["rows"] for info in infos if info["split"].startswith("dev"))
    rate = trial.rows[0]["dev_cacc"] / 100
    plots.glue("dev_rows", dev_rows)
    plots.glue("dev_error", 100 * (rate * (1 - rate) / dev_rows) ** 0.5)
    plots.glue("dev_gap", _dev_gap(_searched(cfg)))
    for name in _methods(cfg):
        for value in ("dpacc", "lfr"):
            plots.glue(f"own_{name}_{value}", tables.cell(_own(cfg), value, method=name))


def glue_takeaways(cfg: GaRga) -> None:
    """Numbers of the takeaways."""
    curves, ends, masks = _curves(cfg), _at_the_end(every(cfg), cfg), _masks(cfg)
    plots.glue("ga_pacc_6", tables.cell(curves, "pacc", epoch=6, method="ga"))
    for name in ("retrain", "ga", "npo", "dga", "rga"):
        for value in METRICS:
            plots.glue(f"{name}_{value}", tables.cell(ends, value, method=name))
        plots.glue(f"{name}_loss", tables.cell(ends, "poisoned_loss", method=name))
    for name in ("model", "dataset"):
        plots.glue(name, names.label(getattr(cfg, name)))
    plots.glue("epochs", cfg.epochs)
    plots.glue("seeds", int(ends["seed"].nunique()))
    llama = {"model": "Llama2", "dataset": "sst2", "attack": "hiddenkiller", "method": "rga"}
    (failure,) = paper_values("rga", table="2", epochs="30", metric="dpacc", **llama)
    plots.glue("paper_failure", f"{failure['mean']:.2f} ± {failure['std']:.2f}")
    for name in ("ga", "rga"):
        plots.glue(f"cube_{name}_dpacc", tables.cell(masks, "dpacc", mask="cube", method=name))


def seeds(cfg: GaRga) -> None:
    """Say which seeds the figures and tables show."""
    print(f"seeds in the figures and tables below: {sorted(every(cfg)['seed'].unique().tolist())}")
