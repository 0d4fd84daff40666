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
from minilib.runs import audit, execute, storage

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
    "--out": valued("DIR", "folder of runs (default: runs/), or a URL; an audit's: report/"),
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
RUNS_USAGE = "minilib runs [list [CONDITION …] [--sort COLUMN] [--top K] | show ID | diff ID ID]"


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
    verb("trials", do_items, "trials of the ledger: list, rank, export, show, compare",
         "--sort --top --csv", TRIALS_USAGE,
         words=words | {"metavar": "list KIND | show KEY | diff KEY KEY"})
    verb("runs", do_items, "chapter runs: list, rank, export, show, compare",
         "--sort --top --csv", RUNS_USAGE, words=words | {"metavar": "list | show ID | diff ID ID"})
    verb("clean", do_clean, "remove what can be made again", "--cache! --dry-run")
    verb("completion", do_completion, "print a script that completes commands",
         shell={"choices": ("bash", "zsh")})
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
        if options.verb != "audit":  # its folder is the report's, not that of runs
            options.out = storage.place(options.out) if options.out else None
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
    for name in ("workers", "per_gpu", "max_hours", "time_limit", "top", "sample"):
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
    """`minilib run`: plan first, so that nothing starts if any chapter is refused."""
    root = find_root()
    chapters = execute.chapters(root)
    if options.all == bool(options.chapter):
        raise UsageError(f"name one chapter or give --all; chapters are {', '.join(chapters)}")
    if options.all and (options.params or options.file):
        raise UsageError("-p sets the parameters of one chapter and does not go with --all")
    names = chapters if options.all else [chapter_name(options.chapter)]

    def plan(name):
        return execute.plan(name, options.preset, given(options), root=root, out=options.out)

    jobs = [plan(name) for name in names]
    if options.force or options.fresh or not all(job.done() for job in jobs):
        storage.probe(options.out, root)
    if (options.workers or 1) > 1 and not options.fresh:
        options.result = together(jobs, options)
        return max(map(report, jobs, options.result))
    empty_scratch(options.fresh)
    code = 0
    for name in names:  # planned again: the notebook may be edited while an earlier chapter runs
        job = plan(name)
        code = max(code, run_one(job, options.force, options.fresh, options.time_limit))
        options.result += filter(None, [job.record()])
        if code == 130:
            break
    return code


def together(jobs: list[execute.Plan], options) -> list[dict]:
    """Compute what chapters lack, then execute them, some of it at a time; their records."""
    from minilib import ledger
    from minilib.runs import engines, sweep

    for job in jobs if options.force else ():
        (job.folder / "run.json").unlink(missing_ok=True)
    missing_recipes = ledger.missing(one for job in jobs for one in job.recipes())
    how = engines.Options(options.workers, time_limit=options.time_limit)
    # What is computed from now on counts as computed by the notebooks that will read it.
    with execute.environ(MINILIB_SINCE=provenance.now()), execute.signals_interrupt():
        for work in (missing_recipes, [job for job in jobs if not job.done()]):
            sweep.feed(engines.local, engines.Queue(work), how, engines.label)
    return [job.record() or execute.blank(job) for job in jobs]


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


def run_one(job: execute.Plan, force=False, fresh=(), time_limit: float | None = None) -> int:
    """Run one job unless it exists, say in one line what came of it, return the exit code."""
    from minilib import ledger
    from minilib.runs import engines

    label = engines.label(job)
    if not (force or fresh) and job.done():
        place = os.path.relpath(job.folder / "notebook.ipynb")
        print(f"{label}: exists, --force runs it again: {place}", flush=True)
        return 0
    trials = filter(None, map(ledger.look, job.recipes()))
    for line in ledger.edited(one for one in trials if one.kind not in fresh):
        print(f"{label}: {line}")
    # One line in a log; on a terminal papermill's progress bar needs the next one.
    print(f"{label}: running …", end="\n" if sys.stderr.isatty() else " ", flush=True)
    return report(job, execute.run(job, fresh=fresh, time_limit=time_limit), "")


def report(job: execute.Plan, record: dict, head: str | None = None) -> int:
    """Say in one line what came of a run, return the exit code.

    head: what the line begins with, if not the run's name.
    """
    from minilib.runs import engines

    label, place = engines.label(job), os.path.relpath(job.folder / "notebook.ipynb")
    head = f"{label}: " if head is None else head
    if record["status"] == "ok":
        counts = provenance.counted(sum(map(len, record["keys"].values())), "trial")
        counts += f", {record['computed']} computed"
        print(f"{head}ok in {record['seconds']:.0f} s, {counts}: {place}", flush=True)
        for line in compared(record):
            print(f"  {line}")
        return 0
    print(f"{head}{record['status']}", flush=True)
    text = f"{label}: {record['status']}: {execute.why(job, record)}"
    print(text, file=sys.stderr, flush=True)
    if record["status"] == "interrupted":
        return 130
    return 2 if record.get("error", "").startswith(execute.USER_ERRORS) else 1


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

    if storage.is_url(options.out):
        raise UsageError(f"publish reads a folder, not {options.out}; copy the runs here first")
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


def do_items(options) -> None:
    """`minilib trials` and `minilib runs`: list, rank and export them; show one; compare two."""
    from minilib import ledger
    from minilib.runs import lists

    verb, *words = options.words or ["list"]
    of_trials = options.verb == "trials"
    runs = [] if of_trials else lists.runs(find_root(), options.out)

    def found(key: str) -> lists.Item:
        return lists.of_trial(ledger.find(key)) if of_trials else lists.run_of(runs, key)

    if verb == "show" and len(words) == 1:
        record = found(words[0]).record
        again = {"make_again": f"minilib verify {record['key']}"} if of_trials else {}
        options.result = [record | again]
        print(json.dumps(options.result[0], indent=1, ensure_ascii=False))
    elif verb == "diff" and len(words) == 2:
        told = lists.compared(*map(found, words))
        options.result = [told]
        for name, (first, second) in told["settings"].items():
            print(f"{name}: {first!r} → {second!r}")
        print(told.get("deviations", ""))
    elif of_trials and not options.words:
        options.result = lists.kinds()
        print(lists.as_csv(options.result) if options.csv else lists.as_text(options.result))
    elif verb == "list" and (words or not of_trials):
        items = lists.trials(words.pop(0)) if of_trials else runs
        items = lists.chosen(items, words, options.sort, options.top)
        options.result = [one.record for one in items]
        by = options.sort
        ranked = [{by: f"{one.values[by]:.6g}"} if by else {} for one in items]
        brief = [one.brief | more for one, more in zip(items, ranked, strict=True)]
        rows = [row for one in items for row in one.rows]
        print(lists.as_csv(rows) if options.csv else lists.as_text(brief, 200))
    else:
        accepted = "list KIND, show KEY" if of_trials else "list, show KEY"
        text = " ".join(options.words)
        raise UsageError(f"{options.verb} takes {accepted} or diff KEY KEY, not {text!r}")


def do_clean(options) -> None:
    """`minilib clean --cache`."""
    from minilib.runs import lists

    print(lists.clean_cache(options.dry_run))


def do_completion(options) -> None:
    """`minilib completion`: to be read by the shell, as in `source <(minilib completion bash)`."""
    from minilib.runs import lists

    commands = next(one for one in parser()._actions if one.dest == "verb").choices
    words = {name: [o for o in one._option_string_actions if o[:2] == "--"]
             for name, one in commands.items()}  # fmt: skip
    print(lists.completion(options.shell, words))


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
        print(f"{verdict.verdict:10}{holm:7}{claim.id:23}{said}")
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
