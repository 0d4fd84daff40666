"""What hostile input does: parameters, sweep files, data files and records that nobody would write.

    python -m bench.hostile            # writes bench/results/hostile.json
    python -m bench.hostile --kills    # adds to it what `hostile_kills` kills and fills

Each input is made from a fixed seed and given to what reads it in earnest. One of three things
happens. It is *refused*, in one printable line of at most 300 characters. It is *accepted*, and is
then itself: read again, it is the same, and can be planned. Or it is a *fault*: any other
exception, an untidy message, something accepted that is not itself. Faults are listed.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import math
import os
import random
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

from minilib import ledger, provenance, settings
from minilib.data.files import DataError
from minilib.runs import execute, sweep

from . import hostile_data, hostile_kills

COUNTS = {"parameters": 25_000, "sweep files": 600, "data files": None, "records": None}
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


# ---------------------------------------------------------------- what came of it


def outcome(read: Callable[[], object], refusals: tuple[type[Exception], ...]) -> tuple[str, str]:
    """Read one input: what came of it ("refused", "accepted", "fault"), and what was said."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            read()
    except refusals as error:
        # As the command prints it; a notebook shows a refused parameter as it is.
        usage = isinstance(error, provenance.UsageError)
        line = provenance.one_line(error) if usage else str(error)
        tidy = line.isprintable() and len(line) <= LONGEST
        return (
            ("refused", line)
            if tidy
            else ("fault", f"untidy, {len(line)} characters: {line[:80]!r}")
        )
    except Exception as error:  # whatever it is, nobody is to see it
        return "fault", f"{type(error).__name__}: {str(error)[:120]!r}"
    return "accepted", ""


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


# ---------------------------------------------------------------- all of them


def inputs(folder: Path, counts: dict) -> Iterator[tuple[str, str, Callable, tuple]]:
    """(kind, what it is, how it is read, refusals) of every input."""
    usage = (provenance.UsageError, settings.SettingsError)
    for chapter, params in parameter_sets(counts["parameters"]):
        read = lambda: read_parameters(chapter, params)  # noqa: E731, B023 - read at once
        changed = {k: v for k, v in params.items() if v is not settings.declared(chapter)[k][1]}
        said = ", ".join(f"{name}={settings.shown(value)}" for name, value in changed.items())
        yield "parameters", f"{chapter} {said}", read, usage
    for text in sweep_files(counts["sweep files"]):
        path = folder / "hostile.yml"
        yield "sweep files", text, lambda: read_sweep(text, path), usage  # noqa: B023
    for one in hostile_data.bad_files()[: counts["data files"]]:
        (folder / one.file).write_bytes(one.content)
        yield "data files", one.fault, one.load, (DataError,)
        (folder / one.file).unlink()
    for content in list(forged_records())[: counts["records"]]:
        yield "records", repr(content[:200]), lambda: read_records(content, folder), usage  # noqa: B023


def measure(counts: dict) -> dict:
    """Give every input to what reads it: kind → how many were refused, accepted, faults."""
    found = {kind: {"inputs": 0, "refused": 0, "accepted": 0, "fault": 0} for kind in counts}
    faults: list[str] = []
    with tempfile.TemporaryDirectory() as name:
        places = {
            "MINILIB_DATA": name, "MINILIB_ANY_DATA": "1", "MINILIB_CACHE": f"{name}/cache",
            "MINILIB_LEDGER": f"{name}/trials", "MINILIB_PUBLISHED": f"{name}/results",
        }  # fmt: skip
        before, unchecked = dict(os.environ), set(ledger.unchecked)
        os.environ.update(places)
        try:
            for kind, what, read, refusals in inputs(Path(name), counts):
                word, said = outcome(read, refusals)
                found[kind]["inputs"] += 1
                found[kind][word] += 1
                if word == "fault" or (word == "accepted" and kind in ("data files", "records")):
                    faults.append(f"{kind}: {word}: {said} of {what[:200]!r}")
        finally:
            os.environ.clear()
            os.environ.update(before)
            ledger.unchecked.clear()
            ledger.unchecked.update(unchecked)
    return {"counts": found, "faults": faults}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.hostile", description=__doc__)
    parser.add_argument("--parameters", type=int, default=COUNTS["parameters"])
    parser.add_argument("--sweeps", type=int, default=COUNTS["sweep files"])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument(
        "--kills", nargs="*", choices=(*hostile_kills.KILLS, "disks"), metavar="WHO",
        help="kills and full disks instead; of these processes alone",
    )  # fmt: skip
    options = parser.parse_args()
    path = options.out / "hostile.json"
    conditions = {"commit": provenance.git_commit(), "env": provenance.environment()}
    if options.kills is not None:
        before = provenance.read_json(path) or {}
        for name, found in hostile_kills.measure(options.kills, conditions).items():
            before[name] = before.get(name, {}) | found
        provenance.write_json(path, before)
        return
    started = time.process_time()
    counts = COUNTS | {"parameters": options.parameters, "sweep files": options.sweeps}
    result = measure(counts)
    result |= {
        "seed": 0,
        "longest message, characters": LONGEST,
        "CPU seconds": round(time.process_time() - started),
        **conditions,
    }
    provenance.write_json(path, (provenance.read_json(path) or {}) | result)
    print(json.dumps(result["counts"], indent=1))
    print("\n".join(result["faults"][:40]))


if __name__ == "__main__":
    main()
