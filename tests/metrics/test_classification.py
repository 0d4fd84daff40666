"""Metrics on examples small enough to count by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minilib.chapters.ga_rga import any_error
from minilib.metrics import classification

LABELS = [0, 0, 0, 1, 1, 2, 2, 2]
PRED = [0, 1, 2, 1, 0, 1, 1, 0]
quick = settings(max_examples=60)


@st.composite
def predictions(draw, num_classes=None):
    classes = num_classes or draw(st.integers(2, 5))
    label = st.integers(0, classes - 1)
    labels = draw(st.lists(label, min_size=1, max_size=50))
    pred = draw(st.lists(label, min_size=len(labels), max_size=len(labels)))
    return np.array(pred), np.array(labels), classes


@pytest.mark.parametrize("pred, labels, says", [
    ([-1, 0], [1, 0], "predictions span -1 … 0; accepted: 0 … 1"),
    ([2, 0], [0, 0], "predictions span 0 … 2; accepted: 0 … 1"),  # 2 of row 0 is 0 of row 1
    ([1, 0], [0, 2], "labels span 0 … 2; accepted: 0 … 1"),
])  # fmt: skip
def test_what_is_no_class_is_not_counted_in_another_cell(pred, labels, says):
    with pytest.raises(ValueError, match=says):
        classification.confusion(pred, labels, 2)


def test_accuracy_and_confusion_by_hand():
    assert classification.accuracy(PRED, LABELS) == 25.0
    assert classification.confusion(PRED, LABELS, 3).tolist() == [[1, 1, 1], [1, 1, 0], [1, 2, 0]]
    assert classification.confusion(PRED, LABELS, 4).shape == (4, 4)
    assert classification.pacc is classification.accuracy


def test_label_flip_rate_and_the_codes_error_rate_by_hand():
    # Rows of other classes than 1: 0→0, 0→1, 0→2, 2→1, 2→1, 2→0: three of six land in 1.
    assert classification.label_flip_rate(PRED, LABELS, 1) == 50.0
    # The code: class 0 errs in 2 of 3, class 2 in 3 of 3.
    assert classification.error_rate(PRED, LABELS, 1) == pytest.approx((200 / 3 + 100) / 2)
    assert classification.label_flip_rate([1, 1, 0, 0], [0, 0, 1, 1], 1) == 100.0


def test_delta_pacc_has_no_sign():
    assert classification.delta_pacc(50.0, 90.0) == classification.delta_pacc(90.0, 50.0) == 40.0


@quick
@given(predictions())
def test_confusion_holds_the_other_metrics(case):
    pred, labels, classes = case
    counts = classification.confusion(pred, labels, classes)
    assert counts.sum() == len(labels)
    assert counts.sum(1).tolist() == np.bincount(labels, minlength=classes).tolist()
    assert classification.accuracy(pred, labels) == pytest.approx(
        100 * np.trace(counts) / len(labels)
    )
    for target in range(classes):
        others = np.delete(counts, target, axis=0)
        if others.sum():
            flips = 100 * others[:, target].sum() / others.sum()
            assert classification.label_flip_rate(pred, labels, target) == pytest.approx(flips)
            assert any_error(counts.tolist(), target) == pytest.approx(
                classification.error_rate(pred, labels, target)
            )


@quick
@given(predictions(num_classes=2), st.integers(0, 1))
def test_the_two_flip_rates_agree_for_two_classes(case, target):
    pred, labels, _ = case
    if (labels != target).any():
        assert classification.label_flip_rate(pred, labels, target) == pytest.approx(
            classification.error_rate(pred, labels, target)
        )


def test_the_two_flip_rates_differ_for_more_classes():
    assert classification.label_flip_rate([2, 2], [1, 1], 0) == 0.0
    assert classification.error_rate([2, 2], [1, 1], 0) == 100.0


def test_majority_share_is_the_collapse_value():
    assert classification.majority_share([0, 0, 0, 1], 0) == 75.0
    assert classification.majority_share([0, 0, 0, 1], 2) == 0.0


def test_results_are_plain_floats_and_tensors_are_welcome():
    torch = pytest.importorskip("torch")
    pred, labels = torch.tensor(PRED), torch.tensor(LABELS)
    for value in (
        classification.accuracy(pred, labels),
        classification.label_flip_rate(pred, labels, 1),
        classification.error_rate(pred, labels, 1),
        classification.majority_share(labels, 1),
    ):
        assert type(value) is float
    assert classification.confusion(pred, labels, 3).dtype == np.int64


@pytest.mark.parametrize(
    ("pred", "labels"), [([1], [1, 0]), ([], []), ([[1]], [[1]])], ids=["length", "empty", "2-d"]
)
def test_shapes_that_do_not_fit_are_refused(pred, labels):
    for call in (classification.accuracy, lambda p, y: classification.label_flip_rate(p, y, 0)):
        with pytest.raises(ValueError, match=r"accepted: two equal \(N,\), N ≥ 1"):
            call(pred, labels)


@pytest.mark.parametrize("pred, labels, says", [
    ([1, 0], ["1", "0"], "labels are <U1"),
    (["1", "0"], [1, 0], "predictions are <U1"),
    ([0.9, 0.2], [1, 0], "predictions are float64"),  # probabilities
])  # fmt: skip
def test_what_equals_no_class_is_no_rate_of_zero(pred, labels, says):
    for call in (classification.accuracy, lambda p, y: classification.label_flip_rate(p, y, 0)):
        with pytest.raises(ValueError, match=f"{says}; accepted: whole numbers"):
            call(pred, labels)


@pytest.mark.parametrize("rate", [classification.label_flip_rate, classification.error_rate])
@pytest.mark.parametrize("target", ["positive", -1, None, 0.5])
def test_a_target_that_is_no_class_is_refused(rate, target):
    with pytest.raises(ValueError, match=f"target is {target!r}; accepted: the number of a class"):
        rate([1, 0], [1, 0], target)


def test_labels_of_one_byte_do_not_run_over():
    """Class 42 of 43 stands in cell 42 · 43 + 42, past what a byte holds."""
    pred, labels = np.array([42, 7, 42]), np.array([42, 42, 7], np.uint8)
    table = classification.confusion(pred, labels, 43)
    assert table[42, 42] == table[42, 7] == table[7, 42] == 1 and table.sum() == 3


@pytest.mark.parametrize("rate", [classification.label_flip_rate, classification.error_rate])
def test_flip_rate_without_other_classes_is_undefined(rate):
    with pytest.raises(ValueError, match="no row of a class other than the target 1"):
        rate([1, 0], [1, 1], 1)
