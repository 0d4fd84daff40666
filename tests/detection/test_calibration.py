"""A detector's null: p-values that are uniform on clean rows, and small beside poison."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import fisher_exact

from minilib.data.images import load_images
from minilib.data.text import load_text
from minilib.detection import DefenderData, Detection, calibration

quick = settings(max_examples=30)
seeds = st.integers(0, 2**32 - 1)


def scored(score, rule=lambda score: score > 1):
    """A detector that returns these scores, whatever it is given."""

    def detect(victim, dataset, known):
        values = score(dataset)
        return Detection("made up", rule(values), values, 0.0)

    return detect


@pytest.fixture(scope="module")
def digits():
    return load_images("digits", "train"), load_images("digits", "test")


@quick
@given(seeds, st.integers(20, 60))
def test_row_p_values_are_uniform_where_all_rows_are_clean(seed, n):
    rng = np.random.default_rng(seed)
    labels, clean_labels = rng.integers(0, 2, 400), rng.integers(0, 2, 2 * n)
    p = calibration.row_p_values(rng.normal(size=400), labels, rng.normal(size=2 * n), clean_labels)
    assert (p > 0).all() and (p <= 1).all()
    # For all draws of clean rows together the share at 0.2 is 0.2; of one, it is near.
    assert (p <= 0.2).mean() < 0.45


def test_a_p_value_is_a_rank_among_the_clean_rows_of_its_class():
    p = calibration.row_p_values(
        np.array([5.0, 5.0, 3.0, 9.0]), np.array([0, 1, 0, 2]), np.array([1.0, 3.0, 6.0, 5.0]),
        np.array([0, 0, 1, 1]),
    )  # fmt: skip
    # Class 0: none of two is at least 5; of class 1 both are; a tie counts; class 2 has no null.
    assert p.tolist() == [1 / 3, 1.0, 2 / 3, 1.0]


@quick
@given(seeds, st.floats(0, 1), st.floats(0, 1))
def test_the_p_value_of_a_set_is_fishers_exact_one(seed, a, b):
    rng = np.random.default_rng(seed)
    mask, clean = rng.random(70) < a, rng.random(30) < b
    table = [[clean.sum(), (~clean).sum()], [mask.sum(), (~mask).sum()]]
    expected = fisher_exact(table, alternative="less").pvalue
    assert calibration.set_p_value(mask, clean) == pytest.approx(expected)


def test_a_detector_that_accuses_a_fixed_share_of_clean_rows_is_seen_through(digits):
    """What spectral signatures do by construction: its rate is told, and the set is not accused."""
    train, test = digits
    rng = np.random.default_rng(0)
    detect = scored(lambda rows: rng.normal(size=len(rows)), lambda s: s > np.quantile(s, 0.85))
    outcome = calibration.calibrate(detect, None, train, DefenderData(), test)
    assert outcome.mask.mean() == pytest.approx(0.15, abs=0.02)
    assert outcome.false_alarms == pytest.approx(15, abs=5)
    assert outcome.set_p > 0.05
    assert outcome.accused(0.05).mean() == pytest.approx(0.05, abs=0.03)


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_poison_in_one_class_is_evidence_whether_few_rows_or_many(digits, share):
    train, test = (part.select(part.labels < 2) for part in digits)
    rows = np.flatnonzero(train.labels == 0)
    poisons = rows[: round(share * len(rows))]
    rng = np.random.default_rng(0)

    def score(dataset):
        values = rng.normal(size=len(dataset))
        values[poisons] += 6
        return values

    outcome = calibration.calibrate(scored(score), None, train, DefenderData(), test)
    assert outcome.set_p < 0.05
    assert outcome.accused(0.05)[poisons].mean() > 0.9


@pytest.mark.parametrize("detector", ["activation", "spectral"])
def test_false_alarms_at_a_level_are_about_that_level_on_clean_states(digits, detector):
    from minilib.detection import DETECTORS

    train, test = digits
    states = np.random.default_rng(1).normal(size=(len(train) + len(test), 12)).astype(np.float32)
    victim = type("Victim", (), {"features": lambda self: None})()
    outcome = calibration.calibrate(
        DETECTORS[detector], victim, train, DefenderData(), test, lambda rows: states
    )
    assert outcome.accused(0.05).mean() == pytest.approx(0.05, abs=0.03)
    assert outcome.set_p > 0.01


def test_joined_rows_are_the_audited_ones_and_then_the_clean_ones(digits):
    train, test = digits
    both = calibration.joined(train, test)
    assert len(both) == len(train) + len(test)
    np.testing.assert_array_equal(both.images[len(train) :], test.images)
    reviews = load_text("toy-reviews", "train"), load_text("toy-reviews", "dev")
    both = calibration.joined(*reviews)
    assert both.texts == (*reviews[0].texts, *reviews[1].texts)


def test_rows_of_other_classes_and_too_few_clean_rows_are_refused(digits):
    train, test = digits
    detect = scored(lambda rows: np.zeros(len(rows)))
    with pytest.raises(ValueError, match="ImageDataset"):
        calibration.joined(load_text("toy-reviews", "train"), test)
    with pytest.raises(ValueError, match="accepted: rows like"):
        calibration.joined(train, replace(test, class_names=tuple("abcdefghij")))
    with pytest.raises(ValueError, match="19 clean rows"):
        calibration.calibrate(detect, None, train, DefenderData(), test.select(range(19)))
