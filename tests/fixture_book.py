"""A book of one-line chapters in a temporary folder, so that runs cost a second, not an hour."""

import hashlib
import json
import shutil
from pathlib import Path

PARAMETERS = """\
alpha: float = 2.0  # decay rate
seed: int = 0
deep: bool = False
method: str = "rga"
"""
# The last cell of a chapter.
RECORD = """\
from minilib import ledger
ledger.colophon(CHAPTER, dict(alpha=alpha, seed=seed, deep=deep, method=method))
"""
# A chapter that reads two trials of `toy_trials`, a module of the tests.
TRIALS = """\
import toy_trials as toy
from minilib import ledger
victim = toy.ToyVictim(data=toy.ToyData(seed=seed), seed=seed)
ledger.run([toy.ToyUnlearning(victim=victim, method=method, alpha=alpha, epochs=2),
            toy.ToyMap(victim=victim)])
"""
# None stands for a chapter that works.
BODIES = {
    "01_fine": None,
    "02_fails": "print('before')\nif seed == 1:\n    1 / 0",
    "03_no_data": "class DataError(Exception): pass\nraise DataError('no sst2; set MINILIB_DATA')",
    "04_slow": "open('started', 'w').close()\nimport time\ntime.sleep(3600)",
    "05_forgets": "alpha = 7.0",
    "06_reads": TRIALS,
}


def code(source: str, *tags: str) -> dict:
    """A code cell."""
    return {
        "cell_type": "code",
        "id": f"cell-{hashlib.sha256(source.encode()).hexdigest()[:8]}",
        "execution_count": None,
        "metadata": {"tags": list(tags)} if tags else {},
        "outputs": [],
        "source": source,
    }


def prose(source: str) -> dict:
    """A Markdown cell."""
    return {"cell_type": "markdown", "id": "prose", "metadata": {}, "source": source}


def write_chapter(root: Path, name: str, body: str | None, parameters: str = PARAMETERS) -> Path:
    """Write `notebooks/<name>.ipynb`: prose, bootstrap, parameters, body, colophon."""
    notebook = {
        "cells": [
            prose("# A chapter"),
            code("import sys", "bootstrap"),
            code(parameters, "parameters"),
            code(body or "print('alpha', alpha)"),
            code(RECORD.replace("CHAPTER", repr(name))),
        ],
        "metadata": {"kernelspec": {"name": "python3", "display_name": "Python 3"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    path = root / "notebooks" / f"{name}.ipynb"
    path.write_text(json.dumps(notebook), encoding="utf-8")
    return path


def edit(path: Path, cell: int, source: str) -> None:
    """Replace the source of one cell of a notebook."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    notebook["cells"][cell]["source"] = source
    path.write_text(json.dumps(notebook), encoding="utf-8")


def make_book(root: Path) -> Path:
    """A repository with `notebooks/` and `presets/` below `root`."""
    (root / "notebooks").mkdir(parents=True)
    (root / "presets").mkdir()
    shutil.copy(Path(__file__).with_name("toy_trials.py"), root)  # kernels start here
    for name, body in BODIES.items():
        write_chapter(root, name, body)
    entries = "".join(f"{name}: {{}}\n" for name in BODIES if name != "01_fine")
    (root / "presets" / "smoke.yml").write_text("01_fine: {alpha: 1e-1}\n" + entries)
    return root
