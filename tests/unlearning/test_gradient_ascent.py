"""The identities of gradient-ascent unlearning, and that every method is what it says it is."""

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from core_fixtures import needs_mirror
from hypothesis import given, settings
from hypothesis import strategies as st
from plain import rga as plain
from torch import nn

from minilib.data.text import load_text
from minilib.metrics import classification
from minilib.settings import METHODS
from minilib.training import text as text_training
from minilib.training.fitting import TrainSettings
from minilib.training.text import Pairs
from minilib.unlearning import gradient_ascent
from minilib.unlearning.gradient_ascent import UnlearnSettings, drift, ga_loss, npo_loss, rga_weight

quick = settings(max_examples=40)
seeds = st.integers(0, 2**32 - 1)
rows = st.integers(1, 9)
classes = st.integers(2, 7)
alphas = st.floats(0, 20)
betas = st.floats(0.05, 5)


def random_logits(seed: int, batch: int, num_classes: int, scale: float = 3.0):
    rng = torch.Generator().manual_seed(seed)
    draw = dict(generator=rng, dtype=torch.float64)
    logits = scale * torch.randn(batch, num_classes, **draw)
    reference = scale * torch.randn(batch, num_classes, **draw)
    labels = torch.randint(num_classes, (batch,), generator=rng)
    return logits, reference, labels


# ------------------------------------------------------------------------- propositions


@quick
@given(seeds, rows)
def test_proposition_1(seed, batch):
    """-ℓ(y1) = ℓ(y0) + log(p0·p1), and log(p0·p1) ≤ log ¼."""
    logits, _, labels = random_logits(seed, batch, 2)
    log_p = F.log_softmax(logits, 1)
    remainder = log_p.sum(1)
    other = F.cross_entropy(logits, 1 - labels)
    torch.testing.assert_close(ga_loss(logits, labels), other + remainder.mean())
    assert (remainder <= math.log(0.25) + 1e-12).all()


@quick
@given(seeds, rows, classes)
def test_proposition_2(seed, batch, num_classes):
    """-ℓ(y1) = Σ_{k≠1} ℓ(y_k) + R with R ≤ -K log K."""
    logits, _, labels = random_logits(seed, batch, num_classes)
    log_p = F.log_softmax(logits, 1)
    others = -(log_p.sum(1) - log_p.gather(1, labels[:, None])[:, 0])
    remainder = log_p.sum(1)
    torch.testing.assert_close(ga_loss(logits, labels), (others + remainder).mean())
    assert (remainder <= -num_classes * math.log(num_classes) + 1e-12).all()


@pytest.mark.parametrize("num_classes", [2, 4, 10])
def test_the_bounds_are_reached_at_the_uniform_point_only(num_classes):
    uniform = torch.zeros(1, num_classes, dtype=torch.float64)
    bound = -num_classes * math.log(num_classes)
    assert F.log_softmax(uniform, 1).sum().item() == pytest.approx(bound, abs=1e-12)
    uniform[0, 0] += 0.1
    assert F.log_softmax(uniform, 1).sum().item() < bound - 1e-6


# ---------------------------------------------------------------------------------- λ


def kl(p, q):
    return float((p * (np.log(p) - np.log(q))).sum(1).mean())


@quick
@given(seeds, rows, classes, alphas)
def test_rga_weight_against_numpy_in_both_directions(seed, batch, num_classes, alpha):
    logits, reference, _ = random_logits(seed, batch, num_classes)
    p, q = (np.exp(x.numpy()) for x in (logits, reference))
    p, q = p / p.sum(1, keepdims=True), q / q.sum(1, keepdims=True)
    for direction, divergence in (("current", kl(p, q)), ("poisoned", kl(q, p))):
        lam = rga_weight(logits, reference, alpha, direction).item()
        assert lam == pytest.approx(math.exp(-alpha * divergence), rel=1e-9, abs=1e-300)
        assert 0 <= lam <= 1


@quick
@given(seeds, rows, classes, alphas)
def test_rga_weight_is_one_at_the_poisoned_model_and_where_alpha_is_zero(
    seed, batch, num_classes, alpha
):
    logits, reference, _ = random_logits(seed, batch, num_classes)
    for direction in ("current", "poisoned"):
        # Logits shifted by a constant are the same distribution; rounding must not push λ above 1.
        for same in (logits, logits.clone(), logits + 5):
            lam = rga_weight(logits, same, alpha, direction).item()
            assert lam <= 1 and lam == pytest.approx(1, abs=1e-12)
        assert rga_weight(logits, reference, 0, direction).item() == 1


def test_rga_weight_by_hand():
    """Two classes: current (½, ½), poisoned (¼, ¾)."""
    logits = torch.tensor([[0.0, 0.0]], dtype=torch.float64)
    reference = torch.log(torch.tensor([[0.25, 0.75]], dtype=torch.float64))
    current = 0.5 * math.log(2) + 0.5 * math.log(2 / 3)
    poisoned = 0.25 * math.log(0.5) + 0.75 * math.log(1.5)
    assert rga_weight(logits, reference, 2.0).item() == pytest.approx(math.exp(-2 * current))
    weight = rga_weight(logits, reference, 2.0, "poisoned").item()
    assert weight == pytest.approx(math.exp(-2 * poisoned))


@quick
@given(seeds, rows, classes)
def test_no_gradient_flows_through_rga_weight(seed, batch, num_classes):
    logits, reference, labels = random_logits(seed, batch, num_classes)
    logits.requires_grad_()
    lam = rga_weight(logits, reference, 2.0)
    assert not lam.requires_grad
    (weighted,) = torch.autograd.grad(lam * ga_loss(logits, labels), logits)
    (plain,) = torch.autograd.grad(ga_loss(logits, labels), logits)
    torch.testing.assert_close(weighted, lam * plain)


def test_rga_weight_refuses():
    zeros = torch.zeros(1, 2)
    with pytest.raises(ValueError, match="alpha is -1.0; accepted: 0 or more"):
        rga_weight(zeros, zeros, -1.0)
    with pytest.raises(ValueError, match="direction is 'up'; accepted: current, poisoned"):
        rga_weight(zeros, zeros, 1.0, "up")


# -------------------------------------------------------------------------------- NPO


@quick
@given(seeds, rows, classes, betas)
def test_npo_gradient_is_ga_times_its_weight(seed, batch, num_classes, beta):
    """Row by row the weight is 2 r^β / (1 + r^β), r = π/π_ref."""
    logits, reference, labels = random_logits(seed, batch, num_classes)
    logits.requires_grad_()
    (npo,) = torch.autograd.grad(npo_loss(logits, reference, labels, beta), logits)
    (ga,) = torch.autograd.grad(ga_loss(logits, labels), logits)
    pick = labels[:, None]
    log_r = (F.log_softmax(logits, 1) - F.log_softmax(reference, 1)).gather(1, pick).detach()
    power = torch.exp(beta * log_r)  # (B, 1)
    torch.testing.assert_close(npo, ga * 2 * power / (1 + power), rtol=1e-8, atol=1e-12)


@quick
@given(seeds, rows, classes, betas)
def test_npo_starts_as_ga_and_becomes_ga_as_beta_falls(seed, batch, num_classes, beta):
    logits, reference, labels = random_logits(seed, batch, num_classes)
    logits.requires_grad_()
    (ga,) = torch.autograd.grad(ga_loss(logits, labels), logits)
    (start,) = torch.autograd.grad(npo_loss(logits, logits.detach(), labels, beta), logits)
    torch.testing.assert_close(start, ga)
    (flat,) = torch.autograd.grad(npo_loss(logits, reference, labels, 1e-7), logits)
    torch.testing.assert_close(flat, ga, rtol=1e-5, atol=1e-9)


def test_npo_value_by_hand_and_at_extremes():
    logits = torch.log(torch.tensor([[0.2, 0.8]], dtype=torch.float64))
    reference = torch.log(torch.tensor([[0.6, 0.4]], dtype=torch.float64))
    labels = torch.tensor([1])
    loss = npo_loss(logits, reference, labels, 0.5)
    assert loss.item() == pytest.approx(4 * math.log(1 + math.sqrt(2)))
    far = torch.tensor([[0.0, 5000.0]], dtype=torch.float64)  # must not overflow
    assert torch.isfinite(npo_loss(far, reference, labels, 5.0))
    assert npo_loss(-far, reference, labels, 5.0).item() == pytest.approx(0, abs=1e-12)
    with pytest.raises(ValueError, match="beta is 0; accepted: above 0"):
        npo_loss(logits, reference, labels, 0)


# ------------------------------------------------------------------------------ drift


@quick
@given(seeds, st.lists(st.integers(1, 6), min_size=1, max_size=4))
def test_drift_against_numpy(seed, widths):
    torch.manual_seed(seed % 2**31)
    model = nn.Sequential(*[nn.Linear(width, 3) for width in widths]).double()
    base = {name: torch.randn_like(p) for name, p in model.named_parameters()}
    differences = [
        (p - base[name]).detach().numpy().ravel() for name, p in model.named_parameters()
    ]
    whole = np.linalg.norm(np.concatenate(differences))
    parts = [np.linalg.norm(d) for d in differences]
    assert drift(model, base).item() == pytest.approx(whole, rel=1e-12)
    assert drift(model, base, "tensor").item() == pytest.approx(sum(parts), rel=1e-12)
    assert whole <= sum(parts) <= math.sqrt(len(parts)) * whole * (1 + 1e-12)


@pytest.mark.parametrize("norm", ["global", "tensor"])
def test_drift_gradient(norm):
    """Unit vectors away from the base, zero and finite at it (where a norm has no derivative)."""
    model = nn.Linear(3, 2).double()
    base = {name: p.detach().clone() for name, p in model.named_parameters()}
    distance = drift(model, base, norm)
    distance.backward()
    assert distance.item() == 0
    for p in model.parameters():
        assert torch.equal(p.grad, torch.zeros_like(p))
    model.zero_grad()
    with torch.no_grad():
        model.weight.add_(torch.randn_like(model.weight))
    drift(model, base, norm).backward()
    difference = (model.weight - base["weight"]).detach()
    torch.testing.assert_close(model.weight.grad, difference / difference.norm())
    assert torch.equal(model.bias.grad, torch.zeros_like(model.bias))


def test_drift_leaves_out_what_the_base_lacks_and_refuses_what_the_model_lacks():
    model = nn.Linear(3, 2)
    assert drift(model, {"bias": model.bias.detach()}).item() == 0
    with pytest.raises(ValueError, match="that the model lacks: head"):
        drift(model, {"head": torch.zeros(2)})
    with pytest.raises(ValueError, match="norm is 'max'; accepted: global, tensor"):
        drift(model, {"bias": torch.zeros(2)}, "max")


# ---------------------------------------------------------------------------- unlearn


def unlearn_settings(epochs=2, **changes) -> UnlearnSettings:
    loop = TrainSettings(epochs=epochs, lr=1e-3, batch_size=8, precision="fp32", seed=3)
    return UnlearnSettings(train=loop, **changes)


@pytest.fixture
def sides(reviews):
    """20 forget and 44 retain rows."""
    return reviews.select(np.arange(20)), reviews.select(np.arange(20, 64))


def backbone_of(model):
    return {name: p.detach().clone() for name, p in model.backbone.named_parameters()}


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_alpha_and_beta_zero_are_ga_step_for_step(tiny, sides):
    runs = {}
    for method, changes in (
        ("ga", {}),
        ("dga", {"alpha": 0.0}),
        ("rga", {"alpha": 0.0, "beta": 0.0}),
    ):
        model, history = gradient_ascent.unlearn(tiny, *sides, method, unlearn_settings(**changes))
        runs[method] = weights(model)
        assert len(history) == 2
    torch.testing.assert_close(runs["dga"], runs["ga"], rtol=0, atol=0)
    torch.testing.assert_close(runs["rga"], runs["ga"], rtol=0, atol=0)
    assert not torch.equal(runs["ga"], weights(tiny))


def test_dga_is_rga_without_drift_and_the_drift_term_pulls(tiny, sides):
    base = backbone_of(tiny)
    dga, _ = gradient_ascent.unlearn(tiny, *sides, "dga", unlearn_settings())
    free, _ = gradient_ascent.unlearn(tiny, *sides, "rga", unlearn_settings(beta=0.0), base)
    held, history = gradient_ascent.unlearn(tiny, *sides, "rga", unlearn_settings(beta=50.0), base)
    assert torch.equal(weights(dga), weights(free))
    assert drift(held.backbone, base) < drift(free.backbone, base)
    assert all(record["drift"] >= 0 for record in history)


def test_rga_code_is_rga_with_the_released_codes_reading(tiny, sides):
    base = {name: p + 0.01 for name, p in backbone_of(tiny).items()}
    code, _ = gradient_ascent.unlearn(tiny, *sides, "rga-code", unlearn_settings(), base)
    named = unlearn_settings(direction="poisoned", drift_norm="tensor")
    same, _ = gradient_ascent.unlearn(tiny, *sides, "rga", named, base)
    paper, _ = gradient_ascent.unlearn(tiny, *sides, "rga", unlearn_settings(), base)
    assert torch.equal(weights(code), weights(same))
    assert not torch.equal(weights(code), weights(paper))


@pytest.mark.parametrize("method", METHODS)
def test_unlearn_leaves_the_given_model_alone_and_logs(tiny, sides, method):
    before, mode = weights(tiny), tiny.training
    seen = []

    def evaluate(model, epoch):
        seen.append((epoch, model.training))
        return {"cacc": 50.0}

    base = backbone_of(tiny)
    model, history = gradient_ascent.unlearn(
        tiny, *sides, method, unlearn_settings(), base, evaluate
    )
    assert torch.equal(weights(tiny), before) and tiny.training == mode
    assert model is not tiny and not torch.equal(weights(model), before)
    assert all(p.grad is None for p in tiny.parameters())
    assert seen == [(1, False), (2, False)]
    expected = {"epoch", "seconds", "poisoned_loss", "retain_loss", "cacc"}
    expected |= {"lam"} if method in ("dga", "rga", "rga-code") else set()
    expected |= {"drift"} if method.startswith("rga") else set()
    assert [set(record) for record in history] == [expected] * 2
    assert all(0 < record.get("lam", 1) <= 1 for record in history)


def test_the_reference_is_the_poisoned_model_in_eval_mode_in_row_order(tiny, sides, monkeypatch):
    forget, retain = sides
    caught = []
    real = gradient_ascent.unlearning_loss

    def spy(method, ref_logits, base, settings):
        caught.append(ref_logits)
        return real(method, ref_logits, base, settings)

    monkeypatch.setattr(gradient_ascent, "unlearning_loss", spy)
    tiny.train()  # dropout on: a reference made in this mode would be noise
    gradient_ascent.unlearn(tiny, forget, retain, "dga", unlearn_settings(epochs=1))
    assert tiny.training
    tiny.eval()
    with torch.no_grad():
        for i, text in enumerate(forget.texts):
            tokens = tiny.tokenizer(text, return_tensors="pt")
            logits = tiny(tokens["input_ids"], tokens["attention_mask"])
            torch.testing.assert_close(caught[0][i : i + 1], logits, rtol=1e-4, atol=1e-5)


def test_the_loss_of_a_step_by_hand(tiny, sides):
    """λ·GA + CE(retain) + β·drift, written out from the logits of single texts."""
    forget, retain = (
        text_training.encode(part.texts, part.labels, tiny.tokenizer).batch(np.arange(6))
        for part in sides
    )
    tiny.double().eval()
    poisoned = copy.deepcopy(tiny)
    reference = poisoned(forget.input_ids, forget.attention_mask).detach()
    base = {name: p + 0.01 for name, p in backbone_of(tiny).items()}
    with torch.no_grad():
        tiny.network.classifier.weight.mul_(3)
    chosen = unlearn_settings(alpha=1.5, beta=0.2, npo_beta=0.7)
    logits = tiny(forget.input_ids, forget.attention_mask).detach()
    log_p, log_q = F.log_softmax(logits, 1), F.log_softmax(reference, 1)
    forget_ce, lam = plain.forget_terms(logits, reference, forget.labels, 1.5)
    clean_ce = F.cross_entropy(tiny(retain.input_ids, retain.attention_mask), retain.labels)
    distance = plain.drift(tiny.backbone, base)
    assert distance.item() == pytest.approx(0.01 * sum(p.numel() for p in base.values()) ** 0.5)
    ratio = (log_p - log_q)[torch.arange(6), forget.labels]
    npo = (2 / 0.7) * torch.log1p(torch.exp(0.7 * ratio)).mean()
    expected = {
        "ga": clean_ce - forget_ce,
        "npo": clean_ce + npo,
        "dga": clean_ce - lam * forget_ce,
        "rga": clean_ce - lam * forget_ce + 0.2 * distance,
    }
    for method, value in expected.items():
        loss, logs = gradient_ascent.unlearning_loss(method, reference, base, chosen)(
            tiny, (forget, retain)
        )
        assert loss.item() == pytest.approx(value.item(), rel=1e-5), method
        assert logs["poisoned_loss"].item() == pytest.approx(forget_ce.item(), rel=1e-5)
        assert not any(value.requires_grad for value in logs.values())


def test_an_epoch_is_one_pass_over_the_forget_set_with_retain_rows_beside_it(tiny, sides):
    forget, retain = (
        text_training.Batches(text_training.encode(part.texts, part.labels, tiny.tokenizer), 8)
        for part in sides
    )
    pairs = Pairs(forget, retain)
    drawn = list(pairs(np.random.default_rng(0)))
    assert len(drawn) == len(pairs) == 3
    assert sorted(np.concatenate([f.rows for f, _ in drawn])) == list(range(20))
    retained = np.concatenate([r.rows for _, r in drawn])
    assert len(set(retained)) == len(retained) and retained.max() < 44
    # A forget set larger than the retain set goes round the latter again.
    swapped = list(Pairs(retain, forget)(np.random.default_rng(0)))
    assert len(swapped) == 6 and set(np.concatenate([r.rows for _, r in swapped])) == set(range(20))


def test_unlearn_refuses(tiny, sides):
    forget, retain = sides
    empty = forget.select(np.zeros(20, dtype=bool))
    chosen = unlearn_settings()
    with pytest.raises(ValueError, match="method is 'gd'; accepted: ga, npo, dga, rga, rga-code"):
        gradient_ascent.unlearn(tiny, forget, retain, "gd", chosen)
    with pytest.raises(ValueError, match="the forget set is empty"):
        gradient_ascent.unlearn(tiny, empty, retain, "ga", chosen)
    with pytest.raises(ValueError, match="the retain set is empty"):
        gradient_ascent.unlearn(tiny, forget, empty, "ga", chosen)
    for method in ("rga", "rga-code"):
        with pytest.raises(ValueError, match=f"method {method} .* needs base"):
            gradient_ascent.unlearn(tiny, forget, retain, method, chosen)


def test_clean_base_is_the_backbone_without_the_head():
    base = gradient_ascent.clean_base("tiny", 2, "cpu")
    assert base and not any("classifier" in name for name in base)
    assert not any(tensor.requires_grad for tensor in base.values())
    again = gradient_ascent.clean_base("tiny", 4, "cpu")  # the head's size does not matter
    assert base.keys() == again.keys()


# ---------------------------------------------------------------- collapse and identities


@quick
@given(seeds, st.integers(1, 60))
def test_binary_pacc_follows_from_the_two_flip_rates(seed, n):
    """PACC = π0·(1 - LFR0) + π1·(1 - LFR1)."""
    rng = np.random.default_rng(seed)
    labels = np.concatenate([[0, 1], rng.integers(0, 2, n)])
    pred = rng.integers(0, 2, len(labels))
    share = [np.mean(labels == 0), np.mean(labels == 1)]
    flips = [classification.label_flip_rate(pred, labels, target) for target in (1, 0)]
    expected = share[0] * (100 - flips[0]) + share[1] * (100 - flips[1])
    assert classification.pacc(pred, labels) == pytest.approx(expected)


@needs_mirror
@pytest.mark.parametrize(
    ("name", "cls", "count", "rows", "percent"),
    [
        ("sst2", 1, 909, 1821, 49.92),  # poisoned: everything positive
        ("sst2", 0, 912, 1821, 50.08),  # shifted: everything negative
        ("hsol", 0, 1242, 2485, 49.98),
        ("hsol", 1, 1243, 2485, 50.02),
        ("agnews-8k", 0, 250, 1000, 25.00),
        ("agnews-8k", 3, 250, 1000, 25.00),
    ],
)
def test_collapse_integers(name, cls, count, rows, percent):
    labels = load_text(name, "test").labels
    assert (int((labels == cls).sum()), len(labels)) == (count, rows)
    assert round(classification.majority_share(labels, cls), 2) == percent
    assert classification.pacc(np.full(rows, cls), labels) == classification.majority_share(
        labels, cls
    )
