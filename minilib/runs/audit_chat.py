"""`minilib audit --chat`: the audit of a language model, step by step, and its report.

Its steps are trials: interrupted, it goes on where it stopped.
"""

from __future__ import annotations

from pathlib import Path

from minilib import ledger, provenance
from minilib.audit.outcomes import FOUND, NOTHING, refusing, told
from minilib.provenance import UsageError

NOT_FOR_CHAT = ("data", "clean", "labels", "architecture", "mean", "std", "size", "classes")


def recipe_of(options):
    """The audit that the command line asks for.

    Raises:
        UsageError: options that belong to classifiers. ModelError, DataError: the model or the file
            is not there.
    """
    from minilib.audit import models
    from minilib.trials.audit_chat import ChatAudit, PromptTable

    for name in NOT_FOR_CHAT:
        if getattr(options, name, None) is not None:
            raise UsageError(f"--{name} is given with --chat; accepted: for classifiers alone")
    columns = {"prompt": options.text, "answer": options.label}
    table = PromptTable(
        path=str(Path(options.chat).expanduser().resolve()),
        **{name: column for name, column in columns.items() if column},
    )
    return ChatAudit(
        model=models.name_of(options.model), prompts=table, seed=options.seed or 0,
        template=(options.template or "").replace("\\n", "\n"),
    )  # fmt: skip


def run(options, out: Path) -> tuple[int, dict]:
    """Audit a language model; the exit code and the report, which is left in ``out``.

    Raises:
        UsageError: the model or the prompts cannot be audited; one line.
    """
    with refusing():
        return _run(recipe_of(options), options, out)


def _run(one, options, out: Path) -> tuple[int, dict]:
    from minilib.audit import chat_report
    from minilib.chapters import audit as chapter
    from minilib.trials import audit_chat as trials

    model, rows, held, _, _ = trials.audited(one)
    told(f"searching with {len(rows)} prompts; {len(held)} are held out")
    verdict = ledger.get(trials.ChatAuditVerdict(audit=one)).rows
    head, unlearning = verdict[0], []
    cleaned = trials.ChatAuditCleaned(audit=one)
    if head["found"] and options.unlearn:
        told("a response was found; unlearning it")
        unlearning = ledger.get(trials.ChatAuditUnlearning(cleaned=cleaned)).rows
    folder = Path(options.model).expanduser()
    name = folder.resolve().name if folder.is_dir() else options.model
    report = chat_report.collect(name, verdict, unlearning, not options.show_texts)
    report |= chapter.clean_chats()
    out.mkdir(parents=True, exist_ok=True)
    if unlearning:
        trials.save_cleaned(cleaned, out / "model")
        report["cleaned_model"] = "model/"
    provenance.write_json(out / "report.json", report)
    page = chat_report.page(report, f"Audit of {name}")
    provenance.write_bytes(out / "report.html", page.encode("utf-8"))
    return (FOUND if report["trigger"] else NOTHING), report
