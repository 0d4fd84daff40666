"""Single seeds beneath the means of a figure: a page finds them there, and they are the rows'."""

import io
import json
import math
import re

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from IPython.core.pylabtools import print_figure

from minilib.book import by_seed, paper_tables, plots, tables
from minilib.book.figures import compare
from minilib.chapters import ga_rga

LIKE = {"color": "#ff0000", "marker": "o"}
ROWS = pd.DataFrame(
    [
        {"method": name, "seed": seed, "epoch": epoch, "pacc": 50.0 + k + 10 * seed + epoch}
        for k, name in enumerate(("ga", "rga"))
        for seed in (0, 1, 2)
        for epoch in (1, 2, 3)
    ]
)


@pytest.fixture(autouse=True)
def closed():
    plots.style()
    yield
    plt.close("all")


def single_lines(found: dict, seed: int) -> dict[str, list[float]]:
    """Name → values of a seed, over all panels."""
    lines = [line for panel in found["panels"] for line in panel["lines"]]
    return {line["name"]: line["y"] for line in lines if line["seed"] == seed}


@pytest.mark.parametrize("scale", ["linear", "log"])
@pytest.mark.parametrize("beside", [False, True])
def test_a_point_lies_where_the_picture_has_it(scale, beside):
    """A red dot at the same place, found among the pixels of what a notebook shows."""
    figure, axes = plt.subplots(1, 2, figsize=(7, 1.6), sharey=True)  # low: its layout is tight
    axes[0].plot([1, 100], [-2, 3], color="black")
    axes[0].plot(10, 1, "o", color="#ff0000", ms=5)
    axes[0].set(xscale=scale, xlabel="poisons", ylabel="LFR (%)")
    for seed in (0, 1):
        by_seed.add(axes[0], seed, "GA", 10, 1, LIKE)
    if beside:
        axes[0].plot([], [], "o", color="black", label="a name that takes its place")
        figure.legend(loc="outside upper center")
    found = by_seed.described(figure)
    picture = plt.imread(io.BytesIO(print_figure(figure)))
    red = (picture[..., 0] > 0.9) & (picture[..., 1] < 0.1) & (picture[..., 2] < 0.1)
    y, x = (place.mean() + 0.5 for place in np.nonzero(red))
    (panel,) = found["panels"]
    (left, top, wide, high), (line, _) = panel["box"], panel["lines"]
    value = math.log10(line["x"][0]) if panel["log"] == "x" else line["x"][0]
    across = (value - panel["x"][0]) / (panel["x"][1] - panel["x"][0])
    up = (line["y"][0] - panel["y"][0]) / (panel["y"][1] - panel["y"][0])
    assert panel["log"] == ("x" if scale == "log" else "")
    assert x == pytest.approx((left + wide * across) * picture.shape[1], abs=1.5)
    assert y == pytest.approx((top + high * (1 - up)) * picture.shape[0], abs=1.5)
    ratio = found["size"][0] / found["size"][1]
    assert ratio == pytest.approx(picture.shape[1] / picture.shape[0], rel=0.01)


def test_no_eye_sees_them_and_one_seed_is_no_choice():
    figure = plots.lines(ROWS, ["pacc"])
    by_seed.described(figure)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(by_seed, "add_lines", lambda *_: None)
        patch.setattr(plots.by_seed, "add_lines", lambda *_: None)
        bare = plots.lines(ROWS, ["pacc"])
        bare.axes[0].set(xlim=figure.axes[0].get_xlim(), ylim=figure.axes[0].get_ylim())
        without = print_figure(bare)
    assert print_figure(figure) == without
    assert by_seed.described(plots.lines(ROWS[ROWS["seed"] == 1], ["pacc"])) == {}
    assert by_seed.described(plots.lines(ROWS.drop(columns="seed"), ["pacc"])) == {}


def test_a_line_has_the_values_of_its_seed_and_the_look_of_its_mean():
    figure = plots.lines(ROWS.assign(lam=np.where(ROWS["method"] == "ga", math.nan, 0.5)),
                         ["pacc", "lam"])  # fmt: skip
    found = by_seed.described(figure)
    assert found["seeds"] == [0, 1, 2]
    first, second = found["panels"]
    assert single_lines({"panels": [first]}, 1) == {"GA": [61, 62, 63], "RGA": [62, 63, 64]}
    assert single_lines({"panels": [second]}, 2) == {"RGA": [0.5, 0.5, 0.5]}
    looks = [{(line["name"], line["colour"], line["mark"]) for line in panel["lines"]}
             for panel in (first, second)]  # fmt: skip
    assert looks[1] == {look for look in looks[0] if look[0] == "RGA"}, "one look in all panels"
    legend = dict(zip(("GA", "RGA"), figure.legends[0].get_lines(), strict=True))
    assert {(name, line.get_marker()) for name, line in legend.items()} == {
        (name, mark) for name, _, mark in looks[0]
    }


def test_what_was_not_measured_has_no_point():
    _, axis = plt.subplots()
    by_seed.add(axis, 0, "GA", 1, math.nan, LIKE)
    assert len(axis.lines) == 0
    by_seed.add(axis, 0, "GA", [1, 2], [math.nan, 3], LIKE)
    assert axis.lines[0].get_xydata().tolist() == [[2, 3]]


def test_a_cell_of_a_table_knows_its_seeds_until_a_dumbbell_is_drawn():
    ends = ROWS[ROWS["epoch"] == 3]
    table = tables.summary(ends, "method", ["pacc"], ["ga", "rga"])
    assert table.loc["GA", "PACC"] == "63.0 ± 10.0"
    assert table.loc["GA", "PACC"].by_seed == {0: 53, 1: 63, 2: 73}
    beside = tables.beside(table, pd.DataFrame({"PACC": ["60.0"]}, index=["GA"]))
    found = by_seed.described(compare.dumbbells(pd.concat({"BadNets": beside}), ["PACC"]))
    (panel,) = found["panels"]
    marks = {(one["name"], one["seed"]): one["x"] for one in panel["lines"]}
    assert marks["RGA", 2] == [74] and len(marks) == 6
    low, high = panel["x"]
    assert low < 53 and high > 74, "each seed lies within its panel"
    assert tables.spread(ROWS["pacc"], 1, ROWS["seed"]).by_seed == {}, "several rows a seed"


# ---------------------------------------------------------------- the published pages


def figures() -> dict[str, tuple[str, dict | None]]:
    """Name of each figure of the book → caption, and what its published picture takes along."""
    found = {}
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        copy = json.loads((ROOT / "book" / "_executed" / path.name).read_text(encoding="utf-8"))
        ran = {"".join(cell["source"]).strip(): cell for cell in copy["cells"]}
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            about = cell["metadata"].get("mystnb", {}).get("figure")
            outputs = ran.get("".join(cell["source"]).strip(), {}).get("outputs", [])
            for data in (output.get("data", {}) for output in outputs) if about else ():
                if "image/png" in data:
                    along = "".join(data.get(by_seed.KIND, ""))
                    found[about["name"]] = about["caption"], json.loads(along) if along else None
    return found


def test_every_figure_with_bands_has_its_seeds():
    every = figures()
    spread = {name: along for name, (caption, along) in every.items()
              if re.search(r"standard deviation|\bBands\b", caption)}  # fmt: skip
    assert len(spread) > 10 and [name for name, along in spread.items() if not along] == []


def test_the_lines_of_a_seed_are_the_rows_of_its_trials():
    published = paper_tables.published_numbers(ROOT, ga_rga.CHAPTER).rows()
    _, along = figures()["fig-pacc"]
    names = {"GA": "ga", "NPO": "npo", "DGA": "dga", "RGA": "rga"}
    checked = 0
    for panel, value in zip(along["panels"], ("cacc", "pacc"), strict=True):
        for line in panel["lines"]:
            rows = {row["epoch"]: row for row in published[line["seed"]]
                    if row["method"] == names[line["name"]] and "epoch" in row}  # fmt: skip
            wanted = [rows[epoch][value] for epoch in line["x"]]
            assert line["y"] == pytest.approx(wanted, rel=1e-5)
            checked += len(wanted)
    assert checked > 100
