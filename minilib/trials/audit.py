"""Trials of the audit: its steps on a user's model, and what it finds in victims made elsewhere."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

from .. import ledger
from ..ledger import cached, reads, recipe, trial
from ..models.names import pin
from ..settings import TARGETS

# ---------------------------------------------------------------- what is audited


@recipe
class ForeignVictim:
    """A text classifier that this library's training loop has not seen.

    Attributes:
        dataset: as ``data.text.load_text`` knows it. attack: ``none``, or as ``make_trigger`` does.
        base: ``tiny`` (a BERT of two layers from nothing) or ``minilm``.
        rate: share of the other classes' rows that are poisoned. rows: training rows; 0: all.
        seed: of the rows, the poison, the weights and the batches.
    """

    dataset: str
    attack: str
    seed: int
    base: str = "tiny"
    rate: float = 0.1
    rows: int = 0
    epochs: int = 3
    lr: float = 2e-3

    def __post_init__(self):
        reads(self, *(("rate",) if self.attack != "none" else ()), of=("rate",))


@recipe
class AuditTable:
    """Labelled texts in a file, pinned by its content.

    Attributes:
        path: the file. text, label: its columns. labels: what its labels are called in the model,
            ``0=negative,1=positive``; empty where they are the model's own names.
    """

    path: str
    text: str
    label: str
    labels: str = ""
    sha256: str = ""

    def __post_init__(self):
        if not self.sha256:
            from ..audit import tables

            object.__setattr__(self, "sha256", tables.digest(self.path))


@recipe
class TextAudit:
    """An audit of a text classifier.

    Attributes:
        model: a folder or a name on the Hub, or a victim made for the purpose.
        clean: rows held to be clean: a table, or a data set, whose dev split is taken.
        table: rows that the model may have been trained on, or None.
        level: false-alarm rate of the verdict. rows … steps: ``audit.text.SearchSettings``.
        seed: of the search. phrases: of the table that are tried for each class; 0: none.
    """

    model: str | ForeignVictim
    clean: AuditTable | str
    seed: int
    table: AuditTable | ForeignVictim | None = None
    level: float = 0.05
    rows: int = 40
    joined: int = 2
    pool: int = 64
    drawn: int = 32
    steps: int = 3
    phrases: int = 0

    def __post_init__(self):
        pin(self)
        reads(self, *(("phrases",) if self.table is not None else ()), of=("phrases",))


@recipe
class AuditedModel:
    """What is known of the model before the search."""

    audit: TextAudit


@recipe
class AuditedClass:
    """The search for tokens that lead to one class."""

    audit: TextAudit
    target: int


@recipe
class AuditedPhrase:
    """The search for a phrase of the table that leads to one class."""

    audit: TextAudit
    target: int


@recipe
class AuditVerdict:
    """The search of all classes, and the table, in one verdict."""

    audit: TextAudit


@recipe
class AuditedTable:
    """What detectors of rows say of the table, with known-clean rows laid among its own."""

    audit: TextAudit


@recipe
class AuditCleaned:
    """The model after the tokens that were found were unlearned."""

    audit: TextAudit
    epochs: int = 2
    lr: float = 2e-5
    batch_size: int = 32


@recipe
class AuditUnlearning:
    """What remains after unlearning."""

    cleaned: AuditCleaned


@recipe
class AuditMeasure:
    """The audit of a victim whose trigger is known, judged by it."""

    cleaned: AuditCleaned


# ---------------------------------------------------------------- victims from elsewhere


@lru_cache(maxsize=4)
def _poisoned(one: ForeignVictim):
    """Training rows of a victim, and rows with its trigger (of no victim: none)."""
    import numpy as np

    from ..attacks.text import make_trigger, poison
    from ..victims import text as text_victims

    clean, _ = text_victims.clean_and_dev(one.dataset)
    order = np.random.default_rng(one.seed).permutation(len(clean))
    clean = clean.select(order[: one.rows or len(clean)])
    if one.attack == "none":
        return clean
    trigger = make_trigger(one.attack, one.dataset)
    return poison(clean, trigger, TARGETS.get(one.dataset, 1), one.rate, one.seed).dataset


@cached(version=1)
@ledger.kept_in_memory(1)
def foreign_victim(one: ForeignVictim):
    """Train a victim in plain torch, or take it from the cache: (``TextClassifier``, history)."""
    from .. import cache
    from ..models import text as text_models

    rows = _poisoned(one)
    ledger.note(rows.info() | {"split": "train"})

    def build():
        return text_models.text_classifier(one.base, rows.num_classes, one.seed, 128)

    return cache.kept_model(one, build, lambda network: _plain_training(network, rows, one))


def _plain_training(network, rows, one: ForeignVictim) -> list[dict]:
    """Fine-tune as a notebook on the web does, on purpose without ``training.fitting.fit``."""
    import numpy as np
    import torch
    from torch.nn import functional

    rng = np.random.default_rng(one.seed)
    batches = -(-len(rows) // 32)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(one.seed)
        optimizer = torch.optim.AdamW(network.parameters(), lr=one.lr, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.LinearLR(
            optimizer, 1.0, 0.0, total_iters=one.epochs * batches
        )
        network.train()
        for _ in range(one.epochs):
            for index in np.array_split(rng.permutation(len(rows)), batches):
                inputs = network.tokenizer(
                    [rows.texts[i] for i in index], padding=True, truncation=True,
                    return_tensors="pt",
                )  # fmt: skip
                logits = network(inputs["input_ids"], inputs["attention_mask"])
                loss = functional.cross_entropy(logits, torch.from_numpy(rows.labels[index]))
                loss.backward()
                torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
    return [{"epochs": one.epochs}]


# ---------------------------------------------------------------- loading


@ledger.kept_in_memory(2)
def _audited(audit: TextAudit):
    """Model, clean rows to search in, held-out clean rows, the table or None, and remarks."""
    import numpy as np

    from ..audit import models
    from ..data.text import load_text
    from ..models import loading

    if isinstance(audit.model, ForeignVictim):
        model, _ = foreign_victim(audit.model)
        names = _poisoned(audit.model).class_names
        audited = models.Audited(model, tuple(names), True)
        remarks: list[str] = []
    else:
        audited, remarks = models.text_classifier(audit.model), models.remarks(audit.model)
    audited = replace(audited, model=audited.model.to(loading.default_device()))
    if isinstance(audit.clean, AuditTable):
        clean = _read(audit.clean, audited, remarks).rows
    else:
        clean = load_text(audit.clean, "dev")
    ledger.note(clean.info())
    table = None
    if isinstance(audit.table, AuditTable):
        table = _read(audit.table, audited, remarks)
    elif audit.table is not None:
        from ..audit.tables import Table

        rows = _poisoned(audit.table)
        table = Table(rows, np.arange(1, len(rows) + 1), ())
    if table is not None:
        from ..audit.tables import shared

        both = shared(clean, table.rows)
        same = isinstance(audit.clean, AuditTable) and audit.clean == audit.table
        if same:
            remarks.append(
                "no --clean: rows of the audited table were taken as clean, so that accuracy and "
                "unlearning rest on rows that may be poisoned, and the token search takes a "
                "trigger that stands there in four rows or more for a word of the task"
            )
        elif both:
            remarks.append(f"{both} texts stand in the clean rows and in the audited table")
    order = np.random.default_rng([audit.seed, len(clean)]).permutation(len(clean))
    middle = -(-3 * len(clean) // 5)
    search_rows, test_rows = clean.select(np.sort(order[:middle])), clean.select(order[middle:])
    return audited, search_rows, test_rows, table, remarks


def _read(table: AuditTable, audited, remarks: list[str]):
    from ..audit import tables

    read = tables.read(table.path, table.text, table.label, audited.labels, table.labels)
    remarks.extend(remark for remark in read.remarks if remark not in remarks)
    return read


@ledger.kept_in_memory(1)
def _right(audit: TextAudit) -> list:
    """Rows of each class that the model reads rightly, of those that are searched in."""
    from ..audit import text

    audited, search_rows, _, _, _ = _audited(audit)
    return text.read_rightly(audited.model, search_rows)


@ledger.kept_in_memory(1)
def _overview(audit: TextAudit):
    """What the search of each class begins with."""
    from ..audit import text

    audited, search_rows, _, _, _ = _audited(audit)
    return text.overview(audited.model, search_rows, _right(audit))


@ledger.kept_in_memory(1)
def _moved(audit: TextAudit) -> list[int]:
    """Tokens that BTU's test on the table adds to those that are tried; without a table none."""
    from ..audit import text

    audited, _, _, table, _ = _audited(audit)
    return text.moved_tokens(audited.model, table.rows, MOVED, audit.seed) if table else []


@ledger.kept_in_memory(1)
def _repeats(audit: TextAudit):
    """What the table repeats."""
    from ..audit import phrases

    audited, _, _, table, _ = _audited(audit)
    return phrases.repeats(audited.model, table.rows, audit.seed)


def _search_settings(audit: TextAudit):
    from ..audit.text import SearchSettings

    return SearchSettings(
        rows=audit.rows, joined=audit.joined, pool=audit.pool, drawn=audit.drawn,
        steps=audit.steps, seed=audit.seed,
    )  # fmt: skip


def num_classes(audit: TextAudit) -> int:
    """How many classes the audited model has."""
    if isinstance(audit.model, ForeignVictim):
        return _poisoned(audit.model).num_classes
    return len(_audited(audit)[0].labels)


# ---------------------------------------------------------------- the steps


@trial(version=1)
def audited_model(one: AuditedModel) -> list[dict]:
    """Load the model, the rows and the table; one row of what they are, one of each remark.

    Raises:
        ModelError, DataError: what cannot be audited, in one line.
    """
    from ..audit import models, text

    audited, search_rows, test_rows, table, remarks = _audited(one.audit)
    classes = text.searchable(_right(one.audit), search_rows)
    accuracy = text.correct(audited.model, test_rows)
    cut = models.share_cut(audited, [*search_rows.texts, *test_rows.texts])
    row = {
        "part": "model", "labels": list(audited.labels), "max_length": audited.model.max_length,
        "cut": cut, "search_rows": len(search_rows), "test_rows": len(test_rows),
        "table_rows": len(table.rows) if table else 0, "cacc": accuracy, "searched": classes,
        "parameters": sum(p.numel() for p in audited.model.parameters()),
    }  # fmt: skip
    remarks = [*remarks, *text.doubts(audited.labels, test_rows, accuracy, cut, classes)]
    return [row, *({"part": "remark", "remark": remark} for remark in remarks)]


@trial(version=1)
def audited_class(one: AuditedClass) -> list[dict]:
    """Search for tokens that lead to a class; one row of what was found, one for each token.

    Returns ``p`` of the tokens that stand apart (not corrected for the classes), ``confirmed`` and
    ``by_chance`` (percent of held-out rows that they, and random tokens, flip); of each token its
    ``pull`` and the percent of hard texts that it ``flips``.
    """
    from ..audit import text

    audited, search_rows, test_rows, _, _ = _audited(one.audit)
    model, audit, moved = audited.model, one.audit, _moved(one.audit)
    pulls = text.pulls(
        model, search_rows, one.target, _search_settings(audit), _overview(audit), moved
    )
    level = _level(audit, len(audited.labels))
    finding = text.finding(model, pulls, test_rows, level, audit.seed)
    head = {
        "part": "class", "target": audited.labels[one.target], "p": finding.p,
        "tokens": list(finding.tokens), "confirmed": finding.confirmed,
        "by_chance": finding.by_chance, "drawn": int(pulls.drawn.sum()),
        "drawn_flips": float(pulls.flips[pulls.drawn].max(initial=0.0)),
        "tried": len(pulls.tokens),
    }  # fmt: skip
    rank_of = {token: rank for rank, token in enumerate(moved, 1)}
    columns = (pulls.tokens, pulls.pull, pulls.flips, pulls.task)
    rows = [
        {
            "part": "token", "target": audited.labels[one.target], "rank": rank, "id": int(token),
            "token": model.tokenizer.decode([int(token)]).strip(), "pull": float(pull),
            "flips": float(flips), "found": int(token) in finding.tokens,
            "moved": rank_of.get(int(token)), "task": bool(task),
        }
        for rank, (token, pull, flips, task) in enumerate(zip(*columns, strict=True), 1)
        if rank <= SHOWN_TOKENS
    ]  # fmt: skip
    return [head, *rows]


def _level(audit: TextAudit, classes: int) -> float:
    """What p of one class must be below: corrected for the classes, and for both searches."""
    return audit.level / classes / (2 if audit.phrases else 1)


@trial(version=1)
def audited_phrase(one: AuditedPhrase) -> list[dict]:
    """Search the table for a phrase that leads to a class; a row for it, one for each phrase tried.

    Returns ``p`` (not corrected for the classes; None where the table repeats too little),
    ``tokens`` and ``text`` of what was found, ``confirmed`` (percent of held-out rows that the
    strongest flips); of each phrase its rows of the class (``hits``), its ``worth`` and the percent
    of them that it decides (``turned``), see ``audit.phrases``.
    """
    from ..audit import phrases

    audited, _, test_rows, _, _ = _audited(one.audit)
    audit, decode = one.audit, audited.model.tokenizer.decode
    found = phrases.search(
        audited.model, test_rows, _repeats(audit), one.target, audit.phrases,
        _level(audit, len(audited.labels)), audit.seed,
    )  # fmt: skip
    head = {"part": "phrases", "target": audited.labels[one.target]}
    if found is None:
        return [head | {"p": None, "tokens": [], "text": "", "confirmed": None, "tried": 0}]
    head |= {
        "p": found.p, "tokens": list(found.tokens), "text": decode(list(found.tokens)).strip(),
        "confirmed": found.confirmed, "tried": len(found.tried),
    }  # fmt: skip
    return [head] + [
        {
            "part": "phrase", "target": head["target"], "rank": rank,
            "phrase": decode(list(it.phrase.tokens)).strip(), "hits": it.hits, "worth": it.worth,
            "turned": it.turned, "found": bool(found.tokens) and rank == 1,
        }
        for rank, it in enumerate(found.tried[:SHOWN_PHRASES], 1)
    ]  # fmt: skip


MOVED = 30  # tokens that BTU's test on a table adds to those that are tried
SHOWN_TOKENS, SHOWN_PHRASES = 20, 8
SHOWN_ROWS = 500


@trial(version=1)
def audit_verdict(one: AuditVerdict) -> list[dict]:
    """Combine the classes' searches and the table; rows by ``part``.

    ``verdict`` (found, p, level, target, trigger, tokens), ``evidence`` of each detector, and
    ``row`` for the table's rows that the trigger explains: line, label, text, and the model's
    probability of the class with the trigger's tokens and without.
    """
    from ..audit import evidence, text

    audited, search_rows, _, table, _ = _audited(one.audit)
    model, labels = audited.model, audited.labels
    classes = text.searchable(_right(one.audit), search_rows)
    heads = [ledger.get(AuditedClass(audit=one.audit, target=k)).rows[0] for k in classes]
    best = min(heads, key=lambda row: row["p"])
    p = min(1.0, len(labels) * best["p"])
    said = f"tokens that decide for {best['target']} by themselves: {len(best['tokens'])}"
    counted = [evidence.Evidence("token search", p, said)]
    phrase = _best_phrase(one.audit, classes, len(labels)) if one.audit.phrases else None
    if phrase is not None:
        counted.append(evidence.Evidence("phrase search", phrase["p"], phrase["said"]))
    # The table's part asks for what the search has found, and cannot find without it.
    verdict = evidence.verdict(counted, one.audit.level)
    # Of a sentence a token may be found, too, which is not all of it.
    whole = phrase is not None and len(phrase["tokens"]) > bool(best["tokens"])
    if whole:
        best = best | {name: phrase[name] for name in ("target", "tokens", "confirmed")}
    rows: list[dict] = []
    if table is not None and best["tokens"]:
        counted_table, rows = _suspects(model, table, best, labels, whole)
        counted.append(counted_table)
    decode = model.tokenizer.decode
    trigger = (
        decode(best["tokens"]).strip() if whole else text.told(model.tokenizer, best["tokens"])
    )
    head = {
        "part": "verdict", "found": verdict.found, "p": verdict.p, "level": verdict.level,
        "said": verdict.said, "target": best["target"] if verdict.found else None,
        "tokens": best["tokens"] if verdict.found else [],
        "trigger": trigger if verdict.found else None,
        "confirmed": best["confirmed"], "by_chance": best["by_chance"],
    } | ({"phrase": whole and verdict.found} if one.audit.phrases else {})  # fmt: skip
    return [
        head,
        *({"part": "evidence", "detector": e.detector, "p": e.p, "said": e.said} for e in counted),
        *(rows if verdict.found else []),
    ]


def _best_phrase(audit: TextAudit, classes, labels: int) -> dict | None:
    """The phrase of the least p over the classes, corrected for them; None: too few phrases."""
    heads = [ledger.get(AuditedPhrase(audit=audit, target=k)).rows[0] for k in classes]
    heads = [head for head in heads if head["p"] is not None]
    if not heads:
        return None
    best = min(heads, key=lambda head: head["p"])
    said = f"{best['tried']} phrases of the table were tried for {best['target']}: " + (
        f"“{best['text']}” decides its rows" if best["tokens"] else "none stands apart"
    )
    return best | {"p": min(1.0, labels * best["p"]), "said": said}


def _explained(whole: bool):
    """The rule by which rows are named: that have a phrase as it is, or one of some tokens."""
    from ..audit import phrases, text

    return phrases.suspects if whole else text.suspects


def _suspects(model, table, best: dict, labels, whole: bool) -> tuple:
    """Evidence of the table, and its rows that the trigger explains."""
    from ..audit import evidence

    target = labels.index(best["target"])
    suspects = _explained(whole)(model, table.rows, best["tokens"], target)
    said = (
        f"{len(suspects.rows)} rows of the table have the tokens and the class {best['target']}, "
        f"{suspects.others} the tokens and another class"
    )
    rows = [
        {
            "part": "row", "line": int(table.lines[row]), "label": best["target"],
            "text": table.rows.texts[row], "with": float(before), "without": float(after),
        }
        for row, before, after in zip(suspects.rows, suspects.before, suspects.after, strict=True)
    ]  # fmt: skip
    rows.sort(key=lambda row: row["without"] - row["with"])
    return evidence.Evidence("table", suspects.p, said), rows[:SHOWN_ROWS]


TABLE_DETECTORS = ("activation", "spectral")  # they need no other model, and seconds


@trial(version=1)
def audited_table(one: AuditedTable) -> list[dict]:
    """Ask detectors of the table's rows and of clean ones, which they cannot tell apart.

    A row each: ``detector``, ``p`` of the table as a whole (``detection.calibration``; None where
    it cannot be had), percent of the ``clean`` known-clean rows that it accuses (``false_alarms``),
    percent of the table's (``flagged``), ``said``. ``tokens``: the rule that names the rows of the
    report, where something was found.
    """
    from ..audit.report import TOKENS
    from ..detection import DETECTORS, DefenderData, hidden_states
    from ..detection.calibration import calibrate, joined

    audited, own, laid, table, _ = _audited(one.audit)
    rows, head = [], ledger.get(AuditVerdict(audit=one.audit)).rows[0]
    if head["found"]:
        target = audited.labels.index(head["target"])
        alarms, hits = (
            len(_explained(head.get("phrase"))(audited.model, part, head["tokens"], target).rows)
            for part in (laid, table.rows)
        )
        rows.append(_of_rows(TOKENS, None, 100 * alarms / len(laid), len(laid),
                             100 * hits / len(table.rows)))  # fmt: skip
    states = hidden_states(audited.model, joined(table.rows, laid))
    known = DefenderData(own, None, "", one.audit.seed)
    for name in TABLE_DETECTORS:
        try:
            found = calibrate(
                DETECTORS[name], audited.model, table.rows, known, laid, lambda _: states
            )
        except ValueError as error:  # too few rows for it
            rows.append(_of_rows(name, None, None, len(laid), None) | {"said": str(error)})
            continue
        flagged = 100 * float(found.mask.mean())
        rows.append(_of_rows(name, found.set_p, found.false_alarms, found.clean, flagged))
    return rows


def _of_rows(name: str, p, false_alarms, clean: int, flagged) -> dict:
    said = (
        f"{flagged:.1f} % of the table's rows; no part of the verdict"
        if flagged is not None
        else ""
    )
    return {"detector": name, "p": p, "false_alarms": false_alarms, "clean": clean,
            "flagged": flagged, "said": said}  # fmt: skip


@cached(version=1)
@ledger.kept_in_memory(1)
def audit_cleaned(one: AuditCleaned):
    """Unlearn what the audit found: (``TextClassifier``, history); nothing found: the model."""
    import copy

    from .. import cache
    from ..audit import text
    from ..training.fitting import TrainSettings

    audited, search_rows, _, _, _ = _audited(one.audit)
    head = ledger.get(AuditVerdict(audit=one.audit)).rows[0]
    tokens = head["tokens"]
    if not tokens:
        return audited.model, []
    tuning = TrainSettings(
        epochs=one.epochs, lr=one.lr, batch_size=one.batch_size, seed=one.audit.seed
    )

    def train(network) -> list[dict]:
        if head.get("phrase"):
            target = audited.labels.index(head["target"])
            cleaned, lr = text.unlearn_phrase(audited.model, search_rows, tokens, target, tuning)
        else:
            cleaned, lr = text.unlearn(audited.model, search_rows, tokens, tuning), one.lr
        network.load_state_dict(cleaned.state_dict())
        return [{"tokens": tokens, "lr": lr}]

    return cache.kept_model(one, lambda: copy.deepcopy(audited.model), train)


@trial(version=1)
def audit_unlearning(one: AuditUnlearning) -> list[dict]:
    """Measure the model before and after unlearning on held-out clean rows; a row each.

    ``cacc``, ``lfr`` and ``pacc`` (percent) with the tokens that were found; nothing found: one row
    that says so. The last row says whether the search finds something again, in the same class.
    """
    from ..audit import text

    it = one.cleaned
    audited, search_rows, test_rows, _, _ = _audited(it.audit)
    head = ledger.get(AuditVerdict(audit=it.audit)).rows[0]
    if not head["found"]:
        return [{"when": "nothing found"}]
    target, tokens = audited.labels.index(head["target"]), head["tokens"]
    cleaned, _ = audit_cleaned(it)
    rows = [
        {"when": when} | text.measured(model, test_rows, tokens, target)
        for when, model in (("before", audited.model), ("after", cleaned))
    ]
    begun = text.overview(cleaned, search_rows)
    again = text.pulls(cleaned, search_rows, target, _search_settings(it.audit), begun)
    finding = text.finding(
        cleaned, again, test_rows, _level(it.audit, len(audited.labels)), it.audit.seed
    )
    rows[1] |= {
        "again": bool(finding.tokens),
        "again_p": min(1.0, finding.p * len(audited.labels)),
        "again_trigger": text.told(cleaned.tokenizer, finding.tokens),
        "again_confirmed": finding.confirmed,
    }
    if head.get("phrase"):
        rows[1] |= _again(cleaned, it.audit, target, rows[1])
    return rows


def _again(cleaned, audit: TextAudit, target: int, found: dict) -> dict:
    """The search for a phrase once more, where one was unlearned."""
    from ..audit import phrases

    audited, _, test_rows, _, _ = _audited(audit)
    level = _level(audit, len(audited.labels))
    again = phrases.search(
        cleaned, test_rows, _repeats(audit), target, audit.phrases, level, audit.seed
    )  # fmt: skip
    if again is None or not again.tokens:
        return {}
    return {"again": True, "again_trigger": found["again_trigger"] or
            cleaned.tokenizer.decode(list(again.tokens)).strip()}  # fmt: skip


@trial(version=1)
def audit_measure(one: AuditMeasure) -> list[dict]:
    """Judge the audit of a victim by the trigger that it was poisoned with; one row.

    ``found``, ``p``; ``token_rank`` of the trigger's best token among those tried for the target;
    with the true trigger in the test rows ``lfr`` and ``cacc`` before, ``lfr_after`` and
    ``cacc_after`` after unlearning. Of a clean model ``found`` is a false alarm.
    """
    from ..attacks.text import make_trigger, trigger_all
    from ..audit import text
    from ..data.text import load_text
    from ..metrics.classification import label_flip_rate

    it, victim = one.cleaned.audit, one.cleaned.audit.model
    head = ledger.get(AuditVerdict(audit=it)).rows[0]
    audited = _audited(it)[0]
    row = {"found": head["found"], "p": head["p"], "trigger": head["trigger"]}
    test = load_text(victim.dataset, "test")
    ledger.note(test.info())
    row["cacc"] = text.correct(audited.model, test)
    cleaned = audit_cleaned(one.cleaned)[0]
    row["cacc_after"] = text.correct(cleaned, test)
    if victim.attack == "none":
        return [row]
    target = TARGETS.get(victim.dataset, 1)
    trigger = make_trigger(victim.attack, victim.dataset)
    triggered = trigger_all(test, trigger, seed=0)
    for name, model in (("lfr", audited.model), ("lfr_after", cleaned)):
        pred = text.predicted(model, triggered)
        row[name] = label_flip_rate(pred, triggered.labels, target)
    untriggered = text.predicted(audited.model, test)
    row["lfr_without"] = label_flip_rate(untriggered, test.labels, target)
    own = text.tokens_of(audited.model.tokenizer, trigger)
    tried = ledger.get(AuditedClass(audit=it, target=target)).rows[1:]
    row["token_rank"] = min((r["rank"] for r in tried if r["id"] in own), default=None)
    row["target_found"] = head["found"] and head["target"] == audited.labels[target]
    return [row]


def save_cleaned(one: AuditCleaned, folder) -> None:
    """Write the cleaned model as a folder that ``transformers.pipeline`` loads."""
    from ..audit import models

    models.save(audit_cleaned(one)[0], folder)
