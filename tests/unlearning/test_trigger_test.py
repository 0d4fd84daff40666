"""Reversed triggers and their test: plain references, and a null that holds."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from core_fixtures import SEED
from hypothesis import given, settings
from hypothesis import strategies as st

from minilib.data.images import load_images
from minilib.models.images import image_classifier
from minilib.training.fitting import TrainSettings
from minilib.training.images import predict_images
from minilib.unlearning import outliers
from minilib.unlearning import trigger_test as trigger_tests
from minilib.unlearning.trigger_test import (
    TriggerTestSettings,
    anomaly_indices,
    confident_triggers,
    halves,
    index_note,
    margins,
    reference,
    shrinkage,
    trigger_test,
)

quick = settings(max_examples=40)
sizes = st.lists(st.floats(0.5, 100), min_size=3, max_size=15)


@given(st.floats(0.1, 1e3), st.floats(0.1, 1e3))
def test_with_two_classes_no_index_passes_two_thirds(a, b):
    assert anomaly_indices([a, b]).max() <= 1 / 1.4826 + 1e-9


@quick
@given(sizes.filter(lambda values: len(values) % 2 and len(set(values)) > 2))
def test_the_index_flags_what_neural_cleanse_flags(values):
    flagged = outliers(torch.tensor(values, dtype=torch.float64), 2.0).tolist()
    assert flagged == np.flatnonzero(anomaly_indices(values) > 2).tolist()


def test_too_few_classes_are_named():
    assert "0.67" in index_note(2) and "5 classes" in index_note(5)
    assert index_note(6) is None


def test_margins_are_logits_above_the_next():
    logits = torch.tensor([[1.0, 4.0, 2.0], [5.0, 4.0, 2.0]])
    assert margins(logits, torch.tensor([1, 2])).tolist() == [2.0, -3.0]


def test_shrinkage_is_a_log_ratio_to_the_median_of_the_references():
    null = np.array([[4.0, 10.0], [8.0, 20.0], [16.0, np.inf]])
    values = shrinkage(np.array([2.0, 20.0]), null)
    np.testing.assert_allclose(values, [np.log(4), 0.0])
    assert shrinkage(np.array([np.inf, 20.0]), null)[0] == pytest.approx(np.log(8 / 32))


def test_p_of_a_clean_network_is_at_most_alpha_with_a_probability_of_about_alpha():
    rng, p_values = np.random.default_rng(0), []
    for _ in range(400):
        draw = {kind: np.exp(rng.normal(size=(20, 5))) for kind in ("patch", "blend")}
        test = trigger_test({k: v[0] for k, v in draw.items()}, {k: v[1:] for k, v in draw.items()})
        p_values.append(test.p)
    assert np.mean(np.array(p_values) <= 0.1) == pytest.approx(0.1, abs=0.05)
    assert min(p_values) == 1 / 20


def test_the_smallest_trigger_of_its_kind_is_named():
    rng = np.random.default_rng(0)
    null = {kind: np.exp(0.1 * rng.normal(size=(19, 4))) for kind in ("patch", "blend")}
    own = {"patch": np.ones(4), "blend": np.array([1.0, 1.0, 0.3, 1.0])}
    test = trigger_test(own, null)
    assert (test.kind, test.target, test.p) == ("blend", 2, 1 / 20)
    rates = {"patch": np.ones(4), "blend": np.array([1.0, 1.0, 0.5, 1.0])}
    assert trigger_test(own, null, rates).p > 0.1  # it fails on held-out images


def test_a_kind_whose_spread_is_larger_does_not_decide():
    rng = np.random.default_rng(1)
    null = {"patch": np.exp(rng.normal(size=(19, 4))), "blend": np.full((19, 4), 1.0)}
    null["blend"] *= np.exp(0.01 * rng.normal(size=(19, 4)))
    own = {"patch": np.median(null["patch"], 0), "blend": np.array([1.0, 0.8, 1.0, 1.0])}
    assert trigger_test(own, null).kind == "blend"


def test_fewer_than_three_references_and_settings_out_of_range_are_refused():
    with pytest.raises(ValueError, match="2 reference networks"):
        trigger_test({"patch": np.ones(2)}, {"patch": np.ones((2, 2))})
    for wrong in ({"kind": "warp"}, {"held": 1.0}, {"factor": 1.0}, {"steps": 0}):
        with pytest.raises(ValueError, match="accepted"):
            TriggerTestSettings(**wrong)


def test_halves_share_no_row_and_have_every_class():
    clean = load_images("digits", "test").select(range(100))
    a, b = halves(clean, 0.3, 0)
    assert len(a) + len(b) == 100 and len(np.unique(b.labels)) == 10
    both = np.concatenate([a.images, b.images]).reshape(100, -1)
    assert len(np.unique(both, axis=0)) == len(np.unique(clean.images.reshape(100, -1), axis=0))
    with pytest.raises(ValueError, match="accepted: 2 or more"):
        halves(clean.select([0]), 0.5, 0)


@pytest.fixture(scope="module")
def network():
    clean = load_images("digits", "test")
    clean = clean.select(clean.labels < 10)
    model = image_classifier("cnn", 10, clean.shape, 0.5, 0)
    how = TrainSettings(12, 1e-2, 64, schedule="linear", precision="fp32")
    return reference(model, clean, 1 + SEED, how), clean, model


@pytest.mark.trained
def test_a_reference_has_new_weights_and_leaves_the_model_alone(network):
    trained, clean, model = network
    fresh = image_classifier("cnn", 10, clean.shape, 0.5, 0)
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), fresh.parameters(), strict=True)
    )
    assert (predict_images(trained, clean).argmax(1).numpy() == clean.labels).mean() > 0.8


@pytest.mark.trained
@pytest.mark.parametrize("kind", ["patch", "blend"])
def test_triggers_are_as_large_as_they_say_and_lead_to_their_class(network, kind):
    model, clean, _ = network
    found = confident_triggers(model, clean, TriggerTestSettings(kind=kind, steps=80, images=12))
    images = torch.as_tensor(clean.images).permute(0, 3, 1, 2) / 255
    for k in (0, 7):
        assert np.isfinite(found.sizes[k])
        own = found.masks[k].sum() if kind == "patch" else found.patterns[k].norm()
        assert float(own) == pytest.approx(found.sizes[k], rel=1e-3)
        others = images[torch.as_tensor(clean.labels != k)]
        rate = (predict_images(model, found.put(others, k)).argmax(1) == k).float().mean()
        assert rate > 0.8


@pytest.mark.trained
def test_classes_may_be_searched_a_few_at_a_time(network, monkeypatch):
    model, clean, _ = network
    settings = TriggerTestSettings(steps=20, images=8, share=0.3)
    whole = confident_triggers(model, clean, settings)
    monkeypatch.setattr(trigger_tests, "CHUNK_VALUES", 3 * 8 * 16 * 16)
    parts = confident_triggers(model, clean, settings)
    assert np.isfinite(whole.sizes).sum() >= 3
    np.testing.assert_allclose(parts.sizes, whole.sizes, rtol=0.02)


def test_neural_cleanse_says_when_its_classes_are_too_few(network):
    from minilib.unlearning import CleanseSettings, neural_cleanse

    clean = load_images("digits", "test")
    clean = clean.select(clean.labels < 2)
    clean = replace(clean, class_names=("0", "1"))
    model = image_classifier("cnn", 2, clean.shape, 0.5, 0)
    with pytest.warns(UserWarning, match=r"2 classes are too few .* index here is 0\.\d\d"):
        kept = neural_cleanse(model, clean, CleanseSettings(steps=12, images=8))
    for before, after in zip(model.parameters(), kept.parameters(), strict=True):
        assert torch.equal(before, after)  # nobody can be flagged
