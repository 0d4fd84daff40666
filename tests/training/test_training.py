"""The training loop against plain loops written out here, and the promises it makes."""

import copy
import math
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from core_fixtures import SEED
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from minilib.data import load_images, load_text
from minilib.models.images import image_classifier
from minilib.training import devices, fitting
from minilib.training import text as text_training
from minilib.training.fitting import Diverged, SgdSettings, TrainSettings, fit
from minilib.training.images import fit_images, image_data
from minilib.training.text import Batch, Batches, Encoded

lengths_lists = st.lists(st.integers(1, 40), min_size=1, max_size=90)


def encoded(lengths, num_classes=2, seed=0) -> Encoded:
    """Random token ids of the given lengths, padded with 0."""
    rng = np.random.default_rng(seed)
    lengths = np.asarray(lengths)
    ids = np.zeros((len(lengths), -(-int(lengths.max()) // 8) * 8), np.int32)
    for row, length in zip(ids, lengths, strict=True):
        row[:length] = rng.integers(1000, 2000, length)
    labels = torch.as_tensor(rng.integers(0, num_classes, len(lengths)))
    return Encoded(torch.as_tensor(ids), lengths, labels)


class Bag(nn.Module):
    """Mean of token embeddings, one hidden layer: the smallest text classifier, in float64."""

    def __init__(self, dropout=0.0, seed=0):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.embed = nn.Embedding(2000, 6)
            self.dropout = nn.Dropout(dropout)
            self.hidden = nn.Linear(6, 5)
            self.head = nn.Linear(5, 3)
        self.double()

    def forward(self, input_ids, attention_mask):
        mask = attention_mask[..., None].to(self.embed.weight.dtype)  # (B, T, 1)
        mean = (self.embed(input_ids) * mask).sum(1) / mask.sum(1)  # (B, 6)
        return self.head(torch.tanh(self.hidden(self.dropout(mean))))


def loss64(model, batch):
    """Cross-entropy in the model's own precision (``cross_entropy`` casts logits to fp32)."""
    value = F.cross_entropy(model(batch.input_ids, batch.attention_mask), batch.labels)
    return value, {"loss": value.detach()}


def flat(model_or_state) -> torch.Tensor:
    values = model_or_state
    values = values.values() if isinstance(values, dict) else values.state_dict().values()
    return torch.cat([value.flatten() for value in values])


def small(**changes) -> TrainSettings:
    defaults = dict(epochs=3, lr=1e-2, batch_size=8, precision="fp32", seed=5)
    return TrainSettings(**defaults | changes)


# ----------------------------------------------------------------------------- parity


def rate(chosen: TrainSettings, step: int, total: int) -> float:
    """Share of the learning rate at a step: rising over the warm-up, never above the fall."""
    fall = {"constant": 1, "linear": 1 - step / total,
            "cosine": math.cos(math.pi * step / total / 2) ** 2}[chosen.schedule]  # fmt: skip
    rise = round(chosen.warmup * total)
    return min(fall, (step + 1) / rise) if rise else fall


def adamw_by_hand(model, data, chosen: TrainSettings, reset: bool = False) -> list[float]:
    """AdamW from its formulas: decoupled decay, corrected moments, clipping by global norm."""
    parameters = list(model.parameters())
    rng = np.random.default_rng(chosen.seed)
    losses, step, t = [], 0, 0
    first = [torch.zeros_like(p) for p in parameters]
    second = [torch.zeros_like(p) for p in parameters]
    batches, (one, two) = Batches(data, chosen.batch_size), chosen.betas
    total = chosen.epochs * len(batches)
    for _ in range(chosen.epochs):
        if reset:
            t = 0
            for moment in (*first, *second):
                moment.zero_()
        seen = []
        for rows in batches.rows(rng):
            lr = chosen.lr * rate(chosen, step, total)
            mask = (np.arange(data.ids.shape[1]) < data.lengths[rows][:, None]).astype(int)
            # Padded to the longest text of the whole set, not of the batch.
            logits = model(data.ids[rows].long(), torch.as_tensor(mask))
            log_p = logits - torch.logsumexp(logits, 1, keepdim=True)
            loss = -log_p[torch.arange(len(rows)), data.labels[rows]].mean()
            gradients = torch.autograd.grad(loss, parameters)
            norm = math.sqrt(sum(float((g**2).sum()) for g in gradients))
            shrink = min(1.0, chosen.clip / (norm + 1e-6)) if chosen.clip else 1.0
            t, step = t + 1, step + 1
            with torch.no_grad():
                for p, g, m, v in zip(parameters, gradients, first, second, strict=True):
                    g = g * shrink
                    m.mul_(one).add_((1 - one) * g)
                    v.mul_(two).add_((1 - two) * g**2)
                    p.mul_(1 - lr * chosen.weight_decay)
                    p.sub_(lr * (m / (1 - one**t)) / ((v / (1 - two**t)).sqrt() + 1e-8))
            seen.append(loss.item())
        losses.append(np.mean(seen))
    return losses


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("clip", [0.0, 0.05])
@pytest.mark.parametrize("reset", [False, True])
def test_fit_equals_a_plain_float64_loop(schedule, clip, reset):
    data = encoded(np.random.default_rng(1).integers(1, 30, 45), num_classes=3)
    chosen = small(schedule=schedule, clip=clip, reset_optimizer=reset, weight_decay=0.1)
    ours, plain = Bag(), Bag()
    history = fit(ours, Batches(data, 8), loss64, chosen)
    losses = adamw_by_hand(plain, data, chosen, reset)
    torch.testing.assert_close(flat(ours), flat(plain), rtol=0, atol=1e-10)
    assert [record["loss"] for record in history] == pytest.approx(losses, rel=1e-6)
    assert not torch.allclose(flat(ours), flat(Bag()), atol=1e-3)


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_warm_up_and_other_moments_equal_a_plain_float64_loop(schedule):
    data = encoded(np.random.default_rng(1).integers(1, 30, 45), num_classes=3)
    chosen = small(schedule=schedule, warmup=0.3, betas=(0.8, 0.95))
    ours, plain = Bag(), Bag()
    fit(ours, Batches(data, 8), loss64, chosen)
    adamw_by_hand(plain, data, chosen)
    torch.testing.assert_close(flat(ours), flat(plain), rtol=0, atol=1e-10)


def test_a_schedule_made_in_two_parts_is_the_whole(monkeypatch):
    """SGD without momentum remembers nothing, so only the rates tell the parts from the whole."""
    data = encoded(np.full(20, 5))
    monkeypatch.setattr(TrainSettings, "optimizer", lambda self, p: torch.optim.SGD(p, self.lr))
    chosen = small(epochs=2, lr=0.5, schedule="cosine", warmup=0.2)
    whole, parts = Bag(), Bag()
    batches = Batches(data, 20)
    fit(whole, batches, loss64, chosen)
    for done in range(2):
        fit(parts, batches, loss64, replace(chosen, epochs=1), past=(done, 2))
    torch.testing.assert_close(flat(whole), flat(parts), rtol=0, atol=1e-12)


def test_sgd_equals_a_plain_float64_loop():
    data = encoded(np.random.default_rng(1).integers(1, 30, 45), num_classes=3)
    how = SgdSettings(3, 0.1, 8, momentum=0.7, weight_decay=0.01, precision="fp32", seed=5)
    ours, plain, entered = Bag(), Bag(), []
    history = fit(ours, Batches(data, 8), loss64, how, around=lambda: Entered(entered))
    rng, moved = np.random.default_rng(5), [torch.zeros_like(p) for p in plain.parameters()]
    for _ in range(3):
        for batch in Batches(data, 8)(rng):
            gradients = torch.autograd.grad(loss64(plain, batch)[0], list(plain.parameters()))
            with torch.no_grad():
                for p, g, v in zip(plain.parameters(), gradients, moved, strict=True):
                    v.mul_(0.7).add_(g + 0.01 * p)
                    p.sub_(0.1 * v)
    torch.testing.assert_close(flat(ours), flat(plain), rtol=0, atol=1e-10)
    assert len(entered) == 3 * 6 and history[-1]["loss"] < history[0]["loss"]


class Entered:
    """A context that notes that it was entered."""

    def __init__(self, log: list):
        self.log = log

    def __enter__(self):
        self.log.append(1)

    def __exit__(self, *error):
        pass


def test_reset_optimizer_changes_the_run():
    """The two settings of the parity test are two different trainings."""
    data = encoded(np.arange(1, 41))
    kept, again = Bag(), Bag()
    fit(kept, Batches(data, 8), loss64, small())
    fit(again, Batches(data, 8), loss64, small(reset_optimizer=True))
    assert not torch.allclose(flat(kept), flat(again), atol=1e-4)


def test_fit_equals_torchs_unfused_adamw_on_a_transformer(tiny):
    """The tiny BERT in float64, every batch padded to 128 in the plain loop."""
    tiny.double()
    for module in tiny.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    tiny.network.config._attn_implementation = "eager"  # its dropout stands in the config
    for layer in tiny.network.bert.encoder.layer:
        layer.attention.self.dropout.p = 0.0
    plain = copy.deepcopy(tiny)
    data = encoded(np.random.default_rng(2).integers(3, 40, 20))
    chosen = small(epochs=2, lr=1e-3, clip=0.5)
    fit(tiny, Batches(data, 8), loss64, chosen)

    plain.train()
    optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-3, weight_decay=0.01, foreach=False)
    rng = np.random.default_rng(chosen.seed)
    for _ in range(2):
        for rows in Batches(data, 8).rows(rng):
            ids = torch.zeros(len(rows), 128, dtype=torch.int64)
            ids[:, : data.ids.shape[1]] = data.ids[rows]
            mask = torch.arange(128) < torch.as_tensor(data.lengths[rows])[:, None]
            optimizer.zero_grad()
            F.cross_entropy(plain(ids, mask.long()), data.labels[rows]).backward()
            nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
            optimizer.step()
    torch.testing.assert_close(flat(tiny), flat(plain), rtol=0, atol=1e-9)


# ----------------------------------------------------------------------------- batches


@settings(max_examples=60)
@given(lengths_lists, st.integers(1, 17), st.integers(0, 2**32 - 1))
def test_each_epoch_visits_every_row_once_in_batches_of_at_most_the_batch_size(lengths, size, seed):
    data = encoded(lengths)
    batches = Batches(data, size)
    rng = np.random.default_rng(seed)
    for _ in range(2):
        drawn = list(batches(rng))
        assert len(drawn) == len(batches)
        assert sorted(np.concatenate([b.rows for b in drawn])) == list(range(len(lengths)))
        assert all(0 < len(b.rows) <= size for b in drawn)
        # Never fewer steps than a plain loop would take, nor more.
        assert sum(len(b.rows) < size for b in drawn) <= 1


@settings(max_examples=30)
@given(lengths_lists, st.integers(0, 2**32 - 1))
def test_a_batch_holds_its_rows_and_no_more_padding_than_they_need(lengths, seed):
    data = encoded(lengths)
    rows = np.random.default_rng(seed).permutation(len(lengths))[:7]
    batch = data.batch(rows)
    assert batch.input_ids.shape == (len(rows), data.lengths[rows].max())
    assert batch.input_ids.dtype == batch.attention_mask.dtype == torch.int64
    for i, row in enumerate(rows):
        length = data.lengths[row]
        assert batch.attention_mask[i].tolist() == [1] * length + [0] * (
            batch.input_ids.shape[1] - length
        )
        assert torch.equal(batch.input_ids[i, :length].int(), data.ids[row, :length])
        assert batch.labels[i] == data.labels[row]


def test_batches_differ_between_epochs_and_seeds_but_not_under_one_seed():
    data = encoded(np.arange(1, 41))
    batches = Batches(data, 8)

    def draw(rng):
        return [rows.tolist() for rows in batches.rows(rng)]

    rng = np.random.default_rng(0)
    first, second = draw(rng), draw(rng)
    assert first != second
    assert draw(np.random.default_rng(0)) == first
    assert draw(np.random.default_rng(1)) != first


def test_encode_matches_the_tokenizer_and_truncates(tiny):
    texts = ["a short one .", "word " * 300, ""]
    data = text_training.encode(texts, [0, 1, 0], tiny.tokenizer, max_length=32)
    assert data.lengths.tolist() == [6, 32, 2]
    assert data.ids[0, :6].tolist() == tiny.tokenizer(texts[0])["input_ids"]
    assert data.ids.dtype == torch.int32 and data.labels.dtype == torch.int64
    assert len(data) == 3
    with pytest.raises(ValueError, match="no texts to encode"):
        text_training.encode([], [], tiny.tokenizer)
    with pytest.raises(ValueError, match="1 texts and 2 labels; accepted: as many of both"):
        text_training.encode(["a"], [0, 1], tiny.tokenizer)
    with pytest.raises(ValueError, match="labels are float64; accepted: whole numbers"):
        text_training.encode(["a"], [0.7], tiny.tokenizer)


@pytest.mark.parametrize("name", ["clip", "weight_decay", "warmup"])
def test_settings_that_would_turn_training_round_are_refused(name):
    """A gradient that is clipped to a length of -1 points the other way."""
    with pytest.raises(ValueError, match=f"{name} is -1; accepted: 0 or above"):
        TrainSettings(**{name: -1})


def test_a_warmup_that_never_ends_is_refused():
    with pytest.raises(ValueError, match="warmup is 2.0; accepted: a share of the steps"):
        TrainSettings(warmup=2.0)


def test_rows_of_more_classes_than_the_model_has_are_refused(tiny):
    """On a GPU the loss of such a label ends the process, or the whole notebook."""
    topics = load_text("toy-topics", "dev")
    with pytest.raises(ValueError, match="toy-topics has 4 classes, the model 2"):
        text_training.fine_tune(tiny, topics, TrainSettings(epochs=1))
    digits = load_images("digits", "test")
    network = image_classifier("cnn", 9, digits.shape, seed=0)
    with pytest.raises(ValueError, match="a label is 9; accepted: 0 … 8"):
        fit_images(network, image_data(digits), TrainSettings(epochs=1))


def test_encode_refuses_a_tokenizer_without_padding(tiny):
    tokenizer = copy.deepcopy(tiny.tokenizer)
    tokenizer.pad_token = None
    with pytest.raises(ValueError, match="no padding token"):
        text_training.encode(["x"], [0], tokenizer)


# ----------------------------------------------------------------------------- predict


def test_padding_does_not_change_logits(tiny):
    tiny.double().eval()
    data = encoded([3, 17, 40, 8, 1])
    together = data.batch(np.arange(5))
    with torch.no_grad():
        batched = tiny(together.input_ids, together.attention_mask)
        for i in range(5):
            alone = data.batch(np.array([i]))
            single = tiny(alone.input_ids, alone.attention_mask)
            torch.testing.assert_close(batched[i : i + 1], single, rtol=0, atol=1e-10)


def test_predict_keeps_row_order_mode_and_gradients_off(tiny, monkeypatch):
    monkeypatch.setattr(text_training, "EVAL_TOKENS", 64)  # several batches from few rows
    data = encoded(np.random.default_rng(4).integers(1, 40, 31))
    tiny.train()
    logits = text_training.predict(tiny, data, "fp32")
    assert tiny.training and not logits.requires_grad
    assert logits.shape == (31, 2) and logits.dtype == torch.float32
    tiny.eval()
    for i in range(31):
        batch = data.batch(np.array([i]))
        with torch.no_grad():
            alone = tiny(batch.input_ids, batch.attention_mask)
        torch.testing.assert_close(logits[i : i + 1], alone, rtol=1e-4, atol=1e-5)
    text_training.predict(tiny, data, "fp32")
    assert not tiny.training


@settings(max_examples=60)
@given(lengths_lists, st.integers(1, 200))
def test_evaluation_batches_cover_all_rows_within_the_token_budget(lengths, budget):
    lengths = np.array(lengths)
    order = np.argsort(lengths, kind="stable")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_training, "EVAL_TOKENS", budget)
        parts = list(text_training.by_length(lengths))
    assert np.concatenate(parts).tolist() == order.tolist()
    for rows in parts:
        assert len(rows) == 1 or len(rows) * lengths[rows].max() <= budget


# ------------------------------------------------------------------------- outputs that are none


class Overflows(nn.Module):
    """Gives infinity in half precision, and from ``rows`` on in single precision too."""

    def __init__(self, rows: int = 10**9):
        super().__init__()
        self.weight, self.rows, self.seen = nn.Parameter(torch.ones(1)), rows, 0

    def forward(self, input_ids, attention_mask):
        values = torch.ones(len(input_ids), 2) * self.weight
        half = torch.is_autocast_enabled("cpu")
        self.seen += 0 if half else len(values)
        return values * (math.inf if half or self.seen > self.rows else 1)


def test_half_precision_that_overflows_is_asked_again_in_single():
    data = encoded([3, 4, 5])
    with pytest.warns(UserWarning, match="outputs overflow in bf16; asked again in fp32"):
        logits = text_training.predict(Overflows(), data, "bf16")
    assert torch.equal(logits, torch.ones(3, 2))


@pytest.mark.filterwarnings("ignore:outputs overflow")
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_outputs_that_are_never_finite_are_no_prediction(precision):
    with pytest.raises(devices.NotFinite, match="not finite for 3 of 3 rows; its weights"):
        text_training.predict(Overflows(rows=0), encoded([3, 4, 5]), precision)


@pytest.mark.parametrize("inner", ["eval", "train"])
def test_prediction_leaves_each_module_in_its_own_mode(tiny, inner):
    tiny.train()
    getattr(tiny.network, inner)()
    before = [module.training for module in tiny.modules()]
    text_training.predict(tiny, encoded([3, 4]), "fp32")
    assert [module.training for module in tiny.modules()] == before


# ------------------------------------------------------------------------- divergence


def explode_at(step: int, value: float = math.nan):
    count = 0

    def loss(model, batch):
        nonlocal count
        count += 1
        result, log = loss64(model, batch)
        return (result * value if count == step else result), log

    return loss


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("step", [1, 5, 6, 13])
def test_divergence_names_its_step_and_keeps_the_last_good_weights(step, value):
    data = encoded(np.arange(1, 41))  # 5 steps per epoch
    ends = [flat(Bag())]

    def remember(model, epoch):
        ends.append(flat(model).clone())
        return {}

    with pytest.raises(Diverged) as caught:
        fit(Bag(), Batches(data, 8), explode_at(step, value), small(), remember)
    error = caught.value
    assert error.step == step and error.epoch == (step - 1) // 5 + 1
    assert f"not finite at step {step} (epoch {error.epoch})" in str(error)
    assert "\n" not in str(error)
    good = flat(error.good)
    assert torch.isfinite(good).all()
    assert torch.equal(good, ends[error.epoch - 1])


def test_a_learning_rate_that_is_too_high_is_caught():
    """Divergence by the optimiser itself, not by a planted NaN."""
    data = encoded(np.arange(1, 41))

    def square(model, batch):
        value = model(batch.input_ids, batch.attention_mask).pow(8).sum() * 1e200
        return value, {"loss": value.detach()}

    with pytest.raises(Diverged):
        fit(Bag(), Batches(data, 8), square, small(lr=100.0, clip=0.0, epochs=20))


def test_the_check_finds_the_step_inside_a_late_synchronisation():
    """On a GPU the flags are looked at every SYNC_EVERY steps: the named step is still exact."""
    flags = [torch.tensor(True)] * 3 + [torch.tensor(False)] + [torch.tensor(True)] * 2
    with pytest.raises(Diverged) as caught:
        fitting._check(flags, step=100, epoch=4, good={})
    assert caught.value.step == 98  # steps 95 … 100, the fourth of them
    fitting._check([], 1, 1, {})
    fitting._check([torch.tensor(True)], 1, 1, {})


# ------------------------------------------------------------------------ determinism


def test_same_seed_gives_bitwise_the_same_run_and_another_seed_does_not(tiny, reviews):
    chosen = TrainSettings(epochs=2, lr=1e-3, batch_size=16, precision="fp32", seed=7)
    runs = []
    for seed in (7, 7, 8):
        model = copy.deepcopy(tiny)
        torch.manual_seed(len(runs))  # the caller's state must not matter
        np.random.seed(len(runs))
        history = text_training.fine_tune(model, reviews, replace(chosen, seed=seed))
        for record in history:
            record.pop("seconds")
        runs.append((flat(model), history))
    assert torch.equal(runs[0][0], runs[1][0]) and runs[0][1] == runs[1][1]
    assert not torch.equal(runs[0][0], runs[2][0])


def test_the_callers_random_state_is_left_as_it_was():
    data = encoded(np.arange(1, 21))
    torch.manual_seed(11)
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
    fit(Bag(dropout=0.5), Batches(data, 8), loss64, small())
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(np.random.get_state()[1], numpy_before)
    with pytest.raises(Diverged):
        fit(Bag(dropout=0.5), Batches(data, 8), explode_at(2), small())
    assert torch.equal(torch.get_rng_state(), before)


def test_dropout_follows_the_seed():
    data = encoded(np.arange(1, 21))
    runs = []
    for dropout in (0.0, 0.5, 0.5):
        model = Bag(dropout=dropout)
        fit(model, Batches(data, 8), loss64, small())
        runs.append(flat(model))
    assert torch.equal(runs[1], runs[2]) and not torch.equal(runs[0], runs[1])


# ---------------------------------------------------------------------------- history


def test_history_and_callback():
    data = encoded(np.arange(1, 41))
    modes = []

    def loss(model, batch):
        modes.append(model.training)
        return loss64(model, batch)

    def on_epoch(model, epoch):
        assert not model.training
        return {"score": 10.0 * epoch}

    model = Bag()
    model.eval()
    history = fit(model, Batches(data, 8), loss, small(epochs=2), on_epoch)
    assert all(modes) and len(modes) == 10 and not model.training
    assert [record["epoch"] for record in history] == [1, 2]
    assert [record["score"] for record in history] == [10.0, 20.0]
    assert all(set(r) == {"epoch", "seconds", "loss", "score"} for r in history)
    assert all(r["seconds"] > 0 and isinstance(r["loss"], float) for r in history)
    assert history[1]["loss"] < history[0]["loss"]


def test_parameters_that_are_frozen_stay():
    data = encoded(np.arange(1, 41))
    model = Bag()
    model.embed.weight.requires_grad_(False)
    before = model.embed.weight.clone()
    fit(model, Batches(data, 8), loss64, small())
    assert torch.equal(model.embed.weight, before)
    assert not torch.equal(model.head.weight, Bag().head.weight)


@pytest.mark.trained
def test_fine_tune_learns_the_toy_reviews(tiny):
    from minilib.data.text import load_text
    from minilib.metrics import classification

    rows, test = (load_text("toy-reviews", split) for split in ("train", "test"))
    chosen = TrainSettings(epochs=3, lr=1e-3, batch_size=32, precision="fp32", seed=SEED)
    history = text_training.fine_tune(tiny, rows, chosen)
    data = text_training.encode(test.texts, test.labels, tiny.tokenizer)
    accuracy = classification.accuracy(text_training.predict(tiny, data).argmax(1), test.labels)
    assert accuracy > 85 and history[-1]["loss"] < history[0]["loss"]


# ------------------------------------------------------------------------ the machine


@pytest.mark.parametrize("precision", ["bf16", "fp16", "auto"])
def test_low_precision_runs_close_to_fp32(tiny, reviews, precision):
    data = text_training.encode(reviews.texts, reviews.labels, tiny.tokenizer)
    exact = text_training.predict(tiny, data, "fp32")
    torch.testing.assert_close(
        text_training.predict(tiny, data, precision), exact, rtol=0, atol=0.05
    )
    model = copy.deepcopy(tiny)
    chosen = TrainSettings(epochs=1, lr=1e-4, batch_size=16, precision=precision)
    history = text_training.fine_tune(model, reviews, chosen)
    assert math.isfinite(history[0]["loss"])
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert not torch.equal(flat(model), flat(tiny))


def test_resolve_precision():
    cpu = torch.device("cpu")
    assert devices.resolve_precision("auto", cpu) in ("fp32", "bf16")
    for name in ("fp32", "bf16", "fp16"):
        assert devices.resolve_precision(name, cpu) == name


@pytest.mark.parametrize(
    ("name", "value", "accepted"),
    [
        ("epochs", 0, "above 0"),
        ("lr", -1e-3, "above 0"),
        ("lr", math.nan, "above 0"),
        ("batch_size", 0, "above 0"),
        ("schedule", "step", "constant, linear, cosine"),
        ("precision", "fp8", "auto, fp32, bf16, fp16"),
    ],
)
def test_settings_refuse_naming_value_and_what_is_accepted(name, value, accepted):
    with pytest.raises(ValueError) as caught:
        TrainSettings(**{name: value})
    assert f"{name} is {value!r}; accepted: {accepted}" in str(caught.value)


def test_progress_shows_on_a_terminal_and_in_a_live_notebook_only(monkeypatch, capsys):
    def shown() -> bool:
        assert list(fitting.progress(iter([1, 2]), 2, "epoch")) == [1, 2]
        return "epoch" in capsys.readouterr().err

    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)
    assert not shown()
    monkeypatch.setitem(sys.modules, "ipykernel", None)
    monkeypatch.delenv("MINILIB_RUN", raising=False)
    assert shown()
    monkeypatch.setenv("MINILIB_RUN", "{}")  # papermill executes the notebook: nobody watches
    assert not shown()


def test_cross_entropy_is_the_mean_in_nats(tiny):
    batch = encoded([5, 9]).batch(np.arange(2))
    tiny.eval()
    value, log = text_training.cross_entropy(tiny, batch)
    p = torch.softmax(tiny(batch.input_ids, batch.attention_mask), 1)
    expected = -torch.log(p[torch.arange(2), batch.labels]).mean()
    torch.testing.assert_close(value, expected)
    assert log["loss"].item() == value.item() and not log["loss"].requires_grad
    assert isinstance(batch, Batch)
