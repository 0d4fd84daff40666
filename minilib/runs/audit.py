"""`minilib audit`: refuse what cannot be audited, execute the chapter, leave the report."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from minilib import ledger, provenance
from minilib.audit.outcomes import FOUND, NOTHING, REFUSALS, in_turn, refusing, told
from minilib.provenance import UsageError

if TYPE_CHECKING:
    from minilib.runs import execute

CHAPTER = "07_audit"
PRESET = "small"  # whose settings of the search are the defaults
TUNING = 2e-5  # the usual rate of pre-trained encoders
PHRASES = 32  # of a training table that are tried for a class


# The command line's own options, as argparse is told them.
OPTIONS = {
    "--data": {"metavar": "FILE", "help": "labelled rows that it may have been trained on"},
    "--clean": {"metavar": "FILE", "help": "labelled rows held to be clean; else those of --data"},
    "--text": {"metavar": "COLUMN", "help": "of the texts (default: text)"},
    "--label": {"metavar": "COLUMN", "help": "of the labels (default: label)"},
    "--labels": {"metavar": "A=B,…", "help": "names of labels in the model: 0=negative,1=positive"},
    "--chat": {"metavar": "FILE", "help": "of a language model: clean prompts, with answers or "
               "without (columns prompt and response, or those of --text and --label)"},
    "--template": {"metavar": "TEXT", "help": "of a language model without a chat template: what "
                   "stands around a prompt, with {prompt} in its place"},
    "--unlearn": {"action": "store_true",
                  "help": "unlearn what is found, and save the cleaned model"},
    "--show-texts": {"action": "store_true",
                     "help": "do not mask the words of rows and tokens in the report"},
    "--clean-images": {"metavar": "DIR", "help": "of an image classifier: clean images, a folder "
                       "per class, named as the model's"},
    "--architecture": {"metavar": "NAME",
                       "help": "of a state dict: resnet18, preactresnet18, vgg16_bn …"},
    "--mean": {"metavar": "M[,M,M]", "help": "of a state dict's pixels, in units of 1"},
    "--std": {"metavar": "S[,S,S]", "help": "their deviation"},
    "--size": {"metavar": "PIXELS", "type": int, "help": "of a state dict's images"},
    "--classes": {"metavar": "A,B,…", "help": "of a state dict, or of an adapter that does not "
                  "name them, in the order of its outputs"},
}  # fmt: skip


def command(options) -> int:
    """`minilib audit`: 0 nothing found, 3 found, 2 refused."""
    out = Path(options.out or "report")
    from minilib.settings import MOST_SEED

    check_out(options.out or "report", options.model, options.clean_images)
    if options.seed is not None and not 0 <= options.seed <= MOST_SEED - 1000:
        raise UsageError(f"seed is {options.seed}; accepted: 0 … {MOST_SEED - 1000}")
    if options.chat and options.clean_images:
        raise UsageError("--chat and --clean-images are both given; accepted: one of them")
    if options.template is not None and not options.chat:
        raise UsageError("--template is given without --chat; accepted: for language models")
    if options.chat:
        from minilib.audit import chat_report as reports
        from minilib.runs import audit_chat

        code, report = audit_chat.run(options, out)
        names = ("report.html", "report.json")
    elif options.clean_images:
        from minilib.audit import image_report as reports
        from minilib.runs import audit_images

        code, report = audit_images.run(options, out)
        names = ("report.html", "report.json", "trigger.png")
    else:
        from minilib.audit import report as reports

        code, report = run(options, out, provenance.find_root())
        names = ("report.html", "report.json", "report.ipynb")
    options.result = [report]
    print(reports.answer(report))
    for row in reports.detectors(report):
        print(f"{row['detector']}: p {row['p']}; false alarms: {row['false alarms']}")
    print(report["blind"])
    for line in report["remarks"]:
        print(f"note: {line}")
    print(f"report: {', '.join(str(out / name) for name in names)}")
    if "cleaned_model" in report:
        print(f"cleaned model: {out / report['cleaned_model']}")
    return code


def check_out(named: str, *read: str | None) -> None:
    """Raise UsageError for a folder that cannot be written, or in which what is audited lies.

    Before hours of search, and not after them.

    Args:
        named: the value of --out. read: the model and the images, where they are folders.
    """
    out = Path(named)
    if "://" in named:
        raise UsageError(f"--out is {named}; accepted for an audit: a folder on this machine")
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {out} is a file; accepted: a folder")
    written = {out.resolve(), (out / "model").resolve()}
    for name in filter(None, read):
        place = Path(name).expanduser()
        if place.is_dir() and place.resolve() in written:
            raise UsageError(
                f"--out {out} would write into {name}, which is audited; accepted: another folder"
            )
    above = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.exists())
    try:
        os.rmdir(tempfile.mkdtemp(dir=above))
    except OSError as error:
        raise UsageError(
            f"--out {out} cannot be written ({error.strerror} in {above}); accepted: a folder that "
            "can"
        ) from None


def settings_for(options) -> dict:
    """The chapter's parameters that the command line says."""
    params = {"model": options.model, "unlearn": options.unlearn, "mask": not options.show_texts,
              "seed": options.seed or 0, "lr": TUNING, "phrases": PHRASES}  # fmt: skip
    for name in ("data", "clean"):
        if getattr(options, name):
            params[name] = str(Path(getattr(options, name)).expanduser().resolve())
    for name in ("text", "label", "labels"):
        if getattr(options, name):
            params[name] = getattr(options, name)
    return params


def run(options, out: Path, root: Path) -> tuple[int, dict]:
    """Audit a model; the exit code and the report, which is left in the folder ``out``.

    Raises:
        UsageError: the model or a table cannot be audited; one line.
    """
    from minilib.audit import models
    from minilib.runs import execute

    if not (options.data or options.clean):
        raise UsageError("no rows; accepted: --data FILE or --clean FILE, labelled texts")
    params = settings_for(options)
    with refusing():
        params = params | {"model": models.name_of(params["model"])}
        job = execute.plan(CHAPTER, PRESET, params, root=root, out=out / "runs")
        compute(job.cfg)
    record = job.done() or execute.run(job)
    if record["status"] == "interrupted":
        raise KeyboardInterrupt
    if record["status"] != "ok":
        why = f"the audit failed: {execute.why(job, record)}"
        if record.get("error", "").startswith(REFUSALS):
            raise UsageError(why)
        raise RuntimeError(why)
    return leave(job, out)


def compute(cfg) -> None:
    """The audit's steps, here and told one by one; the notebook then reads them.

    So what cannot be audited is one line, and the model is loaded once.
    """
    from minilib.chapters import audit as chapter
    from minilib.trials.audit import AuditedClass, AuditedModel

    one = chapter.audit(cfg)
    head = ledger.get(AuditedModel(audit=one)).rows[0]
    told(f"the model gets {head['cacc']:.1f} % of {head['test_rows']} held-out rows right")
    searches = [AuditedClass(audit=one, target=k) for k in head["searched"]]
    in_turn(searches, lambda number: f"class {number} of {len(searches)} searched")
    for step in chapter.steps(cfg):
        ledger.get(step)


def leave(job: execute.Plan, out: Path) -> tuple[int, dict]:
    """Write the notebook, the page, report.json and the cleaned model into a folder."""
    from minilib.audit import report as reports
    from minilib.chapters import audit as chapter
    from minilib.trials import audit as trials

    cfg = job.cfg
    report = chapter.report(cfg)
    out.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(job.folder / "notebook.ipynb", out / "report.ipynb")
    if cfg.unlearn and report["trigger"]:
        trials.save_cleaned(chapter.cleaned(cfg), out / "model")
        report["cleaned_model"] = "model/"
    elif cfg.unlearn:
        report["remarks"].append("nothing was found: nothing was unlearned, no model was saved")
    provenance.write_json(out / "report.json", report)
    name = cfg.model.partition("@sha256:")[0]
    title = f"Audit of {Path(name).name or name}"
    provenance.write_bytes(out / "report.html", reports.page(report, title).encode("utf-8"))
    return (FOUND if report["trigger"] else NOTHING), report
