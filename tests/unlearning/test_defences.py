"""The baseline defences: their identities, what they leave alone, what they do to BadNets."""

import math
from dataclasses import replace
from statistics import median

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import nightly
from core_fixtures import SEEDS
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from vision_fixtures import SHORT, SMOKE, case, clean_model, same, scenario, victim, weights  # noqa: F401

from minilib.data.images import ImageDataset
from minilib.metrics.reactivation import image_rates
from minilib.models.images import (
    ImageClassifier,
    ImageToImage,
    frozen_copy,
    image_classifier,
    model_copy,
    pixels,
    wrap,
)
from minilib.training.fitting import seeded
from minilib.training.images import image_data
from minilib.unlearning import (
    AnpSettings,
    BiBauSettings,
    BtiSettings,
    CleanseSettings,
    ClpSettings,
    EpSettings,
    IBauSettings,
    IbuSettings,
    PamSettings,
    RnpSettings,
    SauSettings,
    TuneSettings,
    adversarial,
    benign_mask,
    channel_lipschitz,
    decoupled_inversion,
    defend,
    outliers,
    path_aware,
    prune,
    reverse_triggers,
    shared_divergence,
    towards,
)
from minilib.unlearning.adversarial import (
    RELEASED_I_BAU,
    hypergradient,
    shared_images,
    universal_perturbation,
)
from minilib.unlearning.common import prepared
from minilib.unlearning.fine_tuning import RELEASED_PAM
from minilib.unlearning.pruning import (
    RELEASED_RNP,
    _far_out,
    adversarial_masks,
    histogram_entropy,
    judged_with,
    norm_outputs,
    rescaled,
    spacing_entropy,
    unlearn_clean,
)
from minilib.unlearning.trigger_inversion import (
    RELEASED_BTI,
    RELEASED_NC,
    decoupled_unlearning,
    released_triggers,
    stamped_rows,
)

GENERATOR = replace(SMOKE, epochs=20, lr=3e-3, batch_size=32)
FP32 = {"batch_size": 32, "precision": "fp32"}


def smoke_settings(case) -> dict:  # noqa: F811
    """Each defence on 129 digits: batches of 32, in which the papers' 128 … 256 have few steps."""
    bti = BtiSettings(epochs=10, rounds=2, generator=GENERATOR, **FP32)
    return {
        "ft": TuneSettings(**FP32),
        "nc": CleanseSettings(steps=120, **FP32),
        "bti-dbf": bti,
        "anp": AnpSettings(steps=250, threshold=0.8, batch_size=64, precision="fp32"),
        "ep": EpSettings(mixed=case.poisoned.dataset),
        "rnp": RnpSettings(**FP32),
        "clp": ClpSettings(),
        "i-bau": IBauSettings(),
        "sau": SauSettings(**FP32),
        "pam": PamSettings(inversion=bti, **FP32),
        "bi-bau": BiBauSettings(epochs=8, steps=10, step=4.0, **FP32),
        "ibu": IbuSettings(poison=case.put(case.defender), **FP32),
    }


# What each leaves of BadNets on digits (100.0, 99.0) in three victims: the largest ASR of the best
# of them, the largest median ASR, the least median CA, in percent. Victims differ: of nine NC left
# three their whole backdoor and the others none, ANP 0 to 97 %, I-BAU 1 to 100 %.
# Fine-tuning has nothing in its data that touches the backdoor. EP and CLP look for channels three
# deviations out, and few layers of 16 … 64 channels have one. RNP is left out: of five victims it
# ruined four (CA 11 to 19), and left one its backdoor; rounding decides which. What it does is held
# by its own tests and the golden numbers.
LEAVES = {
    "ft": (100, 100, 95),
    "nc": (20, 100, 90),
    "bti-dbf": (20, 70, 85),
    "anp": (50, 100, 85),
    "ep": (100, 100, 70),
    "clp": (100, 100, 95),
    "i-bau": (95, 100, 75),
    "sau": (10, 10, 75),
    "pam": (10, 10, 85),
    "bi-bau": (10, 10, 75),
    "ibu": (5, 5, 95),
}


@nightly  # by day the golden numbers hold each
@pytest.mark.trained
@pytest.mark.parametrize("method", LEAVES)
def test_what_each_does_to_badnets(method):
    asr, acc = [], []
    for case, victim in map(scenario, SEEDS):  # noqa: F402
        before, state = image_rates(victim, case.test, case.triggered, 0), weights(victim)
        unlearned = defend(method, victim, case.defender, smoke_settings(case)[method])
        assert same(victim, state) and unlearned is not victim and not unlearned.training
        assert all(p.requires_grad for p in victim.parameters())
        assert before["asr"] >= 95
        rates = image_rates(unlearned, case.test, case.triggered, 0)
        asr.append(rates["asr"])
        acc.append(rates["acc"])
    best, middle, least = LEAVES[method]
    assert min(asr) <= best and median(asr) <= middle and median(acc) >= least, (asr, acc)


QUICK = {
    "bi-bau": BiBauSettings(epochs=1, steps=2, **FP32),
    "ft": TuneSettings(epochs=1, **FP32),
    "nc": CleanseSettings(epochs=1, steps=3, threshold=0.1, **FP32),
    "bti-dbf": BtiSettings(epochs=1, rounds=1, mask_steps=3, generator=SHORT, **FP32),
    "anp": AnpSettings(steps=2, precision="fp32"),
    "rnp": RnpSettings(epochs=1, recover_epochs=1, **FP32),
    "i-bau": IBauSettings(rounds=1, inner_steps=2),
    "sau": SauSettings(epochs=1, steps=1, **FP32),
    "pam": PamSettings(
        epochs=1, inversion=BtiSettings(mask_steps=3, generator=SHORT, **FP32), **FP32
    ),
    "nc-code": CleanseSettings(epochs=1, steps=3, threshold=0.1, **FP32),
    "bti-dbf-code": BtiSettings(
        epochs=1, rounds=2, mask_steps=3, generator=SHORT, identity_epochs=1, **FP32
    ),
    "sau-code": SauSettings(epochs=1, steps=1, **FP32),
    "pam-code": PamSettings(
        epochs=1,
        inversion=BtiSettings(mask_steps=3, generator=SHORT, identity_epochs=1, **FP32),
        **FP32,
    ),
}


@pytest.mark.parametrize("method", QUICK)
def test_repeatable_and_random_state_left_alone(method, case, victim):  # noqa: F811
    torch.manual_seed(5)
    first = defend(method, victim, case.defender, QUICK[method])
    after = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(1), after)
    torch.manual_seed(6)
    assert same(defend(method, victim, case.defender, QUICK[method]), weights(first))


# ---------------------------------------------------------------------------------- errors


def test_every_error_is_one_line(case, victim):  # noqa: F811
    clean = case.defender
    fewer = replace(clean, class_names=clean.class_names + ("x",))
    vit = image_classifier("vit", 10, clean.shape, width=0.2)
    grey = case.defender
    colour = replace(grey, images=grey.images.repeat(3, 3))
    narrow = ImageClassifier(victim.encoder, victim.head, [0.5] * 3, [0.5] * 3)
    calls = [
        (lambda: defend("nad", victim, clean), "method is 'nad'; accepted: ft, nc, bti-dbf, anp"),
        (
            lambda: defend("ft", victim, clean, ClpSettings()),
            "settings of ft are ClpSettings; accepted: TuneSettings",
        ),
        (
            lambda: defend("ft", nn.Linear(2, 2), clean),
            "the model is a Linear; accepted: ImageClassifier",
        ),
        (lambda: defend("ibu", victim, clean), "ibu needs the true poison: IbuSettings(poison=tri"),
        (lambda: defend("ft", victim, fewer), "digits has 11 classes, the model 10"),
        (lambda: defend("ft", narrow, grey), "digits has 1 channels, the model 3"),
        (
            lambda: defend("ft", victim, clean.select(clean.labels != 4)),
            "digits has no rows of class 4; accepted: one of each or more",
        ),
        (lambda: defend("bi-bau-t", victim, clean), "target is None; accepted: the backdoor's cl"),
        (lambda: PamSettings(rho=-1), "rho is -1; accepted: 0 or above"),
        (lambda: SauSettings(steps=0), "steps is 0; accepted: above 0"),
        (lambda: IBauSettings(terms=0), "terms is 0; accepted: 1 or more"),
        (lambda: IBauSettings(decay=-1), "decay is -1; accepted: 0 or above"),
        (lambda: CleanseSettings(factor=1), "factor is 1; accepted: above 1"),
        (lambda: BtiSettings(slack=-0.1), "slack is -0.1; accepted: 0 or above"),
        (lambda: RnpSettings(stop=2), "stop is 2; accepted: 0 … 1"),
        (lambda: IBauSettings(portion=0), "portion is 0; accepted: above 0, at most 1"),
        (lambda: AnpSettings(alpha=2), "alpha is 2; accepted: 0 … 1"),
    ]
    calls += [
        (lambda m=m: defend(m, victim, clean.select([])), "the clean set (digits) is empty; accep")
        for m in LEAVES
    ]
    calls += [
        (lambda m=m: defend(m, vit, clean), f"{m} needs batch norm over maps, and the model has")
        for m in ("anp", "ep", "rnp", "clp")
    ]
    for call, message in calls:
        with pytest.raises(ValueError) as error:
            call()
        assert str(error.value).startswith(message) and "\n" not in str(error.value)
    assert colour.shape == (3, 16, 16)


# ----------------------------------------------------------------------------------- PAM


def test_pam_without_a_step_is_sgd(case, victim):  # noqa: F811
    how = PamSettings(
        epochs=2, rho=0.0, inversion=BtiSettings(mask_steps=3, generator=SHORT, **FP32), **FP32
    )
    ours = path_aware(victim, case.defender, how)
    make = decoupled_inversion(victim, case.defender, how.inversion)
    by_hand, data = model_copy(victim).train(), image_data(case.defender)
    optimizer = torch.optim.SGD(by_hand.parameters(), 0.01, 0.9, weight_decay=5e-4)
    rng = np.random.default_rng(0)
    for _ in range(2):
        for rows in np.array_split(rng.permutation(len(data)), -(-len(data) // 32)):
            batch = data.batch(rows)
            x = batch.images / 255
            with torch.no_grad():
                shown = make(x)
            optimizer.zero_grad()
            logits = by_hand(torch.cat([x, shown]))
            F.cross_entropy(logits, batch.labels.repeat(2)).backward()
            optimizer.step()
    assert same(ours, weights(by_hand))
    stepped = path_aware(victim, case.defender, replace(how, rho=0.5))
    assert not same(ours, weights(stepped))


@given(st.floats(1e-3, 2), st.integers(0, 99))
@settings(max_examples=20)
def test_the_step_has_length_rho_and_is_taken_back(rho, seed):
    torch.manual_seed(seed)
    model, other = nn.Linear(5, 3).double(), nn.Linear(5, 3).double()
    goal = {name: p.detach() for name, p in other.named_parameters()}
    before = weights(model)
    with towards(model, goal, rho)():
        moved = [p - before[name] for name, p in model.named_parameters()]
        wanted = [goal[name] - before[name] for name, _ in model.named_parameters()]
        flat, line = (torch.cat([v.detach().flatten() for v in part]) for part in (moved, wanted))
        assert flat.norm() == pytest.approx(rho)
        assert F.cosine_similarity(flat, line, 0) == pytest.approx(1)
    assert same(model, before)
    with towards(model, dict(model.named_parameters()), rho)():  # at the goal there is no step
        assert same(model, before)


# ----------------------------------------------------------------------------------- SAU


@given(st.integers(0, 10**6))
@settings(max_examples=40)
def test_the_shared_divergence(seed):
    draw = torch.Generator().manual_seed(seed)
    a, b = (5 * torch.randn(6, 4, generator=draw, dtype=torch.float64) for _ in range(2))
    value = shared_divergence(a, b)
    assert torch.allclose(shared_divergence(a, a), torch.zeros(6, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(value, shared_divergence(b, a))
    assert (value >= 0).all() and (value <= np.log(2) + 1e-12).all()
    p, q = a.softmax(1), b.softmax(1)
    m = (p + q) / 2
    wanted = ((p * (p / m).log()).sum(1) + (q * (q / m).log()).sum(1)) / 2
    assert torch.allclose(value, wanted)


@pytest.mark.trained
def test_shared_images_stay_in_their_ball(case, victim):  # noqa: F811
    model = frozen_copy(victim)
    x = pixels(case.test.images[:20]) / 255
    y = torch.as_tensor(case.test.labels[:20])
    shown = shared_images(model, model, x, y, SauSettings())
    assert shown.min() >= 0 and shown.max() <= 1 and (shown - x).abs().max() <= 0.2 + 1e-6
    assert (model(shown).argmax(1) != y).float().mean() > 0.5  # the ascent does fool it


# ----------------------------------------------------------------------------------- I-BAU


@pytest.mark.parametrize("portion", [1.0, 0.25])
def test_the_hypergradient_follows_the_inner_problem(portion):
    """Against finite differences of the outer loss at the inner fixed point, in float64."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)).double()
    images = 0.3 + 0.4 * torch.rand(8, 1, 2, 2, dtype=torch.float64)
    labels = torch.arange(8) % 3
    decay, rate = 2.0, 0.1

    def fixed_point() -> torch.Tensor:
        delta = torch.zeros(1, 1, 2, 2, dtype=torch.float64)
        for _ in range(300):
            delta.requires_grad_(True)
            inner = decay * delta.square().sum() - F.cross_entropy(model(images + delta), labels)
            delta = (delta - rate * torch.autograd.grad(inner, delta)[0]).detach()
        return delta

    def outer_loss() -> torch.Tensor:
        delta = fixed_point().expand(8, -1, -1, -1).clone()
        delta[round(8 * portion) :] = 0
        return F.cross_entropy(model(images + delta), labels)

    parameters = list(model.parameters())
    how = IBauSettings(decay=decay, terms=60, portion=portion)
    outer, total = hypergradient(model, parameters, fixed_point(), images, labels, how, rate=rate)
    weight, step = parameters[0], 1e-5
    assert outer == pytest.approx(outer_loss().item())
    direct = torch.autograd.grad(outer_loss(), weight)[0]
    for index in ((0, 0), (2, 3)):
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                weight[index] += sign * step
            values.append(outer_loss().item())
            with torch.no_grad():
                weight[index] -= sign * step
        slope = (values[0] - values[1]) / (2 * step)
        assert total[0][index].item() == pytest.approx(slope, rel=1e-4)
        assert abs(direct[index].item() - slope) > 1e-4  # the implicit term matters here


@pytest.mark.trained
def test_the_universal_perturbation_hurts_within_its_ball(case, victim):  # noqa: F811
    model = frozen_copy(victim)
    images = pixels(case.defender.images) / 255
    labels = torch.as_tensor(case.defender.labels)
    how = IBauSettings(bound=3.0)
    delta = universal_perturbation(model, images, labels, how)
    assert delta.shape == (1, 1, 16, 16) and delta.norm() <= 3.0 + 1e-5
    hurt = F.cross_entropy(model((images + delta).clamp(0, 1)), labels)
    assert hurt > F.cross_entropy(model(images), labels) + 1


def test_i_bau_as_released_takes_raw_steps_and_projects_once():
    """By hand: the model's own classes, no limits to pixels, the ball after the last step."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3)).double().requires_grad_(False)
    images = torch.rand(5, 3, 2, 2, dtype=torch.float64)
    how = IBauSettings(inner_steps=4, bound=0.7, **(RELEASED_I_BAU | {"inner_lr": 3.0}))
    labels = model(images).argmax(1)
    delta = torch.zeros(1, 3, 2, 2, dtype=torch.float64)
    for _ in range(4):
        delta.requires_grad_(True)
        regularised = 1e-3 * delta.norm() ** 2 if delta.any() else 0
        inner = regularised - F.cross_entropy(model(images + delta), labels)
        delta = (delta - 3.0 * torch.autograd.grad(inner, delta)[0]).detach()
    assert delta.norm() > 0.7
    found = universal_perturbation(model, images, labels, how)
    torch.testing.assert_close(found, 0.7 * delta / delta.norm())
    # A step of one length, projected each time, goes elsewhere.
    paper = universal_perturbation(model, images, labels, replace(how, released=False))
    assert not torch.allclose(found, paper, atol=1e-3)


def test_i_bau_as_released_makes_its_outer_steps(case, victim, monkeypatch):  # noqa: F811
    calls = []
    monkeypatch.setattr(
        adversarial, "hypergradient",
        lambda *args: calls.append(args) or (0, [torch.zeros_like(w) for w in args[1]]),
    )  # fmt: skip
    defend("i-bau-code", victim, case.defender, IBauSettings(rounds=2, inner_steps=1))
    assert len(calls) == 100 and len({id(args[6]) for args in calls}) == 2
    calls.clear()
    defend("i-bau", victim, case.defender, IBauSettings(rounds=2, inner_steps=1))
    assert len(calls) == 2 * -(-len(case.defender) // 100) and calls[0][6] is None


def test_i_bau_as_released_is_the_released_loop():
    """A round from its first step to its last, in plain steps: the series by the whole Jacobian.

    Rounding grows from round to round, for a perturbation's slope has a norm of thousands: so one.
    """
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (100, 4, 4, 1), dtype=np.uint8)
    clean = ImageDataset("toy", "train", images, np.arange(100) % 3, ("a", "b", "c"), "built-in")
    network = image_classifier("cnn", 3, (1, 4, 4), width=0.25).eval()
    how = IBauSettings(
        **RELEASED_I_BAU | {"rounds": 1, "batch_size": 34, "outer_steps": 4, "portion": 0.1}
    )
    ours = adversarial.implicit_unlearning(network, clean, how)

    model = model_copy(network)
    adam = torch.optim.Adam(model.parameters(), how.lr)
    x, y = torch.as_tensor(images).permute(0, 3, 1, 2) / 255, torch.as_tensor(clean.labels)
    with seeded(how.seed, torch.device("cpu")) as rng:
        order = torch.as_tensor(rng.permutation(100))
        passes = [np.array_split(rng.permutation(100), 3) for _ in range(2)]
    shown, delta = x[order], torch.zeros(1, 1, 4, 4)
    classes = model(shown).argmax(1)
    for _ in range(how.inner_steps):
        delta = delta.detach().requires_grad_(True)
        value = F.cross_entropy(model(shown + delta), classes)
        delta = delta + how.inner_lr * torch.autograd.grad(value, delta)[0] - 0.002 * 10 * delta
    delta = delta.detach() * (how.bound / delta.norm()).clamp(max=1)
    for rows in (*passes[0], passes[1][0]):
        weights = list(model.parameters())
        point = delta.flatten().requires_grad_(True)

        def step(flat):  # of the inner problem, that of the first batch
            like = flat.view(1, 1, 4, 4)
            value = F.cross_entropy(model(shown[:34] + like), y[order[:34]])
            value = how.decay * like.square().sum() - value
            return flat - 0.1 * torch.autograd.grad(value, flat, create_graph=True)[0]

        mixed = torch.cat([x[rows[:3]] + point.view(1, 1, 4, 4), x[rows[3:]]])
        loss = F.cross_entropy(model(mixed), y[rows])
        slope, *direct = torch.autograd.grad(loss, [point, *weights])
        jacobian = torch.autograd.functional.jacobian(step, point)
        series = sum(torch.matrix_power(jacobian.T, k) @ slope for k in range(how.terms))
        implicit = torch.autograd.grad(step(point), weights, series, allow_unused=True)
        for weight, one, other in zip(weights, direct, implicit, strict=True):
            weight.grad = one if other is None else one + other
        adam.step()
    for ours_weight, weight in zip(ours.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours_weight, weight, atol=2e-5, rtol=1e-3)
    moved = max(
        (a - b).abs().max() for a, b in zip(ours.parameters(), network.parameters(), strict=True)
    )
    assert moved > 2e-3


# --------------------------------------------------------------------------------- pruning


def test_scaling_and_pruning(victim, case):  # noqa: F811
    model = model_copy(victim).eval()
    images = pixels(case.test.images[:10])
    norms = {n: m for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)}
    ones = {name: torch.ones_like(norm.weight) for name, norm in norms.items()}
    assert torch.equal(rescaled(model, ones, ones)(images), model(images))
    none = {name: torch.zeros_like(norm.weight, dtype=bool) for name, norm in norms.items()}
    before = weights(model)
    assert same(prune(model, none), before)

    name, norm = next(iter(norms.items()))
    gone = none[name].clone()
    gone[[1, 4]] = True
    silent = {**ones, name: (~gone).float()}
    expected = rescaled(model, silent, silent)(images)
    assert torch.equal(prune(model_copy(model), {name: gone})(images), expected)
    outputs, _ = norm_outputs(prune(model, {name: gone}), image_data(case.test), "ep")
    assert outputs[name][:, [1, 4]].abs().max() == 0 and outputs[name].abs().sum(0)[0] > 0


def test_anp_masks_stay_in_their_range(victim, case):  # noqa: F811
    model, data = prepared(victim, case.defender)
    masks = adversarial_masks(model, data, AnpSettings(steps=5, precision="fp32"))
    assert [len(mask) for mask in masks.values()] == [16, 32, 64]
    for mask in masks.values():
        assert mask.min() >= 0 and mask.max() <= 1
    assert same(model, weights(victim))


def test_entropy_of_a_gaussian_and_of_two_heaps():
    draw = np.random.default_rng(0)
    flat = torch.as_tensor(draw.normal(size=(5000, 3)))
    wanted = 0.5 * np.log(2 * np.pi * np.e)
    assert torch.allclose(spacing_entropy(flat), torch.full((3,), wanted).double(), atol=0.05)
    assert torch.allclose(spacing_entropy(3 * flat), spacing_entropy(flat) + np.log(3), atol=1e-6)
    heaps = torch.cat([0.2 * flat[:4500], 5 + 0.2 * flat[4500:]])
    heaps = (heaps - heaps.mean(0)) / heaps.std(0)
    assert (spacing_entropy(heaps) < wanted - 0.5).all()


def test_ep_prunes_a_channel_that_knows_the_trigger(case, victim):  # noqa: F811
    """A constructed case: one of 64 channels responds to the poisoned tenth alone."""
    model = model_copy(victim).eval()
    convolution = model.encoder[0]
    with torch.no_grad():  # reacts to the checkerboard corner, and to little else
        convolution.weight[5] = torch.tensor([[1.0, -1, 1], [-1, 1, -1], [1, -1, 1]]) / 9
    low = defend("ep", model, case.defender, EpSettings(case.poisoned.dataset, deviations=1.5))
    outputs, _ = norm_outputs(model, image_data(case.poisoned.dataset), "ep")
    first = next(iter(outputs.values()))
    score = spacing_entropy((first - first.mean(0)) / first.std(0))
    gone = (low.encoder[1].weight == 0).nonzero().flatten().tolist()
    threshold = score.mean() - 1.5 * score.std(correction=0)
    assert gone == (score < threshold).nonzero().flatten().tolist()


def test_bnp_finds_a_channel_whose_statistics_are_not_the_clean_ones(case, victim):  # noqa: F811
    model = model_copy(victim)
    with torch.no_grad():
        model.encoder[7].running_mean[11] += 50 * model.encoder[7].running_var[11].sqrt()
    done = defend("ep", model, case.defender, EpSettings(deviations=3.0))
    assert (done.encoder[7].weight == 0).nonzero().flatten().tolist() == [11]


def test_lipschitz_bound_against_numpy_and_a_planted_channel(case, victim):  # noqa: F811
    model = model_copy(victim)
    convolution, norm = model.encoder[6], model.encoder[7]
    with torch.no_grad():
        convolution.weight[9] *= 30
    bound = channel_lipschitz(convolution, norm)
    kernel = convolution.weight.detach().numpy().reshape(64, 32, 9)
    largest = np.array([np.linalg.svd(k, compute_uv=False)[0] for k in kernel])
    gain = np.abs(norm.weight.detach().numpy()) / np.sqrt(norm.running_var.numpy() + norm.eps)
    assert np.allclose(bound.numpy(), largest * gain, rtol=1e-4)
    done = defend("clp", model, case.defender)
    assert (done.encoder[7].weight == 0).nonzero().flatten().tolist() == [9]


@pytest.mark.parametrize("name", ["resnet18", "preresnet18", "wrn16"])
def test_clp_judges_a_norm_with_what_it_normalises(name, case):  # noqa: F811
    """In a block with norms first, the second norm follows the first convolution."""
    model = image_classifier(name, 10, case.clean.shape, width=1.0 if name == "wrn16" else 0.5)
    pairs = judged_with(model.eval(), torch.zeros(1, *case.clean.shape))
    modules = dict(model.named_modules())
    norms = [n for n, module in modules.items() if isinstance(module, nn.BatchNorm2d)]
    assert set(norms) == set(pairs)
    block, last = "encoder.blocks.1", f"encoder.blocks.{len(model.encoder.blocks) - 1}"
    second = "conv2" if name == "resnet18" else "conv1"
    if name == "resnet18":
        assert pairs[f"{block}.bn1"] is modules[f"{block}.conv1"]
    else:
        assert pairs[f"{block}.bn1"] is modules["encoder.blocks.0.conv2"]
        assert pairs["encoder.norm"] is modules[f"{last}.conv2"]
    assert pairs[f"{block}.bn2"] is modules[f"{block}.{second}"]
    with torch.no_grad():
        modules[f"{block}.{second}"].weight[3] *= 30
    done = defend("clp", model, case.defender)
    assert done.get_submodule(f"{block}.bn2").weight.eq(0).nonzero().flatten().tolist() == [3]


class Tiny(nn.Module):
    """One convolution, one norm: small enough to write every defence out by hand."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 6, 3, bias=False), nn.BatchNorm2d(6)

    def forward(self, x):
        return self.norm(self.conv(x)).relu().mean((2, 3))


def tiny():
    """A tiny classifier with statistics and shifts of its own, and 40 images of three classes."""
    torch.manual_seed(3)
    model = ImageClassifier(Tiny(), nn.Linear(6, 3), 0.5, 0.25)
    norm = model.encoder.norm
    with torch.no_grad():
        norm.weight.uniform_(0.5, 1.5)
        norm.bias.uniform_(0.2, 0.6)
        norm.running_var.uniform_(0.5, 2)
    images = np.random.default_rng(1).integers(0, 256, (40, 6, 6, 1), dtype=np.uint8)
    clean = ImageDataset("tiny", "train", images, np.arange(40) % 3, ("a", "b", "c"), "built-in")
    return model.eval(), clean


def by_batch(model, x, scale, shift):
    """The tiny model with the batch's own statistics, its norm's scale and shift multiplied."""
    norm = model.encoder.norm
    x = model.encoder.conv((x.float() / 255 - 0.5) / 0.25)
    x = F.batch_norm(x, None, None, norm.weight * scale, norm.bias * shift, True, 0.1, norm.eps)
    return model.head(x.relu().mean((2, 3)))


@pytest.mark.parametrize("released", [False, True])
def test_anp_step_by_step(released):
    """The released code takes a signed step from a random start and does not hold it to eps."""
    model, clean = tiny()
    how = AnpSettings(steps=4, batch_size=20, precision="fp32", released=released)
    data, mask, speed, farthest = image_data(clean), torch.ones(6), torch.zeros(6), 0.0
    with seeded(0, torch.device("cpu")) as rng:
        order = [rows for _ in range(2) for rows in np.array_split(rng.permutation(40), 2)]
        for rows in order:
            images, labels = data.images[rows], data.labels[rows]
            noise = torch.empty(2, 6).uniform_(-0.4, 0.4).requires_grad_(True)
            error = F.cross_entropy(by_batch(model, images, mask + noise[0], 1 + noise[1]), labels)
            noise = (noise + 0.4 * torch.autograd.grad(error, noise)[0].sign()).detach()
            noise = noise if released else noise.clamp(-0.4, 0.4)
            farthest = max(farthest, noise.abs().max().item())
            mask.requires_grad_(True)
            plain = F.cross_entropy(by_batch(model, images, mask, 1.0), labels)
            robust = F.cross_entropy(by_batch(model, images, mask + noise[0], 1 + noise[1]), labels)
            (slope,) = torch.autograd.grad(0.2 * plain + 0.8 * robust, mask)
            speed = 0.9 * speed + slope
            mask = (mask.detach() - 0.2 * speed).clamp(0, 1)
    (found,) = adversarial_masks(model, data, how).values()
    torch.testing.assert_close(found, mask, atol=1e-5, rtol=1e-5)
    assert (farthest > 0.4 + 1e-6) == released and found.min() < 1
    closing = replace(how, threshold=0.5 * (found.min() + found.max()).item())
    norm = defend("anp", model, clean, closing).encoder.norm
    gone = norm.weight == 0
    assert 0 < gone.sum() < 6
    kept = model.encoder.norm.bias[gone] if released else torch.zeros(int(gone.sum()))
    assert torch.equal(norm.bias[gone], kept)


def test_rnp_as_released_step_by_step():
    """Its own batches' statistics and accuracy, no clipping, and scales alone are pruned."""
    model, clean = tiny()
    data = image_data(clean)
    by_hand = model_copy(model).train()
    how = RnpSettings(
        epochs=12, lr=0.1, batch_size=20, precision="fp32", **(RELEASED_RNP | {"stop": 0.0})
    )
    speed = [torch.zeros_like(w) for w in by_hand.parameters()]
    with seeded(0, torch.device("cpu")) as rng:
        for epoch in range(12):
            rate, correct = (0.1 if epoch < 10 else 0.01), 0
            for rows in np.array_split(rng.permutation(40), 2):
                logits = by_hand(data.images[rows])
                correct += (logits.argmax(1) == data.labels[rows]).sum().item()
                loss = -F.cross_entropy(logits, data.labels[rows])
                slopes = torch.autograd.grad(loss, list(by_hand.parameters()))
                with torch.no_grad():
                    for weight, slope, v in zip(by_hand.parameters(), slopes, speed, strict=True):
                        v.mul_(0.9).add_(slope + 5e-4 * weight)
                        weight -= rate * v
            if correct == 0:
                break
    unlearned = model_copy(model)
    unlearn_clean(unlearned, data, how)
    for found, wanted in zip(unlearned.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
    assert not torch.equal(unlearned.encoder.norm.running_mean, model.encoder.norm.running_mean)
    ours = model_copy(model)
    unlearn_clean(ours, data, replace(how, released=False))
    assert torch.equal(ours.encoder.norm.running_mean, model.encoder.norm.running_mean)
    norm = defend("rnp-code", model, clean, replace(how, threshold=1.0)).encoder.norm
    gone = norm.weight == 0
    assert gone.any() and torch.equal(norm.bias, model.encoder.norm.bias)
    silent = defend("rnp-silent", model, clean, replace(how, threshold=1.0)).encoder.norm
    assert torch.equal(silent.weight, norm.weight) and (silent.bias[gone] == 0).all()


def test_ep_and_bnp_as_released():
    """Largest values before the norm, bars of a hundredth, and the shifts stay."""
    model, clean = tiny()
    how = EpSettings(clean, deviations=0.5, released=True)
    maps = model.encoder.conv((pixels(clean.images) / 255 - 0.5) / 0.25).detach()
    values = maps.flatten(2).max(2).values
    values = (values - values.mean(0)) / values.std(0)
    low, entropies = values.min(), []
    for column in values.T:
        entropies.append(0.0)
        for bar in range(int((values.max() - low) / 0.01)):
            inside = [low + bar * 0.01 < v < low + (bar + 1) * 0.01 for v in column]
            share = sum(inside) / len(column)
            entropies[-1] -= share * math.log(share) if share else 0.0
    assert np.allclose(histogram_entropy(values), entropies, atol=1e-5)
    gone = np.array(entropies) < np.mean(entropies) - 0.5 * np.std(entropies)
    assert 0 < gone.sum() < 6
    norm = defend("ep-code", model, clean, how).encoder.norm
    assert (norm.weight == 0).numpy().tolist() == gone.tolist()
    assert torch.equal(norm.bias, model.encoder.norm.bias)
    plain = replace(how, mixed=None, released=False)
    bnp = [defend(name, model, clean, plain).encoder.norm for name in ("bnp-code", "ep")]
    pruned = [layer.weight == 0 for layer in bnp]
    assert torch.equal(*pruned) and pruned[0].any()
    assert torch.equal(bnp[0].bias, model.encoder.norm.bias)
    assert (bnp[1].bias[pruned[1]] == 0).all()
    with pytest.raises(ValueError, match="mixed is None; accepted: the poisoned training set"):
        defend("ep-code", model, clean)


@pytest.mark.parametrize("released", [False, True])
def test_sau_step_by_step(released):
    """The paper's and the released code's, each from the first step to the last, by hand."""
    model, clean = tiny()
    with torch.no_grad():  # sure enough of its classes that images fool it, or do not
        model.head.weight.mul_(4)
    how = SauSettings(epochs=3, lr=0.05, batch_size=20, bound=0.1, step=0.1, precision="fp32")
    how = replace(how, adversarial_weight=1.0, released=released)
    data, seen = image_data(clean), []
    by_hand, old = model_copy(model), frozen_copy(model)
    moving = list(by_hand.parameters())
    adam = torch.optim.Adam(moving, 0.05, amsgrad=True)
    sgd = torch.optim.SGD(moving, 0.05, momentum=0.9, weight_decay=5e-4)
    with seeded(0, torch.device("cpu")) as rng:
        for _ in range(3):
            for rows in np.array_split(rng.permutation(40), 2):
                x, y = data.images[rows] / 255, data.labels[rows]
                by_hand.eval()
                own = [part(x).argmax(1) if released else y for part in (by_hand, old)]
                delta = torch.full_like(x, 0.1)
                if not released:
                    delta.uniform_(-0.1, 0.1)
                    delta = (x + delta).clamp(0, 1) - x
                for _ in range(5):
                    delta.requires_grad_(True)
                    logits = [part(x + delta) for part in (by_hand, old)]
                    p, q = (part.softmax(1) for part in logits)
                    fooled = [part.argmax(1) != k for part, k in zip(logits, own, strict=True)]
                    shared = fooled[0] & fooled[1] & (logits[0].argmax(1) == logits[1].argmax(1))
                    m = (p + q) / 2
                    divergence = ((p * (p / m).log() + q * (q / m).log()).sum(1) / 2)[~shared].sum()
                    errors = [F.cross_entropy(part, y, reduction="none") for part in logits]
                    if released:
                        errors = [e[~done] for e, done in zip(errors, fooled, strict=True)]
                    value = (divergence - sum(e.sum() for e in errors) / 2) / len(x)
                    delta = delta.detach() - 0.1 * torch.autograd.grad(value, delta)[0].sign()
                    delta = delta.clamp(-0.1, 0.1)
                    delta = delta if released else (x + delta).clamp(0, 1) - x
                    seen.append(torch.stack(fooled).float().mean().item())
                by_hand.train(not released)
                logits, perturbed = by_hand(torch.cat([x, x + delta])).split(len(x))
                classes = old(x + delta).argmax(1)
                active = classes != y
                p = perturbed.softmax(1)[range(len(x)), classes]
                if released:
                    active &= classes != old(x).argmax(1)
                    low, high = (1 - p).clamp(max=0.999), p.clamp(min=0.001)
                    forget = -(torch.log(1e-6 + low) + torch.log(1 + 1e-6 - high)) / 2
                    forget = forget[active].sum() / len(x)
                else:
                    forget = -(1 - p).log()[active].sum() / max(1, active.sum())
                for weight, slope in zip(
                    moving, torch.autograd.grad(F.cross_entropy(logits, y) + forget, moving),
                    strict=True,
                ):  # fmt: skip
                    weight.grad = slope
                (adam if released else sgd).step()
    assert 0.05 < np.mean(seen) < 0.95  # some are fooled, some not
    ours = adversarial.shared_unlearning(model, clean, how)
    for found, wanted in zip(ours.parameters(), moving, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)
    kept = torch.equal(ours.encoder.norm.running_mean, model.encoder.norm.running_mean)
    assert kept == released and not same(ours, weights(model))


def by_hand_generator(model, data, how):
    """BTI-DBF's released generator in plain loops: ``renew(model)``, and the network."""
    plain = how.generator
    torch.manual_seed(how.seed)
    network = ImageToImage(1, 1).train()
    square = nn.MSELoss()

    def passes(count):
        rng = np.random.default_rng(plain.seed)
        for _ in range(count):
            for rows in np.array_split(rng.permutation(40), -(-40 // plain.batch_size)):
                yield data.images[rows] / 255

    adam = torch.optim.Adam(network.parameters(), plain.lr)
    for x in passes(how.identity_epochs):
        made = network(x)
        before, after = model.features(x), model.features(made)
        p, q = model.head(before).softmax(1), model.head(after).softmax(1)
        value = -(q * p.log_softmax(1)).sum(1).mean() + square(before, after)
        size = square(made, x)
        value = value + (100 if size > 0.1 else 0.01) * size
        adam.zero_grad()
        value.backward()
        adam.step()
    network.eval()
    target, held = [], []

    def renew(model):
        copy = model_copy(model).train()
        torch.manual_seed(how.seed)
        rng = np.random.default_rng(how.seed)
        raw = torch.randn(6, requires_grad=True)
        adam = torch.optim.Adam([raw], 0.01)
        order = [rows for _ in range(9) for rows in np.array_split(rng.permutation(40), 2)]
        for rows in order[: how.mask_steps]:
            h, y = copy.features(data.images[rows] / 255).detach(), data.labels[rows]
            mask = raw.tanh() / 2 + 0.5
            value = F.cross_entropy(copy.head(mask * h), y)
            value = value - F.cross_entropy(copy.head((1 - mask) * h), y)
            adam.zero_grad()
            value.backward()
            adam.step()
        mask = (raw.tanh() / 2 + 0.5).detach()
        copy.eval()
        network.train()
        adam = torch.optim.Adam(network.parameters(), plain.lr)
        for x in passes(plain.epochs):
            made = network(x)
            before, after = copy.features(x), copy.features(made)
            benign = square(mask * before, mask * after)
            other = square((1 - mask) * before, (1 - mask) * after)
            size = square(x, made)
            held.append(bool(size > how.bound or benign > how.feature_bound))
            value = size if held[-1] else 0.01 * benign - other
            if target:
                goals = torch.full((len(x),), target[0])
                value = value + F.cross_entropy(copy.head(after), goals)
            adam.zero_grad()
            value.backward()
            adam.step()
        network.eval()
        if not target:
            torch.manual_seed(how.seed)
            x = data.images / 255
            with torch.no_grad():
                classes = model_copy(model).eval()(network(x + 0.03 * torch.randn_like(x)))
            target.append(int(classes.argmax(1).bincount().argmax()))

    return renew, network, held


@pytest.mark.parametrize("method", ["bti-dbf-code", "pam-code"])
def test_bti_and_pam_as_released_step_by_step(method):
    """Three rounds by hand: what is kept between them, what is not, and which share is made."""
    model, clean = tiny()
    how = BtiSettings(
        **RELEASED_BTI | {"rounds": 3, "epochs": 2, "mask_steps": 5, "lr": 0.01},
        identity_epochs=2, bound=0.08, batch_size=20, precision="fp32",
    )  # fmt: skip
    generator = replace(how.generator, epochs=3, lr=0.01, batch_size=20, precision="fp32")
    how = replace(how, generator=generator)
    pam = replace(
        PamSettings(**RELEASED_PAM), epochs=2, batch_size=20, precision="fp32",
        inversion=replace(how, share=0.2),
    )  # fmt: skip
    data, start, state = image_data(clean), list(model_copy(model).parameters()), weights(model)
    by_hand = model_copy(model)
    path = method == "pam-code"
    share = 0.2 if path else 0.1
    renew, network, held = by_hand_generator(model_copy(model), data, how)
    moving = list(by_hand.parameters())
    adam = torch.optim.Adam(moving, 0.01)
    sgd = torch.optim.SGD(moving, 0.01, momentum=0.1)
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    for epoch in range(6):
        if epoch % 2 == 0:
            with torch.random.fork_rng():
                renew(by_hand)
        by_hand.train()
        for rows in np.array_split(rng.permutation(40), 2):
            x, y = data.images[rows] / 255, data.labels[rows]
            made = torch.randperm(20)[: int(share * 20 + 1)]
            mixed, before = x.clone(), [w.detach().clone() for w in moving]
            with torch.no_grad():
                mixed[made] = network(x[made])
                away = [a - b for a, b in zip(start, before, strict=True)]
                norm = sum(d.square().sum() for d in away) ** 0.5
                if path and norm > 0:
                    for w, d in zip(moving, away, strict=True):
                        w += 0.5 * d / norm
            if path:
                value = F.cross_entropy(by_hand(mixed), y)
            else:
                h, g = by_hand.features(x), by_hand.features(mixed)
                value = F.cross_entropy(by_hand.head(g), y) + (h - g).square().mean()
            slopes = torch.autograd.grad(value, moving)
            for w, b, slope in zip(moving, before, slopes, strict=True):
                w.data, w.grad = b, slope
            (sgd if path else adam).step()
    assert any(held) and not all(held)
    run, ours_how = (path_aware, pam) if path else (decoupled_unlearning, how)
    ours = run(model, clean, ours_how)
    # Adam makes one step of a slope whatever its size, and so of what rounding leaves of it.
    bar = 1e-6 if path else 2e-3
    for found, wanted in zip(ours.parameters(), moving, strict=True):
        torch.testing.assert_close(found, wanted, atol=bar, rtol=1e-3)
    moved = max((a - b).abs().max() for a, b in zip(ours.parameters(), start, strict=True))
    assert same(model, state) and moved > 25 * bar


def test_cleanse_as_released_step_by_step():
    """BackdoorBench's counters written out, for classes that are reached and one that is not."""
    model, clean = tiny()
    with torch.no_grad():
        model.head.bias[2] = -20.0  # no image is led to this class
    data = image_data(clean)
    how = CleanseSettings(**RELEASED_NC | {"steps": 90, "images": 20}, precision="fp32")
    model, rng, passes, wanted = frozen_copy(model), np.random.default_rng(how.seed), [], []
    for goal in range(3):
        mask_raw, pattern_raw = torch.ones(1, 6, 6), torch.ones(1, 6, 6)
        both = [mask_raw.requires_grad_(True), pattern_raw.requires_grad_(True)]
        adam = torch.optim.Adam(both, 0.1, betas=(0.5, 0.9))
        cost, best, best_size, ever, stale = 1e-3, None, math.inf, math.inf, 0
        up = down = 0
        was_up = was_down = False
        passes.append(0)
        for _ in range(90):
            passes[-1] += 1
            hits, sizes = [], []
            for rows in np.array_split(rng.permutation(40), 2):
                x = data.images[rows] / 255
                mask, pattern = (part.tanh() / 2 + 0.5 for part in both)
                logits = model((1 - mask) * x + mask * pattern)
                goals = torch.full((20,), goal)
                adam.zero_grad()
                (F.cross_entropy(logits, goals) + cost * mask.abs().sum()).backward()
                adam.step()
                hits.append((logits.argmax(1) == goal).float().mean().item())
                sizes.append(mask.sum().item())
            now = [(part.detach().tanh() / 2 + 0.5).clone() for part in both]
            success, size = np.mean(hits) >= 0.98, np.mean(sizes)
            if success and size < best_size:
                best, best_size = now, size
            if best_size < math.inf:
                stale = stale + 1 if best_size >= 0.99 * ever else 0
            ever = min(ever, best_size)
            if was_up and was_down and stale >= 25:
                break
            up, down = (up + 1, 0) if success else (0, down + 1)
            if up == 5:
                cost, up, was_up = cost * 2, 0, True
            elif down == 5:
                cost, down, was_down = cost / 2**1.5, 0, True
            best = best or now
        wanted.append(torch.cat(best))
    masks, patterns = released_triggers(model, data, how)
    torch.testing.assert_close(
        torch.cat([masks, patterns], 1), torch.stack(wanted), atol=1e-3, rtol=0
    )
    assert min(passes) < 90 and passes[2] == 90  # one ends early; one never succeeds
    assert masks[2].mean() > 0.8 and masks[:2].mean() < 0.8

    stamped = stamped_rows(data, masks[:2], patterns[:2], how)
    assert len(stamped) == 32 + 2 * 8  # a fifth of the rows, once for each trigger
    order = np.random.default_rng(how.seed).permutation(40)
    last = data.images[order[32:]] / 255
    cover = (masks[1] - masks[1].min()) / (masks[1].max() - masks[1].min())
    patch = masks[1] * patterns[1]
    patch = (patch - patch.min()) / (patch.max() - patch.min())
    by_hand = (255 * (last * (1 - cover) + patch).clamp(0, 1)).to(torch.uint8)
    assert torch.equal(stamped.images[40:], by_hand)
    assert torch.equal(stamped.labels[40:], data.labels[order[32:]])
    assert torch.equal(stamped.images[:32], data.images[order[:32]])
    assert how.schedule == "cosine" and CleanseSettings().schedule == "constant"


@pytest.mark.parametrize("count", [10, 11])
def test_no_channel_of_ten_is_three_deviations_out(count):
    score = torch.zeros(count)
    score[4] = 1e6
    assert _far_out(score, 3.0).tolist() == [count > 10 and k == 4 for k in range(count)]


# --------------------------------------------------------------------------------- inversion


def test_outliers():
    sizes = torch.tensor([50.0, 52, 48, 51, 5, 49, 53, 47, 200, 50])
    assert outliers(sizes, 2.0).tolist() == [4]  # far smaller, never far larger
    assert outliers(torch.full((10,), 50.0), 2.0).tolist() == []


def test_cleanse_reverses_the_smallest_trigger_for_the_target(case, victim):  # noqa: F811
    how = CleanseSettings(steps=120, **FP32)
    masks, patterns = reverse_triggers(victim, image_data(case.defender), how)
    assert masks.shape == (10, 1, 16, 16) and patterns.shape == (10, 1, 16, 16)
    assert masks.min() >= 0 and masks.max() <= 1
    assert masks.sum((1, 2, 3)).argmin() == case.target
    x = pixels(case.test.images) / 255
    shown = x + masks[0] * (patterns[0] - x)
    assert (frozen_copy(victim)(shown).argmax(1) == 0).float().mean() > 0.9


def test_cleanse_leaves_an_unflagged_model_alone(case, clean_model):  # noqa: F811
    how = CleanseSettings(steps=3, threshold=1e6, **FP32)
    assert same(defend("nc", clean_model, case.defender, how), weights(clean_model))


def test_the_benign_mask_finds_the_useful_features(case):  # noqa: F811
    class Half(nn.Module):
        """The class, painted into the corner, twice; the head takes the second for its opposite."""

        def forward(self, x):
            told = 4 * F.one_hot((x[:, 0, 0, 0] * 10).round().long().clamp(0, 9), 10).float()
            return torch.cat([told, told], 1)

    images = case.defender.images.copy()
    images[:, 0, 0, 0] = np.rint(case.defender.labels * 25.5)
    head = nn.Linear(20, 10)
    with torch.no_grad():
        head.weight.copy_(torch.cat([torch.eye(10), -torch.eye(10)], 1))
    model = ImageClassifier(Half(), head, 0.0, 1.0)
    mask = benign_mask(model, image_data(replace(case.defender, images=images)), 100)
    assert mask[:10].min() > 0.8 and mask[10:].max() < 0.2


def test_inverted_images_stay_in_their_bound(case, victim):  # noqa: F811
    how = BtiSettings(mask_steps=3, bound=0.1, generator=SHORT, **FP32)
    make = decoupled_inversion(victim, case.defender, how)
    x = pixels(case.test.images[:9]) / 255
    with torch.no_grad():
        shown = make(x)
    assert shown.shape == x.shape and shown.min() >= 0 and shown.max() <= 1
    assert 0 < (shown - x).abs().max() <= 0.1 + 1e-6


# ------------------------------------------------------------------------ a model from elsewhere


class Foreign(nn.Module):
    """A network of somebody else's: it ends in ``fc`` and expects normalised colour images."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.fc = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 10)

    def forward(self, x):
        return self.fc(self.bn(self.conv(x)).relu().mean((2, 3)))


@pytest.mark.parametrize("method", [*QUICK, "ep", "clp"])
def test_a_model_that_was_not_trained_here(method, case):  # noqa: F811
    torch.manual_seed(0)
    theirs = Foreign()
    network = Foreign()
    network.load_state_dict(theirs.state_dict())
    model = wrap(network, "fc", (0.49, 0.48, 0.45), (0.2, 0.2, 0.2))
    clean = replace(case.defender, images=case.defender.images.repeat(3, 3))
    done = defend(method, model, clean, QUICK.get(method))
    assert done.head.out_features == 10 and torch.equal(done.mean, model.mean)
    assert torch.isfinite(done(pixels(clean.images[:4]))).all()
    assert torch.equal(network.conv.weight, theirs.conv.weight)
