"""Publishing: the trials that a finished run read, and the page that shows them."""

import shutil

from minilib import ledger
from minilib.provenance import UsageError, find_root
from minilib.runs import execute, storage, verify


def command(options) -> None:
    """`minilib publish`: each chapter's run; nothing is written if any of them cannot be."""
    if storage.is_url(options.out):
        raise UsageError(f"publish reads a folder, not {options.out}; copy the runs here first")
    root, trials, lines = find_root(), {}, {}
    jobs = [
        execute.plan(name, options.preset, options.params, root=root, out=options.out)
        for name in options.chapter or execute.chapters(root)
    ]
    for job in jobs:
        pairs = trials_of(job, options.params)
        trials |= {new.key: new for _, new in pairs}
        moved = {new.key: f"  {verify.moved(old, new)}" for old, new in pairs if old is not None}
        if moved and not options.replace:
            raise UsageError(
                f"{job.chapter}: {len(moved)} of the trials that it shows would replace "
                "published ones; --replace does so"
            )
        lines |= moved
    added = ledger.publish(trials.values(), root / "results", options.replace)
    for job in jobs:
        page = root / "book" / "_executed" / f"{job.chapter}.ipynb"
        page.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(job.folder / "notebook.ipynb", page)
        keys = job.done(fresh=True)["keys"].values()
        print(f"{job.chapter}: {job.preset} run {job.run_id}, {sum(map(len, keys))} trials")
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
