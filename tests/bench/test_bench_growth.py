"""Growth is fitted as arithmetic says, and drawn from the record. No times."""

from xml.etree import ElementTree

import growth as figure
import pytest

from bench import growth as bench
from bench.timing import Options


@pytest.fixture(scope="module")
def record():
    (one,) = bench.records(Options(quick=True))
    return one


def test_the_slope_is_the_exponent_of_a_power_law():
    x = [1.0, 2.0, 4.0, 8.0]
    assert bench.slope(x, [3 * v**1.5 for v in x]) == pytest.approx(1.5)
    assert bench.slope(x, [7.0] * 4) == pytest.approx(0)


def test_every_axis_has_both_loops_and_their_exponents(record):
    assert set(record["growth"]) == {title for title, *_ in bench.AXES.values()}
    for loops in record["growth"].values():
        assert tuple(loops) == bench.LOOPS
        for found in loops.values():
            assert len(found["x"]) == len(found["seconds"]) == len(found["mib"]) >= 2
            assert found["x"] == sorted(found["x"]) and min(found["seconds"]) > 0
            assert set(found["fits"]) == {"seconds", "mib"}
    assert set(record["hardware"]) == {"cpu", "cores", "threads", "gpu"}


def example() -> dict:
    line = {"x": [1, 2, 4], "seconds": [0.1, 0.2, 0.4], "mib": [10, 10, 10]}
    fits = {"seconds": {"exponent": 1.0, "end": 1.0}, "mib": {"exponent": 0.0, "end": 0.0}}
    return {"rows, <an> epoch": {loop: {**line, "fits": fits} for loop in bench.LOOPS}}


def test_the_drawing_is_well_formed_and_says_every_exponent(record):
    for axes in (example(), record["growth"]):
        drawn = ElementTree.fromstring(figure.svg(axes))
        assert drawn.get("role") == "img"
        for title, loops in axes.items():
            for loop, found in loops.items():
                time = found["fits"]["seconds"]["exponent"]
                assert f"{title}, {loop}: time {time:.2f}" in drawn.get("aria-label")
        lines = [one for one in drawn.iter() if one.tag.endswith("polyline")]
        assert len(lines) == 4 * len(axes)


@pytest.mark.parametrize(("low", "high"), [(0.9, 1100), (3, 40), (11, 19), (1e-4, 2e-4), (5, 5)])
def test_an_axis_has_two_to_five_marks(low, high):
    found = figure.ticks(low, high)
    assert 2 <= len(found) <= 5 and all(low <= value <= high * 1.001 for value in found)


@pytest.mark.parametrize(
    ("value", "words"),
    [(4096, "4.1k"), (131_072, "131k"), (1_500_000, "1.5M"), (0.05, "0.05"), (512, "512")],
)
def test_numbers_on_axes_are_short(value, words):
    assert figure.short(value) == words
