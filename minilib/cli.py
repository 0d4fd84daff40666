"""The `minilib` command.

Only the standard library is imported up front, so that `--help` answers at once.
"""

import argparse
import contextlib
import io
import json
import os
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from minilib import __version__, provenance
from minilib.provenance import UsageError
from minilib.runs import audit, storage

EXIT_CODES = """exit codes: 0 done; 1 a run failed, a number moved, or doctor has something to fix;
2 the request cannot be met; 3 time was up, or an audit found a backdoor; 130 interrupted"""
MOST_WORKERS = 1024


def later(name: str) -> Callable:
    """A command: "module.function" of `minilib.runs`, imported when it is called."""
    module, _, function = name.partition(".")
    return lambda options: getattr(import_module(f"minilib.runs.{module}"), function)(options)


def chapter_name(text: str) -> str:
    """Accept the path of a notebook for its name."""
    return Path(text).stem if text.endswith(".ipynb") else text


# What argparse is told of each option; "NAME=VALUE" ones may be given several times.
FLAG = {"action": "store_true"}
PAIRS = {"metavar": "NAME=VALUE", "action": "append", "default": []}
OPTIONS = {
    "--out": dict(
        metavar="DIR", help="folder of runs (default: runs/), or a URL; an audit's: report/"
    ),
    "--json": dict(FLAG, help="print JSON, one object a line"),
    "--preset": dict(help="smoke, small or paper; of a sweep file in the place of its own"),
    "-p": dict(PAIRS, dest="params", help="set one parameter (repeatable)"),
    "-f": dict(metavar="FILE", dest="file", help="parameters from a YAML file"),
    "--all": dict(FLAG, help="every chapter of the book"),
    "--force": dict(FLAG, help="run again even if it exists"),
    "--fresh": dict(
        metavar="KIND[,KIND]", type=lambda text: text.split(","), default=[],
        help="compute trials of these kinds anew, beside the old ones, and compare",
    ),
    "--workers": dict(metavar="N", type=int, help="so many trials or chapters at a time"),
    "--time-limit": dict(
        metavar="MIN", type=float, help="minutes after which a run or a trial has failed"
    ),
    "--seeds": dict(metavar="0-9", help="in the place of the file's; also 0,2,5-7"),
    "--only": dict(
        PAIRS, help="runs with this value (repeatable; the same name twice: either value)"
    ),
    "--dry-run": dict(FLAG, help="show what would be done"),
    "--resume": dict(FLAG, help="go on where it stopped (always so)"),
    "--retry-failed": dict(FLAG, help="also what failed by itself"),
    "--no-notebooks": dict(
        action="store_false", dest="notebooks", help="compute the trials alone"
    ),
    "--max-hours": dict(metavar="H", type=float, help="begin nothing after that"),
    "--engine": dict(choices=("local", "ray"), default="local"),
    "--per-gpu": dict(metavar="K", type=int, default=1, help="trials that share a GPU"),
    "--address": dict(metavar="A", help="of a Ray cluster"),
    "--replace": dict(FLAG, help="also replace published trials that it made anew"),
    "--sort": dict(metavar="METRIC", help="the highest first"),
    "--top": dict(metavar="K", type=int, help="the first so many"),
    "--csv": dict(FLAG, help="print CSV"),
    "--cache": dict(FLAG, help="models that trials were made from"),
    "--sample": dict(metavar="N", type=int, help="draw as many at random"),
    "--seed": dict(metavar="S", type=int, help="of the draw, or of the search"),
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
    command_line.set_defaults(verbs=verbs.choices)  # `completion` tells them to the shell

    def verb(name, action, text, options="", usage=None, **positional):
        told = {"help": text, "description": text, "epilog": EXIT_CODES, "usage": usage}
        command = verbs.add_parser(name, **told)
        command.set_defaults(action=action, result=[])
        for option in ("--json", "--out", *options.split()):  # one with ! must be given
            must = {"required": True} if option[-1] == "!" else {}
            command.add_argument(option.rstrip("!"), **OPTIONS[option.rstrip("!")], **must)
        for label, settings in positional.items():
            command.add_argument(label, **settings)

    # fmt: off
    words = {"nargs": "*"}
    one = {"nargs": "?", "type": chapter_name, "help": "for example 03_ga_rga"}
    verb("run", later("run.command"), "execute a chapter; a run that exists is not made again",
         "--preset! -p -f --all --force --fresh --workers --time-limit", chapter=one)
    verb("sweep", later("sweep.command"),
         "execute a chapter over a grid; continues where it stopped",
         "--preset --seeds -p -f --only --dry-run --resume --retry-failed --no-notebooks "
         "--max-hours --time-limit --engine --workers --per-gpu --address", SWEEP_USAGE,
         words={"nargs": "+", "metavar": "FILE", "help": "for example sweeps/rga_seeds.yml, or a "
                "chapter; before it status, table or clean"})
    verb("audit", audit.command, "look for a backdoor in a model of your own, unlearn it, report",
         f"--seed {' '.join(audit.OPTIONS)}",
         model={"metavar": "MODEL", "help": "a folder, or a name on the Hub"})
    verb("publish", later("publish.command"),
         "publish finished runs: trials into results/, pages into book/_executed/",
         "--preset! -p -f --replace", chapter=one | words)
    verb("list", later("lists.chapters"), "list the chapters, or the parameters of one",
         chapter=one)
    verb("trials", later("lists.items"), "trials of the ledger: list, rank, export, show, compare",
         "--sort --top --csv", TRIALS_USAGE,
         words=words | {"metavar": "list KIND | show KEY | diff KEY KEY"})
    verb("runs", later("lists.items"), "chapter runs: list, rank, export, show, compare",
         "--sort --top --csv", RUNS_USAGE, words=words | {"metavar": "list | show ID | diff ID ID"})
    verb("clean", later("lists.clean"), "remove what can be made again", "--cache! --dry-run")
    verb("completion", later("lists.completion"), "print a script that completes commands",
         shell={"choices": ("bash", "zsh")})
    verb("verify", later("verify.command"), "compute published trials from nothing, and compare",
         "--sample --seed", key=words | {"help": "of a trial, or its first digits"})
    verb("claims", later("lists.claims"), "decide the papers' claims from the published records",
         chapter=one | {"help": "only those of a chapter or paper"})
    verb("doctor", later("doctor.command"),
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
        if "params" in options:
            options.params = given(options)
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


if __name__ == "__main__":
    sys.exit(main())
