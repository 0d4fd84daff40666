"""What hostile input does: parameters, sweep files and records that nobody would write.

Each input is made from a fixed seed and given to what reads it in earnest. It is *refused*, in one
printable line of at most 300 characters, or *accepted*, and is then itself: read again, it is the
same, and can be planned. Anything else is a fault. Every push tries some, every night thousands;
data files with one fault each are in `tests/data/test_bad_files.py`.

    MINILIB_NIGHTLY=1 MINILIB_RECORD=bench/results/hostile.json pytest tests/hostile

writes down what came of it.
"""

import copy
import dataclasses
import json
import math
import random
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT, nightly
from test_kills import KILLS, keep

from minilib import ledger, provenance, settings
from minilib.runs import execute, sweep

REFUSALS = (provenance.UsageError, settings.SettingsError)
LONGEST = 300  # characters of a message
TEXTS = (
    "", " ", ",", "a,,b", "ga,ga", "rga,ga,rga", "none", "none,none", "nan", "1e999", "-1",
    "0x10", "../../x", "/", "~", "\0", "\n", "\x1b[31m", "\ud800", "é", "💥", "９", "x" * 10_000,
    "1," * 2000, "{alpha}", "%s", "$(true)", "'; true #", "__import__('os')", "sst2", "tiny",
    "sst2/minilm", "🧨,ga",
)  # fmt: skip
NUMBERS = (
    -1, 0, 1, 2, 7, 2**31, 2**32, 2**63, 2**64, -(2**64), 10**400, 10**5000, 0.5, -0.0, 1e-308,
    1e308, -1e308, math.nan, math.inf, -math.inf, 1 + 1e-16, 3.0, 2.5,
)  # fmt: skip
OTHERS = (None, True, False, [], {}, (), [1], ["ga"], {"a": 1}, b"ga", 1j, object, {1, 2}, range(3))
TOKENS = (
    ":", "- ", "[", "]", "{", "}", "&a ", "*a", "!!python/object:os.system ", "!!timestamp ",
    "\t", "#", "|", ">", "? ", "---\n", "\n", "  ", "'", '"', "%", "@", "`", "~", "null", ".nan",
    ".inf", "9" * 5000, "0x" + "f" * 5000, "2020-99-99", "1:2:3", "\0", "\x07", "é", "\ud800",
    "x" * 3000, "<<: ", "=", "seeds: 0..9", "grid: {}", "range: [0, 1e9]", "log: [0, 1, 3]",
    "sample: {runs: 9, seed: -1}", "chapter: ../../x", "preset: ../x", "base: {seed: -1}",
    "list: []", "zip: {alpha: [1], beta: [1, 2]}",
)  # fmt: skip


def outcome(read, *arguments) -> str:
    """Read one input: "refused" or "accepted".

    Raises:
        AssertionError: the message is untidy. What else is raised, nobody is to see.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            read(*arguments)
    except REFUSALS as error:
        # As the command prints it; a notebook shows a refused parameter as it is.
        usage = isinstance(error, provenance.UsageError)
        line = provenance.one_line(error) if usage else str(error)
        assert line.isprintable() and len(line) <= LONGEST, line[:400]
        return "refused"
    return "accepted"


def counted(kind: str, read, inputs) -> Counter:
    """What came of all inputs; a fault names the input."""
    counts = Counter()
    for arguments in inputs:
        try:
            counts[outcome(read, *arguments)] += 1
        except Exception as error:
            raise AssertionError(
                f"{type(error).__name__}: {error} of {arguments!r:.2000}"
            ) from error
    told = {"inputs": counts.total(), "refused": 0, "accepted": 0, **counts, "fault": 0}
    keep("counts", kind, told)
    return counts


# ---------------------------------------------------------------- parameters


def parameter_sets(count: int, seed: int = 0) -> Iterator[tuple[str, dict]]:
    """Chapters with their defaults, of which one to three are something else."""
    source = random.Random(seed)
    names = sorted(settings.CHAPTERS)
    for number in range(count):
        chapter = names[number % len(names)]
        declared = settings.declared(chapter)
        params = {name: default for name, (_, default, _) in declared.items()}
        for name in source.sample(sorted(params), source.randint(1, 3)):
            pool = (_text(source, params[name]), *NUMBERS, *OTHERS)
            near = _near(source, params[name])
            params[name] = near if source.random() < 0.4 else source.choice(pool)
        yield chapter, params


def _near(source: random.Random, value):
    """Something that may well be meant: another number of the size, a list in another order."""
    if isinstance(value, str):
        members = value.split(",")
        return ",".join(source.sample(members, source.randint(1, len(members))))
    return type(value)(value * source.choice((0.5, 0.9, 1, 2, 3)))


def _text(source: random.Random, value) -> str:
    """A text of the pool, or the parameter's own with something wrong in it."""
    if not isinstance(value, str) or source.random() < 0.6:
        return source.choice(TEXTS)
    place = source.randint(0, len(value))
    return value[:place] + source.choice(TEXTS)[:20] + value[place:]


def read_parameters(chapter: str, params: dict) -> None:
    """Read settings as a notebook does; what is accepted must be itself, and can be planned."""
    cfg = settings.read(chapter, params)
    again = settings.validate(chapter, dataclasses.asdict(cfg))
    assert again == cfg, "read again, it is something else"
    json.dumps(dataclasses.asdict(cfg), allow_nan=False).encode()
    for recipe in execute.recipes_of(chapter, cfg):
        assert ledger.KEY.fullmatch(ledger.key_of(recipe))


@pytest.mark.parametrize("count", [420, pytest.param(25_000, marks=nightly)])
def test_parameters(count):
    counts = counted("parameters", read_parameters, parameter_sets(count))
    assert counts["accepted"] > count // 20, "inputs that nothing could accept would show little"


def test_parameters_that_were_faults_once():
    for chapter in settings.CHAPTERS:
        params = {n: d for n, (_, d, _) in settings.declared(chapter).items()}
        for change in ({"seed": 10**5000}, {"seed": 2**32}):
            assert outcome(read_parameters, chapter, params | change) == "refused", chapter
    params = {n: d for n, (_, d, _) in settings.declared("07_audit").items()}
    found = outcome(read_parameters, "07_audit", params | {"model": "x"})
    assert found == "refused", "a model and no table"


# ---------------------------------------------------------------- sweep files


def sweep_files(count: int, seed: int = 0) -> Iterator[str]:
    """The committed sweeps, each with one to four things wrong."""
    source = random.Random(seed)
    paths = sorted((provenance.PACKAGE.parent / "sweeps").glob("*.yml"))
    texts = [path.read_text(encoding="utf-8") for path in paths]
    for number in range(count):
        text = texts[number % len(texts)]
        for _ in range(source.randint(1, 4)):
            place = source.randint(0, len(text))
            end = place + source.choice((0, 0, 1, 5, 40))
            text = text[:place] + source.choice(TOKENS) + text[end:]
        yield text


def read_sweep(text: str, path: Path) -> None:
    """Plan a sweep from a file."""
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    sweep.plan(path)


@pytest.mark.parametrize("count", [30, pytest.param(600, marks=nightly)])
def test_sweep_files(count, tmp_path):
    counts = counted(
        "sweep files", read_sweep, ((t, tmp_path / "x.yml") for t in sweep_files(count))
    )
    assert counts.total() == count


@pytest.mark.parametrize("text", ["chapter: !!timestamp x", "chapter: !!binary é"])
def test_sweep_files_that_were_faults_once(text, tmp_path):
    assert outcome(read_sweep, text, tmp_path / "x.yml") == "refused"


def test_inputs_are_the_same_whenever_they_are_made():
    for inputs in (parameter_sets, sweep_files):
        first, again = list(inputs(50)), list(inputs(50))
        assert first == again and sum(one == first[0] for one in first) == 1


# ---------------------------------------------------------------- records of trials


def a_record() -> dict:
    """A published trial's record, the first that has no arrays."""
    folder = provenance.PACKAGE.parent / "results"
    for line in (folder / "text_measure.jsonl").read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        if not record.get("arrays"):
            return record
    raise LookupError(f"{folder} has no trial of text_measure without arrays")


def forged_records() -> Iterator[bytes]:
    """Records that are none, or not of their key."""
    good = a_record()
    wrong = (None, 3, "x", [], {}, [3], [[]], True, {"is": "TextVictim"}, "../../../x")
    for name in ("kind", "version", "key", "recipe", "rows"):
        for value in wrong:
            if type(value) is not type(good[name]) or name in ("kind", "key", "recipe"):
                yield json.dumps(good | {name: value}).encode()
        yield json.dumps({key: value for key, value in good.items() if key != name}).encode()
    for name, value in (("env", []), ("data", 3), ("data", [3]), ("arrays", 3), ("seconds", "x")):
        yield json.dumps(good | {name: value}).encode()
    other = copy.deepcopy(good)
    other["recipe"]["seed"] = 12345  # another recipe under this one's key
    text = json.dumps(good)
    yield json.dumps(other).encode()
    yield from (b"", b"null", b"[]", b"3", b"{", text[:-20].encode(), b"\xff" + text.encode())
    yield from (b"[" * 100_000, b'{"a":' * 100_000, text.encode("utf-16"), b"\0" * 100)
    yield text.replace('"rows"', '"rows": 1, "Rows"').encode()
    yield text.replace(f'"version": {good["version"]}', '"version": ' + "9" * 5000).encode()


def read_records(content: bytes, folder: Path) -> None:
    """Lay a record among the local and the published trials, and read both tiers."""
    good = a_record()
    local, published = folder / "trials" / good["kind"], folder / "results"
    for place in (local, published):
        place.mkdir(parents=True, exist_ok=True)
    (local / f"{good['key']}.json").write_bytes(content)
    (published / f"{good['kind']}.jsonl").write_bytes(content.replace(b"\n", b" ") + b"\n")
    if not ledger.trials_of(good["kind"]):
        raise provenance.UsageError("neither tier has a trial")


@pytest.fixture
def places(tmp_path, monkeypatch):
    """A ledger of its own, with both tiers."""
    monkeypatch.setenv("MINILIB_LEDGER", str(tmp_path / "trials"))
    monkeypatch.setenv("MINILIB_PUBLISHED", str(tmp_path / "results"))
    monkeypatch.setattr(ledger, "unchecked", set())
    return tmp_path


def test_forged_records(places):
    forged = list(forged_records())
    counts = counted("records", read_records, ((content, places) for content in forged))
    assert counts == {"refused": len(forged)} and len(forged) >= 50


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_record_that_is_not_forged_is_read(places):
    good = json.dumps(a_record()).encode()
    read_records(good, places)
    with pytest.raises(provenance.UsageError, match="neither tier"):
        read_records(good[:-9], places)
    assert ledger.trials_of(a_record()["kind"]) == []


# ---------------------------------------------------------------- what is written down


def test_the_figures_that_are_written_down():
    result = provenance.read_json(ROOT / "bench" / "results" / "hostile.json")
    for kind, least in {"parameters": 25_000, "sweep files": 600, "records": 50}.items():
        counts = result["counts"][kind]
        assert counts["inputs"] >= least and counts["fault"] == 0
        assert counts["refused"] + counts["accepted"] == counts["inputs"]
    kills, disks = result["kills"], result["full disks"]
    assert kills.keys() == KILLS.keys() and disks.keys() == {"runs", "trials", "cache"}
    assert sum(one["kills"] for one in kills.values()) >= 50
    for one in (*kills.values(), *disks.values()):
        assert one["lost"] == one["doubled"] == one["tracebacks"] == 0
        assert one["env"]["cpu"] and "dirty" not in one["commit"]
