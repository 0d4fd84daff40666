"""What there is, to be filtered, ranked, compared and exported: chapters and trials."""

import contextlib
import json
import operator
import re
from collections.abc import Iterable
from pathlib import Path

import minilib.trials  # noqa: F401  (declares the kinds)
from minilib import ledger, provenance, settings
from minilib.provenance import UsageError
from minilib.runs import execute, verify

COMPARED = {
    "!=": operator.ne, "<=": operator.le, ">=": operator.ge,
    "=": operator.eq, "<": operator.lt, ">": operator.gt,
}  # fmt: skip
CONDITION = re.compile(r"([\w.-]+?)\s*(!=|<=|>=|=|<|>)\s*(.*)")


# ---------------------------------------------------------------- chapters


def chapters(root: Path) -> list[dict]:
    """Name, title, number of parameters and presets of each chapter."""
    presets = sorted(path.stem for path in (root / "presets").glob("*.yml"))
    rows = []
    for name in execute.chapters(root):
        cells = execute.read_notebook(root, name)["cells"]
        titles = re.findall(r"^# +(.+)", "\n".join(cell["source"] for cell in cells[:2]), re.M)
        of_it = ",".join(one for one in presets if name in settings.preset(root, one))
        count = len(execute.parameters(root, name))
        rows.append(
            {"chapter": name, "title": (titles or [""])[0], "parameters": count, "presets": of_it}
        )
    return rows


# ---------------------------------------------------------------- trials


def trials(kind: str) -> list[ledger.Trial]:
    """The trials of a kind, in the order of their recipes."""
    return sorted(
        ledger.trials_of(kind), key=lambda one: (json.dumps(one.recipe, sort_keys=True), one.key)
    )


def brief(one: ledger.Trial) -> dict:
    """How a list shows a trial."""
    state = one.tier if one.current else f"{one.tier}, version {one.version}"
    return {"trial": verify.title(one), "rows": len(one.rows), "tier": state, "made": one.made[:10]}


def record(one: ledger.Trial) -> dict:
    """All that is written down of a trial, and where."""
    return one.record() | {"tier": one.tier, "current": one.current}


def exported(one: ledger.Trial) -> list[dict]:
    """The rows of a trial with its settings, as CSV has them."""
    return [{"key": one.key, "tier": one.tier} | row for row in one.table()]


def values(one: ledger.Trial) -> dict:
    """What a trial is chosen and ranked by: its settings, and where its curve ends."""
    return one.settings | dict(*exported(one)[-1:])


def compared(a: ledger.Trial, b: ledger.Trial) -> dict:
    """Settings in which two trials differ, with both values, and how far their rows lie apart."""
    if a.kind != b.kind:
        raise UsageError(f"these are trials of {a.kind} and {b.kind}; accepted: two of one kind")
    pairs = {name: [one.settings.get(name) for one in (a, b)] for name in a.settings | b.settings}
    differing = {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
    return {"settings": differing, "deviations": verify.told(verify.deviations(a, b))}


def chosen(
    trials: Iterable[ledger.Trial], conditions: Iterable[str], sort: str | None = None,
    top: int | None = None,
) -> list[ledger.Trial]:  # fmt: skip
    """The trials that meet conditions as `lr=1e-5` or `pacc>=0.9`; the highest in ``sort`` first.

    Raises:
        UsageError: no trial has a value of a name, or a condition is none.
    """
    items = [(one, values(one)) for one in trials]
    known = {name: None for _, each in items for name in each}

    def check(name: str) -> str:
        if items and name not in known:
            raise UsageError(provenance.unknown("column", name, known))
        return name

    for text in conditions:
        if not (match := CONDITION.fullmatch(text)):
            signs = " ".join(COMPARED)
            raise UsageError(f"expected NAME=VALUE, or another of {signs}, not {text!r}")
        name, sign, wanted = match.groups()
        check(name)
        items = [item for item in items if name in item[1]
                 and _accepts(item[1][name], sign, wanted)]  # fmt: skip
    if sort and check(sort):
        items = [item for item in items if isinstance(item[1].get(sort), (int, float))]
        items.sort(key=lambda item: -item[1][sort])
    return [one for one, _ in items[:top]]


def _accepts(value: object, sign: str, wanted: str) -> bool:
    try:
        return COMPARED[sign](float(value), float(wanted))
    except (TypeError, ValueError):
        return sign in ("=", "!=") and COMPARED[sign](str(value), wanted)


def kinds() -> list[dict]:
    """How many trials there are of each kind."""
    rows = []
    for name, kind in sorted(ledger.KINDS.items()):
        if not kind.large:
            tiers = [one.tier for one in ledger.trials_of(name)]
            older = sum(not one.current for one in ledger.trials_of(name))
            rows.append({"kind": name, "version": kind.version,
                         "published": tiers.count("published"), "local": tiers.count("local"),
                         "older": older})  # fmt: skip
    return rows


# ---------------------------------------------------------------- output


def as_text(rows: list[dict], most: int = 60) -> str:
    """Rows as a table of aligned columns; long values are cut."""
    if not rows:
        return "(none)"
    cells = [[provenance.one_line(one, most) for one in row.values()] for row in rows]
    lines = [list(rows[0]), *cells]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def as_csv(rows: list[dict]) -> str:
    """Rows as CSV, with a column for every name that any of them has."""
    import pandas as pd

    return pd.DataFrame(rows, dtype=object).to_csv(index=False).rstrip("\n")


# ---------------------------------------------------------------- the cache


def clean_cache(dry_run: bool) -> str:
    """Remove the models that trials were made from; they are trained again where one is needed."""
    import filelock

    count, size = 0, 0
    for kind in (one.name for one in ledger.KINDS.values() if one.large):
        for note in sorted((provenance.cache_dir() / kind).glob("*.json")):
            files = [path for path in (note, note.with_suffix(".safetensors")) if path.exists()]
            with contextlib.suppress(filelock.Timeout):  # it is in use
                with filelock.FileLock(note.with_suffix(".lock"), timeout=0):
                    count, size = count + 1, size + sum(path.stat().st_size for path in files)
                    for path in () if dry_run else files:
                        path.unlink(missing_ok=True)
    verb = "would be removed" if dry_run else "removed"
    return f"{count} models, {size / 2**20:.0f} MiB, {verb} from {provenance.cache_dir()}"
