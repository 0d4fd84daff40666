"""Copy a figure out of a finished run, for a page that shows another run than that.

    python tools/run_figure.py 06_bi_bau 0123456789ab fig-map

A chapter's page shows the figures of one run. A figure that only another run drew is copied to
`book/_static/CHAPTER-RUN-FIGURE.png` as that run drew it, so that its name says where it is from.
The run's record has to be in `results/`, like that of every number. Standard library only.
"""

import argparse
import base64
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def drawn(notebook: dict, figure: str) -> bytes:
    """PNG of the cell whose metadata name the figure.

    Raises:
        ValueError: there is no such cell, or it drew nothing.
    """
    named = {}
    for cell in notebook["cells"]:
        name = cell["metadata"].get("mystnb", {}).get("figure", {}).get("name")
        if name:
            named[name] = cell
    if figure not in named:
        raise ValueError(f"there is no figure {figure!r}; accepted: {', '.join(sorted(named))}")
    for output in named[figure]["outputs"]:
        if "image/png" in output.get("data", {}):
            return base64.b64decode(output["data"]["image/png"])
    raise ValueError(f"this run drew no {figure!r}")


def copy(root: Path, chapter: str, run_id: str, figure: str) -> Path:
    """Write the figure of a recorded run into the book; returns where."""
    record = root / "results" / chapter / f"{run_id}.json"
    if not record.is_file():
        raise ValueError(f"run {run_id} has no record in results/{chapter}; publish it first")
    preset = json.loads(record.read_text(encoding="utf-8"))["preset"]
    notebook = root / "runs" / preset / chapter / run_id / "notebook.ipynb"
    if not notebook.is_file():
        raise ValueError(f"{notebook.relative_to(root)} is not here; run it again")
    target = root / "book" / "_static" / f"{chapter}-{run_id}-{figure}.png"
    target.write_bytes(drawn(json.loads(notebook.read_text(encoding="utf-8")), figure))
    return target


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("chapter", "run", "figure"):
        parser.add_argument(name)
    args = parser.parse_args()
    try:
        print(copy(ROOT, args.chapter, args.run, args.figure).relative_to(ROOT))
    except ValueError as error:
        print(f"run_figure: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
