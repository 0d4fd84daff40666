"""``python -m bench``: run the benchmarks, write their results to ``bench/results/``, sum them up.

All but ``book`` run if none is named: ``book`` makes every chapter anew, and takes longer than the
others together.
"""

import argparse
import importlib
import os
import time
from pathlib import Path

from . import targets

NAMES = ("rga", "btu", "sande", "bi_bau", "detection", "finetune", "seeds", "growth")
LONG = ("book",)  # run when they are named


def commands() -> argparse.ArgumentParser:
    """What the command line may say."""
    parser = argparse.ArgumentParser(
        prog="python -m bench", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    every = ", ".join(NAMES + LONG)
    parser.add_argument("names", nargs="*", help=f"of {every}; all but book if none")
    parser.add_argument("--device", choices=targets.DEVICES, default="cpu")
    parser.add_argument(
        "--repeats", type=int, help="timed turns of each loop (default: 2, on a GPU 5, quick 1)"
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="CPU threads")
    parser.add_argument("--quick", action="store_true", help="tiny model, few rows: a rehearsal")
    parser.add_argument(
        "--switches",
        action="store_true",
        help="rga: also take out each optimisation in turn; bi_bau: also compile",
    )
    parser.add_argument("--out", type=Path, help="folder for the result (default: bench/results)")
    return parser


def parse(words: list[str] | None = None) -> argparse.Namespace:
    """Read the command line; refuse what no benchmark can do."""
    parser, every = commands(), NAMES + LONG
    options = parser.parse_args(words)
    if options.repeats is not None and options.repeats < 1:
        parser.error(f"--repeats is {options.repeats}; accepted: 1 or more")
    if options.threads < 1:
        parser.error(f"--threads is {options.threads}; accepted: 1 or more")
    if unknown := set(options.names) - set(every):
        parser.error(f"no benchmark {', '.join(sorted(unknown))}; accepted: {', '.join(every)}")
    return options


def main() -> None:
    """Command line."""
    options = parse()
    # Read by OpenMP when torch is imported, here and in the processes that inherit it.
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    import torch

    from . import timing

    if options.device == "cuda" and not torch.cuda.is_available():
        commands().error("--device is 'cuda', but torch sees no GPU; accepted here: cpu")
    # A rehearsal must not overwrite figures that somebody quotes.
    folder = options.out or Path(__file__).parent / ("_out" if options.quick else "results")
    how = timing.Options(
        options.device, options.threads, options.repeats, options.quick, options.switches
    )
    torch.set_num_threads(options.threads)
    files, seconds = [], {}
    for name in NAMES + LONG:
        if name in (options.names or NAMES):
            started = time.monotonic()
            files.append(importlib.import_module(f"bench.{name}").main(folder, how))
            seconds[name] = time.monotonic() - started
            print(f"written: {files[-1]}")
    print("\n" + targets.summary(files))
    took = ", ".join(f"{name} {value:.0f} s" for name, value in seconds.items())
    print(f"\n{sum(seconds.values()) / 60:.1f} minutes: {took}")


if __name__ == "__main__":
    main()
