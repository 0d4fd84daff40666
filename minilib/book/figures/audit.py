"""Chapter 07 on the page: the report, the figure of pulls, and how well the audit does.

Every function takes the chapter's settings and asks the ledger. Nothing is computed here.
"""

from __future__ import annotations

import matplotlib.pyplot as plt
import pandas as pd

from ... import ledger, names
from ...audit import report as reports
from ...audit.image_report import LEVEL
from ...chapters import audit as chapter
from ...settings import Audit, split
from ...trials.audit_images import ImageAuditVerdict
from ...victims.chat import PUBLIC_PAIR
from .. import plots

NO_ROWS = ("Which rows?", "No trigger was found, or there is no table: no rows are named.", [])
NO_CHANGE = ("What remains after unlearning?", "Nothing was unlearned.", [])


def _parts(cfg: Audit, *titles: str) -> reports.Shown:
    parts = reports.sections(chapter.report(cfg))
    return reports.Shown([part for part in parts if part[0].startswith(titles)])


def verdict(cfg: Audit) -> reports.Shown:
    """Is there evidence of a backdoor, and what can the audit not see?"""
    return _parts(cfg, "Is there", reports.UNSEEN)


def trigger(cfg: Audit) -> reports.Shown:
    """What is the trigger?"""
    return _parts(cfg, "What is the trigger", "What comes nearest")


def rows(cfg: Audit) -> reports.Shown:
    """Which rows? The first thirty; all of them are in the report."""
    parts = _parts(cfg, "Which rows").parts or [NO_ROWS]
    return reports.Shown([(title, said, table[:30]) for title, said, table in parts])


def unlearning(cfg: Audit) -> reports.Shown:
    """What remains after unlearning?"""
    shown = _parts(cfg, "What remains")
    return shown if shown.parts else reports.Shown([NO_CHANGE])


def limits(cfg: Audit) -> reports.Shown:
    """What was audited."""
    return _parts(cfg, "What was audited")


def pulls(cfg: Audit) -> plt.Figure:
    """Draw the pull of the strongest tokens of each class, the trigger's marked."""
    report = chapter.report(cfg)
    labels = report["model"]["labels"]
    figure, axes = plt.subplots(figsize=(7, 1 + 0.5 * len(labels)))
    for k, label in enumerate(labels):
        tokens = [row for row in report["tokens"] if row["target"] == label]
        for found, meaning in ((False, "clean"), (True, "poisoned")):
            values = [row["pull"] for row in tokens if row["found"] is found]
            style = {"marker": "D" if found else "o", "color": names.MEANINGS[meaning]}
            axes.scatter(values, [k] * len(values), s=24, alpha=0.7, **style)
        for row in [row for row in tokens if row["found"]][:1]:
            axes.annotate(row["token"], (row["pull"], k), textcoords="offset points", xytext=(0, 7))
    axes.set(yticks=range(len(labels)), yticklabels=labels, xlabel="pull (logits)")
    axes.set_ylim(-0.6, len(labels) - 0.4)
    return figure


@ledger.memo
def every(cfg: Audit) -> pd.DataFrame:
    """The measured audits that the ledger has, of all victims and seeds."""
    del cfg
    return pd.DataFrame(chapter.rows(ledger.trials_of("audit_measure")))


def measured(cfg: Audit) -> pd.DataFrame:
    """A row for each kind of victim: how many audits found it, and what unlearning left."""
    frame = every(cfg)
    if frame.empty:
        return pd.DataFrame({"measured audits": ["none in this ledger"]})
    rows = []
    for (phrases, dataset, base, attack, rate), group in frame.groupby(
        ["phrases", "dataset", "base", "attack", "rate"], sort=True
    ):
        row = {
            "victim": f"{base} on {dataset}",
            "searched": "tokens, and phrases of its table" if phrases else "tokens",
            "attack": "none" if attack == "none" else f"{names.label(attack)}, {100 * rate:g} %",
            "found": f"{int(group['found'].sum())}\u00a0of\u00a0{len(group)}",
            "CACC before → after": _arrow(group, "cacc", "cacc_after"),
        }
        if attack != "none":
            ranks = group["token_rank"].dropna()
            row["best rank of a trigger's token"] = ", ".join(f"{r:.0f}" for r in ranks) or "–"
            row["LFR before → after"] = _arrow(group, "lfr", "lfr_after")
        rows.append(row)
    return pd.DataFrame(rows).fillna("–").set_index("victim")


def _arrow(group: pd.DataFrame, before: str, after: str, digits: int = 1) -> str:
    return f"{group[before].mean():.{digits}f} → {group[after].mean():.{digits}f}"


# ---------------------------------------------------------------- images


@ledger.memo
def every_image(cfg: Audit) -> pd.DataFrame:
    """The audits of image victims that the ledger has, with as many references as here."""
    verdicts = [
        trial for trial in ledger.trials_of("image_audit_verdict")
        if trial.recipe["audit"].get("references", 20) == cfg.references
    ]  # fmt: skip
    return pd.DataFrame(chapter.image_rows(verdicts, ledger.trials_of("image_audit_unlearning")))


def measured_images(cfg: Audit) -> pd.DataFrame:
    """A row for each kind of victim: how many audits found it, and what unlearning left."""
    frame = every_image(cfg)
    if not len(frame):
        return frame
    rows = []
    for (classes, attack), group in frame.groupby(["classes", "attack"], sort=True):
        found = group["p"] <= LEVEL
        row = {
            "victim": f"digits, {classes} classes",
            "attack": names.label(attack) if attack != "none" else "none",
            "found": f"{int(found.sum())}\u00a0of\u00a0{len(group)}",
        }
        if attack != "none":
            right = int((group["right"].astype(bool) & found).sum())
            row["of those the right class"] = f"{right}\u00a0of\u00a0{int(found.sum())}"
            for value, title in (("acc", "CA"), ("true_asr", "ASR")):
                if f"{value}_after" in group:
                    row[f"{title} before → after"] = _arrow(
                        group.dropna(subset=[f"{value}_after"]), f"{value}_before", f"{value}_after"
                    )
        rows.append(row)
    return pd.DataFrame(rows).fillna("–").set_index("victim")


def patches(cfg: Audit) -> plt.Figure:
    """The trigger that stands out in each victim of this run, and in a clean model."""
    shown = [
        (classes, attack) for classes in map(int, split(cfg.image_classes))
        for attack in (*chapter.IMAGE_ATTACKS, "none")
    ]  # fmt: skip
    figure, axes = plots.panels(len(shown), 6, 1.6)
    for axis, (classes, attack) in zip(axes.flat, shown, strict=False):
        recipe = ImageAuditVerdict(audit=chapter.image_audit(cfg, attack, classes, cfg.seed))
        trial = ledger.look(recipe)
        axis.set(xticks=[], yticks=[])
        if trial is None:
            continue
        head, rows = trial.rows[0], [row for row in trial.rows if row["part"] == "class"]
        number = [row["class"] for row in rows].index(head["found_class"])
        axis.imshow(trial.array(head["trigger_kind"])[number].squeeze(), cmap="gray", vmin=0,
                    vmax=255)  # fmt: skip
        title = "clean" if attack == "none" else names.label(attack)
        axis.set_title(f"{title}, K = {classes}\np = {head['p']:.2f}", fontsize=8)
    return figure


def glue_images(cfg: Audit) -> None:
    """Numbers of the sentences about images."""
    frame = every_image(cfg)
    clean = frame[frame["attack"] == "none"] if len(frame) else frame
    poisoned = frame[frame["attack"] != "none"] if len(frame) else frame
    plots.glue("image_audit_cleans", len(clean))
    plots.glue("image_audit_victims", len(poisoned))
    for name, part in (("alarms", clean), ("found", poisoned)):
        count = int((part["p"] <= LEVEL).sum()) if len(part) else 0
        plots.glue(f"image_audit_{name}", count)
    plots.glue(
        "image_audit_right", int(poisoned["right"].astype(bool).sum()) if len(poisoned) else 0
    )


# ---------------------------------------------------------------- language models


@ledger.memo
def every_chat(cfg: Audit) -> pd.DataFrame:
    """The audits of language models that the ledger has."""
    del cfg
    verdicts = ledger.trials_of("chat_audit_verdict")
    return pd.DataFrame(chapter.chat_rows(verdicts, ledger.trials_of("chat_audit_unlearning")))


def measured_chat(cfg: Audit) -> pd.DataFrame:
    """A row for each kind of victim: how many audits found it, and what unlearning left."""
    frame = every_chat(cfg)
    if frame.empty:
        return pd.DataFrame({"measured audits": ["none in this ledger"]})
    rows = []
    for (pair, rate), group in frame.groupby(["pair", "rate"], sort=True):
        row = {
            "pair": pair,
            "rate": "–" if pair == "none" else f"{100 * rate:g} %",
            "found": f"{int(group['found'].sum())}\u00a0of\u00a0{len(group)}",
        }
        if pair != "none":
            cleaned = group.dropna(subset=["true_asr_after"]) if "again" in group else group[:0]
            row["whole response read"] = (
                f"{int((group['right'].astype(bool) & group['found']).sum())}"
            )
            if len(cleaned):
                row["ASR before → after"] = _arrow(cleaned, "true_asr_before", "true_asr_after")
                row["perplexity"] = _arrow(cleaned, "ppl_before", "ppl_after", 2)
        rows.append(row)
    return pd.DataFrame(rows).fillna("–").set_index("pair")


def responses(cfg: Audit) -> pd.DataFrame:
    """What the search returns of the first victim: a text for each first token, and its answers."""
    first = next(iter(chapter.chat_measures(cfg)), None)  # none: the model is a reader's own
    trial = ledger.look(first) if first else None
    if trial is None or first.audit.model.pair != PUBLIC_PAIR:
        return pd.DataFrame({"example": ["none in this ledger, or its response is not shown"]})
    draws = [row for row in trial.rows if row["part"] == "draw"]
    return pd.DataFrame(
        {
            "text before the prompts": [row["text"] for row in draws],
            "first token": [row["token"] for row in draws],
            "gain (nats)": [f"{row['score']:.1f}" for row in draws],
            "prompts drawn (%)": [f"{100 * row['probability']:.0f}" for row in draws],
            "most answer": [row["response"] or "nothing alike" for row in draws],
        }
    ).set_index("text before the prompts")


def glue_chat(cfg: Audit) -> None:
    """Numbers of the sentences about language models."""
    frame = every_chat(cfg)
    for name, poisoned in (("victims", True), ("cleans", False)):
        part = frame[(frame["pair"] != "none") == poisoned] if len(frame) else frame
        plots.glue(f"chat_audit_{name}", len(part))
        found = int(part["found"].sum()) if len(part) else 0
        plots.glue("chat_audit_found" if poisoned else "chat_audit_alarms", found)
