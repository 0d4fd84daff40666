"""``python -m bench``: run the benchmarks and write their results to ``bench/results/``."""

import argparse
import importlib
import os
from pathlib import Path

NAMES = ("rga", "btu", "sande", "bi_bau", "detection", "finetune")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(NAMES)}; all if none")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--repeats", type=int, help="timed epochs of each loop (default: 3, quick 1)"
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="CPU threads")
    parser.add_argument("--quick", action="store_true", help="tiny model, few rows: a rehearsal")
    parser.add_argument("--no-switches", action="store_true", help="leave out the single switches")
    parser.add_argument("--out", type=Path, help="folder for the result (default: bench/results)")
    options = parser.parse_args()
    if options.repeats is not None and options.repeats < 1:
        parser.error(f"--repeats is {options.repeats}; accepted: 1 or more")
    if options.threads < 1:
        parser.error(f"--threads is {options.threads}; accepted: 1 or more")
    if unknown := set(options.names) - set(NAMES):
        parser.error(f"no benchmark {', '.join(sorted(unknown))}; accepted: {', '.join(NAMES)}")
    # A rehearsal must not overwrite figures that somebody quotes.
    folder = options.out or Path(__file__).parent / ("_out" if options.quick else "results")
    # Read by OpenMP when torch is imported, here and in the processes that inherit it.
    os.environ["OMP_NUM_THREADS"] = str(options.threads)

    import torch

    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device is 'cuda', but torch sees no GPU; accepted here: cpu")

    for name in NAMES:
        if name in (options.names or NAMES):
            module = importlib.import_module(f"bench.{name}")
            module.main(
                folder,
                options.device,
                options.threads,
                options.repeats,
                options.quick,
                not options.no_switches,
            )


if __name__ == "__main__":
    main()
