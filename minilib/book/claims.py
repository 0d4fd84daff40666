"""The claims ledger: what the papers say, decided by published trials.

`book/claims.yml` gives each claim an expression over numbers that trials measured. Its verdict is
*holds* or *fails* when the interval of the difference lies on one side, *undecided* when it does
not (or when there are fewer than three seeds), *not run* when a number is missing. Expressions are
read by `ast` and walked here: numbers, texts and the calls below, nothing else. The site is built
where neither NumPy nor pandas nor torch is installed.

Calls select by keyword, over a chapter's parameters and the entries of its rows alike. A parameter
that is not named has the value that the preset gives it; of a list of methods, attacks or the like
every name counts. Each call gives one number per seed:

* `at(metric, …)`: the metric; at the last epoch unless `epoch=` says otherwise;
* `change(metric, first, last, …)`: from one epoch to a later one;
* `highest(metric, over, values, …)`, `lowest(…)`, `mean(…)`, `spread(…)`: over several values of a
  parameter or row entry, given as a text with commas; `spread` is the highest less the lowest;
* `abs(x)`.

`+ - * /`, comparisons, `and`, `or` and `not` combine them; seeds are paired. Only published trials
of today's versions count.
"""

import ast
import dataclasses
import functools
import inspect
import math
import operator
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from minilib import chapters, ledger, settings
from minilib.book import stats
from minilib.names import label
from minilib.provenance import UsageError, one_line, read_yaml, shown

FILE = Path("book", "claims.yml")
PRESETS = ("paper", "small")  # the largest scale that has the numbers decides
FEW = {1: "one seed", 2: "two seeds"}  # with which nothing is decided
LEVEL = 0.05  # of a p-value that is corrected for all claims
VERDICTS = ("holds", "fails", "undecided", "empty", "not run")
LONGEST, DEEPEST = 2000, 20  # characters of an expression, levels of it
LARGEST = 1e15  # of the numbers in it


class ClaimError(ValueError):
    """A claim that cannot be read: what was found, and what is accepted."""


class Missing(Exception):
    """A number that no published trial has; says which."""


@dataclasses.dataclass(frozen=True)
class Claim:
    """One entry of the ledger."""

    id: str
    paper: str
    chapter: str
    claim: str
    where: str
    test: str
    finding: str = ""
    void: str = ""  # where this holds in every seed, the runs changed nothing: the verdict is empty
    figure: str = ""  # name of the chapter's figure or table that shows it


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What the trials say of a claim, and on what that rests.

    Attributes:
        verdict: one of `VERDICTS`.
        shown: the two sides of each comparison, as text.
        scale: preset, model, seeds and number of the trials that were read; empty if not run.
        missing: what is missing.
        trials: their keys.
        chance: how often chance alone would show as much, one claim alone (`stats.chance`);
            None where nothing was decided. holm: the same, corrected for all claims of the ledger.
    """

    verdict: str
    shown: str = ""
    scale: str = ""
    missing: str = ""
    trials: frozenset[str] = frozenset()
    chance: float | None = None
    holm: float | None = None


def read(root: Path) -> list[Claim]:
    """All claims of the ledger. Raises ClaimError for what cannot be read."""
    try:
        entries = read_yaml(root / FILE, list)
    except UsageError as error:
        raise ClaimError(str(error)) from None
    if not entries:
        raise ClaimError(f"{FILE.name} is empty; accepted: a list of claims")
    claims: dict[str, Claim] = {}
    for number, entry in enumerate(entries, start=1):
        claim = _claim(entry, number)
        if claim.id in claims:
            raise ClaimError(f"{claim.id} stands twice")
        claims[claim.id] = claim
    return list(claims.values())


def _claim(entry, number: int) -> Claim:
    """A claim from its entry in the ledger."""
    if not isinstance(entry, dict):
        raise ClaimError(f"claim {number} is {_kind(entry)}; accepted: a mapping of entries")
    name_of = one_line(str(entry.get("id", f"claim {number}")), 60)
    fields = dataclasses.fields(Claim)
    known = [field.name for field in fields]
    for name, text in entry.items():
        if name not in known:
            line = f"{name_of}: unknown entry {shown(name)}; known are {', '.join(known)}"
            raise ClaimError(line)
        if isinstance(text, (dict, list)) or text is None:
            raise ClaimError(f"{name_of}: {name} is {_kind(text)}; accepted: a text")
    absent = [f.name for f in fields if f.default is dataclasses.MISSING and f.name not in entry]
    if absent:
        raise ClaimError(f"{name_of}: it lacks {', '.join(absent)}")
    claim = Claim(**{name: " ".join(str(text).split()) for name, text in entry.items()})
    if claim.chapter not in settings.CHAPTERS:
        known = ", ".join(settings.CHAPTERS)
        raise ClaimError(f"{name_of}: chapter is {shown(claim.chapter)}; accepted: {known}")
    check(claim)
    if claim.void:
        check(dataclasses.replace(claim, test=claim.void))
    return claim


def _kind(value) -> str:
    return "empty" if value is None or value == [] else f"a {type(value).__name__}"


@functools.cache
def preset_of(root: Path, chapter: str, preset: str) -> dict:
    """Parameters of a chapter at a preset."""
    given = read_yaml(root / "presets" / f"{preset}.yml").get(chapter) or {}
    return dataclasses.asdict(settings.validate(chapter, given))


def scales(root: Path, chapter: str) -> dict[str, dict]:
    """Preset → parameters, the largest first; without one that is a smaller one in all but name."""
    by_preset: dict[str, dict] = {}
    for preset in reversed(PRESETS):
        params = preset_of(root, chapter, preset)
        if params not in by_preset.values():
            by_preset[preset] = params
    return dict(reversed(by_preset.items()))


# ---------------------------------------------------------------- numbers per seed


def published_state() -> tuple:
    """What tells whether the published trials are still those that were read."""
    folder = ledger.published_folder()
    paths = sorted(folder.glob("*.jsonl")) if folder else []
    stats_of = ((path.name, path.stat()) for path in paths)
    return folder, tuple((name, stat.st_mtime_ns, stat.st_size) for name, stat in stats_of)


@functools.lru_cache(maxsize=4096)
def published_rows(chapter: str, params: tuple[tuple[str, Any], ...], state: tuple) -> dict:
    """seed → rows of a chapter at these parameters, whatever its lists of names leave out.

    Args:
        params: all parameters and their values. state: of ``published_state``.
    """
    if chapter not in chapters.CHAPTERS:
        return {}
    module = chapters.chapter(chapter)
    cfg = settings.widest(settings.validate(chapter, dict(params)))
    rows = {}
    with ledger.published_only():
        plan = getattr(module, "any_run", module.trials)
        kinds = frozenset(ledger.kind_of(one).name for one in plan(cfg))
        for seed in _seeds(kinds, state):
            seed_cfg = dataclasses.replace(cfg, seed=seed)
            trials = ledger.available(plan(seed_cfg))
            trials = ledger.Results(one for one in trials if one.current)
            if trials:
                plans = "cfg" in inspect.signature(module.rows).parameters
                rows[seed] = module.rows(trials, seed_cfg) if plans else module.rows(trials)
    return rows


@functools.lru_cache(maxsize=64)
def _seeds(kinds: frozenset[str], _state: tuple) -> list[int]:
    return sorted(ledger.known_seeds(kinds))


def _rows(chapter: str, params: tuple, state: tuple, one_seed: bool) -> dict[int, list[dict]]:
    """``published_rows``, of all seeds or of that among the parameters alone."""
    by_seed = published_rows(chapter, params, state)
    if not one_seed:
        return by_seed
    return {seed: rows for seed, rows in by_seed.items() if seed == dict(params)["seed"]}


@functools.lru_cache(maxsize=65536)
def _at(
    chapter: str, params: tuple, state: tuple, metric: str, row: tuple, one_seed: bool
) -> tuple[dict[int, float], frozenset[str]]:
    """seed → the metric in the last row that has these entries, and the keys of the trials."""
    by_seed: dict[int, float] = {}
    keys: set[str] = set()
    for seed, rows in _rows(chapter, params, state, one_seed).items():
        last_row = _last(rows, metric, dict(row))
        # A trial that no seed enters is found at each of them, and counts once.
        if last_row is not None and last_row["key"] not in keys:
            keys.add(last_row["key"])
            by_seed[seed] = float(last_row[metric])
    return by_seed, frozenset(keys)


class Numbers:
    """The numbers of one chapter at one preset that a claim's calls ask for.

    Attributes:
        used: keys of the trials that a number was read from.
    """

    def __init__(self, chapter: str, params: Mapping, preset: str):
        self.chapter, self.params, self.preset = chapter, params, preset
        self.state = published_state()
        self.used: set[str] = set()
        self.seeds: set[int] = set()
        self.models: set[str] = set()

    def rows(self, **named) -> dict[int, list[dict]]:
        """seed → rows at the preset's parameters, with these in place of its own."""
        return _rows(self.chapter, self._with(named), self.state, "seed" in named)

    def _with(self, named: Mapping) -> tuple:
        """All parameters and their values, these in place of the preset's."""
        params = self.params | {n: _like(self.params[n], value) for n, value in named.items()}
        return tuple(params.items())

    def at(self, metric: str, **where) -> dict[int, float]:
        """seed → the metric."""
        named = {name: value for name, value in where.items() if name in self.params}
        row = tuple((name, value) for name, value in where.items() if name not in self.params)
        by_seed, keys = _at(
            self.chapter, self._with(named), self.state, metric, row, "seed" in named
        )
        if not by_seed:
            said = ", ".join(
                label(value) if isinstance(value, str) else f"{label(name)} = {value}"
                for name, value in where.items()
            )
            raise Missing(f"{label(metric)} of {said or 'the chapter as it stands'}")
        self.used |= keys
        self.seeds |= by_seed.keys()
        self.models.add(str({**self.params, **named}.get("model", "")))
        return dict(by_seed)

    def change(self, metric: str, first: int, last: int, **where) -> dict[int, float]:
        """seed → the metric at epoch `last` less the metric at epoch `first`."""
        return combine(
            operator.sub,
            self.at(metric, epoch=last, **where),
            self.at(metric, epoch=first, **where),
        )

    def over(self, choose: Callable, metric: str, over: str, values: str, **where) -> dict:
        """seed → what `choose` makes of the metric's values over several settings."""
        samples = [self.at(metric, **where, **{over: typed(text)}) for text in values.split(",")]
        seeds = set.intersection(*map(set, samples))
        if not seeds:
            raise Missing(f"{metric} over {over} in {values} for one seed")
        return {seed: choose([sample[seed] for sample in samples]) for seed in sorted(seeds)}

    def calls(self) -> dict[str, Callable]:
        """Name in an expression → function."""
        choices = {
            "highest": max,
            "lowest": min,
            "mean": statistics.fmean,
            "spread": lambda values: max(values) - min(values),
        }
        functions = {name: functools.partial(self.over, choose) for name, choose in choices.items()}
        return {"at": self.at, "change": self.change, **functions, "abs": _absolute}

    def scale(self) -> str:
        """What the numbers come from, in words."""
        if not self.used:
            return ""
        seeds = f"seed{'s' * (len(self.seeds) > 1)} {', '.join(map(str, sorted(self.seeds)))}"
        trials = f"{len(self.used)} trial{'s' * (len(self.used) > 1)}"
        return ", ".join([self.preset, *sorted(self.models - {""}), seeds, trials])


@functools.lru_cache(maxsize=4096)
def typed(text: str) -> float | str:
    """A number if the text is one."""
    try:
        return float(text)
    except ValueError:
        return text.strip()


def _same(found, wanted) -> bool:
    """Whether two values are the same however they are written: 1, 1.0 and "1"."""
    return found == wanted or typed(str(found)) == typed(str(wanted))


def _like(known, value):
    """A value as a parameter of this kind has it: a list of one number is a text."""
    if isinstance(known, str):
        return value if isinstance(value, str) else f"{value:g}"
    return typed(value) if isinstance(value, str) else value


def _last(rows: list[dict], metric: str, row: Mapping) -> dict | None:
    """The last of the rows that match and have the metric."""
    for one in reversed(rows):
        if one.get(metric) is not None and all(_same(one.get(k), v) for k, v in row.items()):
            return one
    return None


def _absolute(value):
    return (
        {seed: abs(item) for seed, item in value.items()} if isinstance(value, dict) else abs(value)
    )


def combine(operation: Callable, left, right):
    """Apply an operation to numbers per seed, for the seeds that both have, or to plain numbers."""
    if not isinstance(left, dict) and not isinstance(right, dict):
        return operation(left, right)
    if isinstance(left, dict) and isinstance(right, dict):
        seeds = sorted(left.keys() & right.keys())
        if not seeds:
            raise Missing("both sides for one seed")
    else:
        seeds = sorted(left if isinstance(left, dict) else right)
    take = lambda side, seed: side[seed] if isinstance(side, dict) else side  # noqa: E731
    return {seed: operation(take(left, seed), take(right, seed)) for seed in seeds}


# ---------------------------------------------------------------- expressions


def _quotient(left: float, right: float) -> float:
    """A quotient of measured numbers; where there is none, the claim has not been run."""
    value = left / right if right else math.inf
    if not math.isfinite(value):
        raise Missing("a quotient whose divisor is not 0")
    return value


ARITHMETIC = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: _quotient,
}
CALLS = tuple(Numbers("", {}, "").calls())


def check(claim: Claim) -> ast.expr:
    """Parse a claim's expression and refuse all that is not of the language.

    A test is a comparison by < or >, or tests joined by ``and``, ``or`` and ``not``. What is
    compared is a number, a call of CALLS with numbers and texts, or arithmetic over those.
    """
    try:
        if len(claim.test) > LONGEST:
            raise ValueError(f"it has {len(claim.test)} characters; accepted: up to {LONGEST}")
        tree = ast.parse(claim.test.strip(), mode="eval").body
        if _levels(tree) > DEEPEST:
            raise ValueError(f"it is nested too deeply; accepted: up to {DEEPEST} levels")
        _check_test(tree)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        reason = str(error) if type(error) is ValueError else "it is not an expression"
        raise ClaimError(one_line(f"{claim.id}: {shown(claim.test)}: {reason}")) from None
    return tree


def check_number(name: str, text: str) -> ast.expr:
    """Parse an expression that is a number, as one side of a test is.

    Args:
        name: of what holds it, for the error.

    Raises:
        ClaimError: it is of no such form.
    """
    try:
        tree = ast.parse(text.strip(), mode="eval").body
        _check_number(tree)
    except (SyntaxError, ValueError) as error:
        raise ClaimError(one_line(f"{name}: {text!r}: {error}")) from None
    return tree


def _levels(tree: ast.expr) -> int:
    """How deep an expression is; counted without a call for each level."""
    levels, below = 0, [tree]
    while below:
        levels += 1
        below = [child for node in below for child in ast.iter_child_nodes(node)]
    return levels


def _check_test(node: ast.expr) -> None:
    if isinstance(node, ast.BoolOp):
        for item in node.values:
            _check_test(item)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        _check_test(node.operand)
    elif isinstance(node, ast.Compare):
        if len(node.ops) > 1:
            raise ValueError("one comparison at a time, joined by `and`")
        if not isinstance(node.ops[0], (ast.Lt, ast.Gt)):
            raise ValueError("comparisons are < and >")
        for side in (node.left, node.comparators[0]):
            _check_number(side)
    else:
        raise ValueError(f"{_shown(node)} compares nothing")


def _check_number(node: ast.expr) -> None:
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        _check_number(node.operand)
    elif isinstance(node, ast.BinOp) and type(node.op) in ARITHMETIC:
        for side in (node.left, node.right):
            _check_number(side)
        if isinstance(node.op, ast.Div) and not _calls_anything(node.right):
            _check_divisor(node.right)
    elif isinstance(node, ast.Call):
        if not isinstance(node.func, ast.Name) or node.func.id not in CALLS:
            raise ValueError(f"{_shown(node.func)} is unknown; calls are {', '.join(CALLS)}")
        if any(item.arg is None for item in node.keywords):
            raise ValueError("** is not accepted")
        for item in (*node.args, *(item.value for item in node.keywords)):
            if not (isinstance(item, ast.Constant) and isinstance(item.value, str)):
                _check_number(item)
    elif not (isinstance(node, ast.Constant) and type(node.value) in (int, float)):
        raise ValueError(f"{_shown(node)} is no number; texts are arguments, in quotation marks")
    elif not abs(node.value) < LARGEST:
        raise ValueError(f"{_shown(node)} is too large; accepted: numbers below {LARGEST:g}")


def _calls_anything(node: ast.expr) -> bool:
    return any(isinstance(item, ast.Call) for item in ast.walk(node))


def _check_divisor(node: ast.expr) -> None:
    try:
        divisor = value(node, {})
    except Missing:
        divisor = 0
    if divisor == 0:
        raise ValueError("it divides by 0")


def _shown(node: ast.expr) -> str:
    return one_line(ast.unparse(node), 60)


def value(node: ast.expr, calls: dict[str, Callable]):
    """The numbers per seed, or the plain number or text, that an operand stands for."""
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.UnaryOp):
        return combine(operator.mul, value(node.operand, calls), -1)
    if isinstance(node, ast.BinOp):
        sides = value(node.left, calls), value(node.right, calls)
        return combine(ARITHMETIC[type(node.op)], *sides)
    arguments = [value(item, calls) for item in node.args]
    keywords = {item.arg: value(item.value, calls) for item in node.keywords}
    return calls[node.func.id](*arguments, **keywords)


def decide(node: ast.expr, calls: dict[str, Callable], said: list[str], missing: list[str]) -> str:
    """The verdict on an expression; what was compared or missing is added to the lists."""
    if isinstance(node, ast.BoolOp):
        words = [decide(item, calls, said, missing) for item in node.values]
        first, last = ("fails", "holds") if isinstance(node.op, ast.And) else ("holds", "fails")
        return next((word for word in (first, "not run", "undecided") if word in words), last)
    if isinstance(node, ast.UnaryOp):
        word = decide(node.operand, calls, said, missing)
        return {"holds": "fails", "fails": "holds"}.get(word, word)
    try:
        left, right = value(node.left, calls), value(node.comparators[0], calls)
        is_greater = isinstance(node.ops[0], ast.Gt)
        gap = (
            combine(operator.sub, left, right) if is_greater else combine(operator.sub, right, left)
        )
    except Missing as error:
        missing.append(str(error))
        return "not run"
    said.append(f"{text(left)} {'>' if is_greater else '<'} {text(right)}")
    values = list(gap.values()) if isinstance(gap, dict) else [gap]
    low, high = stats.interval(values)
    if len(values) in FEW:
        said[-1] += f" ({FEW[len(values)]})"
        return "undecided"
    return "holds" if low > 0 else "fails" if high < 0 else "undecided"


def chance(node: ast.expr, calls: dict[str, Callable], word: str) -> float:
    """How often chance alone would decide a test so, or more clearly, if there were no difference.

    Of tests that must all be so the least certain one counts; of tests of which one suffices the
    most certain one, times their number.

    Args:
        word: the verdict, ``holds`` or ``fails``.
    """
    if isinstance(node, ast.UnaryOp):
        return chance(node.operand, calls, {"holds": "fails", "fails": "holds"}[word])
    if isinstance(node, ast.BoolOp):
        words = [decide(item, calls, [], []) for item in node.values]
        chances = [
            chance(item, calls, word)
            for item, own in zip(node.values, words, strict=True)
            if own == word
        ]
        must_all = isinstance(node.op, ast.And) == (word == "holds")
        return max(chances) if must_all else min(1.0, len(node.values) * min(chances))
    sides = value(node.left, calls), value(node.comparators[0], calls)
    gap = combine(operator.sub, *sides)
    return stats.chance(gap.values() if isinstance(gap, dict) else [gap])


def in_every_seed(node: ast.expr, calls: dict[str, Callable]) -> bool:
    """Whether a comparison, or each that ``and`` joins, is true in every seed that was run."""
    if isinstance(node, ast.BoolOp) and isinstance(node.op, ast.And):
        return all(in_every_seed(item, calls) for item in node.values)
    if not isinstance(node, ast.Compare):
        raise ValueError("accepted: comparisons, joined by `and`")
    try:
        left, right = value(node.left, calls), value(node.comparators[0], calls)
    except Missing:
        return False
    gap = combine(operator.sub, left, right)
    gaps = list(gap.values()) if isinstance(gap, dict) else [gap]
    return all(one > 0 if isinstance(node.ops[0], ast.Gt) else one < 0 for one in gaps)


def text(side) -> str:
    """One side of a comparison for reading."""
    if isinstance(side, dict):
        return stats.text(stats.summary(side.values(), level=None), count=False)
    return f"{side:g}"


def evaluate(claim: Claim, root: Path, read_numbers: Callable = Numbers) -> Verdict:
    """Decide a claim from published trials, at the largest scale that has the numbers.

    Args:
        read_numbers: chapter, parameters and preset → ``Numbers``.
    """
    tree = check(claim)
    fallback = Verdict("not run", missing="no trial of this chapter is published")
    for preset, params in scales(root, claim.chapter).items():
        numbers = read_numbers(claim.chapter, params, preset)
        said, missing = [], []
        try:
            word = decide(tree, numbers.calls(), said, missing)
            if word != "not run" and claim.void:
                void = check(dataclasses.replace(claim, test=claim.void))
                word = "empty" if in_every_seed(void, numbers.calls()) else word
        except (ArithmeticError, TypeError, ValueError, AttributeError) as error:
            raise ClaimError(f"{claim.id}: {claim.test!r}: {error}") from None
        likely = chance(tree, numbers.calls(), word) if word in ("holds", "fails") else None
        verdict = Verdict(
            word, "; ".join(said), numbers.scale(), "; ".join(missing), frozenset(numbers.used),
            likely,
        )  # fmt: skip
        if word != "not run":
            return verdict
        if numbers.rows():
            fallback = verdict
    return fallback


def told(found: list[tuple[Claim, Verdict]]) -> str:
    """How many of the decided claims are beyond chance with all claims counted, in a sentence."""
    decided = [one.holm for _, one in found if one.holm is not None]
    sure = sum(likely <= LEVEL for likely in decided)
    has = "has" if sure == 1 else "have"
    return (
        f"{sure} of the {len(decided)} decided ones {has} a p-value of at most {LEVEL} after "
        "Holm's correction for all claims of the ledger"
    )


def verdicts(root: Path, chapter: str | None = None) -> list[tuple[Claim, Verdict]]:
    """Every claim, or those of one chapter, with its verdict on the published trials.

    The correction is for all claims in either case; one that is undecided counts among them.
    """
    every = [(claim, evaluate(claim, root)) for claim in read(root)]
    tested = [
        i
        for i, (_, one) in enumerate(every)
        if one.chance is not None or one.verdict == "undecided"
    ]
    chances = [every[i][1].chance for i in tested]
    corrected = stats.holm(1.0 if one is None else one for one in chances)
    for i, likely in zip(tested, corrected, strict=True):
        claim, one = every[i]
        if one.chance is not None:
            every[i] = claim, dataclasses.replace(one, holm=likely)
    return [pair for pair in every if chapter in (None, pair[0].chapter, pair[0].paper)]
