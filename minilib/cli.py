"""The `minilib` command.

Exit codes: 0 done, 1 a run failed, 2 the request cannot be met, 130 interrupted. Only the standard
library is imported up front, so that `--help` answers at once.
"""

import argparse
import os
import sys
from pathlib import Path

from minilib import runner, runs


def parser() -> argparse.ArgumentParser:
    """The command line: one sub-command per verb, each with the function that does it."""
    main = argparse.ArgumentParser(
        prog="minilib", description="Run, sweep and publish the chapters of the book."
    )
    verbs = main.add_subparsers(dest="verb", required=True, metavar="COMMAND")

    def verb(name, action, text):
        command = verbs.add_parser(name, help=text, description=text)
        command.set_defaults(action=action)
        command.add_argument(
            "--out", type=place, metavar="DIR", help="folder of runs (default: runs/), or a URL"
        )
        return command

    def chosen(command, chapters):
        command.add_argument("chapter", nargs=chapters, help="for example 03_ga_rga")
        command.add_argument("--preset", required=True, help="smoke, small or paper")
        command.add_argument(
            "-p",
            dest="params",
            action="append",
            default=[],
            metavar="NAME=VALUE",
            help="set one parameter (repeatable)",
        )

    command = verb("run", do_run, "execute a chapter; a run that exists is not made again")
    chosen(command, "?")
    command.add_argument("--all", action="store_true", help="every chapter of the book")
    command.add_argument("--force", action="store_true", help="run again even if it exists")
    command = verb("sweep", do_sweep, "execute a chapter over a grid; continues where it stopped")
    sweep_options(command)
    command = verb(
        "publish", do_publish, "copy finished runs into the book: book/_executed/ and results/"
    )
    chosen(command, "*")
    command.add_argument(
        "--prune", action="store_true", help="drop this preset's records of older code"
    )
    command = verb(
        "latest", do_latest, "list the executed notebook of each chapter, for the book build"
    )
    chosen(command, "*")
    command = verb("claims", do_claims, "decide the papers' claims from the published records")
    command.add_argument("chapter", nargs="?", help="only those of a chapter or paper")
    text = "show device, versions, data, models, disk and cache, what presets need, and fixes"
    verb("doctor", do_doctor, text)
    return main


def place(text: str) -> Path | str:
    """A folder, or a URL for what fsspec reaches."""
    return text if "://" in text else Path(text)


def sweep_options(command) -> None:
    """The options of `minilib sweep`."""
    command.usage = "minilib sweep [status|table|clean] FILE [options]"
    command.add_argument(
        "words", nargs="+", metavar="FILE",
        help="for example sweeps/rga_seeds.yml; before it status, table or clean",
    )  # fmt: skip
    command.add_argument("--dry-run", action="store_true", help="show what would be done")
    command.add_argument("--resume", action="store_true", help="go on where it stopped (always so)")
    command.add_argument(
        "--only", action="append", default=[], metavar="NAME=VALUE",
        help="runs with this value (repeatable; the same name twice: either value)",
    )  # fmt: skip
    command.add_argument("--retry-failed", action="store_true", help="run again what failed")
    command.add_argument("--here", action="store_true", help="also make runs that are published")
    command.add_argument("--max-hours", type=float, metavar="H", help="start no run after that")
    command.add_argument("--engine", choices=("local", "ray"), default="local")
    command.add_argument("--workers", type=int, metavar="N", help="runs at a time")
    command.add_argument(
        "--runs-per-gpu", type=int, default=1, metavar="K", help="runs that share a GPU"
    )
    command.add_argument("--address", metavar="A", help="of a Ray cluster")
    command.add_argument("--cold", action="store_true", help="start each kernel from nothing")


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code; a usage error is one line on stderr and 2."""
    options = parser().parse_args(argv)
    try:
        return options.action(options)
    except runs.UsageError as error:
        print(f"minilib: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("minilib: interrupted", file=sys.stderr)
        return 130


def overrides(options) -> dict[str, str]:
    """The `-p name=value` options as a dict of texts."""
    for item in options.params:
        if "=" not in item:
            raise runs.UsageError(f"-p takes NAME=VALUE, not {item!r}")
    return dict(item.split("=", 1) for item in options.params)


def chapter_name(text: str) -> str:
    """Accept the path of a notebook for its name."""
    return Path(text).stem if text.endswith(".ipynb") else text


def do_run(options) -> int:
    """`minilib run`: plan first, so that nothing starts if any chapter is refused."""
    root = runs.find_root()
    if options.all == bool(options.chapter):
        raise runs.UsageError(
            "name one chapter or give --all; chapters are " + ", ".join(runner.chapters(root))
        )
    if options.all and options.params:
        raise runs.UsageError("-p sets the parameters of one chapter and does not go with --all")
    names = runner.chapters(root) if options.all else [chapter_name(options.chapter)]

    def plan(name):
        return runner.plan(name, options.preset, overrides(options), root=root, out=options.out)

    for name in names:
        plan(name)
    code = 0
    for name in names:  # planned again: the code may be edited while an earlier chapter runs
        result = execute(plan(name), force=options.force)
        if result == 130:
            return 130
        code = max(code, result)
    return code


def execute(job: runner.Plan, force: bool = False, label: str = "") -> int:
    """Run one job unless it exists, say in one line what came of it, return the exit code."""
    label = label or f"{job.chapter} {job.preset} {job.run_id}"
    place = os.path.relpath(job.folder / "notebook.ipynb")
    if not force and job.done():
        print(f"{label}: exists, --force runs it again: {place}", flush=True)
        return 0
    # One line in a log; on a terminal papermill's progress bar needs the next one.
    print(f"{label}: running …", end="\n" if sys.stderr.isatty() else " ", flush=True)
    record = runner.run(job)
    if record["status"] == "ok":
        print(f"ok in {record['seconds']:.0f} s: {place}", flush=True)
        return 0
    print(record["status"], flush=True)
    where = f" (cell {record['cell']})" if "cell" in record else ""
    print(
        f"{label}: {record['status']}: {record['error']}{where}; see {place}",
        file=sys.stderr,
        flush=True,
    )
    if record["status"] == "interrupted":
        return 130
    return 2 if record["error"].startswith(runner.USER_ERRORS) else 1


def do_sweep(options) -> int:
    """`minilib sweep`, and its `status`, `table` and `clean`."""
    from minilib import engines, sweep

    *verb, file = options.words
    if verb not in ([], ["status"], ["table"], ["clean"]):
        raise runs.UsageError(f"sweep takes status, table or clean and a file, not {options.words}")
    for name in ("workers", "runs_per_gpu", "max_hours"):
        value = getattr(options, name)
        if value is not None and not value > 0:
            raise runs.UsageError(f"--{name.replace('_', '-')} must be above 0, not {value}")
    chosen = {"out": options.out, "only": options.only}
    if verb == ["clean"]:
        return sweep.clean(Path(file), **chosen, dry_run=options.dry_run)
    if verb:
        return {"status": sweep.status, "table": sweep.table}[verb[0]](Path(file), **chosen)
    return sweep.sweep(
        Path(file),
        **chosen,
        dry_run=options.dry_run,
        retry_failed=options.retry_failed,
        here=options.here,
        max_hours=options.max_hours,
        engine=options.engine,
        options=engines.Options(
            options.workers, options.runs_per_gpu, not options.cold, options.address
        ),
        again=repeated(options),
    )


def repeated(options) -> str:
    """The options that the command which goes on with a sweep has to repeat."""
    words = [f"--only {text}" for text in options.only]
    words += ["--here"] if options.here else []
    words += [f"--out {options.out}"] if options.out else []
    words += [f"--engine {options.engine}"] if options.engine != "local" else []
    words += [f"--workers {options.workers}"] if options.workers else []
    words += [f"--runs-per-gpu {options.runs_per_gpu}"] if options.runs_per_gpu != 1 else []
    words += [f"--address {options.address}"] if options.address else []
    return "".join(f" {word}" for word in words)


def do_publish(options) -> int:
    """`minilib publish`."""
    from minilib import places, publish

    if places.is_url(options.out):
        raise runs.UsageError(
            f"publish reads a folder, not {options.out}; copy the runs here first"
        )

    return publish.publish(
        options.preset,
        [chapter_name(name) for name in options.chapter],
        overrides(options),
        out=options.out,
        prune=options.prune,
    )


def do_latest(options) -> int:
    """`minilib latest`: chapter, tab, path; a chapter without a current run is named on stderr."""
    root = runs.find_root()
    for name in options.chapter or runner.chapters(root):
        job = runner.plan(
            chapter_name(name), options.preset, overrides(options), root=root, out=options.out
        )
        if job.done():
            print(f"{job.chapter}\t{job.folder / 'notebook.ipynb'}")
        else:
            print(f"minilib: {job.chapter} has no current {job.preset} run", file=sys.stderr)
    return 0


def do_claims(options) -> int:
    """`minilib claims`: one line per claim and a count; what failed is no error."""
    from minilib import claims

    try:
        found = claims.ledger(runs.find_root(), options.chapter)
    except (OSError, claims.ClaimError) as error:
        raise runs.UsageError(f"the ledger cannot be read: {error}") from None
    if not found:
        known = sorted({claim.chapter for claim in claims.read(runs.find_root())})
        raise runs.UsageError(f"no claim of {options.chapter!r}; chapters are {', '.join(known)}")
    for claim, verdict in found:
        print(f"{verdict.verdict:10}{claim.id:22}{verdict.shown or verdict.missing}")
    words = [verdict.verdict for _, verdict in found]
    print(", ".join(f"{words.count(word)} {word}" for word in claims.VERDICTS))
    return 0


def do_doctor(options) -> int:
    """`minilib doctor`: what to look at first when something does not work."""
    from minilib import doctor

    rows, fixes = doctor.report(runs.find_root())
    for name, value in rows:
        print(f"{name:14} {value}")
    print()
    for line in fixes:
        print(f"fix: {line}")
    if not fixes:
        print("nothing to fix")
    return 0


if __name__ == "__main__":
    sys.exit(main())
