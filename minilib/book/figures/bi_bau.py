"""Chapter 06 on the page: two tasks in both orders, inverted images, what stays, what it costs.

Every view takes the chapter's settings and asks the ledger, for this run's trials and for those of
other seeds; nothing is computed here. The ``draw_`` functions take plain frames and arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from ... import ledger, names
from ...chapters import bi_bau as chapter
from ...names import COLOURS, MEANINGS, UNLEARNED, label
from ...settings import BiBau, split
from .. import by_seed, plots, stats, tables
from . import compare
from .images import _show_image

WANTED = ["acc", "asr", "r_asr", "q_asr"]
RATES = {name: COLOURS[name] for name in WANTED}
MARKS = {"acc": "s", "asr": "o", "r_asr": "D", "q_asr": "|"}
PANELS = 5  # beside each other
AMPLIFY = 4  # a perturbation is drawn this many times as large


def draw_orders(frame: pd.DataFrame, first: int) -> plt.Figure:
    """Draw CA and ASR over epochs, one panel per order of the two tasks.

    Args:
        frame: rows with ``order``, ``epoch``, ``acc``, ``asr``. first: epochs of the backdoor task.
    """
    titles = list(dict.fromkeys(frame["order"]))
    figure, axes = plt.subplots(1, len(titles), figsize=(7, 2.6), sharey=True, squeeze=False)
    last = frame["epoch"].max()
    switch = {"backdoor first": first, "clean first": last - first}
    for axis, title in zip(axes[0], titles, strict=True):
        rows = frame[frame["order"] == title]
        for value in ("acc", "asr"):
            axis.plot(rows["epoch"], rows[value], color=RATES[value], label=label(value))
        if title in switch:
            axis.axvline(switch[title] + 0.5, color="grey", lw=1, ls=":")
        axis.set(title=title, xlabel="epoch", ylim=(-3, 103))
        axis.xaxis.get_major_locator().set_params(integer=True)
    axes[0, 0].set_ylabel("percent")
    axes[0, 0].legend(fontsize=8)
    return figure


def draw_inversion(stories: Mapping[str, Sequence[Mapping]]) -> plt.Figure:
    """Draw what both models say of the images after each PGD step, one panel per story."""
    lines = {
        "backdoored_true": ("backdoored model, true class", MEANINGS["poisoned"], "-"),
        "backdoored_other": ("backdoored model, class aimed at", MEANINGS["poisoned"], ":"),
        "current_true": ("current model, true class", MEANINGS["unlearned"], "--"),
    }
    figure, axes = plt.subplots(1, len(stories), figsize=(7, 2.8), sharey=True, squeeze=False)
    for axis, (title, rows) in zip(axes[0], stories.items(), strict=True):
        frame = pd.DataFrame(rows)
        for value, (name, shade, style) in lines.items():
            axis.plot(frame["step"], frame[value], style, color=shade, label=name)
        axis.set(title=title, xlabel="PGD step", ylim=(-3, 103))
    axes[0, 0].set_ylabel("mean probability (%)")
    axes[0, -1].legend(fontsize=7)
    return figure


def draw_perturbed(clean: np.ndarray, shown: Mapping[str, np.ndarray]) -> plt.Figure:
    """Draw images, their perturbed versions, and the differences × 4 around mid-grey.

    Args:
        clean: (N, H, W, C) uint8. shown: title → the same, perturbed.
    """
    height = 1 + 2 * len(shown)
    figure, axes = plt.subplots(
        height, len(clean), figsize=(min(7, 1.1 * len(clean) + 1), 0.8 * height), squeeze=False,
        layout="constrained",
    )  # fmt: skip
    before = clean.astype(float)
    for column, image in enumerate(before):
        _show_image(axes[0, column], image)
        for k, images in enumerate(shown.values()):
            after = images[column].astype(float)
            _show_image(axes[1 + 2 * k, column], after)
            _show_image(axes[2 + 2 * k, column], 127.5 + AMPLIFY * (after - image))
    names = ["clean", *(text for title in shown for text in (title, f"× {AMPLIFY}"))]
    for axis, name in zip(axes[:, 0], names, strict=True):
        axis.set_ylabel(name, fontsize=7, rotation=0, ha="right", va="center")
    return figure


def draw_security(frame: pd.DataFrame, methods: Sequence[str]) -> plt.Figure:
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
        every = frame[(frame["attack"] == attack) & frame["method"].isin(methods)]
        means = every.groupby("method")[["asr", "r_asr", "q_asr"]].mean().reindex(list(methods))
        seeds = every[every["method"].duplicated(keep=False)]
        places = seeds["method"].map(list(methods).index)
        axis.hlines(rows, means["asr"], means["r_asr"], color=RATES["r_asr"], lw=1.5, alpha=0.6)
        for value in ("q_asr", "r_asr", "asr"):
            mark = MARKS[value]
            axis.plot(seeds[value], places, mark, ms=2.5, color=RATES[value], alpha=0.5)
            like = {"color": RATES[value], "marker": mark}
            for row in every.to_dict("records"):
                place, name = (
                    methods.index(row["method"]),
                    f"{label(row['method'])}, {label(value)}",
                )
                by_seed.add(axis, row["seed"], name, row[value], place, like, joined=False,
                            says="x")  # fmt: skip
            axis.plot(
                means[value], rows, mark, ms=5, mew=1.5, color=RATES[value], label=label(value)
            )
        axis.set(title=label(attack), xlim=(-5, 105))
        axis.grid(axis="y", lw=0.4)
    for axis in axes.flat[len(attacks) :]:
        axis.set_visible(False)
    axes[0, 0].set_yticks(rows, [label(name) for name in methods])
    axes[0, 0].set_ylim(len(methods) - 0.5, -0.5)
    figure.supxlabel("percent", fontsize=9)
    handles, names = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles[::-1], names[::-1], loc="outside upper center", ncols=3, fontsize=8)
    return figure


def draw_by_poisons(frame: pd.DataFrame) -> plt.Figure:
    """Draw R-ASR over the number of poisons, a line per model.

    Args:
        frame: rows with ``method``, ``poisons``, ``r_asr``, ``seed``.
    """
    figure, axis = plt.subplots(figsize=(7, 2.8))
    methods = list(dict.fromkeys(frame["method"]))
    shades, marks = plots.palette(methods), plots.markers(methods)
    for name, rows in frame.groupby("method", sort=False):
        style = {"color": shades[name], "marker": marks[name]}
        with_seeds(axis, rows, "poisons", "r_asr", label=label(name), **style)
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
    axis.plot(mean.index, mean, ms=4, **style)
    by_seed.add_lines(axis, frame, over, value, style["label"], axis.get_lines()[-1])


def draw_over_eta(frame: pd.DataFrame) -> plt.Figure:
    """Draw CA and the three attack rates against η, one panel per attack.

    Args:
        frame: rows with ``attack``, ``eta``, ``acc``, ``asr``, ``r_asr``, ``q_asr``, ``seed``.
    """
    attacks = list(dict.fromkeys(frame["attack"]))
    figure, axes = plt.subplots(1, len(attacks), figsize=(7, 2.8), sharey=True, squeeze=False)
    for axis, attack in zip(axes[0], attacks, strict=True):
        rows = frame[frame["attack"] == attack]
        for value, shade in RATES.items():
            style = {"color": shade, "marker": MARKS[value], "label": label(value)}
            with_seeds(axis, rows, "eta", value, **style)
        axis.set(title=label(attack), xlabel="η", ylim=(-3, 103))
    axes[0, 0].set_ylabel("percent")
    axes[0, 0].legend(fontsize=8)
    return figure


def draw_sensitivity(frame: pd.DataFrame) -> plt.Figure:
    """Draw what each candidate does to the proxy: held-out CA, ASR and R-ASR, a row each.

    A candidate that diverged has a row without a mark.
    """
    figure, axis = plt.subplots(figsize=(7, min(4, 0.8 + 0.25 * len(frame))))
    for value in ("acc", "asr", "r_asr"):
        axis.plot(
            frame[value].astype(float),
            np.arange(len(frame)),
            MARKS[value],
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


# What a defender without the trigger can see: what it is called, and whether R-ASR rises with it.
SCORES = {
    "perturbed_acc": ("accuracy on perturbed images", -1),
    "surrogate_asr": ("surrogate R-ASR", 1),
    "proxy_r_asr": ("R-ASR of the planted backdoor", 1),
}


def draw_scores(frame: pd.DataFrame) -> plt.Figure:
    """Draw R-ASR over what a defender can see, a panel per score, a mark per defended model.

    Args:
        frame: rows with ``model``, ``seed``, ``method``, ``r_asr`` and the names in SCORES, in
            percent. The bound has a colour of its own.
    """
    figure, axes = plt.subplots(1, len(SCORES), figsize=(7, 2.9), sharey=True, squeeze=False)
    correlations = score_correlations(frame)
    frame = frame.assign(bound=frame["method"] == "ibu")
    shades = {False: UNLEARNED[0], True: MEANINGS["reference"]}
    marks = dict(zip(dict.fromkeys(frame["model"]), "osD^", strict=False))
    for axis, (name, (title, _)) in zip(axes[0], SCORES.items(), strict=True):
        for (kind, bound), rows in frame.dropna(subset=[name]).groupby(["model", "bound"]):
            text = f"{label(kind)}, {label('ibu') if bound else 'defences'}"
            axis.plot(
                rows[name], rows["r_asr"], marks[kind], ms=5, alpha=0.6, color=shades[bound],
                label=text,
            )  # fmt: skip
        rho, low, high = (f"{value:.2f}".replace("nan", "–") for value in correlations[name])
        axis.set(xlim=(-4, 104), ylim=(-4, 104))
        axis.set_xlabel(f"{title} (%)", fontsize=8)
        axis.set_title(f"ρ = {rho} [{low}, {high}]".replace("-", "−"), fontsize=9)
    axes[0, 0].set_ylabel("R-ASR (%)")
    axes[0, 0].legend(fontsize=7)
    return figure


def score_correlations(frame: pd.DataFrame) -> dict[str, tuple[float, float, float]]:
    """Score → its rank correlation with R-ASR over all models, and the interval over victims."""
    found = {}
    for name in SCORES:
        victims = _pairs_by_victim(frame, name)
        all_pairs = [pair for pairs in victims for pair in pairs]
        found[name] = (stats.rank_correlation(all_pairs), *stats.rank_interval(victims))
    return found


def _pairs_by_victim(frame: pd.DataFrame, score: str) -> list[list[tuple[float, float]]]:
    known = frame.dropna(subset=[score])  # a planted backdoor whose defence diverged has none
    return [
        list(zip(rows[score], rows["r_asr"], strict=True))
        for _, rows in known.groupby(["model", "seed"])
    ]


def chosen_score(correlations: Mapping[str, tuple[float, float, float]]) -> str | None:
    """The score that the rule of ``chapters.bi_bau.scored`` takes; None where it takes none."""
    claimed = {  # in the direction that the score claims: the correlation and its lower end
        name: (sign * correlations[name][0], min(sign * end for end in correlations[name][1:]))
        for name, (_, sign) in SCORES.items()
        if correlations[name][0] == correlations[name][0]  # NaN where a score does not vary
    }
    best = max(claimed, key=claimed.__getitem__, default=None)
    return best if best and claimed[best][1] > 0 else None


def draw_costs(frame: pd.DataFrame, methods: Sequence[str]) -> plt.Figure:
    """Draw the seconds that each method takes, on a log axis."""
    mean = frame.groupby("method")["seconds"].mean().reindex(methods).dropna()
    figure, axis = plt.subplots(figsize=(7, min(4, 0.8 + 0.3 * len(mean))))
    axis.barh([label(name) for name in mean.index], mean, color=UNLEARNED[0])
    axis.set(xlabel="seconds", xscale="log")
    axis.invert_yaxis()
    return figure


def draw_feature_map(
    points: Mapping[str, np.ndarray], labels: Mapping[str, np.ndarray], target: int
) -> plt.Figure:
    """Draw maps of clean and triggered rows in a victim's feature space, a panel per attack.

    Args:
        points: attack → (2N, 2): those of N clean rows, then of the same rows triggered.
        labels: attack → (N,) true classes. target: the attack's.
    """
    figure, axes = plt.subplots(1, len(points), figsize=(7, 3.2), squeeze=False)
    for axis, (attack, places) in zip(axes[0], points.items(), strict=True):
        clean_points, triggered_points = np.split(places, 2)
        in_target = labels[attack] == target
        for group, shade, name in (
            (clean_points[~in_target], "#b9d7ea", "clean, other classes"),
            (triggered_points[~in_target], MEANINGS["poisoned"], "triggered"),
            (clean_points[in_target], MEANINGS["clean"], "clean, target class"),  # few, so on top
        ):
            axis.scatter(*group.T, s=5, color=shade, label=name)
        axis.set(title=label(attack), xticks=[], yticks=[])
    axes[0, 0].legend(fontsize=7)
    return figure


def _beside_paper(
    frame: pd.DataFrame,
    number: str,
    values: Sequence[str],
    methods: Sequence[str],
) -> pd.DataFrame:
    """Show our rates beside one of the paper's tables: a row per attack and method.

    Args:
        frame: rows with ``attack``, ``method`` and ``values``. number: of the paper's table.
    """
    by_attack = {}
    for attack in dict.fromkeys(frame["attack"]):
        ours = tables.summary(frame[frame["attack"] == attack], "method", values, methods)
        theirs = tables.paper_summary(
            "bibau", "method", values, methods, table=number, attack=attack
        )
        by_attack[label(attack)] = tables.beside(ours, theirs)
    return pd.concat(by_attack, names=["attack", ""])


# ---------------------------------------------------------------- views: the victim, the idea


def _frame(cfg: BiBau, *parts: Callable, here: bool = False) -> pd.DataFrame:
    """Rows of some parts of the chapter's plan at all seeds that the ledger has, or ``here``."""

    def plan(there: BiBau) -> list:
        return [one for part in parts for one in part(there)]

    results = ledger.over(plan, cfg, seeds=[] if here else None)
    return pd.DataFrame(chapter.rows(results, cfg))


def _main(cfg: BiBau, here: bool = False) -> pd.DataFrame:
    """The victims and every method on this run's attacks."""
    frame = _frame(cfg, chapter.victims, chapter.defences, here=here)
    return frame[(frame["part"] == "main") & frame["attack"].isin(split(cfg.attacks))]


def _order(cfg: BiBau) -> list[str]:
    return list(split(cfg.methods))


def _labelled(frame: pd.DataFrame, digits: int) -> pd.DataFrame:
    return frame.rename(names.label).rename(names.label, axis=1).round(digits)


def _proxy(cfg: BiBau) -> dict:
    return ledger.get(chapter.victims(cfg)[-1]).rows[0]


def start(cfg: BiBau) -> pd.DataFrame:
    """The clean model and the victim of each attack, this run."""
    counts = _proxy(cfg)
    print(f"{counts['training']} training images; the defender owns {counts['owned']}")
    frame = _frame(cfg, chapter.victims, here=True).set_index(["attack", "method"])
    return _labelled(frame[["acc", "asr", "pacc"]], 1)


def orders(cfg: BiBau) -> plt.Figure:
    """Clean accuracy and attack success over training, in each order of the tasks."""
    return draw_orders(_frame(cfg, chapter.orders, here=True), cfg.order_first)


def inversion(cfg: BiBau) -> plt.Figure:
    """What both models say of the images during the first and the last E-step."""
    return draw_inversion({k: ledger.get(one).rows for k, one in chapter.e_steps(cfg).items()})


def perturbed(cfg: BiBau) -> plt.Figure:
    """Some images, and what the first and the last E-step make of them."""
    steps = {title: ledger.get(one) for title, one in chapter.e_steps(cfg).items()}
    clean = next(iter(steps.values())).array("clean")
    return draw_perturbed(clean, {title: one.array("perturbed") for title, one in steps.items()})


def _angles(cfg: BiBau) -> pd.DataFrame:
    rows = {title: ledger.get(one).rows[-1] for title, one in chapter.angles(cfg).items()}
    return pd.DataFrame(rows).T[["to_trigger", "to_clean"]].astype(float)


def angles(cfg: BiBau) -> pd.DataFrame:
    """How much like the trigger each perturbation is to the victim."""
    names = {
        "to_trigger": "cosine with the trigger's change",
        "to_clean": "|cosine| with clean features",
    }
    return _angles(cfg).round(2).rename(names, axis=1)


# ---------------------------------------------------------------- views: the defences


def beside_paper(cfg: BiBau) -> pd.DataFrame:
    """Every method on every attack beside the paper's Table 2."""
    return _beside_paper(_main(cfg), "2", WANTED, ["none", *_order(cfg)])


def rates_beside_paper(cfg: BiBau) -> plt.Figure:
    """ASR and R-ASR of the table, drawn."""
    return compare.dumbbells(beside_paper(cfg), [label("asr"), label("r_asr")])


def slopes(cfg: BiBau) -> plt.Figure:
    """How far each backdoor comes back: ASR, and R-ASR after retuning."""
    return compare.slopes(_main(cfg), _order(cfg), bold=("bi-bau-u", "bi-bau-t"))


def security(cfg: BiBau) -> plt.Figure:
    """What each method leaves, and what comes back."""
    return draw_security(_main(cfg), _order(cfg))


def by_poisons(cfg: BiBau) -> plt.Figure:
    """R-ASR over the number of poisons, for the clean model and for unlearned ones."""
    frame = _frame(cfg, chapter.retunings)
    return draw_by_poisons(frame[frame["poisons"].isin(_counts(cfg))])


def _counts(cfg: BiBau) -> list[int]:
    return [int(value) for value in split(cfg.ra_poisons)]


def inside(cfg: BiBau) -> pd.DataFrame | str:
    """The backdoor existence coefficient of each method beside the paper's Table 4."""
    frame = _main(cfg)
    if "bec" not in frame or frame["bec"].isna().all():
        return "This model has no convolutions, and BEC is defined on them."
    return _beside_paper(frame.assign(bec=frame["bec"] / 100), "4", ["bec"], _order(cfg))


def ablation(cfg: BiBau) -> pd.DataFrame:
    """Adversarial training by its terms beside the paper's Table 6."""
    attack = chapter.first(cfg)
    frame = pd.concat([_main(cfg), _frame(cfg, chapter.ablation)])
    methods = [*chapter.ABLATION, "bi-bau-u"]
    our_table = tables.summary(frame[frame["attack"] == attack], "method", WANTED, methods)
    paper_table = tables.paper_summary(
        "bibau", "method", WANTED, [*chapter.ABLATION, "at-ab"], table="6", attack=attack
    )
    return tables.beside(our_table, paper_table.rename({"at-ab": label("bi-bau-u")}))


def ablation_beside_paper(cfg: BiBau) -> plt.Figure:
    """The table of the terms, drawn."""
    metrics = [label(name) for name in ("acc", "asr", "r_asr")]
    return compare.dumbbells(ablation(cfg), metrics, title=label(chapter.first(cfg)))


def over_eta(cfg: BiBau) -> plt.Figure:
    """BI-BAU (U) for several η."""
    frame = _frame(cfg, chapter.over_eta)
    return draw_over_eta(frame[frame["part"] == "eta"])


def _tried(cfg: BiBau) -> list[dict]:
    """What each candidate does to the proxy, by ``candidate``."""
    plan = chapter.candidates(cfg)
    return [{"candidate": name, **ledger.get(one).rows[0]} for name, one in plan.items()]


def sensitivity(cfg: BiBau) -> plt.Figure:
    """What each candidate does to the defender's own backdoor, and which one the rule takes."""
    from ...unlearning import planted_proxy

    proxy, rows = _proxy(cfg), _tried(cfg)
    print(f"the proxy's ASR before: {proxy['asr']:.1f} %, {proxy['held']} images held back")
    print(f"the rule takes: {planted_proxy.chosen(rows, proxy['held'])}")
    return draw_sensitivity(pd.DataFrame(rows))


def feature_map(cfg: BiBau) -> plt.Figure:
    """Clean and triggered test images in the victims' feature space."""
    return _maps({attack: ledger.get(one) for attack, one in chapter.maps(cfg).items()})


def adaptive_maps(cfg: BiBau) -> plt.Figure:
    """The same of SIG and of the attacks made to evade the method, where the ledger has them."""
    plan = chapter.maps(cfg, ("sig", "adap-blend+", "adap-patch+"))
    trials = {attack: trial for attack, one in plan.items() if (trial := ledger.look(one))}
    if trials:
        return _maps(trials)
    return plots.empty("not computed yet: minilib sweep sweeps/bi_bau_adaptive.yml")


def _maps(trials: Mapping[str, ledger.Trial]) -> plt.Figure:
    points, labels = (
        {attack: one.array(name) for attack, one in trials.items()} for name in ("points", "labels")
    )
    return draw_feature_map(points, labels, target=0)  # every attack of the book leads to class 0


def evasions(cfg: BiBau) -> pd.DataFrame | str:
    """BI-BAU (U) on attacks made to evade it beside the paper's Table 5, this run."""
    if not chapter.adaptive(cfg):
        return "No such attack in this run; the parameter `adaptive` names some."
    frame = _frame(cfg, chapter.evasions, here=True)
    return _beside_paper(frame[frame["part"] == "main"], "5", WANTED, ["bi-bau-u"])


def _baselines() -> pd.DataFrame:
    """Rows of the foreign victims and of every baseline on them, as far as the ledger has them."""
    return pd.DataFrame(chapter.rows(ledger.available(chapter.baselines())))


def baselines() -> pd.DataFrame | str:
    """What the other papers' defences leave of small victims of two other families.

    A row a method; for each network and rate of poison CA (mean ± std over seeds), and the ASR and
    PACC of each seed, for seeds differ more than methods do.
    """
    frame = _baselines()
    if frame.empty:
        return "None has been computed: see chapters.bi_bau.baselines."
    order = ["none", *chapter.BASELINES]
    columns = {}
    for (rate, model), some in frame.sort_values("seed").groupby(["rate", "model"]):
        by_seed = some.groupby("method")[["asr", "pacc"]].agg(
            lambda values: ", ".join(f"{value:.0f}" for value in values)
        )
        means = tables.summary(some, "method", ["acc"], order)
        shown = by_seed.rename(label).rename(label, axis=1)
        columns[f"{label(model)}, {100 * rate:.0f} %"] = means.join(shown)
    table = pd.concat(dict(reversed(columns.items())), axis=1)
    return table.reindex([label(name) for name in order if label(name) in table.index]).fillna("–")


def compared() -> pd.DataFrame | str:
    """Accuracy of the chapter's network and of one that learns more, clean and with BadNets.

    A row a network; CA of both and ASR, mean ± std over seeds.
    """
    frame = pd.DataFrame(chapter.rows(ledger.available(chapter.compared())))
    if frame.empty:
        return "None has been computed: see chapters.bi_bau.compared."
    clean, poisoned = (frame[frame["method"] == name] for name in ("clean", "none"))
    parts = {
        "never poisoned": tables.summary(clean, "model", ["acc"], list(chapter.COMPARED)),
        "BadNets": tables.summary(poisoned, "model", ["acc", "asr"], list(chapter.COMPARED)),
    }
    return pd.concat(parts, axis=1).fillna("–")


def _scores() -> pd.DataFrame:
    """R-ASR and the defender's scores of each defended model, as far as the ledger has them."""
    rows = []
    for one in chapter.scored():
        score, *proxy = (ledger.look(trial) for trial in chapter.scores(one))
        attacks = [ledger.look(trial) for trial in chapter.retuned(one)]
        if score is None or None in attacks:
            continue
        rows.append({
            "model": one.victim.model, "seed": one.seed, "method": one.method,
            "r_asr": float(np.mean([trial.rows[0]["r_asr"] for trial in attacks])),
            "proxy_r_asr": proxy[0].rows[0]["r_asr"] if any(proxy) else None,
            **score.rows[0],
        })  # fmt: skip
    frame = pd.DataFrame(rows, columns=["model", "seed", "method", "r_asr", *SCORES])
    return frame.astype({"proxy_r_asr": float})


def scores() -> plt.Figure:
    """What a defender can see of a defended model, against what retuning brings back."""
    frame = _scores()
    if frame.empty:
        return plots.empty("not computed yet: see chapters.bi_bau.scored")
    return draw_scores(frame)


def costs(cfg: BiBau) -> plt.Figure:
    """Seconds to defend one model, this run's."""
    frame = _frame(cfg, chapter.defences, chapter.ablation, here=True)
    return draw_costs(
        frame[frame["part"].isin(["main", "sets"])], [*_order(cfg), *chapter.ABLATION]
    )


def drift(cfg: BiBau) -> pd.DataFrame:
    """Whether the trigger now leads to another class: means over this run's attacks."""
    by_attack = _main(cfg).groupby(["method", "attack"])[["asr", "pacc", "dpacc", "shift"]].mean()
    return _labelled(by_attack.groupby("method").mean().reindex(_order(cfg)), 1)


# ---------------------------------------------------------------- numbers in sentences


def glue_numbers(cfg: BiBau) -> None:
    """Glue every number that the prose quotes."""
    main_rows, starts = _main(cfg), _frame(cfg, chapter.victims)
    start_rows, attack = starts[starts["part"] == "start"], chapter.first(cfg)
    plots.glue("lead", label(attack))
    plots.glue("seeds", int(main_rows["seed"].nunique()))
    plots.glue("clean_acc", tables.cell(start_rows[start_rows["attack"] == attack], "acc"))
    rows = start_rows[
        (start_rows["seed"] == cfg.seed) & start_rows["attack"].isin(split(cfg.attacks))
    ]
    plots.glue("clean_pacc", f"{rows['pacc'].mean():.1f}")
    for name in ("none", "bi-bau-u", "bi-bau-t", "ft", "sau"):
        for metric in (*WANTED, "dpacc", "shift"):
            plots.glue(
                f"{name}_{metric}", tables.cell(main_rows, metric, method=name, attack=attack)
            )
    sets = _frame(cfg, chapter.ablation)
    for name in chapter.ABLATION:
        for metric in ("acc", "asr", "r_asr"):
            plots.glue(f"{name}_{metric}", tables.cell(sets, metric, method=name))
    _glue_defences(cfg, main_rows)
    _glue_closely(cfg)
    _glue_scores()


def _glue_scores() -> None:
    """What the defender's scores say where the backdoor comes back and where it is gone."""
    frame = _scores()
    chosen = chosen_score(score_correlations(frame))
    clean = [row["r_asr"] for trial in ledger.available(chapter.unpoisoned()) for row in trial.rows]
    bound = frame["method"] == "ibu"
    defended, gone = frame[~bound], frame[bound]
    methods = [label(name) for name in chapter.SCORED if name in set(defended["method"])]
    proxies = defended["proxy_r_asr"].dropna()
    numbers = {
        "models": len(frame),
        "networks": len(frame.groupby(["model", "seed"])),
        "methods": "; ".join(methods) or "none",
        "choice": SCORES[chosen][0] if chosen else "none of them",
        "clean": _range(clean),
        "proxies": len(proxies),
        "soothed": int((proxies < 20).sum()),
    }
    for name in ("r_asr", "perturbed_acc", "surrogate_asr"):
        numbers |= {name: _range(defended[name]), f"{name}_gone": _range(gone[name])}
    for name in SCORES:
        within = [stats.rank_correlation(pairs) for pairs in _pairs_by_victim(frame, name)]
        within = [value for value in within if value == value]  # NaN where a side does not vary
        mean = f"{np.mean(within):.2f}".replace("-", "−") if within else "–"
        numbers |= {f"{name}_within": mean}
    for name, value in numbers.items():
        plots.glue(f"scored_{name}", value)


def _range(values: Sequence[float]) -> str:
    """From the smallest to the largest, a decimal each."""
    if not len(values):
        return "–"
    low, high = (f"{value:.1f}" for value in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"


def _glue_defences(cfg: BiBau, main: pd.DataFrame) -> None:
    """Where ASR misleads most, what retuning brings back, and who removes the backdoor."""
    victims = main[main["method"] == "none"].groupby("attack")["acc"].mean()
    other_rows = main[~main["method"].isin(("none", "bi-bau-u", "bi-bau-t", "ibu"))]
    other_rows = other_rows.groupby(["attack", "method"])[WANTED].mean().reset_index()
    usable_rows = other_rows[
        other_rows["acc"] >= 0.8 * other_rows["attack"].map(victims).astype(float)
    ]
    hidden_rows = usable_rows[usable_rows["asr"] < 10]
    hidden_rows = next(
        rows for rows in (hidden_rows, usable_rows, other_rows) if len(rows) or rows is other_rows
    )
    gap = (
        hidden_rows.loc[(hidden_rows["r_asr"] - hidden_rows["asr"]).idxmax()]
        if len(hidden_rows)
        else None
    )
    for name in ("method", "attack"):
        plots.glue(f"gap_{name}", label(gap[name]) if gap is not None else "–")
    for name in ("asr", "r_asr"):
        plots.glue(f"gap_{name}", f"{gap[name]:.1f}" if gap is not None else "–")

    retuned_rows, counts, attack = _frame(cfg, chapter.retunings), _counts(cfg), chapter.first(cfg)
    plots.glue("ra_few", min(counts))
    plots.glue("ra_many", max(counts))
    for name in dict.fromkeys(retuned_rows["method"]):
        for word, count in (("few", min(counts)), ("many", max(counts))):
            cell = tables.cell(retuned_rows, "r_asr", method=name, poisons=count)
            plots.glue(f"ra_{name}_{word}", cell)
    of_clean = (retuned_rows["method"] == "clean") & (
        retuned_rows["poisons"] == chapter.retuning_poisons(attack)
    )
    control = retuned_rows[of_clean]["r_asr"].mean()
    removers = usable_rows[(usable_rows["attack"] == attack) & (usable_rows["asr"] < 10)]
    removers = set(removers[removers["r_asr"] <= control + 10]["method"])
    plots.glue("control", f"{control:.1f}")
    plots.glue("gone", ", ".join(label(name) for name in _order(cfg) if name in removers) or "none")


def _glue_closely(cfg: BiBau) -> None:
    """The task orders, the angles and the proxy of this run."""
    from ...unlearning import planted_proxy

    ends = _frame(cfg, chapter.orders, here=True).groupby("order").last()
    plots.glue("order_b_asr", f"{ends.loc['backdoor first', 'asr']:.1f}")
    plots.glue("order_c_acc", f"{ends.loc['clean first', 'acc']:.1f}")
    cosines = _angles(cfg)["to_trigger"]
    plots.glue("cos_at", f"{cosines['base AT']:.2f}")
    plots.glue("cos_last", f"{cosines['last E-step']:.2f}")
    held_count, rows = _proxy(cfg)["held"], _tried(cfg)
    best_acc = max(row["acc"] for row in rows if row["acc"] is not None)
    worst_r_asr = max(row["r_asr"] for row in rows if row["acc"] is not None)
    plots.glue("held", held_count)
    plots.glue("held_error", f"{planted_proxy.standard_error(best_acc, held_count):.1f}")
    plots.glue("proxy_r_asr", f"{rows[0]['r_asr']:.1f}")
    plots.glue("proxy_worst", f"{worst_r_asr:.1f}")
