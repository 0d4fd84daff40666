"""Chapter 07: audit your own model."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from ..ledger import Trial, recipe_of
from ..settings import Audit as Settings
from ..settings import split
from ..trials.audit import (
    AuditCleaned,
    AuditedClass,
    AuditedModel,
    AuditMeasure,
    AuditTable,
    AuditUnlearning,
    AuditVerdict,
    ForeignVictim,
    TextAudit,
)

CHAPTER = "07_audit"
OTHERS = 1000  # seeds of clean models begin here: none is of an example


# ---------------------------------------------------------------- settings → recipes


def example(cfg: Settings) -> ForeignVictim:
    """The victim that is audited where no model is named."""
    return ForeignVictim(
        dataset=cfg.dataset, attack=cfg.attack, seed=cfg.seed, base=cfg.base, rate=cfg.rate,
        rows=cfg.victim_rows, epochs=cfg.victim_epochs, lr=cfg.victim_lr,
    )  # fmt: skip


def audit(cfg: Settings) -> TextAudit:
    """The audit of a user's model, or of the example.

    Raises:
        ValueError: a model without rows. DataError: a table that cannot be read.
    """
    if cfg.model == "example":
        victim = example(cfg)
        return _audit(cfg, victim, cfg.dataset, victim)
    data, clean = _table(cfg, cfg.data), _table(cfg, cfg.clean)
    if data is None and clean is None:
        raise ValueError("neither clean nor data names a table; accepted: one, or both")
    return _audit(cfg, cfg.model, clean or data, data)


def _audit(cfg: Settings, model, clean, table) -> TextAudit:
    return TextAudit(
        model=model, clean=clean, table=table, seed=cfg.seed, level=cfg.level, rows=cfg.rows,
        pool=cfg.pool,
    )  # fmt: skip


def _table(cfg: Settings, path: str) -> AuditTable | None:
    if path == "none":
        return None
    labels = "" if cfg.labels == "none" else cfg.labels
    return AuditTable(path=path, text=cfg.text, label=cfg.label, labels=labels)


def cleaned(cfg: Settings) -> AuditCleaned:
    """The cleaned model."""
    return AuditCleaned(audit=audit(cfg), epochs=cfg.epochs, lr=cfg.lr)


def steps(cfg: Settings) -> list:
    """The audit itself, step by step."""
    one = audit(cfg)
    unlearning = [AuditUnlearning(cleaned=cleaned(cfg))] if cfg.unlearn else []
    return [AuditedModel(audit=one), AuditVerdict(audit=one), *unlearning]


def measures(cfg: Settings) -> list:
    """The audit of victims with known triggers, and of clean models; none for a user's model.

    A victim is audited as most users will: with some clean rows, and without its training table.
    """
    if cfg.model != "example":
        return []
    victims = [
        replace(example(cfg), attack=attack, rate=float(rate))
        for attack in ("badnets", "addsent")
        for rate in split(cfg.rates)
    ]
    victims += [
        replace(example(cfg), attack="none", seed=OTHERS + number) for number in range(cfg.cleans)
    ]
    return [
        AuditMeasure(
            cleaned=AuditCleaned(
                audit=_audit(cfg, victim, cfg.dataset, None), epochs=cfg.epochs, lr=cfg.lr
            )
        )
        for victim in victims
    ]


def trials(cfg: Settings) -> list:
    """All that the chapter computes."""
    return [*steps(cfg), *measures(cfg)]


# ---------------------------------------------------------------- trials → rows


def rows(results: Iterable[Trial]) -> list[dict]:
    """Rows of the measured audits, with the victim's dataset, base, attack, rate and seed.

    Rows of a user's own audit are the report's, and not labelled here.
    """
    labelled_rows = []
    for trial in results:
        recipe = recipe_of(trial)
        if isinstance(recipe, AuditMeasure):
            victim = recipe.cleaned.audit.model
            labelled_rows += [
                {
                    "key": trial.key, "dataset": victim.dataset, "base": victim.base,
                    "attack": victim.attack, "seed": victim.seed,
                    "rate": victim.rate if victim.attack != "none" else 0.0, **row,
                }
                for row in trial.rows
            ]  # fmt: skip
    return labelled_rows


# ---------------------------------------------------------------- the report


def report(cfg: Settings) -> dict:
    """The report of the audit, from its trials; computes those that are missing."""
    from .. import ledger
    from ..audit import report as reports

    one = audit(cfg)
    model = ledger.get(AuditedModel(audit=one)).rows
    verdict = ledger.get(AuditVerdict(audit=one)).rows
    classes = [
        row
        for k in model[0]["searched"]
        for row in ledger.get(AuditedClass(audit=one, target=k)).rows
    ]
    unlearning = ledger.get(AuditUnlearning(cleaned=cleaned(cfg))).rows if cfg.unlearn else []
    return reports.collect(model, [*verdict, *classes], unlearning, cfg.mask)
