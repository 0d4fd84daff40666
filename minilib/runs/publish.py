"""Publishing: the trials that a finished run read, and the page that shows them."""

import shutil
from pathlib import Path

from minilib import ledger
from minilib.provenance import UsageError, find_root
from minilib.runs import execute, verify


def publish(
    preset: str,
    chapters: list[str],
    overrides: dict,
    out: Path | None = None,
    replace: bool = False,
) -> None:
    """Publish each chapter's run; nothing is written if any of them cannot be.

    replace: also put trials that the run computed anew in the place of published ones.
    """
    root = find_root()
    jobs = [
        execute.plan(name, preset, overrides, root=root, out=out)
        for name in chapters or execute.chapters(root)
    ]
    trials: dict[str, ledger.Trial] = {}
    lines: dict[str, str] = {}
    for job in jobs:
        count = len(lines)
        for old, new in trials_of(job, overrides):
            trials[new.key] = new
            if old is not None:
                lines[new.key] = f"  {verify.moved(old, new)}"
        if len(lines) > count and not replace:
            raise UsageError(
                f"{job.chapter}: {len(lines) - count} of the trials that it shows would replace "
                "published ones; --replace does so"
            )
    added = ledger.publish(trials.values(), root / "results", replace)
    for job in jobs:
        page = root / "book" / "_executed" / f"{job.chapter}.ipynb"
        page.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(job.folder / "notebook.ipynb", page)
        keys = job.done(fresh=True)["keys"].values()
        print(f"{job.chapter}: {preset} run {job.run_id}, {sum(map(len, keys))} trials")
    print(f"{len(added)} trials written to results/, {len(lines)} of them replaced others")
    for line in lines.values():
        print(line)


def trials_of(job: execute.Plan, overrides: dict) -> list[tuple]:
    """What to publish with a run: (what is published or None, what the run has) of each trial.

    Raises UsageError: there is no such run, or a trial that it read is gone.
    """
    options = "".join(f" -p {name}={value}" for name, value in overrides.items())
    mend = f"minilib run {job.chapter} --preset {job.preset}{options}"
    record = job.done(fresh=True)
    if record is None:
        status = (job.record() or {}).get("status", "ok")
        reason = f"no {job.preset} run of this notebook with these parameters;"
        if status != "ok":
            reason = f"the {job.preset} run has status {status}; mend it, then"
        raise UsageError(f"{job.chapter}: {reason} {mend}")
    pairs = []
    for kind, key in ((kind, key) for kind, keys in record["keys"].items() for key in keys):
        tiers = ledger.tiers(kind, key)
        old = tiers.get("published")
        new = tiers.get("fresh" if kind in record.get("fresh", ()) else "local")
        if old is None and new is None:
            raise UsageError(f"{job.chapter}: trial {kind} {key} is gone; {mend} --force")
        if old is None or (new and (new.tier == "fresh" or set(new.arrays) > set(old.arrays))):
            pairs.append((old, new))
    return pairs
