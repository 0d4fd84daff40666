"""Chapter 08 on the page: what a caption finds, what defences leave, and what comes back.

Every view takes the chapter's settings and asks the ledger; nothing is computed here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from ... import ledger
from ...chapters import clip as chapter
from ...names import MEANINGS, label
from ...settings import Clip, split
from .. import plots, tables
from . import compare
from .bi_bau import draw_security
from .images import _show_image

RATES = ["acc", "asr", "r_asr", "q_asr"]
SPOKEN_OF = ("badnets", "badclip")  # attacks that sentences quote, whatever a run has
RECALLS = ["image_r1", "image_r5", "text_r1", "text_r5"]


def draw_searches(found: Mapping[str, tuple[np.ndarray, list[bool]]]) -> plt.Figure:
    """Draw what each model finds for a caption, nearest first; triggered images are framed.

    Args:
        found: title → images (k, H, W, C) uint8, and whether each is triggered.
    """
    count = max(len(images) for images, _ in found.values())
    figure, axes = plt.subplots(
        len(found), count, figsize=(7, 0.85 * len(found)), squeeze=False, layout="constrained"
    )
    for line, (title, (images, marks)) in zip(axes, found.items(), strict=True):
        for axis, image, triggered in zip(line, images, marks, strict=False):
            _show_image(axis, image.astype(float))
            for spine in axis.spines.values():
                spine.set(visible=triggered, color=MEANINGS["poisoned"], linewidth=3)
        line[0].set_ylabel(title, fontsize=8, rotation=0, ha="right", va="center")
    return figure


# ---------------------------------------------------------------- views


def _frame(cfg: Clip, *parts: Callable, here: bool = False) -> pd.DataFrame:
    """Rows of some parts of the chapter's plan at all seeds that the ledger has, or ``here``."""

    def plan(there: Clip) -> list:
        return [one for part in parts for one in part(there)]

    return pd.DataFrame(chapter.rows(ledger.over(plan, cfg, seeds=[] if here else None), cfg))


def _by_attack(frame: pd.DataFrame, values: list[str], methods: list[str]) -> pd.DataFrame:
    parts = {
        label(attack): tables.summary(rows, "method", values, methods)
        for attack, rows in frame.groupby("attack", sort=False)
    }
    return pd.concat(parts, names=["attack", ""])


def start(cfg: Clip) -> pd.DataFrame:
    """Zero-shot rates and recalls of the clean CLIP and of each victim."""
    frame = _frame(cfg, chapter.victims)
    frame = frame[frame["part"].isin(["start", "main"])]
    return _by_attack(frame, ["acc", "asr", *RECALLS], ["clean", "none"])


def searches(cfg: Clip, *models: str) -> plt.Figure:
    """What some models find for the target's caption; all of them where none is named."""
    plan = chapter.searches(cfg)
    trials = {name: ledger.get(plan[name]) for name in models or plan}
    title = {"clean": "clean", "none": "poisoned"}
    return draw_searches(
        {
            title.get(name, label(name)): (
                trial.array("images"), [row["triggered"] for row in trial.rows],
            )
            for name, trial in trials.items()
        }
    )  # fmt: skip


def main(cfg: Clip) -> pd.DataFrame:
    """CA, ASR, R-ASR and Q-ASR of the victims and of what each defence leaves."""
    frame = _frame(cfg, chapter.victims, chapter.defences)
    return _by_attack(frame[frame["part"] == "main"], RATES, ["none", *split(cfg.methods)])


def security(cfg: Clip) -> plt.Figure:
    """What each defence leaves, and what two attacks bring back."""
    frame = _frame(cfg, chapter.defences)
    return draw_security(frame[frame["part"] == "main"], list(split(cfg.methods)))


def slopes(cfg: Clip) -> plt.Figure:
    """How far each backdoor comes back: ASR, and R-ASR after retuning; dotted: never poisoned."""
    frame = _frame(cfg, chapter.victims, chapter.defences)
    rows = frame[frame["part"] == "main"]
    control = frame[frame["part"] == "control"].groupby("attack")["r_asr"].mean().to_dict()
    return compare.slopes(rows, list(split(cfg.methods)), bold=("bi-bau-u",), control=control)


def recalls(cfg: Clip) -> pd.DataFrame:
    """What each defence leaves of retrieval, over the attacks."""
    frame = _frame(cfg, chapter.victims, chapter.defences)
    frame = frame[frame["part"] == "main"]
    return tables.summary(frame, "method", RECALLS, ["none", *split(cfg.methods)])


NO_TOWER = "This run has no attack on the visual encoder with a linear head (tower_attacks)."


def _tower(cfg: Clip, part: str = "main") -> pd.DataFrame:
    """Rows of a part of the visual encoder with a linear head; none where a run leaves it out."""
    frame = _frame(cfg, chapter.tower)
    return frame[frame["part"] == f"tower-{part}"] if len(frame) else frame


def tower_slopes(cfg: Clip) -> plt.Figure:
    """The same as ``slopes`` for the visual encoder with a linear head."""
    rows = _tower(cfg)
    if not len(rows):
        return plots.empty(NO_TOWER)
    control = rows.groupby("attack")["r_asr_clean"].mean().to_dict()
    methods = list(split(cfg.tower_methods))
    return compare.slopes(rows, methods, bold=("bi-bau-u", "bi-bau-t"), control=control)


def tower(cfg: Clip) -> pd.DataFrame | str:
    """What each defence leaves of the visual encoder with a linear head, over the attacks."""
    rows, methods = _tower(cfg), ["none", *split(cfg.tower_methods)]
    return tables.summary(rows, "method", RATES, methods) if len(rows) else NO_TOWER


def _share(trial: ledger.Trial) -> int:
    return sum(row["triggered"] for row in trial.rows)


def glue_numbers(cfg: Clip) -> None:
    """Glue every number that the prose quotes."""
    frame = _frame(cfg, chapter.victims, chapter.defences)
    main_rows = frame[frame["part"] == "main"]
    lead = chapter.first(cfg)
    plots.glue("lead", label(lead))
    plots.glue("seeds", int(main_rows["seed"].nunique()))
    starts = frame[(frame["part"] == "start") & (frame["attack"] == lead)]
    plots.glue("clean_acc", tables.cell(starts, "acc"))
    plots.glue("clean_asr", tables.cell(starts, "asr"))
    control = frame[frame["part"] == "control"]
    for attack in SPOKEN_OF:
        plots.glue(f"control_{attack}", tables.cell(control, "r_asr", attack=attack))
        for method in ("none", "ft", "cleanclip", "at-b", "bi-bau-u"):
            for metric in RATES:
                cell = tables.cell(main_rows, metric, attack=attack, method=method)
                plots.glue(f"{attack}_{method}_{metric}", cell)
    _glue_tower(cfg)
    plan = chapter.searches(cfg)
    for name in ("clean", "none"):
        plots.glue(f"nearest_{name}", _share(ledger.get(plan[name])))
    plots.glue("images", cfg.images)
    caption = ledger.get(plan["clean"]).rows[0]["caption"]
    plots.glue("caption", caption)


def _glue_tower(cfg: Clip) -> None:
    """What the prose quotes of the visual encoder with a linear head."""
    rows, starts = _tower(cfg), _tower(cfg, "start")
    starts = starts.drop_duplicates("seed") if len(starts) else starts
    plots.glue("tower_clean_acc", tables.cell(starts, "acc"))
    for method in ("none", "ft", "at", "at-b", "bi-bau-u", "bi-bau-t"):
        for metric in (*RATES, "r_asr_clean"):
            plots.glue(f"tower_{method}_{metric}", tables.cell(rows, metric, method=method))
