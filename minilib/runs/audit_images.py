"""`minilib audit --clean-images`: the audit of an image classifier, step by step, and its report.

Its steps are trials: interrupted, it goes on where it stopped.
"""

from __future__ import annotations

from pathlib import Path

from minilib import ledger, provenance
from minilib.audit.outcomes import FOUND, NOTHING, in_turn, refusing, told
from minilib.provenance import UsageError

OF_STATES = ("architecture", "mean", "std", "size", "classes")


def recipe_of(options):
    """The audit that the command line asks for.

    Raises:
        UsageError: options that a folder does not need, or a state dict lacks.
    """
    from minilib.trials.audit_images import CleanFolder, ImageAudit, ImageFile

    model, images = (Path(p).expanduser() for p in (options.model, options.clean_images))
    if not model.exists():
        raise UsageError(f"there is no model {options.model}; accepted: a folder, or a file")
    if not images.is_dir():
        raise UsageError(f"there is no folder {options.clean_images}; accepted: one that exists")
    given = [name for name in OF_STATES if getattr(options, name) is not None]
    if model.is_dir() and (known := [name for name in given if name != "classes"]):
        raise UsageError(
            f"--{known[0]} is given for a folder, which says so itself; accepted: for a state dict"
        )
    absent = [name for name in OF_STATES if name not in given]
    if not model.is_dir() and absent:
        raise UsageError(
            f"a state dict says nothing of its {', '.join(absent)}; accepted: "
            f"{' '.join(f'--{name} …' for name in absent)}"
        )
    more = {}
    if options.classes is not None:
        more["classes"] = tuple(name.strip() for name in options.classes.split(","))
    if not model.is_dir():
        more |= {
            "architecture": options.architecture, "size": options.size,
            "mean": numbers("mean", options.mean), "std": numbers("std", options.std),
        }  # fmt: skip
    return ImageAudit(
        model=ImageFile(path=str(model.resolve()), **more),
        clean=CleanFolder(path=str(images.resolve())), seed=options.seed or 0,
    )  # fmt: skip


def numbers(name: str, text: str) -> tuple[float, ...]:
    """Numbers with commas between them. Raises UsageError for anything else."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(
            f"--{name} is {text!r}; accepted: numbers such as 0.49,0.48,0.45"
        ) from None


def run(options, out: Path) -> tuple[int, dict]:
    """Audit an image classifier; the exit code and the report, which is left in ``out``.

    Raises:
        UsageError: the model or the images cannot be audited; one line.
    """
    for name in ("data", "clean", "text", "label", "labels"):
        if getattr(options, name, None):
            raise UsageError(f"--{name} is given with --clean-images; accepted: for texts alone")
    with refusing():
        return _run(recipe_of(options), options, out)


def _run(one, options, out: Path) -> tuple[int, dict]:
    from minilib.audit import image_report, images
    from minilib.chapters import audit as chapter
    from minilib.trials import audit_images as trials

    model, clean, _, _ = trials.audited(one)
    accuracy = images.check_accuracy(model, clean)
    told(f"the model gets {accuracy:.1f} % of {len(clean)} clean images right")
    references = [
        trials.ImageAuditReference(audit=one, number=number)
        for number in range(1, one.references + 1)
    ]
    in_turn(references, lambda n: f"reference network {n} of {one.references}")
    verdict = ledger.get(trials.ImageAuditVerdict(audit=one))
    name = Path(options.model).resolve().name
    report = image_report.collect(name, verdict.rows, [], image_report.LEVEL, one.references)
    report |= chapter.clean_images()
    out.mkdir(parents=True, exist_ok=True)
    if report["trigger"] and options.unlearn:
        cleaned = trials.ImageAuditCleaned(audit=one)
        rows = ledger.get(trials.ImageAuditUnlearning(cleaned=cleaned)).rows
        report["unlearning"] = rows
        saved = Path(trials.save_cleaned(cleaned, out / "model"))
        report["cleaned_model"] = str(saved.relative_to(out))
    head = verdict.rows[0]
    number = [row["class"] for row in verdict.rows if row["part"] == "class"].index(
        head["found_class"]
    )
    picture = image_report.png(verdict.array(head["trigger_kind"])[number])
    provenance.write_bytes(out / "trigger.png", picture)
    provenance.write_json(out / "report.json", report)
    page = image_report.page(report, f"Audit of {report['model']['name']}", picture)
    provenance.write_bytes(out / "report.html", page.encode("utf-8"))
    return (FOUND if report["trigger"] else NOTHING), report
