"""Figures that compare: what they draw is what the tables and frames say."""

import math

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from minilib import names
from minilib.book import plots
from minilib.book.figures import compare


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


@pytest.mark.parametrize(
    "cell, expected",
    [("12.3 ± 4.5", (12.3, 4.5)), ("7.0", (7.0, math.nan)), ("–", (math.nan, math.nan)),
     ("over 10⁶", (math.nan, math.nan)), (math.nan, (math.nan, math.nan)),
     ("-1.5 ± 0.2", (-1.5, 0.2))],
)  # fmt: skip
def test_a_cell_of_a_table_is_read_as_it_is_written(cell, expected):
    assert compare.number(cell) == pytest.approx(expected, nan_ok=True)


TABLE = pd.DataFrame(
    {
        ("ours", "LFR"): ["100.0 ± 0.0", "15.6 ± 3.0", "50.0", "–"],
        ("paper", "LFR"): ["100.0", "7.2 ± 3.1", "–", "28.2"],
    },
    index=pd.MultiIndex.from_tuples(
        [("BadNets", "poisoned"), ("BadNets", "RGA"), ("AddSent", "poisoned"), ("AddSent", "CUBE")]
    ),
)


def dots(axis) -> dict[str, dict[int, float]]:
    """Source → row → mean, as drawn."""
    by_source = {}
    for container in axis.containers:
        line = container.lines[0]
        rows = np.asarray(line.get_ydata()).astype(int).tolist()
        by_source.setdefault(container.get_label(), {}).update(
            zip(rows, line.get_xdata(), strict=True)
        )
    return by_source


def test_dumbbells_have_a_panel_a_group_and_every_number_of_the_table():
    figure = compare.dumbbells(TABLE, ["LFR"])
    first, second = figure.axes
    assert [axis.get_title() for axis in figure.axes] == ["BadNets", "AddSent"]
    assert [tick.get_text() for tick in first.get_yticklabels()] == ["poisoned", "RGA", "CUBE"]
    assert dots(first) == {"ours": {0: 100.0, 1: 15.6}, "paper": {0: 100.0, 1: 7.2}}
    assert dots(second) == {"ours": {0: 50.0}, "paper": {2: 28.2}}
    assert first.get_xlim() == second.get_xlim(), "a metric has one scale"
    assert first.get_xlabel() == "LFR (%)"


def test_the_paper_is_hollow_and_grey_and_ours_has_the_colour_of_what_its_row_names():
    (axis,) = compare.dumbbells(TABLE.loc["BadNets"], ["LFR"], title="BadNets").axes
    lines = [(one.get_label(), one.lines[0]) for one in axis.containers]
    for paper in (line for name, line in lines if name == "paper"):
        assert paper.get_color() == compare.PAPER and paper.get_markerfacecolor() == "white"
    ours = [line.get_color() for name, line in lines if name == "ours"]
    assert ours == [names.MEANINGS["poisoned"], names.MEANINGS["unlearned"]]
    settings = TABLE.loc["BadNets"].set_axis(["1", "2"])
    (axis,) = compare.dumbbells(settings, ["LFR"], shade=names.INK).axes
    ours = [one.lines[0].get_color() for one in axis.containers if one.get_label() == "ours"]
    assert ours == [names.INK, names.INK]


def test_bars_are_the_spread_and_end_inside_the_panel():
    (axis,) = compare.dumbbells(TABLE.loc["BadNets"], ["LFR"]).axes
    ours = [one for one in axis.containers if one.get_label() == "ours"]
    segments = [one.lines[2][0].get_segments()[0] for one in ours]
    assert [tuple(np.round(part[:, 0], 1)) for part in segments] == [(100.0, 100.0), (12.6, 18.6)]
    low, high = axis.get_xlim()
    assert low < 4.1 and high > 100


def test_a_bar_ends_where_a_share_does():
    assert compare._bar(15.6, 18.0, "LFR") == (0, 33.6)
    assert compare._bar(90.0, 30.0, "LFR") == (60.0, 100)
    assert compare._bar(50.0, math.nan, "LFR") == (50.0, 50.0)
    assert compare._bar(64.0, 70.0, names.label("ppl")) == (-6.0, 134.0)


def test_columns_that_name_methods_are_panels_of_one_metric_on_one_scale():
    table = TABLE.loc["BadNets"].rename_axis("position")
    table = pd.concat([table, table.rename({"LFR": "OSFT"}, axis=1).replace("15.6 ± 3.0", "0.0")],
                      axis=1)  # fmt: skip
    figure = compare.dumbbells(table, ["LFR", "OSFT"], of="ASR")
    assert [axis.get_title() for axis in figure.axes] == ["LFR", "OSFT"]
    assert {axis.get_xlabel() for axis in figure.axes} == {"ASR (%)"}
    assert len({axis.get_xlim() for axis in figure.axes}) == 1
    assert figure.get_supylabel() == "position"


def test_several_models_of_a_paper_have_marks_of_their_own():
    marks = compare._marks(["ours, a", "ours, b", "paper, BERT", "paper, Llama"])
    assert len(set(marks.values())) == 4
    assert set(marks) - {one for one in marks if marks[one] in compare.PAPERS} == {
        "ours, a", "ours, b"
    }  # fmt: skip


def test_a_plane_shows_seeds_means_target_and_the_papers():
    frame = pd.DataFrame(
        {"method": ["retrain", "retrain", "ga", "ga"], "seed": [0, 1, 0, 1],
         "lfr": [10.0, 12.0, 0.0, 1.0], "pacc": [88.0, 90.0, 50.0, 60.0]}
    )  # fmt: skip
    figure = compare.plane(frame, ["ga", "retrain"], paper={"ga": (0.0, 50.1)})
    whole, near = figure.axes
    points = {tuple(np.round([x, y], 1)) for line in whole.get_lines()
              for x, y in zip(*line.get_data(), strict=True)}  # fmt: skip
    assert {(10.0, 88.0), (12.0, 90.0), (11.0, 89.0), (0.5, 55.0), (0.0, 50.1)} <= points
    assert np.mean(near.get_xlim()) == pytest.approx(11) and np.mean(near.get_ylim()) == 89
    stars = [one for one in whole.get_lines() if one.get_visible() and one.get_marker() == "*"]
    assert len(stars) == 1 and stars[0].get_label() == "ReTrain"


def test_slopes_join_means_over_seeds_and_leave_out_what_was_not_retuned():
    frame = pd.DataFrame(
        {"attack": "badnets", "method": ["ft", "ft", "sau", "none"], "seed": [0, 1, 0, 0],
         "asr": [10.0, 30.0, 2.0, 100.0], "r_asr": [80.0, 100.0, 4.0, math.nan]}
    )  # fmt: skip
    figure = compare.slopes(frame, ["none", "ft", "sau"], bold=["sau"], control={"badnets": 5.0})
    (axis,) = figure.axes
    ends = sorted(
        tuple(line.get_ydata()) for line in axis.get_lines() if len(line.get_xdata()) == 2
    )
    assert (2.0, 4.0) in ends and (20.0, 90.0) in ends and (5.0, 5.0) in ends and len(ends) == 3
    assert sorted(text.get_text() for text in axis.texts) == ["FT", "SAU"]


@pytest.mark.parametrize("heights", [[0, 0, 0], [10, 11, 50], [99, 100, 100, 100], [5]])
def test_labels_of_slopes_do_not_overlap_and_keep_their_order(heights):
    places = compare._apart(np.array(heights, float), 5.0)
    assert all(b - a >= 5.0 - 1e-9 for a, b in zip(places, places[1:], strict=False))
    assert min(places) >= -3.0 - 1e-9 and max(places) <= 101.0 + 1e-9


@pytest.mark.parametrize("seeds", [1, 3])
def test_a_band_ends_where_its_weights_do_and_the_picture_keeps_its_size(seeds, tmp_path):
    rows = [
        {"method": method, "epoch": epoch, "seed": seed, "lam": 1 / (epoch + seed)}
        for method in ("ga", "rga") for epoch in (1, 2, 3) for seed in range(seeds)
    ]  # fmt: skip
    figure = plots.lines(pd.DataFrame(rows), ["lam"])
    figure.savefig(tmp_path / "shown.png", bbox_inches="tight", dpi=100)  # as a notebook shows it
    height, width, _ = plt.imread(tmp_path / "shown.png").shape
    assert width < 750 and height < 400
    (axis,) = figure.axes
    boxes = [band.get_clip_box().get_points() for band in axis.collections]
    tops = [axis.transData.inverted().transform(box)[:, 1].max() for box in boxes]
    assert len(tops) >= (seeds > 1) and all(top == pytest.approx(1) for top in tops)
