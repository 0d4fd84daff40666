"""``python -m bench``: run the benchmarks, write their results to ``bench/results/``, sum them up.

All but ``sweep`` run if none is named; that one loads the machine with nothing, for minutes.
"""

import argparse
import os
import sys
import time
from pathlib import Path

from . import targets

HERE = Path(__file__).resolve().parent
NAMES = ("rga", "btu", "sande", "bi_bau", "detection", "finetune")
LONG = ("sweep",)  # run when they are named


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


def records(name: str, options) -> list[dict] | dict[str, dict]:
    """Run one benchmark."""
    if name in LONG:
        from . import sweep

        return sweep.records(options)
    from . import loops, timing

    return [timing.measure(one, options) for one in getattr(loops, name)(options)]


def main(words: list[str] | None = None) -> None:
    """Command line."""
    parser = commands()
    told = parser.parse_args(words)
    if unknown := set(told.names) - {*NAMES, *LONG}:
        parser.error(f"no benchmark {', '.join(sorted(unknown))}; accepted: "
                     f"{', '.join((*NAMES, *LONG))}")  # fmt: skip
    # Read by OpenMP when torch is imported, here and in the processes that inherit it.
    os.environ["OMP_NUM_THREADS"] = str(told.threads)
    sys.path.append(str(HERE.parent / "tests"))  # where the plain loops stand
    import torch

    from . import timing

    if told.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device is 'cuda', but torch sees no GPU; accepted here: cpu")
    torch.set_num_threads(told.threads)
    # A rehearsal must not overwrite figures that somebody quotes.
    folder = told.out or HERE / ("_out" if told.quick else "results")
    options = timing.Options(told.device, told.threads, told.repeats, told.quick, told.switches)
    files = []
    for name in told.names or NAMES:
        started = time.monotonic()
        files.append(timing.write(folder, name, options, records(name, options)))
        print(f"written: {files[-1]} ({time.monotonic() - started:.0f} s)")
    print("\n" + targets.summary(files))


if __name__ == "__main__":
    main()
