"""Figures that a page takes from another run than its own."""

import base64
import json
import re
import sys

import pytest
import run_figure
from conftest import ROOT

CHAPTER, RUN = "06_bi_bau", "0123456789ab"


def cell(name: str, *kinds: str) -> dict:
    """A code cell that draws a figure in these formats."""
    data = {kind: base64.b64encode(b"drawing").decode() for kind in kinds}
    figure = {"mystnb": {"figure": {"name": name}}}
    return {"metadata": figure, "outputs": [{"output_type": "display_data", "data": data}]}


@pytest.fixture
def root(tmp_path):
    """A repository with one recorded run, of which one figure was drawn and one was not."""
    cells = [{"metadata": {}, "outputs": []}, cell("fig-map", "image/png"), cell("fig-cost")]
    for path, content in {
        f"results/{CHAPTER}/{RUN}.json": {"preset": "small"},
        f"runs/small/{CHAPTER}/{RUN}/notebook.ipynb": {"cells": cells},
        "book/_static/x.json": {},
    }.items():
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).write_text(json.dumps(content))
    return tmp_path


def test_a_figure_is_copied_under_the_name_of_its_run(root):
    made = run_figure.copy(root, CHAPTER, RUN, "fig-map")
    assert made == root / "book" / "_static" / f"{CHAPTER}-{RUN}-fig-map.png"
    assert made.read_bytes() == b"drawing"


def test_what_is_missing_is_named(root, monkeypatch, capsys):
    with pytest.raises(ValueError, match="'fig-mop'; accepted: fig-cost, fig-map"):
        run_figure.copy(root, CHAPTER, RUN, "fig-mop")
    with pytest.raises(ValueError, match="this run drew no 'fig-cost'"):
        run_figure.copy(root, CHAPTER, RUN, "fig-cost")
    (root / "runs" / "small" / CHAPTER / RUN / "notebook.ipynb").unlink()
    with pytest.raises(ValueError, match="notebook.ipynb is not here; run it again"):
        run_figure.copy(root, CHAPTER, RUN, "fig-map")
    monkeypatch.setattr(sys, "argv", ["run_figure.py", CHAPTER, "unknown", "fig-map"])
    assert run_figure.main() == 2
    assert "run unknown has no record" in capsys.readouterr().err


def test_every_copied_figure_is_of_a_published_run_and_on_its_page():
    for path in (ROOT / "book" / "_static").glob("*.png"):
        if found := re.fullmatch(r"(\d\d_\w+)-([0-9a-f]{12})-(.*)", path.stem):
            chapter, run_id, _ = found.groups()
            assert (ROOT / "results" / chapter / f"{run_id}.json").is_file(), path.name
            notebook = json.loads((ROOT / "notebooks" / f"{chapter}.ipynb").read_text("utf-8"))
            prose = "".join("".join(c["source"]) for c in notebook["cells"])
            assert path.name in prose and f"run `{run_id}`" in prose, path.name
