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
) -> int:
    """Publish each chapter's run; nothing is written if any of them cannot be.

    replace: also put trials that the run computed anew in the place of published ones.
    """
    root = find_root()
    jobs = [
        execute.plan(name, preset, overrides, root=root, out=out)
        for name in chapters or execute.chapters(root)
    ]
    by_key: dict[str, ledger.Trial] = {}
    lines: dict[str, str] = {}
    for job in jobs:
        additions, pairs = trials_of(job, overrides)
        if pairs and not replace:
            raise UsageError(
                f"{job.chapter}: {len(pairs)} of the trials that it shows would replace published "
                "ones; --replace does so"
            )
        by_key |= {trial.key: trial for trial in additions}
        for old, trial in pairs:
            by_key[trial.key] = trial
            lines[trial.key] = (
                f"  {verify.title(trial)}: {verify.told(verify.deviations(old, trial))}"
            )
    trials = ledger.publish(by_key.values(), root / "results", replace)
    for job in jobs:
        page = root / "book" / "_executed" / f"{job.chapter}.ipynb"
        page.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(job.folder / "notebook.ipynb", page)
        keys = job.done(fresh=True)["keys"].values()
        print(f"{job.chapter}: {preset} run {job.run_id}, {sum(map(len, keys))} trials")
    print(f"{len(trials)} trials written to results/, {len(lines)} of them replaced others")
    print(*lines.values(), sep="\n", end="\n" if lines else "")
    return 0


def trials_of(job: execute.Plan, overrides: dict) -> tuple[list, list]:
    """Trials to publish with a run: those that are not published, and (old, new) of replacements.

    Raises UsageError: there is no such run, or a trial that it read is gone.
    """
    record = job.done(fresh=True)
    if record is None:
        raise UsageError(why_not(job, overrides))
    additions, pairs = [], []
    for kind, keys in record["keys"].items():
        for key in keys:
            tiers = ledger.tiers(kind, key)
            published_trial = tiers.get("published")
            run_trial = tiers.get("fresh" if kind in record.get("fresh", ()) else "local")
            if published_trial is None and run_trial is None:
                raise UsageError(
                    f"{job.chapter}: trial {kind} {key} is gone; {_mend(job, overrides)} --force"
                )
            if published_trial is None:
                additions.append(run_trial)
            elif run_trial and (
                run_trial.tier == "fresh" or set(run_trial.arrays) > set(published_trial.arrays)
            ):
                pairs.append((published_trial, run_trial))
    return additions, pairs


def why_not(job: execute.Plan, overrides: dict) -> str:
    """Why a chapter cannot be published, and the command that would mend it."""
    record = job.record()
    if record and record["status"] != "ok":
        reason = f"the {job.preset} run has status {record['status']}; mend it, then"
    else:
        reason = f"no {job.preset} run of this notebook with these parameters;"
    return f"{job.chapter}: {reason} {_mend(job, overrides)}"


def _mend(job: execute.Plan, overrides: dict) -> str:
    options = "".join(f" -p {name}={value}" for name, value in overrides.items())
    return f"minilib run {job.chapter} --preset {job.preset}{options}"
