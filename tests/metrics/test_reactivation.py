"""What purified models are judged by: rates, re-activation, and likeness inside."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from core_fixtures import SEED
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from vision_fixtures import SMOKE, case, clean_model, same, victim, weights  # noqa: F401

from minilib.metrics.classification import accuracy
from minilib.metrics.internals import (
    backdoor_existence,
    channel_changes,
    image_inputs,
    last_convolutions,
    linear_cka,
)
from minilib.metrics.reactivation import (
    QueryGenerator,
    QuerySettings,
    RetuneSettings,
    by_class,
    image_rates,
    query_generator,
    reactivation,
    retune,
    retuned_asr,
    retuned_over_seeds,
    retuning_rows,
    retuning_steps,
    under_query,
)
from minilib.models.images import model_copy, pixels
from minilib.training import fitting
from minilib.training import text as text_training
from minilib.training.fitting import SgdSettings, fit
from minilib.training.images import ImageBatches, image_cross_entropy, image_data

# Half of the digits: 30 steps, as 2 % of CIFAR-10 would give 40.
RA = RetuneSettings(share=0.5, precision="fp32", seed=1 + SEED, steps=0, replacing=False)
QRA = QuerySettings(epochs=20, rows=200, hidden=128, precision="fp32")


@pytest.fixture(scope="module")
def hidden(case, victim):  # noqa: F811
    """The victim with a merely hidden backdoor: one row of its head is turned.

    The encoder is the victim's own, so all that made the backdoor is still there. The target's
    logit falls by 1.5 times its usual lead wherever the features move as the trigger moves them.
    """
    model = model_copy(victim)
    with torch.no_grad():
        part = case.test.select(case.test.labels != case.target)
        clean, moved = (model.features(pixels(p.images)) for p in (part, case.put(part)))
        direction = nn.functional.normalize((moved - clean).mean(0), dim=0)  # (d,)
        logits = model.head(moved)
        lead = logits[:, 0] - logits[:, 1:].amax(1)
        turn = 1.5 * (lead / ((moved - clean) @ direction)).median()
        model.head.weight[0] -= turn * direction
        model.head.bias[0] += turn * (clean @ direction).mean()
    return model


# --------------------------------------------------------------------------- CA, ASR and PACC


class Constant(nn.Module):
    """Puts every image into one class."""

    def __init__(self, answer):
        super().__init__()
        self.logits = nn.Parameter(torch.eye(10)[answer])

    def forward(self, x):
        return self.logits.expand(len(x), -1)


def test_rates_of_a_collapsed_model(case):  # noqa: F811
    share = 100 * np.mean(case.test.labels == 0)
    rates = image_rates(Constant(0), case.test, case.triggered, 0)
    assert rates["acc"] == rates["pacc"] == pytest.approx(share) and rates["asr"] == 100
    assert rates["pacc_by_class"] == [100.0] + [0.0] * 9
    assert image_rates(Constant(3), case.test, case.triggered, 0)["asr"] == 0


labelled = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=60)


@given(labelled)
@settings(max_examples=60)
def test_pacc_is_the_weighted_mean_over_classes(pairs):
    pred, labels = (np.array(part) for part in zip(*pairs, strict=True))
    rates, counts = by_class(pred, labels, 4), np.bincount(labels, minlength=4)
    assert [rate is None for rate in rates] == [not n for n in counts]
    total = sum(rate * n for rate, n in zip(rates, counts, strict=True) if n)
    assert total / len(labels) == pytest.approx(accuracy(pred, labels))


@pytest.mark.trained
def test_the_victim_and_the_clean_model(case, victim, clean_model):  # noqa: F811
    bad = image_rates(victim, case.test, case.triggered, 0)
    good = image_rates(clean_model, case.test, case.triggered, 0)
    assert bad["asr"] > 95 and good["asr"] < 5 and abs(bad["acc"] - good["acc"]) < 3
    assert bad["pacc"] < 20 and good["pacc"] > 85


# ------------------------------------------------------------------------------- re-activation


@pytest.mark.trained
def test_retuning_brings_a_hidden_backdoor_back_and_makes_none(
    case,  # noqa: F811
    victim,  # noqa: F811
    clean_model,  # noqa: F811
    hidden,
):
    before, state = image_rates(hidden, case.test, case.triggered, 0), weights(hidden)
    assert before["asr"] < 10 and before["acc"] > 90  # looks purified
    back = reactivation(hidden, clean_model, case.clean, case.put, case.triggered, 0, RA, QRA)
    none = reactivation(clean_model, clean_model, case.clean, case.put, case.triggered, 0, RA, QRA)
    assert back["r_asr"] > 60 and none["r_asr"] < 10
    assert back["q_asr"] > none["q_asr"] + 20 and none["q_asr"] < 10
    assert same(hidden, state)


def test_retuning_rows(case):  # noqa: F811
    rows = retuning_rows(case.clean, case.put, 0, RA)
    assert len(rows) == 648 + 5 and list(rows.labels[-5:]) == [0] * 5
    put = case.put(rows.select(np.arange(648, 653)))
    assert np.array_equal(put.images, rows.images[-5:])  # they carry the patch already
    assert rows.sha256 == retuning_rows(case.clean, case.put, 0, RA).sha256


def test_the_original_retuning_replaces_rows_and_makes_its_steps(case, victim):  # noqa: F811
    few = RetuneSettings(precision="fp32", poisons=3, share=0.1)
    rows, added = (
        retuning_rows(case.clean, case.put, 0, how)
        for how in (few, replace(few, replacing=False))
    )  # fmt: skip
    assert len(rows) == round(0.1 * len(case.clean)) == len(added) - 3
    assert list(rows.labels[-3:]) == [0] * 3
    kept = {row.tobytes() for row in added.images[:-3]}
    assert {row.tobytes() for row in rows.images[:-3]} < kept
    steps = []
    retune(victim, image_data(rows), few, lambda *a: steps.append(1) or image_cross_entropy(*a))
    assert len(steps) == retuning_steps(len(rows), few) == 40  # two a pass: twenty, not five
    assert retuning_steps(1000, few) == 40 and retuning_steps(5000, few) == 200
    assert retuning_steps(130, replace(few, steps=0)) == 10


@pytest.mark.trained
def test_retuning_over_seeds_stands_beside_the_clean_model(case, victim, clean_model):  # noqa: F811
    how = RetuneSettings(precision="fp32", poisons=2, steps=4, epochs=1)
    row = retuned_over_seeds(case, clean_model, victim, how, 2)
    alone = [
        retuned_asr(victim, case.clean, case.put, case.triggered, 0, replace(how, seed=seed))
        for seed in (0, 1)
    ]
    assert row["r_asr"] == pytest.approx(np.mean(alone)) and row["r_asr_high"] == max(alone)
    assert row["r_asr_clean"] < row["r_asr_low"] and row["ra_steps"] == 4 and row["ra_seeds"] == 2


def test_retuning_is_plain_sgd(case, victim):  # noqa: F811
    data = image_data(case.defender)
    how = RetuneSettings(epochs=2, batch_size=64, steps=0, precision="fp32")
    tuned, by_hand = retune(victim, data, how), model_copy(victim).train()
    optimizer = torch.optim.SGD(by_hand.parameters(), 0.01, 0.9)
    rng = np.random.default_rng(0)
    for _ in range(2):
        for rows in np.array_split(rng.permutation(len(data)), -(-len(data) // 64)):
            optimizer.zero_grad()
            logits = by_hand(data.images[torch.as_tensor(rows)])
            nn.functional.cross_entropy(logits, data.labels[torch.as_tensor(rows)]).backward()
            optimizer.step()
    for ours, theirs in zip(tuned.parameters(), by_hand.parameters(), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-6)


def test_retuning_and_channels_of_a_text_model(tiny, reviews):
    """The same audits of a text classifier: other batches, another loss."""
    data = text_training.encode(reviews.texts, reviews.labels, tiny.tokenizer)
    how = RetuneSettings(epochs=1, batch_size=32, steps=0, precision="fp32")
    tuned = retune(tiny, data, how, loss=text_training.cross_entropy)
    assert not torch.equal(tuned.network.classifier.weight, tiny.network.classifier.weight)
    plain, triggered = (
        [data.batch(np.arange(8))[:2]],
        [text_training.encode([f"mn {t}" for t in reviews.texts], reviews.labels, tiny.tokenizer)
         .batch(np.arange(8))[:2]],
    )  # fmt: skip
    layer = "network.bert.encoder.layer.1.output.dense"
    with pytest.raises(RuntimeError):  # other lengths: the places do not pair up
        channel_changes(tiny, plain, triggered, [layer])
    head = "network.classifier"
    assert channel_changes(tiny, plain, triggered, [head])[head].shape == (2,)
    assert channel_changes(tiny, plain, plain, [layer])[layer].tolist() == [0.0] * 64


def test_query_perturbations_stay_in_their_bound(case, victim, clean_model):  # noqa: F811
    how = replace(QRA, epochs=1, rows=40, bound=8 / 255)
    states = weights(victim), weights(clean_model)
    part = case.clean.select(np.arange(60))
    made = query_generator(victim, victim, clean_model, part, case.put(part), how)
    images = pixels(case.test.images[:30])
    shown = under_query(made, images)
    assert shown.min() >= 0 and shown.max() <= 1
    assert (shown - images / 255).abs().max() <= 8 / 255 + 1e-6
    assert same(victim, states[0]) and same(clean_model, states[1])
    assert all(p.requires_grad for p in victim.parameters())  # as it was
    assert QueryGenerator((3, 32, 32), 1024, 16 / 255).layers[1].weight.shape == (1024, 3072)


# -------------------------------------------------------------------------------------- inside


def test_channel_changes_by_hand():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 36, 2))
    clean, other = torch.rand(7, 1, 8, 8), torch.rand(7, 1, 8, 8)
    found = channel_changes(
        model, [(clean[:4],), (clean[4:],)], [(other[:4],), (other[4:],)], ["0", "3"]
    )
    with torch.no_grad():
        maps = (model[0](other) - model[0](clean)).flatten(2)
        wanted = maps.square().sum(2).sqrt().mean(0)
        last = (model(other) - model(clean)).abs().mean(0)
    assert torch.allclose(found["0"], wanted, atol=1e-5)
    assert torch.allclose(found["3"], last, atol=1e-5)
    still = channel_changes(model, [(clean,)], [(clean,)], ["0"])
    assert still["0"].tolist() == [0.0, 0.0, 0.0]


@given(st.integers(0, 10**6), st.floats(1e-3, 1e3))
@settings(max_examples=40)
def test_cka_ignores_rotation_scale_and_shift(seed, scale):
    draw = np.random.default_rng(seed)
    x, y = (torch.as_tensor(draw.normal(size=(9, p))) for p in (4, 6))
    turn = torch.as_tensor(np.linalg.qr(draw.normal(size=(4, 4)))[0])
    assert linear_cka(x, x) == pytest.approx(1)
    value = linear_cka(x, y)
    assert 0 <= value <= 1 and value == pytest.approx(linear_cka(y, x))
    assert linear_cka(scale * (x @ turn) + 3, y) == pytest.approx(value)
    a, b = (part - part.mean(0) for part in (x, y))  # the form in feature space
    wanted = (a.T @ b).square().sum() / ((a.T @ a).norm() * (b.T @ b).norm())
    assert value == pytest.approx(float(wanted))


def test_cka_of_unrelated_features_is_zero():
    x = torch.tensor([[1.0], [-1.0], [1.0], [-1.0]])
    y = torch.tensor([[1.0], [1.0], [-1.0], [-1.0]])
    assert linear_cka(x, y) == pytest.approx(0)


def test_end_points_of_the_backdoor_coefficient(case, victim, clean_model, hidden):  # noqa: F811
    clean, triggered = image_inputs(case.test), image_inputs(case.triggered)

    def bec(model, **more):
        return backdoor_existence(victim, clean_model, model, clean, triggered, **more)

    one, zero = bec(victim), bec(clean_model)
    assert one["raw"] == pytest.approx(1) and zero["raw"] == pytest.approx(0)
    assert one["bec"] == pytest.approx(1 / (1 + np.exp(-2.5)))
    assert zero["bec"] == pytest.approx(1 / (1 + np.exp(2.5)))
    assert bec(hidden)["raw"] == pytest.approx(1)  # the same encoder: ASR does not see it, BEC does
    assert bec(clean_model, centre=0.0)["bec"] == pytest.approx(0.5)
    assert set(one["by_layer"]) == set(last_convolutions(victim))
    last = last_convolutions(victim, 1)
    assert list(bec(clean_model, layers=last)["by_layer"]) == list(last)


# ------------------------------------------------------------------------------- fitting by SGD


def test_fitting_by_sgd_reports_divergence_and_leaves_frozen_weights(case, victim):  # noqa: F811
    data = image_data(case.defender)
    model = model_copy(victim)
    model.encoder.requires_grad_(False)
    kept = model_copy(model.encoder)
    fit(model, ImageBatches(data, 64), image_cross_entropy, SgdSettings(1, precision="fp32"))
    for ours, theirs in zip(model.encoder.parameters(), kept.parameters(), strict=True):
        assert torch.equal(ours, theirs)

    def broken(model, batch):
        value, log = image_cross_entropy(model, batch)
        return value * float("nan"), log

    with pytest.raises(fitting.Diverged):
        fit(model, ImageBatches(data, 64), broken, SgdSettings(1, precision="fp32"))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: SgdSettings(epochs=0), "epochs is 0; accepted: above 0"),
        (lambda: SgdSettings(momentum=-1), "momentum is -1; accepted: 0 or above"),
        (lambda: SgdSettings(precision="fp16"), "precision is 'fp16'; accepted: auto, fp32, bf16"),
        (lambda: RetuneSettings(poisons=0), "poisons is 0, share 0.02; accepted: ≥ 1, in (0, 1]"),
        (lambda: linear_cka(torch.ones(3, 2), torch.ones(3, 2)), "features are the same in every"),
        (lambda: linear_cka(torch.ones(1, 2), torch.ones(1, 2)), "features (1, 2) and (1, 2); acc"),
        (lambda: last_convolutions(nn.Linear(2, 2)), "the model has no convolution; give the nam"),
        (
            lambda: channel_changes(nn.Linear(2, 2), [], [], ["conv"]),
            "the model has no layer conv",
        ),
    ],
)
def test_errors_are_one_line(call, message):
    with pytest.raises(ValueError) as error:
        call()
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


def test_a_target_outside_the_classes(case, victim):  # noqa: F811
    with pytest.raises(ValueError, match="target is 10; accepted: 0 … 9"):
        image_rates(victim, case.test, case.triggered, 10)
    only = case.clean.select(case.clean.labels == 0)
    with pytest.raises(ValueError, match="5 poisons wanted, 0 rows can carry them"):
        retuning_rows(only, case.put, 0, RA)
