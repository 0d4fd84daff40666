"""Golden numbers: every kind of trial at toy size, computed from an empty ledger and compared.

    python tools/golden.py write          compute them here and write tests/golden/
    python tools/golden.py add            compute those that the file lacks, on its own machine;
                                          those that no setting asks for any more go
    python tools/golden.py check          compute them here and compare; exit code 1 if any moved;
                                          where none did, write down for which code that is so
    python tools/golden.py same BASE      compute them with the code of BASE and of this tree, and
                                          compare exactly: the proof that a change moved no number

`write` refuses numbers that moved under a version that did not, and a version that was raised where
nothing moved. Beside the numbers it measures how far they move with other instruction sets (below),
which is the tolerance where the machine is not the file's; what rounding alone moves by half is no
golden number there.
"""

import argparse
import contextlib
import dataclasses
import hashlib
import json
import math
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = Path("tests", "golden")
NUMBERS, TOLERANCE, SETTINGS = "numbers.jsonl", "tolerance.json", "settings.yml"
# As a machine with fewer instructions would compute; a machine pretends no more than it has.
EMULATED = {
    "default": {
        "ATEN_CPU_CAPABILITY": "default", "DNNL_MAX_CPU_ISA": "SSE41", "MKL_CBWR": "COMPATIBLE",
    },
    "mkl": {"MKL_CBWR": "COMPATIBLE"},
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "DNNL_MAX_CPU_ISA": "AVX2"},
    "avx512": {"ATEN_CPU_CAPABILITY": "avx512", "DNNL_MAX_CPU_ISA": "AVX512_CORE"},
}  # fmt: skip
# A share of a number: another order of a sum moves it by so much, on another machine only.
LAST_DIGITS = 1e-12
# Alike on all machines: one thread, single precision whatever the hardware multiplies fastest.
FIXED = {"OMP_NUM_THREADS": "1", "MINILIB_PRECISION": "fp32", "MINILIB_PUBLISHED": "none"}


def recipes(root: Path = ROOT) -> list:
    """The recipes of all golden numbers, those that others are made of first."""
    import yaml

    from minilib import chapters, settings

    presets = yaml.safe_load((root / "presets" / "smoke.yml").read_text(encoding="utf-8"))
    variants = yaml.safe_load((root / GOLDEN / SETTINGS).read_text(encoding="utf-8"))
    changes = variants.pop("recipes", {})
    listed: dict = {}
    for name, lines in variants.items():
        chapter = chapters.chapter(name)
        for line in lines:
            cfg = settings.validate(name, {**(presets[name] or {}), **line})
            listed |= dict.fromkeys(chapter.trials(cfg))
            # What a page draws where the ledger has it, and does not ask for.
            for part in ("image_maps", "image_scores"):
                listed |= dict.fromkeys(getattr(chapter, part, lambda cfg: [])(cfg))
    return list(dict.fromkeys(smaller(one, changes) for one in listed))


def smaller(value, changes: dict):
    """A recipe with other values in it, at any depth: ``settings.yml`` says which, last.

    Args:
        changes: a recipe's class → its fields; a data set's name → that of a shorter one.
    """
    if isinstance(value, tuple):
        return tuple(smaller(item, changes) for item in value)
    if not dataclasses.is_dataclass(value):
        return changes.get(value, value) if isinstance(value, str) else value
    inner = {
        field.name: smaller(getattr(value, field.name), changes)
        for field in dataclasses.fields(value)
    }
    return dataclasses.replace(value, **inner | changes.get(type(value).__name__, {}))


def measured(row: dict) -> dict:
    """A row without what a clock decides."""
    return {name: value for name, value in row.items() if "seconds" not in name}


def line_of(trial) -> dict:
    """What is kept of a trial."""
    arrays = {
        name: hashlib.sha256(trial.array(name).tobytes()).hexdigest()[:16] for name in trial.arrays
    }
    line = {"kind": trial.kind, "version": trial.version, "key": trial.key, "recipe": trial.recipe}
    return line | {"rows": [measured(row) for row in trial.rows], "arrays": arrays}


def compute(out: Path, without: Path | None = None) -> None:
    """Compute every golden trial from an empty ledger, with two processes, and write it to a file.

    without: a file of numbers, whose trials are left out.
    """
    from minilib import ledger

    had = {line["key"] for line in read(without)[1:]} if without else set()
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"MINILIB_LEDGER": f"{folder}/trials", "MINILIB_CACHE": f"{folder}/cache"}
        asked = [one for one in recipes() if ledger.key_of(one) not in had]
        # A second core begins at the other end of the same ledger; they meet in between.
        other = multiprocessing.Process(target=compute_each, args=(asked[::-1],), daemon=True)
        other.start()
        trials = ledger.run(asked)
        other.join()
        lines = sorted(
            (line_of(one) for one in trials), key=lambda line: (line["kind"], line["key"])
        )
        times: dict[str, float] = {}
        for one in trials:
            times[one.kind] = times.get(one.kind, 0) + (one.seconds or 0)
        for kind, seconds in sorted(times.items()):
            print(f"{kind:24} {seconds:6.1f} s", file=sys.stderr)
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in [machine(), *lines])
    out.write_text(text, encoding="utf-8")


def compute_each(asked: list) -> None:
    """Compute trials for the ledger."""
    from minilib import ledger

    for one in asked:
        ledger.get(one)


def machine() -> dict:
    """What decides every bit of a number here."""
    import torch

    from minilib import provenance

    told = provenance.environment()
    capability = torch.backends.cpu.get_cpu_capability()
    head = {"torch": told["torch"], "cpu": told["cpu"], "capability": capability}
    # A name such as "AMD EPYC" stands for processors of several generations.
    with contextlib.suppress(OSError):
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
        numbers = (
            re.search(rf"^{name}\s*:\s*(\d+)", text, re.M) for name in ("cpu family", "model")
        )
        head["generation"] = "/".join(found[1] if found else "?" for found in numbers)
    return head


def computed(root: Path = ROOT, without: Path | None = None, **changes: str) -> list[dict]:
    """Golden trials, computed by the code of ``root`` in a process of its own; see ``compute``."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "numbers.jsonl")
        path = os.pathsep.join((str(root), os.environ.get("PYTHONPATH", "")))
        environ = {**os.environ, **FIXED, **changes, "PYTHONPATH": path}
        for name in ("MINILIB_DATA", "MINILIB_FRESH"):
            environ.pop(name, None)
        command = [sys.executable, str(Path(__file__)), "compute", str(out), "--root", str(root)]
        command += ["--without", str(without)] if without else []
        subprocess.run(command, env=environ, check=True, cwd=root)
        return read(out)


def emulated(capability: str) -> list[dict]:
    """What a machine can pretend to be: no instruction that it has not can be executed."""
    ladder = ("default", "avx2", "avx512")
    most = ladder.index(capability.lower()) if capability.lower() in ladder else 0
    return [EMULATED[name] for name in ("mkl", *ladder[: most + 1])]


def read(path: Path) -> list[dict]:
    """The lines of a file of numbers; the first says on what machine."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# ---------------------------------------------------------------- comparing


def differences(old: dict, new: dict):
    """(metric, old, new) of what differs in two trials' rows; "rows" if their counts do."""
    if len(old["rows"]) != len(new["rows"]):
        yield "rows", len(old["rows"]), len(new["rows"])
        return
    for before, after in zip(old["rows"], new["rows"], strict=True):
        for name in dict.fromkeys((*before, *after)):
            if before.get(name) != after.get(name):
                yield name, before.get(name), after.get(name)
    if old["arrays"] != new["arrays"]:
        yield "arrays", old["arrays"], new["arrays"]


def distance(old, new) -> float:
    """How far two values are apart; infinite where they cannot be subtracted."""
    numbers = (int, float)
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return max((distance(a, b) for a, b in zip(old, new, strict=True)), default=0.0)
    if isinstance(old, numbers) and isinstance(new, numbers) and not isinstance(old, bool):
        return abs(old - new)
    return 0.0 if old == new else math.inf


def rounding(value) -> float:
    """What the last digits of a number in double precision are worth; 0 for what is none."""
    size = distance(value, 0)
    return LAST_DIGITS * size if size < math.inf else 0.0


def moved(old: list[dict], new: list[dict], tolerance: dict | None = None) -> list[str]:
    """One line per kind and metric that moved further than allowed.

    Args:
        tolerance: kind → metric → how far it may move (null: anywhere); exact where None.
    """
    fresh = {line["key"]: line for line in new[1:]}
    worst: dict[tuple[str, str], tuple[float, object, object, str]] = {}
    for line in old[1:]:
        if line["key"] not in fresh:
            worst[line["kind"], "recipe"] = (math.inf, line["key"], "gone", line["key"])
            continue
        for metric, before, after in differences(line, fresh[line["key"]]):
            gap = distance(before, after)
            if tolerance is not None:
                allowed = tolerance.get(line["kind"], {}).get(metric, 0.0)
                if allowed is None or gap <= max(allowed, rounding(before)):
                    continue
            if gap >= worst.get((line["kind"], metric), (-1.0,))[0]:
                worst[line["kind"], metric] = (gap, before, after, line["key"])
    return [
        f"{kind}: {metric} moved by {gap:.6g} ({_short(before)} → {_short(after)}, trial {key})"
        for (kind, metric), (gap, before, after, key) in sorted(worst.items())
    ]


def _short(value) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "…"


def tolerances(reference: list[dict], others: list[list[dict]]) -> dict:
    """kind → metric → twice the largest move over other instruction sets; null where it is half.

    A metric that only rounding moves by half of its own size is no golden number elsewhere. One
    that happened not to move in a kind may move as far as it did in any other kind.
    """
    found: dict[str, dict[str, float | None]] = {}
    for other in others:
        fresh = {line["key"]: line for line in other[1:]}
        for line in reference[1:]:
            kind = found.setdefault(line["kind"], {})
            for metric, before, after in differences(line, fresh[line["key"]]):
                gap = distance(before, after)
                size = max(distance(before, 0), distance(after, 0)) if gap < math.inf else 0
                if metric in kind and kind[metric] is None:
                    continue
                loose = gap == math.inf or gap > 0.5 * size
                kind[metric] = None if loose else max(kind.get(metric) or 0.0, 2 * gap)
    most: dict[str, float] = {}
    for kind in found.values():
        for metric, by in kind.items():
            most[metric] = max(most.get(metric, 0.0), by or 0.0)
    for line in reference[1:]:
        kind = found[line["kind"]]
        for metric in {name for row in line["rows"] for name in row}:
            if most.get(metric) and kind.get(metric, 0.0) is not None:
                kind[metric] = max(kind.get(metric, 0.0), most[metric])
    return found


def refusals(old: list[dict], new: list[dict]) -> list[str]:
    """Why numbers may not be written: moved without a new version, or a version without a move."""
    before = {line["key"]: line for line in old[1:]}
    versions = {line["kind"]: line["version"] for line in old[1:]}
    reasons = []
    same = [line for line in new[1:] if line["key"] in before]
    for text in moved([old[0], *(before[line["key"]] for line in same)], [new[0], *same]):
        reasons.append(f"{text}; raise the kind's version and say why")
    by_recipe = {_recipe(line): line for line in old[1:]}
    for kind in {line["kind"] for line in new[1:]}:
        lines = [line for line in new[1:] if line["kind"] == kind]
        if lines[0]["version"] <= versions.get(kind, lines[0]["version"]):
            continue
        pairs = [(by_recipe.get(_recipe(line)), line) for line in lines]
        pairs = [(a, b) for a, b in pairs if a is not None]
        if pairs and not any(list(differences(a, b)) for a, b in pairs):
            reasons.append(f"{kind}: its version was raised and no number moved")
    return sorted(reasons)


def _recipe(line: dict) -> str:
    """A recipe without versions, to find a trial's older self."""

    def bare(value):
        if isinstance(value, dict):
            return {k: bare(v) for k, v in value.items() if k not in ("version", "revision")}
        return [bare(item) for item in value] if isinstance(value, list) else value

    return json.dumps([line["kind"], bare(line["recipe"])], sort_keys=True)


# ---------------------------------------------------------------- commands


def write() -> int:
    """Compute, measure the tolerance, refuse or write."""
    new = computed()
    path = ROOT / GOLDEN / NUMBERS
    if path.is_file() and read(path)[0] == new[0]:
        reasons = refusals(read(path), new)
        if reasons:
            print("\n".join(reasons), file=sys.stderr)
            return 1
    others = [computed(**changes) for changes in emulated(new[0]["capability"])]
    save(new, tolerances(new, others))
    prove()
    print(f"{len(new) - 1} trials written")
    return 0


def save(lines: list[dict], tolerance: dict) -> None:
    """Write the numbers and how far they may move elsewhere."""
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    (ROOT / GOLDEN / NUMBERS).write_text(text, encoding="utf-8")
    told = json.dumps(tolerance, indent=1, sort_keys=True)
    (ROOT / GOLDEN / TOLERANCE).write_text(told + "\n", encoding="utf-8")


def add() -> int:
    """Compute what the settings ask for and the file lacks, as ``write`` does; the rest stands."""
    from minilib import ledger

    path = ROOT / GOLDEN / NUMBERS
    old, asked = read(path), set(map(ledger.key_of, recipes()))
    new = computed(without=path)
    if new[0] != old[0]:
        print(f"the file is of {old[0]}, this machine is {new[0]}; write", file=sys.stderr)
        return 1
    others = [computed(without=path, **changes) for changes in emulated(new[0]["capability"])]
    kept = [line for line in old[1:] if line["key"] in asked]
    lines = sorted([*kept, *new[1:]], key=lambda line: (line["kind"], line["key"]))
    stated = json.loads((ROOT / GOLDEN / TOLERANCE).read_text(encoding="utf-8"))
    save([old[0], *lines], looser(stated, tolerances(new, others), {one["kind"] for one in kept}))
    print(f"{len(new) - 1} trials added, {len(old) - 1 - len(kept)} dropped")
    return 0


def looser(stated: dict, measured: dict, kinds: set[str]) -> dict:
    """Of two tolerances the wider one; ``kinds``: those of which something stated still stands."""
    result = {kind: dict(metrics) for kind, metrics in measured.items()}
    for kind in kinds:
        metrics = result.setdefault(kind, {})
        for metric, by in stated.get(kind, {}).items():
            both = by, metrics.get(metric, 0.0)
            metrics[metric] = None if None in both else max(both)
    return result


def check() -> int:
    """Compute and compare with the file; where nothing moved, write down for which code."""
    lines = compare(computed())
    print("\n".join(lines) or "equal")
    if not lines:
        prove()
    return 1 if lines else 0


def prove() -> None:
    """Write down that the numbers are those of the code as it lies here."""
    from minilib import provenance

    path = ROOT / provenance.PROVEN
    path.write_text(f"{provenance.code_of(ROOT)}  # tools/golden.py: no number moved\n", "utf-8")


def compare(new: list[dict], root: Path = ROOT) -> list[str]:
    """What moved against the file: exactly on its machine, within its tolerance elsewhere."""
    old = read(root / GOLDEN / NUMBERS)
    tolerance = None
    if old[0] != new[0]:
        tolerance = json.loads((root / GOLDEN / TOLERANCE).read_text(encoding="utf-8"))
    return moved(old, new, tolerance)


def same(base: str) -> int:
    """The golden recipes with the code of ``base`` and of this tree, compared exactly."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder, "base")
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "--detach", "--quiet", str(tree), base], check=True)
        try:
            before, after = computed(tree), computed()
        finally:
            subprocess.run([*git, "remove", "--force", str(tree)], check=True)
    keys = {line["key"] for line in after[1:]} & {line["key"] for line in before[1:]}
    lines = moved([before[0], *(line for line in before[1:] if line["key"] in keys)], after)
    print("\n".join(lines) or f"equal: {len(keys)} trials")
    return 1 if lines or not keys else 0


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("verb", choices=("write", "add", "check", "same", "compute"))
    parser.add_argument("what", nargs="?", help="the commit to compare with, or a file to write")
    parser.add_argument("--root", type=Path, default=ROOT, help=argparse.SUPPRESS)
    parser.add_argument("--without", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.verb in ("same", "compute") and not options.what:
        parser.error(f"{options.verb} needs a commit or a file")
    if options.verb == "compute":
        globals()["ROOT"] = options.root
        sys.path.insert(0, str(options.root))
        compute(Path(options.what), options.without)
        return 0
    verbs = {"write": write, "add": add, "check": check, "same": lambda: same(options.what)}
    return verbs[options.verb]()


if __name__ == "__main__":
    sys.exit(main())
