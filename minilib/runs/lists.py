"""What there is, to be filtered, ranked, compared and exported: chapters, trials, runs."""

import csv
import io
import json
import operator
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import minilib.trials  # noqa: F401  (declares the kinds)
from minilib import ledger, provenance
from minilib.provenance import UsageError
from minilib.runs import execute, storage, verify

COMPARED = {
    "!=": operator.ne, "<=": operator.le, ">=": operator.ge,
    "=": operator.eq, "<": operator.lt, ">": operator.gt,
}  # fmt: skip
CONDITION = re.compile(r"([\w.-]+?)\s*(!=|<=|>=|=|<|>)\s*(.*)")
BOUNDS = (("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"), ("exclusiveMaximum", "<"))


# ---------------------------------------------------------------- chapters


def chapters(root: Path) -> list[dict]:
    """Name, title, number of parameters and presets of each chapter."""
    rows = []
    for name in execute.chapters(root):
        cells = execute.read_notebook(root, name)["cells"]
        titles = re.findall(r"^# +(.+)", "\n".join(cell["source"] for cell in cells[:2]), re.M)
        presets = [path.stem for path in sorted((root / "presets").glob("*.yml"))]
        presets = [one for one in presets if name in execute.load_preset(root, one)]
        count = len(execute.parameters(root, name))
        rows.append({"chapter": name, "title": titles[0] if titles else "", "parameters": count,
                     "presets": ",".join(presets)})  # fmt: skip
    return rows


def parameters(root: Path, chapter: str) -> list[dict]:
    """Name, type, default, what is accepted, and description of each parameter of a chapter."""
    from pydantic import TypeAdapter

    from minilib import settings

    known = execute.parameters(root, chapter)
    has_class = chapter in settings.CHAPTERS
    described = settings.declared(chapter) if has_class else {}
    schema = TypeAdapter(settings.CHAPTERS[chapter]).json_schema() if has_class else {}
    rows = []
    for name, (kind, default) in known.items():
        entry = schema.get("properties", {}).get(name, {})
        accepted = " ".join(f"{sign} {entry[key]:.10g}" for key, sign in BOUNDS if key in entry)
        if kind is str and has_class:
            accepted = _accepted_texts(chapter, name)
        rows.append({"parameter": name, "type": kind.__name__, "default": default,
                     "accepted": accepted,
                     "description": described.get(name, ("",))[-1]})  # fmt: skip
    return rows


def _accepted_texts(chapter: str, name: str) -> str:
    """What a parameter's own refusal says that it accepts."""
    from minilib import settings

    try:
        settings.validate(chapter, {name: "?"})
    except settings.SettingsError as error:
        return str(error).partition("accepted: ")[2]
    return ""


# ---------------------------------------------------------------- conditions


def condition(text: str) -> tuple[str, Callable[[object], bool]]:
    """A name, and whether a value of it is accepted, from a text as `lr=1e-5` or `pacc>=0.9`."""
    match = CONDITION.fullmatch(text)
    if not match:
        raise UsageError(f"expected NAME=VALUE, or another of {' '.join(COMPARED)}, not {text!r}")
    name, sign, wanted = match.groups()

    def accepts(value: object) -> bool:
        try:
            return COMPARED[sign](float(value), float(wanted))
        except (TypeError, ValueError):
            return COMPARED[sign](str(value), wanted) if sign in ("=", "!=") else False

    return name, accepts


def chosen(items: Iterable, values_of: Callable[[object], Mapping], conditions: Iterable[str],
           sort: str | None = None, top: int | None = None) -> list:  # fmt: skip
    """The items whose values meet all conditions; by ``sort``, the highest first; the ``top``.

    Raises:
        UsageError: no item has a value of a name.
    """
    conditions = [condition(text) for text in conditions]
    pairs = [(item, values_of(item)) for item in items]
    known = {name: None for _, values in pairs for name in values}
    for name in (*(name for name, _ in conditions), *filter(None, [sort])):
        if pairs and name not in known:
            raise UsageError(provenance.unknown("column", name, known))
    pairs = [
        (item, values)
        for item, values in pairs
        if all(name in values and accepts(values[name]) for name, accepts in conditions)
    ]
    if sort:
        numbers = (int, float)
        pairs = [pair for pair in pairs if isinstance(pair[1].get(sort), numbers)]
        pairs.sort(key=lambda pair: -pair[1][sort])
    return [item for item, _ in pairs[:top]]


# ---------------------------------------------------------------- trials


def kinds() -> list[dict]:
    """How many trials there are of each kind."""
    rows = []
    for name, kind in sorted(ledger.KINDS.items()):
        if not kind.large:
            trials = ledger.trials_of(name)
            counts = {tier: sum(one.tier == tier for one in trials)
                      for tier in ("published", "local")}  # fmt: skip
            older = sum(not one.current for one in trials)
            rows.append({"kind": name, "version": kind.version, **counts, "older": older})
    return rows


def values_of(one: ledger.Trial) -> dict:
    """A trial's recipe and its last row, which is where a curve ends."""
    recipe = ledger.recipe_of(one)
    head = ledger.columns(recipe) if recipe is not None else one.recipe
    return {**head, **(one.rows[-1] if one.rows else {})}


def trials_where(kind: str, conditions: Iterable[str], sort: str | None, top: int | None) -> list:
    """The trials of a kind that meet some conditions, in the order of their recipes or ranked."""
    every = ledger.trials_of(kind)
    every.sort(key=lambda one: (json.dumps(one.recipe, sort_keys=True), one.key))
    return chosen(every, values_of, conditions, sort, top)


def compared_trials(first: str, second: str) -> dict:
    """Settings in which two trials differ, with both values, and how far their rows lie apart."""
    a, b = ledger.find(first), ledger.find(second)
    if a.kind != b.kind:
        raise UsageError(f"{a.key} is of {a.kind}, {b.key} of {b.kind}; accepted: two of one kind")
    recipes = [ledger.columns(ledger.recipe_of(one) or one.recipe) for one in (a, b)]
    return {"settings": differing(*recipes), "deviations": verify.told(verify.deviations(a, b))}


def differing(a: Mapping, b: Mapping) -> dict[str, list]:
    """Name → both values, where two mappings differ."""
    return {name: [a.get(name), b.get(name)] for name in {**a, **b} if a.get(name) != b.get(name)}


# ---------------------------------------------------------------- runs


def runs_in(root: Path, out: Path | str | None) -> list[dict]:
    """The records of all runs in a folder, in the order of their names."""
    folder = storage.local(out, root)[0]
    records = map(provenance.read_json, sorted(folder.glob("*/*/*/run.json")))
    return [one for one in records if one and execute.is_record(one)]


def run_values(record: Mapping) -> dict:
    """What a run's record is filtered by: its parameters and what became of it."""
    names = ("run_id", "chapter", "preset", "status", "computed", "seconds", "peak_mib", "finished")
    count = sum(map(len, record["keys"].values()))
    return {**record["params"], **{name: record.get(name) for name in names}, "trials": count}


def run_of(records: Iterable[dict], run_id: str) -> dict:
    """The record whose id begins so. Raises UsageError."""
    fitting = [one for one in records if str(one["run_id"]).startswith(run_id)]
    if len(fitting) != 1:
        raise UsageError(f"{len(fitting)} runs have an id that begins with {run_id!r}")
    return fitting[0]


def compared_runs(a: Mapping, b: Mapping) -> dict:
    """Settings in which two runs differ, with both values, and how many trials they share."""
    keys = [{(kind, key) for kind, each in one["keys"].items() for key in each} for one in (a, b)]
    counts = {"shared": len(keys[0] & keys[1]), "first alone": len(keys[0] - keys[1]),
              "second alone": len(keys[1] - keys[0])}  # fmt: skip
    return {"settings": differing(run_values(a), run_values(b)), "trials": counts}


# ---------------------------------------------------------------- output


def as_text(rows: list[dict]) -> str:
    """Rows as a table of aligned columns; long values are cut."""
    if not rows:
        return "(none)"
    lines = [
        list(rows[0]),
        *([provenance.one_line(one, 60) for one in row.values()] for row in rows),
    ]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def as_csv(rows: list[dict]) -> str:
    """Rows as CSV, with a column for every name that any of them has."""
    buffer = io.StringIO()
    names = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.DictWriter(buffer, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue().rstrip("\n")


# ---------------------------------------------------------------- the cache


def clean_cache(dry_run: bool) -> str:
    """Remove the models that trials were made from; they are trained again where one is needed."""
    import filelock

    count, size = 0, 0
    for kind in (one.name for one in ledger.KINDS.values() if one.large):
        for note in sorted((provenance.cache_dir() / kind).glob("*.json")):
            weights = note.with_suffix(".safetensors")
            try:
                with filelock.FileLock(note.with_suffix(".lock"), timeout=0):  # else it is in use
                    count += 1
                    size += sum(path.stat().st_size for path in (note, weights) if path.exists())
                    for path in () if dry_run else (note, weights):
                        path.unlink(missing_ok=True)
            except filelock.Timeout:
                continue
    verb = "would be removed" if dry_run else "removed"
    return f"{count} models, {size / 2**20:.0f} MiB, {verb} from {provenance.cache_dir()}"


# ---------------------------------------------------------------- the shell

BASH = """_minilib() {{
  local words="{verbs}"
  case "${{COMP_WORDS[1]}}" in
{cases}
  esac
  COMPREPLY=($(compgen -W "$words" -- "${{COMP_WORDS[COMP_CWORD]}}"))
}}
complete -o default -F _minilib minilib"""


def completion(shell: str, options: Mapping[str, Iterable[str]]) -> str:
    """A script with which bash or zsh completes commands, options and chapters.

    options: command → its options.
    """
    chapter_names = " ".join(execute.chapters(provenance.find_root()))
    cases = "\n".join(
        f'  {verb}) [ "$COMP_CWORD" -gt 1 ] && words="{" ".join(sorted(names))} {chapter_names}";;'
        for verb, names in options.items()
    )
    script = BASH.format(verbs=" ".join(options), cases=cases)
    return f"autoload -U +X bashcompinit && bashcompinit\n{script}" if shell == "zsh" else script
