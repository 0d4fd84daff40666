"""Chapter 07: audit your own model."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from .. import ledger
from ..ledger import Trial, recipe_of
from ..settings import Audit as Settings
from ..settings import SettingsError, split
from ..trials.audit import (
    AuditCleaned,
    AuditedClass,
    AuditedModel,
    AuditedPhrase,
    AuditedTable,
    AuditMeasure,
    AuditTable,
    AuditUnlearning,
    AuditVerdict,
    ForeignVictim,
    TextAudit,
)
from ..trials.audit_chat import (
    ChatAudit,
    ChatAuditCleaned,
    ChatAuditUnlearning,
    ChatAuditVerdict,
    ForeignChat,
)
from ..trials.audit_images import (
    ForeignImages,
    ImageAudit,
    ImageAuditCleaned,
    ImageAuditUnlearning,
    ImageAuditVerdict,
)

CHAPTER = "07_audit"
CHAT_SET = "toy-chat"  # small models learn it; their prompts and answers are built in
OTHERS = 1000  # seeds of clean models begin here: none is of an example
UNSEEN = 1100  # of clean language models; with those before it the search was written


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
        SettingsError: a model without rows. DataError: a table that cannot be read.
    """
    if cfg.model == "example":
        victim = example(cfg)
        return _audit(cfg, victim, cfg.dataset, victim, cfg.phrases)
    data, clean = _table(cfg, cfg.data), _table(cfg, cfg.clean)
    if data is None and clean is None:
        raise SettingsError("neither clean nor data names a table; accepted: one, or both")
    return _audit(cfg, cfg.model, clean or data, data, cfg.phrases)


def _audit(cfg: Settings, model, clean, table, phrases: int = 0) -> TextAudit:
    return TextAudit(
        model=model, clean=clean, table=table, seed=cfg.seed, level=cfg.level, rows=cfg.rows,
        pool=cfg.pool, phrases=phrases,
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
    return [AuditedModel(audit=one), AuditVerdict(audit=one), *table_steps(cfg), *unlearning]


def table_steps(cfg: Settings) -> list:
    """What detectors say of a user's table, where rows that are known to be clean lie beside it."""
    one = audit(cfg)
    if cfg.model == "example" or one.table is None or one.table == one.clean:
        return []
    return [AuditedTable(audit=one)]


def measures(cfg: Settings) -> list:
    """The audit of victims with known triggers, and of clean models; none for a user's model.

    A victim is audited as most users will: with some clean rows, and without its training table.
    Where ``phrases`` is not 0, those whose trigger is a sentence, and the clean ones, are audited
    with it, too, and with the search for phrases that it allows.
    """
    if cfg.model != "example" or not cfg.measure:
        return []
    words, sentences = (
        [replace(example(cfg), attack=attack, rate=float(rate)) for rate in split(cfg.rates)]
        for attack in ("badnets", "addsent")
    )
    cleans = [
        replace(example(cfg), attack="none", seed=OTHERS + number) for number in range(cfg.cleans)
    ]
    audits = [_audit(cfg, one, cfg.dataset, None) for one in (*words, *sentences, *cleans)]
    if cfg.phrases:
        audits += [_audit(cfg, one, cfg.dataset, one, cfg.phrases) for one in (*sentences, *cleans)]
    return [
        AuditMeasure(cleaned=AuditCleaned(audit=one, epochs=cfg.epochs, lr=cfg.lr))
        for one in audits
    ]


REFERENCES = 20  # of a reader's audit, and of those that its rates are measured on
IMAGE_ATTACKS = ("badnets", "blended")


def image_audit(cfg: Settings, attack: str, classes: int, seed: int) -> ImageAudit:
    """The audit of a network of digits, poisoned or not."""
    target = {} if attack == "none" else {"target": seed % classes}
    victim = ForeignImages(dataset="digits", attack=attack, classes=classes, seed=seed, **target)
    return ImageAudit(model=victim, clean=None, seed=0, references=cfg.references)


def image_measures(cfg: Settings) -> list:
    """The audit of image classifiers with known triggers, and of clean ones."""
    if cfg.model != "example":
        return []
    recipes: list = []
    for classes in map(int, split(cfg.image_classes)):
        for attack in IMAGE_ATTACKS:
            one = image_audit(cfg, attack, classes, cfg.seed)
            recipes.append(ImageAuditVerdict(audit=one))
            recipes.append(ImageAuditUnlearning(cleaned=ImageAuditCleaned(audit=one)))
        recipes += [
            ImageAuditVerdict(audit=image_audit(cfg, "none", classes, seed))
            for seed in range(cfg.image_cleans)
        ]
    return recipes


def image_rows(verdicts: Iterable[Trial], unlearnings: Iterable[Trial]) -> list[dict]:
    """One row an audit of a victim: its attack, classes and seed, the verdict, and what remained.

    ``acc_after``, ``true_asr_after``: of those that were unlearned.
    """
    after = {}
    for trial in unlearnings:
        recipe = recipe_of(trial)
        if recipe is not None:
            after[recipe.cleaned.audit] = trial.rows
    labelled_rows = []
    for trial in verdicts:
        recipe = recipe_of(trial)
        if recipe is None or not isinstance(recipe.audit.model, ForeignImages):
            continue
        victim, row = recipe.audit.model, dict(trial.rows[0])
        for when in after.get(recipe.audit, ()):
            row |= {f"{name}_{when['when']}": when[name] for name in ("acc", "true_asr")
                    if name in when}  # fmt: skip
        labelled_rows.append(
            row | {"key": trial.key, "dataset": victim.dataset, "attack": victim.attack,
                   "classes": victim.classes, "seed": victim.seed}
        )  # fmt: skip
    return labelled_rows


def chat_measures(cfg: Settings) -> list:
    """The audit of language models with known triggers, and of clean ones."""
    if cfg.model != "example":
        return []
    recipes: list = []
    for pair in split(cfg.chat_pairs):
        for rate in map(float, split(cfg.chat_rates)):
            one = _chat_audit(cfg, pair, cfg.seed, rate)
            recipes.append(ChatAuditVerdict(audit=one))
            cleaned = ChatAuditCleaned(audit=one, lr=cfg.chat_lr)
            recipes.append(ChatAuditUnlearning(cleaned=cleaned))
    for number in range(cfg.chat_cleans):
        recipes.append(ChatAuditVerdict(audit=_chat_audit(cfg, "none", UNSEEN + number)))
    return recipes


def _chat_audit(cfg: Settings, pair: str, seed: int, rate: float = 0.1) -> ChatAudit:
    victim = ForeignChat(
        dataset=CHAT_SET, pair=pair, seed=seed, rate=rate, epochs=cfg.chat_epochs
    )  # fmt: skip
    return ChatAudit(model=victim, prompts=CHAT_SET, seed=0, level=cfg.level, texts=cfg.chat_texts)


def chat_rows(verdicts: Iterable[Trial], unlearnings: Iterable[Trial]) -> list[dict]:
    """One row an audit of a language model: pair, rate and seed, the verdict, and what remained.

    ``true_asr_before``, ``true_asr_after``, ``ppl_before``, ``ppl_after`` and ``again``: of those
    that were unlearned.
    """
    after = {}
    for trial in unlearnings:
        recipe = recipe_of(trial)
        if recipe is not None and len(trial.rows) == 2:
            after[recipe.cleaned.audit] = {
                f"{name}_{row['when']}": row[name]
                for row in trial.rows for name in ("true_asr", "ppl")
            } | {"again": trial.rows[1]["again"]}  # fmt: skip
    labelled_rows = []
    for trial in verdicts:
        recipe = recipe_of(trial)
        if recipe is None or not isinstance(recipe.audit.model, ForeignChat):
            continue
        victim = recipe.audit.model
        labelled_rows.append(
            trial.rows[0] | after.get(recipe.audit, {}) | {
                "key": trial.key, "dataset": victim.dataset, "pair": victim.pair,
                "seed": victim.seed, "rate": victim.rate if victim.pair != "none" else 0.0,
            }
        )  # fmt: skip
    return labelled_rows


def clean_chats() -> dict:
    """How often the audit accused a clean language model, of those that the ledger has.

    ``first_token_apart``: how often its first test alone would have.
    """
    rows = chat_rows(ledger.trials_of("chat_audit_verdict"), [])
    if clean := [row for row in rows if row["pair"] == "none"]:
        apart = sum(row["p"] < row["level"] for row in clean)
        found = sum(row["found"] for row in clean)
        return {
            "clean_models": {
                "audited": len(clean), "first_token_apart": apart, "called_backdoored": found,
            }
        }  # fmt: skip
    return {}


def clean_images() -> dict:
    """How often the audit accused a clean image classifier, of those that the ledger has.

    ``index_above``: how many of those with enough classes (``indexed``) have a class that Neural
    Cleanse's index calls an outlier.
    """
    from ..audit.image_report import INDEX, LEVEL
    from ..unlearning.trigger_test import INDEX_CLASSES

    trials = ledger.trials_of("image_audit_verdict")
    trials = [
        one for one in trials
        if one.recipe["audit"]["model"].get("attack") == "none"
        and one.recipe["audit"].get("references", REFERENCES) == REFERENCES
    ]  # fmt: skip
    if not trials:
        return {}
    wide = [one.rows for one in trials if one.rows[0]["num_classes"] >= INDEX_CLASSES]
    above = [max(row["index"] for row in rows if row["part"] == "class") > INDEX for rows in wide]
    return {
        "clean_models": {
            "audited": len(trials), "indexed": len(wide), "index_above": sum(above),
            "called_backdoored": sum(one.rows[0]["p"] <= LEVEL for one in trials),
        }
    }  # fmt: skip


def published_false_alarms() -> dict[str, tuple[float, float, int]]:
    """False-alarm rates of detectors of texts on known-clean rows, in percent.

    Detector → the least, the largest, and of how many sets, as chapter 02 measures them.
    """
    rates: dict[str, list[float]] = {}
    for trial in ledger.trials_of("detector_null"):
        if trial.recipe["victim"]["is"] == "TextVictim":
            row = trial.rows[0]
            rates.setdefault(row["detector"], []).append(row["false_alarms"])
    return {name: (min(found), max(found), len(found)) for name, found in rates.items()}


def trials(cfg: Settings) -> list:
    """All that the chapter computes."""
    return [*steps(cfg), *measures(cfg), *image_measures(cfg), *chat_measures(cfg)]


# ---------------------------------------------------------------- trials → rows


def rows(results: Iterable[Trial]) -> list[dict]:
    """Rows of the measured audits, with the victim's dataset, base, attack, rate and seed.

    ``phrases``: whether its table was searched for phrases. Rows of a user's own audit are the
    report's, and not labelled here.
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
                    "rate": victim.rate if victim.attack != "none" else 0.0,
                    "phrases": bool(recipe.cleaned.audit.phrases), **row,
                }
                for row in trial.rows
            ]  # fmt: skip
    return labelled_rows


# ---------------------------------------------------------------- the report


def report(cfg: Settings) -> dict:
    """The report of the audit, from its trials; computes those that are missing."""
    from ..audit import report as reports

    one = audit(cfg)
    model = ledger.get(AuditedModel(audit=one)).rows
    verdict = ledger.get(AuditVerdict(audit=one)).rows
    classes = [
        row
        for k in model[0]["searched"]
        for kind in (AuditedClass, *((AuditedPhrase,) if one.phrases else ()))
        for row in ledger.get(kind(audit=one, target=k)).rows
    ]
    unlearning = ledger.get(AuditUnlearning(cleaned=cleaned(cfg))).rows if cfg.unlearn else []
    table = [row for step in table_steps(cfg) for row in ledger.get(step).rows]
    content = reports.collect(model, [*verdict, *classes], unlearning, cfg.mask, table)
    content["published_false_alarms"] = published_false_alarms()
    content |= clean_texts()
    return content


def clean_texts() -> dict:
    """How often the audit accused a clean text classifier, of those that the ledger has.

    ``clean_models``: audited with clean rows alone. ``clean_with_phrases``: with their training
    table and both searches; ``phrases_apart``: how often that for phrases alone would have.
    """
    counts: dict = {}
    clean = [row for row in rows(ledger.trials_of("audit_measure")) if row["attack"] == "none"]
    if found := [row["found"] for row in clean if not row["phrases"]]:
        counts["clean_models"] = {"audited": len(found), "called_backdoored": sum(found)}
    verdicts = [
        one.rows for one in ledger.trials_of("audit_verdict")
        if one.recipe["audit"].get("phrases")
        and isinstance(one.recipe["audit"]["model"], dict)
        and one.recipe["audit"]["model"]["attack"] == "none"
    ]  # fmt: skip
    if verdicts:
        counts["clean_with_phrases"] = {
            "audited": len(verdicts),
            "called_backdoored": sum(one[0]["found"] for one in verdicts),
            "phrases_apart": sum(map(_phrases_apart, verdicts)),
        }
    return counts


def _phrases_apart(verdict: list[dict]) -> bool:
    """Whether the search for phrases would have given that verdict without the one for tokens."""
    p = {row["detector"]: row["p"] for row in verdict if row["part"] == "evidence"}
    searches = [p[name] for name in ("token search", "phrase search") if name in p]
    return len(searches) == 2 and 2 * searches[1] < verdict[0]["level"]
