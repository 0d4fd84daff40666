"""The `minilib` command.

Only the standard library is imported up front, so that `--help` answers at once.
"""

import argparse
import contextlib
import io
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from minilib import __version__, provenance
from minilib.provenance import UsageError, find_root
from minilib.runs import audit, execute

EXIT_CODES = """exit codes: 0 done; 1 a run failed, a number moved, or doctor has something to fix;
2 the request cannot be met; 3 time was up, or an audit found a backdoor; 130 interrupted"""
MOST_WORKERS = 1024


def flag(text: str) -> dict:
    """What argparse is told of an option without a value."""
    return {"action": "store_true", "help": text}


def valued(metavar: str, text: str, kind: type = str, **more) -> dict:
    """What argparse is told of an option with a value."""
    return {"metavar": metavar, "help": text, "type": kind, **more}


def repeated(text: str, **more) -> dict:
    """What argparse is told of an option that may be given several times, as NAME=VALUE."""
    return {"metavar": "NAME=VALUE", "action": "append", "default": [], "help": text, **more}


OPTIONS = {
    "--out": valued("DIR", "folder of runs (default: runs/); of an audit: report/"),
    "--json": flag("print JSON, one object a line"),
    "--preset": {"help": "smoke, small or paper; of a sweep file in the place of its own"},
    "-p": repeated("set one parameter (repeatable)", dest="params"),
    "-f": valued("FILE", "parameters from a YAML file", dest="file"),
    "--all": flag("every chapter of the book"),
    "--force": flag("run again even if it exists"),
    "--fresh": valued(
        "KIND[,KIND]", "compute trials of these kinds anew, beside the old ones, and compare",
        lambda text: text.split(","), default=[],
    ),
    "--workers": valued("N", "so many trials or chapters at a time", int),
    "--time-limit": valued("MIN", "minutes after which a run or a trial has failed", float),
    "--seeds": valued("0-9", "in the place of the file's; also 0,2,5-7"),
    "--only": repeated("runs with this value (repeatable; the same name twice: either value)"),
    "--dry-run": flag("show what would be done"),
    "--resume": flag("go on where it stopped (always so)"),
    "--retry-failed": flag("also what failed by itself"),
    "--no-notebooks": {
        "dest": "notebooks", "action": "store_false", "help": "compute the trials alone",
    },
    "--max-hours": valued("H", "begin nothing after that", float),
    "--engine": {"choices": ("local", "ray"), "default": "local"},
    "--per-gpu": valued("K", "trials that share a GPU", int, default=1),
    "--address": valued("A", "of a Ray cluster"),
    "--replace": flag("also replace published trials that it made anew"),
    "--sort": valued("METRIC", "the highest first"),
    "--top": valued("K", "the first so many", int),
    "--csv": flag("print CSV"),
    "--cache": flag("models that trials were made from"),
    "--sample": valued("N", "draw as many at random", int),
    "--seed": valued("S", "of the draw, or of the search", int),
    **audit.OPTIONS,
}  # fmt: skip
SWEEP_USAGE = """minilib sweep [status|table|clean] FILE [options]
       minilib sweep [status|table|clean] CHAPTER --preset PRESET [--seeds 0-9] [options]"""
TRIALS_USAGE = """minilib trials [list KIND [CONDITION …] [--sort METRIC] [--top K] [--csv|--json]]
       minilib trials show KEY | diff KEY KEY [--json]"""


def parser() -> argparse.ArgumentParser:
    """The command line: one sub-command per verb, each with the function that does it."""
    command_line = argparse.ArgumentParser(
        prog="minilib",
        description="Run, sweep and publish the chapters of the book.",
        epilog=EXIT_CODES,
    )
    command_line.add_argument("--version", action="version", version=f"minilib {__version__}")
    verbs = command_line.add_subparsers(dest="verb", required=True, metavar="COMMAND")

    def verb(name, action, text, options="", usage=None, **positional):
        told = {"help": text, "description": text, "epilog": EXIT_CODES, "usage": usage}
        command = verbs.add_parser(name, **told)
        command.set_defaults(action=action, result=[], file=None)
        for option in ("--json", "--out", *options.split()):  # one with ! must be given
            must = {"required": True} if option[-1] == "!" else {}
            command.add_argument(option.rstrip("!"), **OPTIONS[option.rstrip("!")], **must)
        for label, settings in positional.items():
            command.add_argument(label, **settings)

    # fmt: off
    one, words = {"nargs": "?"}, {"nargs": "*"}
    verb("run", do_run, "execute a chapter; a run that exists is not made again",
         "--preset! -p -f --all --force --fresh --workers --time-limit",
         chapter=one | {"help": "for example 03_ga_rga"})
    verb("sweep", do_sweep, "execute a chapter over a grid; continues where it stopped",
         "--preset --seeds -p -f --only --dry-run --resume --retry-failed --no-notebooks "
         "--max-hours --time-limit --engine --workers --per-gpu --address", SWEEP_USAGE,
         words={"nargs": "+", "metavar": "FILE", "help": "for example sweeps/rga_seeds.yml, or a "
                "chapter; before it status, table or clean"})
    verb("audit", audit.command, "look for a backdoor in a model of your own, unlearn it, report",
         f"--seed {' '.join(audit.OPTIONS)}",
         model={"metavar": "MODEL", "help": "a folder, or a name on the Hub"})
    verb("publish", do_publish,
         "publish finished runs: trials into results/, pages into book/_executed/",
         "--preset! -p -f --replace", chapter=words | {"help": "for example 03_ga_rga"})
    verb("list", do_list, "list the chapters, or the parameters of one", chapter=one)
    verb("trials", do_trials, "trials of the ledger: list, rank, export, show, compare",
         "--sort --top --csv", TRIALS_USAGE,
         words=words | {"metavar": "list KIND | show KEY | diff KEY KEY"})
    verb("clean", do_clean, "remove what can be made again", "--cache! --dry-run")
    verb("verify", do_verify, "compute published trials from nothing, and compare",
         "--sample --seed", key=words | {"help": "of a trial, or its first digits"})
    verb("claims", do_claims, "decide the papers' claims from the published records",
         chapter=one | {"help": "only those of a chapter or paper"})
    verb("doctor", do_doctor,
         "show device, versions, data, models, disk and cache, what presets need, and fixes")
    # fmt: on
    return command_line


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code; a usage error is one line on stderr and 2.

    With `--json` standard output has ``options.result`` alone; what a run or a sweep tells while it
    goes on is on standard error.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a console that has no α says so in ASCII
            stream.reconfigure(errors="backslashreplace")
    if argv is None:  # a command of its own: a warning is one line, too
        provenance.warn_in_lines()
    options = parser().parse_args(argv)
    try:
        if "://" in (options.out or ""):
            raise UsageError(f"--out is {options.out}; accepted: a folder on this machine")
        check_numbers(options)
        aside = sys.stderr if options.verb in ("run", "sweep") else io.StringIO()
        with contextlib.redirect_stdout(aside) if options.json else contextlib.nullcontext():
            code = options.action(options) or 0
        for item in options.result if options.json else ():
            print(json.dumps(item))
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # `| head`: who reads has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except UsageError as error:
        print(f"minilib: {provenance.one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("minilib: interrupted", file=sys.stderr)
        return 130


def check_numbers(options) -> None:
    """Raise UsageError for a number of workers, hours or minutes that cannot be meant."""
    for name in ("workers", "per_gpu", "max_hours", "time_limit", "top"):
        value = getattr(options, name, None)
        if value is not None and not value > 0:
            raise UsageError(f"--{name.replace('_', '-')} must be above 0, not {value}")
    if (getattr(options, "workers", None) or 1) > MOST_WORKERS:
        raise UsageError(f"--workers must be up to {MOST_WORKERS}, not {options.workers}")


def given(options) -> dict:
    """Parameters from `-f` and `-p`; those of `-p` count."""
    for item in options.params:
        if "=" not in item:
            raise UsageError(f"expected NAME=VALUE, as in -p alpha=3, not {item!r}")
    values = provenance.read_yaml(Path(options.file)) if options.file else {}
    return values | dict(item.split("=", 1) for item in options.params)


def chapter_name(text: str) -> str:
    """Accept the path of a notebook for its name."""
    return Path(text).stem if text.endswith(".ipynb") else text


# ---------------------------------------------------------------- run


def do_run(options) -> int:
    """`minilib run`: plan first, so that nothing starts if any chapter is refused.

    What the chapters lack is computed by the engine of sweeps; then they are executed by it.
    """
    from minilib.runs import engines

    root = find_root()
    chapters = execute.chapters(root)
    if options.all == bool(options.chapter):
        raise UsageError(f"name one chapter or give --all; chapters are {', '.join(chapters)}")
    if options.all and (options.params or options.file):
        raise UsageError("-p sets the parameters of one chapter and does not go with --all")
    names = chapters if options.all else [chapter_name(options.chapter)]
    jobs = [
        execute.plan(name, options.preset, given(options), root=root, out=options.out)
        for name in names
    ]
    again = options.force or bool(options.fresh)
    todo = [job for job in jobs if again or not job.done()]
    if todo:
        execute.probe(execute.folder_of(options.out, root))
    empty_scratch(options.fresh)
    fresh = {"MINILIB_FRESH": ",".join(options.fresh)} if options.fresh else {}
    # What is computed from now on counts as computed by the notebooks that will read it.
    with execute.environ(MINILIB_SINCE=provenance.now(), **fresh), execute.signals_interrupt():
        code = run_all(todo, engines.Options(options.workers or 1, time_limit=options.time_limit))
        for job in jobs:
            told = execute.outcome(job)
            options.result.append(told)
            if told["status"] == "ok":
                count = provenance.counted(sum(map(len, told["keys"].values())), "trial")
                state = "exists, --force runs it again"
                state = f"{count}, {told['computed']} computed" if job in todo else state
                print(f"{engines.label(job)}: {state}: {os.path.relpath(job.notebook)}")
                for line in compared(told):
                    print(f"  {line}")
    return code


def run_all(jobs: list[execute.Plan], how) -> int:
    """Compute what chapters lack, then execute those that lack nothing more; the exit code.

    how: ``engines.Options``.
    """
    from minilib import ledger
    from minilib.runs import engines, sweep

    for job in jobs:
        for path in (job.notebook, job.at("failed")):
            path.unlink(missing_ok=True)
        for line in ledger.edited(filter(None, map(ledger.look, job.recipes()))):
            print(f"{engines.label(job)}: {line}")
    missing_recipes = ledger.missing(one for job in jobs for one in job.recipes())
    outcomes = sweep.carry_out(
        engines.local, engines.Queue(missing_recipes), missing_recipes, jobs, how, engines.label
    )
    faults = [one for one in outcomes.values() if one.error]
    mend = [one.cause == "refused" or one.error.startswith(execute.USER_ERRORS) for one in faults]
    return 1 + all(mend) if faults else 0


def empty_scratch(kinds: list[str]) -> None:
    """Forget what was computed anew before of some kinds of trials. Raises UsageError."""
    import shutil

    from minilib import ledger, trials  # noqa: F401  (declares the kinds)

    known = sorted(name for name, kind in ledger.KINDS.items() if not kind.large)
    for name in kinds:
        if name not in known:
            raise UsageError(f"no kind of trial {name!r}; kinds are {', '.join(known)}")
    for name in kinds:
        shutil.rmtree(ledger.local_folder() / "fresh" / name, ignore_errors=True)


def compared(record: dict) -> Iterator[str]:
    """A line for each trial that a run computed anew: how far it is from the ledger's."""
    from minilib import ledger
    from minilib.runs import verify

    for kind in record.get("fresh", ()):
        for key in record["keys"].get(kind, ()):
            tiers = ledger.tiers(kind, key)
            old = tiers.get("published") or tiers.get("local")
            if new := tiers.get("fresh"):
                yield verify.moved(old, new)


# ---------------------------------------------------------------- sweep, publish


def do_sweep(options) -> int:
    """`minilib sweep`, and its `status`, `table` and `clean`."""
    from minilib.runs import engines, sweep

    *verb, source = options.words
    if verb not in ([], ["status"], ["table"], ["clean"]):
        raise UsageError(f"sweep takes status, table or clean and a file, not {options.words}")
    plan = sweep.plan(
        source, options.out, options.only,
        preset=options.preset, base=given(options), seeds=options.seeds,
    )  # fmt: skip
    how = engines.Options(options.workers, options.per_gpu, options.address, options.time_limit)
    code = 0
    if verb == ["status"]:
        sweep.status(plan, how, options.retry_failed)
    elif verb == ["table"]:
        sweep.show_table(plan)
    elif verb == ["clean"]:
        sweep.clean(plan, options.dry_run)
    else:
        code = sweep.sweep(
            plan, options.engine, how, dry_run=options.dry_run, notebooks=options.notebooks,
            retry_failed=options.retry_failed, max_hours=options.max_hours,
        )  # fmt: skip
    if options.json:
        options.result.append(sweep.survey(plan).told(plan))
    return code


def do_publish(options) -> None:
    """`minilib publish`."""
    from minilib.runs import publish

    names = [chapter_name(name) for name in options.chapter]
    publish.publish(options.preset, names, given(options), out=options.out, replace=options.replace)


# ---------------------------------------------------------------- what there is


def do_list(options) -> None:
    """`minilib list`: the chapters; the parameters of one."""
    from minilib import settings
    from minilib.runs import lists

    if options.chapter:
        name = chapter_name(options.chapter)
        execute.read_notebook(find_root(), name)  # or there is no such chapter
        options.result = settings.described(name)
    else:
        options.result = lists.chapters(find_root())
    print(lists.as_text(options.result))


def do_trials(options) -> None:
    """`minilib trials`: list, rank and export them; show one; compare two."""
    from minilib import ledger
    from minilib.runs import lists

    verb, *words = options.words or ["kinds"]
    if verb == "kinds" and not words:
        options.result = lists.kinds()
        print(lists.as_csv(options.result) if options.csv else lists.as_text(options.result))
    elif verb == "show" and len(words) == 1:
        one = ledger.find(words[0])
        again = {"make_again": f"minilib verify {one.key}"}
        options.result = [lists.record(one) | again]
        print(json.dumps(options.result[0], indent=1, ensure_ascii=False))
    elif verb == "diff" and len(words) == 2:
        options.result = [lists.compared(*map(ledger.find, words))]
        for name, (first, second) in options.result[0]["settings"].items():
            print(f"{name}: {first!r} → {second!r}")
        print(options.result[0]["deviations"])
    elif verb == "list" and words:
        items = lists.chosen(lists.trials(words[0]), words[1:], options.sort, options.top)
        options.result = list(map(lists.record, items))
        by = options.sort
        ranked = [{by: f"{lists.values(one)[by]:.6g}"} if by else {} for one in items]
        brief = [lists.brief(one) | more for one, more in zip(items, ranked, strict=True)]
        rows = [row for one in items for row in lists.exported(one)]
        print(lists.as_csv(rows) if options.csv else lists.as_text(brief, 200))
    else:
        text = " ".join(options.words)
        raise UsageError(f"trials takes list KIND, show KEY or diff KEY KEY, not {text!r}")


def do_clean(options) -> None:
    """`minilib clean --cache`."""
    from minilib.runs import lists

    print(lists.clean_cache(options.dry_run))


# ---------------------------------------------------------------- what it is worth


def do_verify(options) -> int:
    """`minilib verify`: what a published number is worth on this machine."""
    import random

    from minilib.runs import verify

    seed = random.randrange(10**6) if options.seed is None else options.seed
    sample = options.sample if options.sample or options.key else 5
    trials = verify.chosen(options.key, sample, seed)
    if not trials:
        raise UsageError("no trial is published")
    count = provenance.counted(len(trials), "trial")
    print(f"{count} (--seed {seed}), tolerance {verify.TOLERANCE:g}", flush=True)
    results = find_root() / "results"
    return verify.verify(trials, results / "verified.jsonl" if results.is_dir() else None)


def do_claims(options) -> None:
    """`minilib claims`: a line per claim, with its corrected p-value, and a count.

    What failed is no error.
    """
    from minilib.book import claims

    try:
        verdicts = claims.verdicts(find_root(), options.chapter)
    except (OSError, claims.ClaimError) as error:
        raise UsageError(f"the ledger cannot be read: {error}") from None
    if not verdicts:
        known = sorted({claim.chapter for claim in claims.read(find_root())})
        raise UsageError(f"no claim of {options.chapter!r}; chapters are {', '.join(known)}")
    options.result = [
        {"id": claim.id, "chapter": claim.chapter, "claim": claim.claim, "verdict": verdict.verdict,
         "shown": verdict.shown, "scale": verdict.scale, "missing": verdict.missing}
        for claim, verdict in verdicts
    ]  # fmt: skip
    for claim, verdict in verdicts:
        holm = "" if verdict.holm is None else f"{verdict.holm:.3f}"
        said = verdict.shown or verdict.missing
        print(f"{verdict.verdict:10}{holm:7}{claim.id:22}{said}")
    words = [verdict.verdict for _, verdict in verdicts]
    print(", ".join(f"{words.count(word)} {word}" for word in claims.VERDICTS))
    print(claims.told(verdicts))


def do_doctor(options) -> int:
    """`minilib doctor`: what to look at first when something does not work."""
    from minilib.runs import doctor

    rows, fixes = doctor.report(find_root())
    options.result = [{"report": dict(rows), "fixes": list(fixes)}]
    for name, value in rows:
        print(f"{name:14} {value}")
    print()
    for line in fixes:
        print(f"fix: {line}")
    if not fixes:
        print("nothing to fix")
    return 1 if fixes else 0


if __name__ == "__main__":
    sys.exit(main())
