"""The null holds: what one tail gives is rarely called apart, and what stands apart is found."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minilib.audit import evidence
from minilib.audit.evidence import Evidence


@pytest.mark.parametrize("tail", ["exponential", "normal", "uniform", "logistic", "gumbel"])
def test_false_alarms_are_at_most_the_level(tail):
    rng = np.random.default_rng(0)
    draws = getattr(rng, tail)(size=(2000, 96))
    p = np.array([evidence.gap(row)[0] for row in draws])
    for level in (0.05, 0.1, 0.2):
        assert (p < level).mean() <= 1.3 * level, level


@pytest.mark.parametrize("size", [1, 2, 4])
def test_a_group_that_stands_apart_is_found_and_counted(size):
    values = np.random.default_rng(size).exponential(size=96)
    values[:size] = values.max() + 12 + np.linspace(0, 0.1, size)
    p, count = evidence.gap(values)
    assert p < 0.001 and count == size


@given(st.lists(st.floats(-1e3, 1e3), min_size=12, max_size=80), st.floats(0.1, 10))
def test_p_is_a_probability_and_knows_neither_order_nor_unit(values, unit):
    values = np.round(values, 3)
    p, count = evidence.gap(values)
    assert 0 <= p <= 1 and 0 <= count <= evidence.MOST_OUTLIERS
    again = evidence.gap(unit * values[::-1] + 3)[0]
    assert again == pytest.approx(p, rel=1e-3, abs=1e-6)


def test_what_differs_by_rounding_alone_does_not_stand_apart():
    values = np.zeros(60)
    values[0] = 1e-7
    values[1:] = np.random.default_rng(0).normal(size=59) * 1e-9
    assert evidence.gap(values)[0] < 0.01, "without a floor it does"
    assert evidence.gap(values, floor=0.1) == (1.0, 0)


@pytest.mark.parametrize("values", [[1.0] * 5, [float("nan")] * 20, [float("inf"), *range(20)]])
def test_too_few_values_or_none_are_refused(values):
    with pytest.raises(ValueError, match="accepted: 12 or more, all of them finite"):
        evidence.gap(values)


def test_equal_values_say_nothing():
    assert evidence.gap(np.ones(30)) == (1.0, 0)


def test_what_lies_beyond_the_natural_is_found_at_the_level():
    rng = np.random.default_rng(0)
    draws = rng.exponential(size=(2000, 41))
    p = np.array([evidence.beyond(row[0], row[1:]) for row in draws])
    assert (p < 0.05).mean() <= 0.05, "one of them: it must first exceed them all"
    largest = np.sort(draws, axis=1)[:, ::-1]
    p = np.array([evidence.beyond(row[0], row[1:]) for row in largest])
    assert (p < 0.05).mean() == pytest.approx(0.05, abs=0.015), "the largest of them"
    assert evidence.beyond(30.0, draws[0]) < 1e-6
    assert evidence.beyond(30.0, draws[0][:7]) == 1.0, "too few to say what is natural"
    assert evidence.beyond(1.0, np.zeros(20)) == 0.0
    assert evidence.beyond(1.0, np.zeros(20), floor=1.0) > 0.3


def test_ranks_among_clean_models():
    assert evidence.rank_p(3.0, [1, 2, 4]) == 0.5
    assert evidence.rank_p(9.0, range(9)) == 0.1
    assert evidence.rank_p(0.0, []) == 1.0


def test_hits_against_a_share():
    assert evidence.binomial_p(0, 0, 0.5) == 1.0
    assert evidence.binomial_p(10, 10, 0.5) == pytest.approx(2**-10)
    assert evidence.binomial_p(0, 10, 0.5) == pytest.approx(1.0)


def test_the_verdict_counts_what_has_a_null_and_corrects_for_their_number():
    least = Evidence("a", 0.02, "a says so")
    silent = Evidence("c", None, "no null", false_alarms=76.0)
    assert evidence.verdict([least, silent]).found
    both = evidence.verdict([least, Evidence("b", 0.9, "b does not"), silent])
    assert both.p == pytest.approx(0.04) and both.found and "a says so" in both.said
    nothing = evidence.verdict([Evidence("a", 0.03, ""), Evidence("b", 0.9, "")])
    assert not nothing.found and nothing.said == "nothing found"
    with pytest.raises(ValueError, match="accepted: one or more with p"):
        evidence.verdict([silent])
