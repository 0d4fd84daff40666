"""The claims ledger: what the papers say, decided by run records.

`book/claims.yml` gives each claim an expression over numbers that runs have recorded. Its verdict
is *holds* or *fails* when the interval of the difference lies on one side, *undecided* when it does
not (or when there is only one seed), *not run* when a number is missing. Expressions are read by
`ast` and walked here: numbers, texts and the calls below, nothing else. Standard library and YAML
only, since the site is built where neither NumPy nor pandas is installed.

Calls select rows by keyword, over a run's parameters and its rows alike. A parameter that is not
named has the value that the preset gives it. Each call gives one number per seed:

* `at(metric, …)`: the metric; at the last epoch unless `epoch=` says otherwise;
* `change(metric, first, last, …)`: from one epoch to a later one;
* `highest(metric, over, values, …)`, `lowest(…)`, `spread(…)`: over several values of a parameter
  or row entry, given as a text with commas; `spread` is the highest less the lowest;
* `abs(x)`.

`+ - * /`, comparisons, `and`, `or` and `not` combine them; seeds are paired.
"""

import ast
import dataclasses
import functools
import json
import operator
from collections.abc import Callable
from pathlib import Path

from minilib import runner, runs, stats

FILE = Path("book", "claims.yml")
PRESETS = ("paper", "small")  # the largest scale that has the numbers decides
VERDICTS = ("holds", "fails", "undecided", "not run")
# Parameters that say which rows a run has, and not what is in them.
FREE = {
    "03_ga_rga": {"methods", "eval_epochs", "epochs"},
    "04_btu": {
        "methods",
        "layers",
        "defences",
        "quantity_rates",
        "then_rga",
        "rga_epochs",
        "rga_lr",
    },
    "05_sande": {"methods", "ascents", "domains", "questions"},
    "06_bi_bau": {"methods", "defences"},
}
ARITHMETIC = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


class ClaimError(ValueError):
    """A claim that cannot be read: what was found, and what is accepted."""


class Missing(Exception):
    """A number that no recorded run has; says which."""


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


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What the records say of a claim, and on what that rests.

    Attributes:
        verdict: one of `VERDICTS`.
        shown: the two sides of each comparison, as text.
        scale: preset, model and seeds of the runs that were read; empty if not run.
        missing: what is missing.
    """

    verdict: str
    shown: str = ""
    scale: str = ""
    missing: str = ""


def read(root: Path) -> list[Claim]:
    """All claims of the ledger. Raises ClaimError for what cannot be read."""
    import yaml

    entries = yaml.safe_load((root / FILE).read_text(encoding="utf-8"))
    fields = [field.name for field in dataclasses.fields(Claim)]
    claims = []
    for entry in entries:
        for name in entry:
            if name not in fields:
                known = ", ".join(fields)
                raise ClaimError(f"{entry.get('id')}: unknown entry {name!r}; known are {known}")
        try:
            claim = Claim(**{name: " ".join(str(text).split()) for name, text in entry.items()})
        except TypeError as error:
            raise ClaimError(f"{entry.get('id')}: {str(error).split(')')[-1].strip()}") from None
        if claim.id in {other.id for other in claims}:
            raise ClaimError(f"{claim.id} stands twice")
        check(claim)
        claims.append(claim)
    return claims


def committed(root: Path, chapter: str) -> list[dict]:
    """The published records of a chapter, each set of parameters once, the newest.

    A record made before the chapter had some parameter has the notebook's default for it.
    """
    later = {}
    if chapter in runner.chapters(root):
        later = {name: value for name, (_, value) in runner.parameters(root, chapter).items()}
    found = map(runs.read_record, (root / "results" / chapter).glob("*.json"))
    kept: dict[str, dict] = {}
    for item in sorted(
        filter(None, found), key=lambda item: (item.get("finished", ""), item["run_id"])
    ):
        if item["status"] == "ok" and item["preset"] in PRESETS:
            item["params"] = later | item["params"]
            kept[json.dumps([item["preset"], item["params"]], sort_keys=True)] = item
    return list(kept.values())


@functools.cache
def defaults(root: Path, chapter: str, preset: str) -> dict:
    """Parameters of a chapter at a preset; empty where the chapter does not exist yet."""
    if chapter not in runner.chapters(root):
        return {}
    known = runner.parameters(root, chapter)
    given = runner.load_preset(root, preset).get(chapter, {})
    return {
        name: runner.coerce(name, given.get(name, value), kind)
        for name, (kind, value) in known.items()
    }


# ---------------------------------------------------------------- numbers per seed


class Numbers:
    """The numbers of one chapter at one preset that a claim's calls ask for."""

    def __init__(self, records: list[dict], params: dict, chapter: str, preset: str):
        self.records = [item for item in records if item["preset"] == preset]
        self.params, self.chapter = params, chapter
        self.used: dict[str, dict] = {}  # records that a number was read from

    def at(self, metric: str, **where) -> dict[int, float]:
        """seed → the metric."""
        named = {name: value for name, value in where.items() if name in self.params}
        row = {name: value for name, value in where.items() if name not in self.params}
        free = FREE.get(self.chapter, set()) | {"seed"}
        fixed = {name: value for name, value in self.params.items() if name not in free} | named
        found: dict[int, float] = {}
        for item in sorted(self.records, key=lambda item: len(item["metrics"])):
            if all(_same(item["params"].get(name), value) for name, value in fixed.items()):
                value = _pick(item["metrics"], metric, row)
                if value is not None:  # of several runs, the one with most rows
                    found[item["params"].get("seed", 0)] = value
                    self.used[item["run_id"]] = item
        if not found:
            said = ", ".join(f"{name}={value}" for name, value in where.items())
            raise Missing(f"{metric} of {said or 'the chapter as it stands'}")
        return found

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
            "spread": lambda values: max(values) - min(values),
        }
        named = {name: functools.partial(self.over, choose) for name, choose in choices.items()}
        return {"at": self.at, "change": self.change, **named, "abs": _absolute}

    def scale(self) -> str:
        """What the numbers come from, in words."""
        items = list(self.used.values())
        if not items:
            return ""
        models = sorted({str(item["params"].get("model", "")) for item in items} - {""})
        seeds = sorted({item["params"].get("seed", 0) for item in items})
        counted = f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"
        return ", ".join([items[0]["preset"], *models, counted])


def typed(text: str) -> float | str:
    """A number if the text is one."""
    try:
        return float(text)
    except ValueError:
        return text.strip()


def _same(found, wanted) -> bool:
    """Whether two values are the same however they are written: 1, 1.0 and "1"."""
    return typed(str(found)) == typed(str(wanted))


def _pick(rows: list[dict], metric: str, row: dict) -> float | None:
    """The metric in the last of the rows that match and have it."""
    value = None
    for one in rows:
        if one.get(metric) is not None and all(_same(one.get(k), v) for k, v in row.items()):
            value = float(one[metric])
    return value


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


CALLS = tuple(Numbers([], {}, "", "").calls())


def check(claim: Claim) -> ast.expr:
    """Parse a claim's expression and refuse all that is not of the language."""
    try:
        tree = ast.parse(claim.test, mode="eval").body
    except SyntaxError:
        raise ClaimError(f"{claim.id}: {claim.test!r} is not an expression") from None
    allowed = (
        ast.BoolOp, ast.And, ast.Or, ast.UnaryOp, ast.Not, ast.USub, ast.Compare, ast.Lt, ast.Gt,
        ast.BinOp, *ARITHMETIC, ast.Call, ast.keyword, ast.Constant, ast.Name, ast.Load,
    )  # fmt: skip
    names = set()
    for node in ast.walk(tree):
        if not isinstance(node, allowed):
            what = type(node).__name__
            raise ClaimError(f"{claim.id}: {what} is not accepted; calls are {', '.join(CALLS)}")
        if isinstance(node, ast.Call):
            if not isinstance(node.func, ast.Name) or node.func.id not in CALLS:
                raise ClaimError(
                    f"{claim.id}: {ast.unparse(node.func)} is unknown; calls are {', '.join(CALLS)}"
                )
            names.add(id(node.func))
        if isinstance(node, ast.Compare) and len(node.ops) > 1:
            raise ClaimError(f"{claim.id}: one comparison at a time, joined by `and`")
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and id(node) not in names:
            raise ClaimError(f"{claim.id}: {node.id} stands alone; texts need quotation marks")
    if not isinstance(tree, (ast.Compare, ast.BoolOp, ast.UnaryOp)):
        raise ClaimError(f"{claim.id}: {claim.test!r} compares nothing")
    return tree


def value(node: ast.expr, calls: dict[str, Callable]):
    """The numbers per seed, or the plain number or text, that an operand stands for."""
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.UnaryOp):
        return combine(operator.mul, value(node.operand, calls), -1)
    if isinstance(node, ast.BinOp):
        sides = value(node.left, calls), value(node.right, calls)
        return combine(ARITHMETIC[type(node.op)], *sides)
    plain = [value(item, calls) for item in node.args]
    named = {item.arg: value(item.value, calls) for item in node.keywords}
    return calls[node.func.id](*plain, **named)


def decide(node: ast.expr, calls: dict[str, Callable], said: list[str], missing: list[str]) -> str:
    """The verdict on an expression; what was compared or missing is added to the lists."""
    if isinstance(node, ast.BoolOp):
        parts = [decide(item, calls, said, missing) for item in node.values]
        first, last = ("fails", "holds") if isinstance(node.op, ast.And) else ("holds", "fails")
        return next((word for word in (first, "not run", "undecided") if word in parts), last)
    if isinstance(node, ast.UnaryOp):
        word = decide(node.operand, calls, said, missing)
        return {"holds": "fails", "fails": "holds"}.get(word, word)
    try:
        left, right = value(node.left, calls), value(node.comparators[0], calls)
        more = isinstance(node.ops[0], ast.Gt)
        gap = combine(operator.sub, left, right) if more else combine(operator.sub, right, left)
    except Missing as error:
        missing.append(str(error))
        return "not run"
    said.append(f"{text(left)} {'>' if more else '<'} {text(right)}")
    values = list(gap.values()) if isinstance(gap, dict) else [gap]
    low, high = stats.interval(values)
    if len(values) < 2:
        said[-1] += " (one seed)"
        return "undecided"
    return "holds" if low > 0 else "fails" if high < 0 else "undecided"


def text(side) -> str:
    """One side of a comparison for reading."""
    if isinstance(side, dict):
        return stats.text(stats.summary(side.values(), level=None), count=False)
    return f"{side:g}"


def evaluate(claim: Claim, root: Path, records: list[dict] | None = None) -> Verdict:
    """Decide a claim from records (the published ones if None), at the largest scale there is."""
    tree = check(claim)
    records = committed(root, claim.chapter) if records is None else records
    best = Verdict("not run", missing="no run of this chapter is published")
    for preset in PRESETS:
        if not any(item["preset"] == preset for item in records):
            continue
        numbers = Numbers(records, defaults(root, claim.chapter, preset), claim.chapter, preset)
        said, missing = [], []
        word = decide(tree, numbers.calls(), said, missing)
        found = Verdict(word, "; ".join(said), numbers.scale(), "; ".join(missing))
        if word != "not run":
            return found
        best = found
    return best


def ledger(root: Path, chapter: str | None = None) -> list[tuple[Claim, Verdict]]:
    """Every claim, or those of one chapter, with its verdict on the published records."""
    return [
        (claim, evaluate(claim, root))
        for claim in read(root)
        if chapter in (None, claim.chapter, claim.paper)
    ]
