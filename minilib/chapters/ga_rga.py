"""Chapter 03: gradient ascent, and how not to shift the trigger."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from ..ledger import Trial
from ..settings import TARGETS, split
from ..settings import GaRga as Settings
from ..trials.text import (
    Detector,
    TextAnswers,
    TextUnlearning,
    TextVictim,
    one_victim,
    retrained,
    with_retrain,
)

CHAPTER = "03_ga_rga"


def victim(cfg: Settings) -> TextVictim:
    """The chapter's victim."""
    return one_victim(cfg)


def unlearning(cfg: Settings, method: str) -> TextUnlearning:
    """One method on the chapter's victim."""
    forget = "oracle" if cfg.mask == "oracle" else Detector(name=cfg.mask, seed=cfg.seed)
    return TextUnlearning(
        victim=victim(cfg),
        method=method,
        seed=cfg.seed,
        forget=forget,
        epochs=cfg.epochs,
        lr=cfg.lr,
        batch_size=cfg.batch_size,
        reset_optimizer=cfg.reset_optimizer,
        alpha=cfg.alpha,
        beta=cfg.beta,
        npo_beta=cfg.npo_beta,
        direction=cfg.direction,
        drift_norm=cfg.drift_norm,
        eval_epochs=tuple(int(epoch) for epoch in split(cfg.eval_epochs)),
    )


def trials(cfg: Settings) -> list:
    """The victim and ReTrain, measured, and every method."""
    start = with_retrain(victim(cfg))
    return [*start, *(unlearning(cfg, method) for method in split(cfg.methods))]


def answers(cfg: Settings) -> list:
    """What ReTrain, the victim, GA and RGA say of single reviews; the site shows what is there."""
    models = [retrained(victim(cfg)), victim(cfg)]
    models += [replace(unlearning(cfg, method), eval_epochs=()) for method in ("ga", "rga")]
    return [TextAnswers(model=one, trigger=victim(cfg).data.trigger) for one in models]


def rows(results: Iterable[Trial]) -> list[dict]:
    """Rows by ``method`` (``retrain`` and ``poisoned`` among them) and ``epoch``.

    Each has its recipe's columns, ``mask`` (who named the rows to forget), ``dpacc`` against the
    ReTrain of the same model, training and seed, and where the model was tested ``error``: LFR as
    RGA's code and its tables of AG News have it, any error on rows of the other classes.
    """
    labelled_rows = []
    ideal_pacc: dict[tuple, float] = {}
    for trial in results:
        for row in trial.table():
            row = {**row, "key": trial.key}
            if trial.kind == "text_measure":
                clean = row["data"] == "TextClean"
                row |= {"method": "retrain" if clean else "poisoned", "epoch": row["epochs"]}
                if clean:
                    ideal_pacc[_ideal(row)] = row["pacc"]
            row["mask"] = row.get("forget", "oracle")
            if row.get("confusion"):
                row["error"] = any_error(row["confusion"], TARGETS.get(row["dataset"], 1))
            labelled_rows.append(row)
    for row in labelled_rows:
        if "dpacc" not in row and row.get("pacc") is not None and _ideal(row) in ideal_pacc:
            row["dpacc"] = abs(ideal_pacc[_ideal(row)] - row["pacc"])
    return labelled_rows


def any_error(confusion: list[list[int]], target: int) -> float:
    """``metrics.classification.error_rate`` from the counts (K, K) of a trial, row = true class."""
    errors = [
        100 * (1 - row[k] / sum(row)) for k, row in enumerate(confusion) if k != target and sum(row)
    ]
    return sum(errors) / len(errors)


def _ideal(row: dict) -> tuple:
    names = ("dataset", "model", "attack", "position", "seed")
    return tuple(row.get(name) for name in names)


def other_masks(cfg: Settings) -> list:
    """The same with the other answers to which rows are poisoned, for the ledger to look up."""
    return [
        one for mask in ("oracle", "cube", "cube-code") for one in trials(replace(cfg, mask=mask))
    ]


# When does the trigger shift? GA alone; what varies, and epochs that make runs of equal length.
SHIFT = tuple(
    {"rate": rate, "position": position, "lr": lr, "reset_optimizer": reset, "epochs": epochs}
    for rate, position, lr, reset, epochs in (
        (0.1, "random", 5e-5, True, 20),
        (0.1, "random", 5e-5, False, 20),
        (0.1, "start", 5e-5, True, 20),
        (0.1, "start", 5e-5, False, 20),
        (0.5, "random", 5e-5, True, 4),
        (0.5, "random", 5e-5, False, 4),
        (0.5, "start", 5e-5, True, 4),
        (0.5, "start", 5e-5, False, 4),
        (0.1, "random", 1e-4, True, 20),
        (0.1, "random", 1e-4, False, 20),
    )
)


def shift_study(cfg: Settings, seeds: Iterable[int]) -> list:
    """The trials of the study of when the trigger shifts, for the ledger to look up."""
    base = replace(cfg, attack="badnets", methods="ga", mask="oracle")
    return [
        one
        for seed in seeds
        for cell in SHIFT
        for one in trials(replace(base, seed=seed, **_shift_cell(cell)))
    ]


def _shift_cell(cell: dict) -> dict:
    at = "10,15,20" if cell["epochs"] > 4 else "2,3,4"
    return {**cell, "eval_epochs": at}


def four_classes(cfg: Settings) -> Settings:
    """The chapter on AG News: one epoch of fine-tuning, ten of unlearning."""
    dataset = "agnews-8k" if not cfg.dataset.startswith("toy-") else "toy-topics"
    return replace(cfg, dataset=dataset, victim_epochs=1, epochs=10, eval_epochs="5,10")
