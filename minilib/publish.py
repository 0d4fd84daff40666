"""Publishing: from a finished run to the page that shows it and the records its tables read."""

import json
import shutil
from collections import Counter
from pathlib import Path

from minilib import runner, runs


def publish(
    preset: str, chapters: list[str], overrides: dict, out: Path | None = None, prune: bool = False
) -> int:
    """Copy each chapter's current run into the book; nothing is copied if any of them cannot be."""
    root = runs.find_root()
    jobs = [
        runner.plan(name, preset, overrides, root=root, out=out)
        for name in chapters or runner.chapters(root)
    ]
    for job in jobs:
        if not job.done():
            raise runs.UsageError(why_not(job, overrides))
    for job in jobs:
        page = root / "book" / "_executed" / f"{job.chapter}.ipynb"
        results = root / "results" / job.chapter
        before = published(page, results)
        page.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(job.folder / "notebook.ipynb", page)
        kept = 0
        for folder in sorted(job.folder.parent.iterdir()):
            item = runs.read_record(folder / "run.json")
            if item and item["status"] == "ok" and item.get("code") == job.code:
                runs.write_json(results / f"{item['run_id']}.json", item)
                kept += 1
        for path in sorted(results.glob("*.json")) if prune else []:
            old = runs.read_record(path)
            if old and old["preset"] == preset and old.get("code") != job.code:
                path.unlink()
        print(
            f"{job.chapter}: published {preset} run {job.run_id}; "
            f"{kept} record(s) in results/{job.chapter}/"
        )
        for line in changes(before, job.done()):
            print(f"  {line}")
    return 0


def why_not(job: runner.Plan, overrides: dict) -> str:
    """Why a chapter cannot be published, and the command that would mend it."""
    options = "".join(f" -p {name}={value}" for name, value in overrides.items())
    mend = f"minilib run {job.chapter} --preset {job.preset}{options}"
    here = runs.read_record(job.folder / "run.json")
    if here and here["status"] != "ok":
        return (
            f"{job.chapter}: the {job.preset} run has status {here['status']}; mend it, then {mend}"
        )
    others = [runs.read_record(path) for path in job.folder.parent.glob("*/run.json")]
    if any(item and item["status"] == "ok" and item["params"] == job.params for item in others):
        return f"{job.chapter}: the {job.preset} run is stale (its code has changed since); {mend}"
    return f"{job.chapter}: no {job.preset} run with these parameters; {mend}"


def published(page: Path, results: Path) -> dict | None:
    """The record of the run that the book shows now."""
    try:
        run_id = json.loads(page.read_text(encoding="utf-8"))["metadata"]["minilib"]["run_id"]
    except (OSError, ValueError, KeyError):
        return None
    return runs.read_record(results / f"{run_id}.json")


def changes(before: dict | None, after: dict, most: int = 20) -> list[str]:
    """One line per number that moved between two records, the largest moves first."""
    if not before:
        return ["first publication: nothing to compare with"]
    old, new = numbers(before), numbers(after)
    moved = [(key, old[key], new[key]) for key in new if key in old and old[key] != new[key]]
    moved.sort(key=lambda row: -abs((row[2] or 0.0) - (row[1] or 0.0)))
    lines = [f"{key:60} {shown(a):>10} → {shown(b):>10}" for key, a, b in moved[:most]]
    lines += [f"… and {len(moved) - most} more"] if len(moved) > most else []
    lines += [f"{len(new.keys() - old.keys())} new numbers, {len(old.keys() - new.keys())} gone"]
    return lines if moved or old.keys() != new.keys() else ["no number changed"]


def shown(value: float | None) -> str:
    """A number as the change list shows it; null stands for one that was not finite."""
    return "null" if value is None else f"{value:.4f}"


def numbers(record: dict) -> dict[str, float | None]:
    """Every measured number of a record under a readable key.

    Texts, bools and ints (method, epoch, seed) say what a row is about; floats are what was
    measured. Rows that say the same are told apart by their order. Timings differ every time.
    """
    seen: Counter = Counter()
    found = {}
    for row in record["metrics"]:
        head = " ".join(
            f"{name}={value}" for name, value in row.items() if isinstance(value, (str, int))
        )
        seen[head] += 1
        for name, value in row.items():
            if (value is None or isinstance(value, float)) and not name.endswith("seconds"):
                again = f" #{seen[head]}" if seen[head] > 1 else ""
                found[f"{head}{again} {name}"] = value
    return found
