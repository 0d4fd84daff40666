"""``python -m bench``: run the benchmarks, write their results to ``bench/results/``, sum them up.

All but ``book`` and ``sweep`` run if none is named: the first makes every chapter anew, and takes
longer than the others together; the second loads the machine with nothing.
"""

import argparse
import importlib
import os
import time
from pathlib import Path

from . import targets

NAMES = ("rga", "btu", "sande", "bi_bau", "detection", "finetune", "seeds", "growth")
LONG = ("book", "sweep")  # run when they are named


def at_least_one(text: str) -> int:
    """An argument's type."""
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"it is {text}; accepted: 1 or more")
    return int(text)


def commands() -> argparse.ArgumentParser:
    """What the command line may say."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="name", help=", ".join((*NAMES, *LONG)))
    parser.add_argument("--device", choices=targets.DEVICES, default="cpu")
    parser.add_argument("--repeats", type=at_least_one, help="timed turns of each loop")
    parser.add_argument("--threads", type=at_least_one, default=os.cpu_count(), help="of the CPU")
    parser.add_argument("--quick", action="store_true", help="tiny model, few rows: a rehearsal")
    switches = "rga: also without each optimisation; bi_bau: also compile"
    parser.add_argument("--switches", action="store_true", help=switches)
    parser.add_argument("--out", type=Path, help="folder for the result (default: bench/results)")
    return parser


def records(name: str, how) -> list[dict]:
    """Run one benchmark."""
    from . import timing

    module = importlib.import_module(f"bench.{name}")
    if hasattr(module, "records"):
        return module.records(how)
    return [timing.measure(one, how) for one in module.benches(how)]


def main(words: list[str] | None = None) -> None:
    """Command line."""
    parser = commands()
    options = parser.parse_args(words)
    if unknown := set(options.names) - {*NAMES, *LONG}:
        parser.error(f"no benchmark {', '.join(sorted(unknown))}; accepted: "
                     f"{', '.join((*NAMES, *LONG))}")  # fmt: skip
    # Read by OpenMP when torch is imported, here and in the processes that inherit it.
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    import torch

    from . import timing

    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device is 'cuda', but torch sees no GPU; accepted here: cpu")
    torch.set_num_threads(options.threads)
    # A rehearsal must not overwrite figures that somebody quotes.
    folder = options.out or Path(__file__).parent / ("_out" if options.quick else "results")
    how = timing.Options(
        options.device, options.threads, options.repeats, options.quick, options.switches
    )
    files = []
    for name in options.names or NAMES:
        started = time.monotonic()
        files.append(timing.write(folder, name, how, records(name, how)))
        print(f"written: {files[-1]} ({time.monotonic() - started:.0f} s)")
    print("\n" + targets.summary(files))


if __name__ == "__main__":
    main()
