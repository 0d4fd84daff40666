"""What there is, to be filtered, ranked, compared and exported: chapters, trials, runs."""

import contextlib
import dataclasses
import json
import math
import operator
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import minilib.trials  # noqa: F401  (declares the kinds)
from minilib import ledger, provenance, settings
from minilib.provenance import UsageError
from minilib.runs import execute, storage, verify

COMPARED = {
    "!=": operator.ne, "<=": operator.le, ">=": operator.ge,
    "=": operator.eq, "<": operator.lt, ">": operator.gt,
}  # fmt: skip
CONDITION = re.compile(r"([\w.-]+?)\s*(!=|<=|>=|=|<|>)\s*(.*)")


# ---------------------------------------------------------------- chapters


def chapters(options) -> None:
    """`minilib list`: what each chapter is called and how many parameters it has; those of one."""
    root = provenance.find_root()
    presets = sorted(path.stem for path in (root / "presets").glob("*.yml"))
    if options.chapter:
        execute.read_notebook(root, options.chapter)  # or there is no such chapter
        options.result = settings.described(options.chapter)
    for name in () if options.chapter else execute.chapters(root):
        cells = execute.read_notebook(root, name)["cells"]
        titles = re.findall(r"^# +(.+)", "\n".join(cell["source"] for cell in cells[:2]), re.M)
        options.result.append({
            "chapter": name,
            "title": (titles or [""])[0],
            "parameters": len(execute.parameters(root, name)),
            "presets": ",".join(one for one in presets if name in settings.preset(root, one)),
        })  # fmt: skip
    print(as_text(options.result))


# ---------------------------------------------------------------- trials and runs


@dataclasses.dataclass(frozen=True)
class Item:
    """A trial or a run, to be listed.

    Attributes:
        record: all of it. settings: what two are compared by. brief: how a list shows it.
        rows: what is exported of it; it is chosen and ranked by its settings and the last of them.
        trial: if it is one.
    """

    record: dict
    settings: dict
    brief: dict
    rows: list[dict] = dataclasses.field(default_factory=list)
    trial: ledger.Trial | None = None

    @property
    def values(self) -> dict:
        """What it is chosen and ranked by: its settings, and where its curve ends."""
        return {**self.settings, **(self.rows[-1] if self.rows else {})}


def of_trial(one: ledger.Trial) -> Item:
    """A trial of the ledger, to be listed."""
    state = one.tier if one.current else f"{one.tier}, version {one.version}"
    brief = {
        "trial": verify.title(one),
        "rows": len(one.rows),
        "tier": state,
        "made": one.made[:10],
    }
    record = one.record() | {"tier": one.tier, "current": one.current}
    rows = [{"key": one.key, "tier": one.tier} | row for row in one.table()]
    return Item(record, one.settings, brief, rows, one)


def trials(kind: str) -> list[Item]:
    """The trials of a kind, in the order of their recipes."""
    every = ledger.trials_of(kind)
    every.sort(key=lambda one: (json.dumps(one.recipe, sort_keys=True), one.key))
    return list(map(of_trial, every))


def runs(root: Path, out: Path | str | None) -> list[Item]:
    """The runs of chapters in a folder, in the order of their names."""
    items = []
    for path in sorted(storage.local(out, root)[0].glob("*/*/*/run.json")):
        record = provenance.read_json(path)
        if record and execute.is_record(record):
            count = sum(map(len, record["keys"].values()))
            values = record["params"] | record | {"trials": count}
            values = {n: one for n, one in values.items() if not isinstance(one, (dict, list))}
            names = "run_id chapter preset status trials computed seconds".split()
            items.append(Item(record, values, {n: values.get(n) for n in names}, [values]))
    return items


def run_of(items: Iterable[Item], run_id: str) -> Item:
    """The run whose id begins so. Raises UsageError."""
    fitting = [one for one in items if str(one.record["run_id"]).startswith(run_id)]
    if len(fitting) != 1:
        raise UsageError(f"{len(fitting)} runs have an id that begins with {run_id!r}")
    return fitting[0]


def compared(a: Item, b: Item) -> dict:
    """Settings in which two differ, with both values; of trials, how far their rows lie apart."""
    pairs = {name: [one.settings.get(name) for one in (a, b)] for name in a.settings | b.settings}
    told = {"settings": {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}}
    if a.trial and b.trial:
        if a.trial.kind != b.trial.kind:
            kinds = f"{a.trial.kind} and {b.trial.kind}"
            raise UsageError(f"these are trials of {kinds}; accepted: two of one kind")
        told["deviations"] = verify.told(verify.deviations(a.trial, b.trial))
    return told


def chosen(
    items: list[Item], conditions: Iterable[str], sort: str | None, top: int | None
) -> list[Item]:
    """The items that meet conditions as `lr=1e-5` or `pacc>=0.9`; the highest in ``sort`` first.

    Raises:
        UsageError: no item has a value of a name, or a condition is none.
    """
    known = {name: None for item in items for name in item.values}

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
        if sign[0] in "<>" and not _is_number(wanted):
            raise UsageError(f"{text!r} compares with {wanted!r}; accepted: a number")
        items = [one for one in items if name in one.values
                 and _accepts(one.values[name], sign, wanted)]  # fmt: skip
    if sort and check(sort):
        items = [one for one in items if isinstance(one.values.get(sort), (int, float))]
        items.sort(key=lambda one: -one.values[sort])
    return items[:top]


def _is_number(text: str) -> bool:
    with contextlib.suppress(ValueError):
        return not math.isnan(float(text))
    return False


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
            every = ledger.trials_of(name)
            tiers = Counter(one.tier for one in every)
            counts = {tier: tiers[tier] for tier in ("published", "local")}
            counts["older"] = sum(not one.current for one in every)
            rows.append({"kind": name, "version": kind.version, **counts})
    return rows


def items(options) -> None:
    """`minilib trials` and `minilib runs`: list, rank and export them; show one; compare two."""
    verb, *words = options.words or ["list"]
    of_trials = options.verb == "trials"
    every_run = [] if of_trials else runs(provenance.find_root(), options.out)

    def item_of(key: str) -> Item:
        return of_trial(ledger.find(key)) if of_trials else run_of(every_run, key)

    if verb == "show" and len(words) == 1:
        record = item_of(words[0]).record
        again = {"make_again": f"minilib verify {record['key']}"} if of_trials else {}
        options.result = [record | again]
        print(json.dumps(options.result[0], indent=1, ensure_ascii=False))
    elif verb == "diff" and len(words) == 2:
        told = compared(*map(item_of, words))
        options.result = [told]
        for name, (first, second) in told["settings"].items():
            print(f"{name}: {first!r} → {second!r}")
        print(told.get("deviations", ""))
    elif of_trials and not options.words:
        options.result = kinds()
        print(as_csv(options.result) if options.csv else as_text(options.result))
    elif verb == "list" and (words or not of_trials):
        every = trials(words.pop(0)) if of_trials else every_run
        ranked = chosen(every, words, options.sort, options.top)
        options.result = [one.record for one in ranked]
        rows = [row for one in ranked for row in one.rows]
        brief = [one.brief | ({by: f"{one.values[by]:.6g}"} if (by := options.sort) else {})
                 for one in ranked]  # fmt: skip
        print(as_csv(rows) if options.csv else as_text(brief, 200))
    else:
        accepted = "list KIND, show KEY" if of_trials else "list, show KEY"
        text = " ".join(options.words)
        raise UsageError(f"{options.verb} takes {accepted} or diff KEY KEY, not {text!r}")


# ---------------------------------------------------------------- claims


def claims(options) -> None:
    """`minilib claims`: a line per claim, with its corrected p-value, and a count.

    What failed is no error.
    """
    from minilib.book import claims as book_claims

    try:
        verdicts = book_claims.verdicts(provenance.find_root(), options.chapter)
    except (OSError, book_claims.ClaimError) as error:
        raise UsageError(f"the ledger cannot be read: {error}") from None
    if not verdicts:
        known = sorted({claim.chapter for claim in book_claims.read(provenance.find_root())})
        raise UsageError(f"no claim of {options.chapter!r}; chapters are {', '.join(known)}")
    options.result = [
        {"id": claim.id, "chapter": claim.chapter, "claim": claim.claim, "verdict": verdict.verdict,
         "shown": verdict.shown, "scale": verdict.scale, "missing": verdict.missing}
        for claim, verdict in verdicts
    ]  # fmt: skip
    for claim, verdict in verdicts:
        holm = "" if verdict.holm is None else f"{verdict.holm:.3f}"
        said = verdict.shown or verdict.missing
        print(f"{verdict.verdict:10}{holm:7}{claim.id:23}{said}")
    words = [verdict.verdict for _, verdict in verdicts]
    print(", ".join(f"{words.count(word)} {word}" for word in book_claims.VERDICTS))
    print(book_claims.told(verdicts))


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


def clean(options) -> None:
    """`minilib clean --cache`: remove models of which trials were made; they are made again."""
    import filelock

    count, size = 0, 0
    for kind in (one.name for one in ledger.KINDS.values() if one.large):
        for note in sorted((provenance.cache_dir() / kind).glob("*.json")):
            files = [path for path in (note, note.with_suffix(".safetensors")) if path.exists()]
            with contextlib.suppress(filelock.Timeout):  # it is in use
                with filelock.FileLock(note.with_suffix(".lock"), timeout=0):
                    count, size = count + 1, size + sum(path.stat().st_size for path in files)
                    for path in () if options.dry_run else files:
                        path.unlink(missing_ok=True)
    verb = "would be removed" if options.dry_run else "removed"
    print(f"{count} models, {size / 2**20:.0f} MiB, {verb} from {provenance.cache_dir()}")


# ---------------------------------------------------------------- the shell

BASH = """_minilib() {{
  local words="{verbs}"
  case "${{COMP_WORDS[1]}}" in
{cases}
  esac
  COMPREPLY=($(compgen -W "$words" -- "${{COMP_WORDS[COMP_CWORD]}}"))
}}
complete -o default -F _minilib minilib"""


def completion(options) -> None:
    """`minilib completion`: a script with which bash or zsh completes commands, options, chapters.

    To be read by the shell, as in `source <(minilib completion bash)`.
    """
    chapter_names = " ".join(execute.chapters(provenance.find_root()))
    cases = []
    for verb, command in options.verbs.items():
        names = sorted(name for name in command._option_string_actions if name.startswith("--"))
        words = " ".join([*names, chapter_names])
        cases.append(f'  {verb}) [ "$COMP_CWORD" -gt 1 ] && words="{words}";;')
    if options.shell == "zsh":
        print("autoload -U +X bashcompinit && bashcompinit")
    print(BASH.format(verbs=" ".join(options.verbs), cases="\n".join(cases)))
