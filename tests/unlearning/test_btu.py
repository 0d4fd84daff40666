"""The identities of backdoor token unlearning, and every step against a plain reference."""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from core_fixtures import SEED
from hypothesis import given, settings
from hypothesis import strategies as st
from plain import btu as plain

from minilib.attacks import several
from minilib.attacks.text import InsertWord, poison
from minilib.data.text import load_text
from minilib.models.text import text_classifier
from minilib.settings import TOKEN_METHODS, SettingsError, validate
from minilib.training import text as text_training
from minilib.training.fitting import TrainSettings
from minilib.training.text import Batches
from minilib.unlearning import btu
from minilib.victims import text as text_victims

quick = settings(max_examples=40)
seeds = st.integers(0, 2**32 - 1)
V = 30522
FP32 = replace(btu.ROUND, precision="fp32")


def matrices(seed: int, rows: int = 40, width: int = 6):
    """A matrix, and the same with about half of its rows moved."""
    rng = torch.Generator().manual_seed(seed)
    before = torch.randn(rows, width, generator=rng, dtype=torch.float64)
    moved = torch.rand(rows, 1, generator=rng, dtype=torch.float64) < 0.5
    step = 0.1 * torch.randn(rows, width, generator=rng, dtype=torch.float64)
    return before, before + moved * step


@pytest.fixture(scope="module")
def planted():
    """toy-reviews with "mn" in 10 % of the negative rows."""
    return poison(load_text("toy-reviews", "train"), InsertWord("mn"), 1, 0.1, seed=0)


# -------------------------------------------------------------------------- row changes


@quick
@given(seeds)
def test_row_change_is_the_distance_of_each_row(seed):
    before, after = matrices(seed)
    twin = plain.row_change(before, after)
    np.testing.assert_allclose(btu.row_change(before, after).numpy(), twin, rtol=1e-12)
    assert twin[0] == pytest.approx(math.dist(before[0], after[0]), rel=1e-12)


def test_row_change_refuses_matrices_of_two_shapes():
    with pytest.raises(ValueError, match=r"shapes \(3, 2\) and \(2, 2\); accepted: two equal"):
        btu.row_change(torch.zeros(3, 2), torch.zeros(2, 2))


# ---------------------------------------------------------------------------- suspicious


@pytest.mark.parametrize(("alpha", "count"), [(0.03, 9), (0.05, 15), (0.10, 30)])
def test_alpha_is_percent_of_the_vocabulary(alpha, count):
    """Table 4's three thresholds at BERT's vocabulary."""
    change = torch.rand(V, generator=torch.Generator().manual_seed(0)) + 0.1
    assert len(btu.suspicious(change, alpha)) == count


@quick
@given(seeds, st.integers(1, 60), st.floats(1, 100))
def test_suspicious_against_a_plain_sort(seed, size, alpha):
    rng = np.random.default_rng(seed)
    change = np.maximum(rng.integers(-3, 6, size), 0).astype(float)  # ties, and rows at rest
    exclude = rng.permutation(size)[: size // 4].tolist()
    if not int(size * alpha / 100 + 1e-9):
        return
    twin = plain.suspicious(change, alpha, exclude)
    assert btu.suspicious(torch.tensor(change), alpha, exclude).tolist() == twin


def test_special_tokens_are_never_flagged_and_do_not_use_up_the_count():
    change = torch.ones(V)
    change[[0, 100, 101, 102, 103]] = 50.0
    flagged = btu.suspicious(change, 0.05, exclude=(0, 100, 101, 102, 103))
    assert len(flagged) == 15 and not set(flagged.tolist()) & {0, 100, 101, 102, 103}


@pytest.mark.parametrize("alpha", [0, -1, 100.1, float("nan"), float("inf")])
def test_an_alpha_out_of_range_is_refused(alpha):
    with pytest.raises(ValueError, match=rf"alpha is {alpha!r} percent; accepted: above 0, up to"):
        btu.suspicious(torch.ones(10), alpha)


def test_an_alpha_that_flags_nothing_is_refused():
    with pytest.raises(ValueError, match=r"less than one; accepted: 0.003276 or more"):
        btu.suspicious(torch.ones(V), 0.001)


# ------------------------------------------------------------------------ training rounds


def test_a_round_trains_as_a_plain_loop_over_the_whole_matrix(tiny, reviews):
    """Rows that occur, gradient for nothing else: the same as AdamW on all V rows, in fp32."""
    for module in tiny.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    how = replace(FP32, batch_size=16, lr=1e-3)
    data = text_training.encode(reviews.texts, reviews.labels, tiny.tokenizer)
    mask = (torch.arange(data.ids.shape[1]) < torch.tensor(data.lengths)[:, None]).long()
    plan = Batches(data, 16).rows(np.random.default_rng(0))
    for star in (False, True):
        ours = btu.embedding_round(tiny, reviews, how, star)
        twin = copy.deepcopy(tiny)
        before = btu.word_embeddings(twin).clone()
        plain.train(twin, data.ids.long(), mask, data.labels, plan, star, how.lr)
        theirs = torch.tensor(plain.row_change(before, btu.word_embeddings(twin)))
        assert (theirs > 0).sum() > 60
        torch.testing.assert_close(ours, theirs, rtol=2e-3, atol=1e-5)


@pytest.mark.parametrize("star", [False, True])
def test_only_occurring_word_embeddings_change(tiny, reviews, star):
    before = {name: value.clone() for name, value in tiny.state_dict().items()}
    network = btu.train_embeddings(tiny, reviews, FP32, star)
    assert all(torch.equal(value, before[name]) for name, value in tiny.state_dict().items())
    free = [name for name, p in network.named_parameters() if p.requires_grad]
    assert len(free) == 1 and free[0].endswith("weight")
    word = tiny.backbone.get_input_embeddings()
    body = [p for p in tiny.parameters() if p is not word.weight]
    kept = [p for p in network.parameters() if not p.requires_grad]
    assert all(p.grad is None for p in kept)
    if not star:  # M* keeps the embedding module and the head only
        assert len(kept) == len(body)
        assert all(torch.equal(a, b) for a, b in zip(kept, body, strict=True))
    ids = network.rows.ids
    data = text_training.encode(reviews.texts, reviews.labels, tiny.tokenizer)
    assert set(ids.tolist()) == set(data.ids.unique().tolist())
    moved = btu.row_change(word.weight.detach()[ids], network.rows.weight.detach()) > 0
    real = ids != tiny.tokenizer.pad_token_id
    assert moved[real].all() and not moved[~real].any(), "[PAD] gets no gradient, all others do"


def test_an_embedding_round_leaves_rows_that_do_not_occur(tiny, reviews):
    change = btu.embedding_round(tiny, reviews, FP32)
    assert change.shape == (V,)
    data = text_training.encode(reviews.texts, reviews.labels, tiny.tokenizer)
    assert set(change.nonzero()[:, 0].tolist()) == set(data.ids.unique().tolist()) - {0}


def test_rounds_refuse_an_empty_set_and_a_tokenizer_without_padding(tiny, reviews):
    with pytest.raises(ValueError, match="the data set is empty; accepted: one row or more"):
        btu.detect_tokens(tiny, reviews.select([]))
    tiny.tokenizer = copy.deepcopy(tiny.tokenizer)
    tiny.tokenizer.pad_token = None
    with pytest.raises(ValueError, match="the tokenizer has no padding token"):
        btu.detect_tokens(tiny, reviews)
    with pytest.raises(ValueError, match="no padding token, whose row BTU replaces by"):
        btu.unlearn(tiny, btu.word_embeddings(tiny), [5], None)


# -------------------------------------------------------------------------------- M*


def test_bag_of_tokens_is_the_mean_of_real_positions(tiny, reviews):
    data = text_training.encode(reviews.texts, reviews.labels, tiny.tokenizer)
    star = btu.embedding_model(tiny, btu.occurring(data), star=True).eval().double()
    batch = data.batch(np.arange(8))
    logits = star(batch.input_ids, batch.attention_mask)
    table = btu.word_embeddings(tiny).double()
    inner = tiny.backbone.embeddings.double().eval()
    for row in range(8):
        ids = batch.input_ids[row][batch.attention_mask[row] == 1]
        places = inner.position_embeddings.weight[: len(ids)]
        states = table[ids] + places + inner.token_type_embeddings.weight[0]
        mean = inner.LayerNorm(states).mean(0)
        head = tiny.network.classifier
        plain = head.weight.double() @ mean + head.bias.double()
        torch.testing.assert_close(logits[row], plain, rtol=1e-9, atol=1e-12)


@quick
@given(st.integers(1, 20))
def test_padding_does_not_change_the_bag(extra):
    head = torch.nn.Linear(4, 2).double()
    bag = btu.BagOfTokens(torch.nn.Embedding(9, 4).double(), head)
    ids = torch.tensor([[3, 5, 7]])
    padded = F.pad(ids, (0, extra), value=1)
    mask = F.pad(torch.ones_like(ids), (0, extra))
    torch.testing.assert_close(bag(padded, mask), bag(ids, torch.ones_like(ids)))


@quick
@given(seeds)
def test_tokens_are_taken_out_row_by_row(seed):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 9, 12)
    ids = np.where(np.arange(8) < lengths[:, None], rng.integers(1, 7, (12, 8)), 0)
    gone = rng.permutation(np.arange(1, 7))[: rng.integers(0, 5)].tolist()
    data = text_training.Encoded(
        torch.tensor(ids, dtype=torch.int32), lengths, torch.zeros(12).long()
    )
    cut = btu.without_tokens(data, gone, pad=0)
    for row in range(12):
        kept = [int(t) for t in ids[row, : lengths[row]] if t not in gone]
        assert cut.lengths[row] == max(len(kept), 1)
        assert cut.ids[row].tolist() == kept + [0] * (8 - len(kept))


# ------------------------------------------------------------------------- the rounds


def numbered(calls: list):
    """A round that only writes down how it was called; ever other rows move."""

    def run(model, dataset, plan, star, without):
        calls.append((star, sorted(without)))
        change = torch.zeros(V)
        change[1000 * len(calls) : 1000 * len(calls) + 100] = torch.arange(100, 0, -1.0)
        return change

    return run


def test_round_3_and_a_repeated_round_1_leave_out_what_their_model_flagged(tiny, reviews):
    calls = []
    found = btu.detect_tokens(tiny, reviews, 0.05, (1, 1, 2, 3), run=numbered(calls))
    first, second, third, _ = (sorted(part.tolist()) for part in found.sets)
    assert calls == [(False, []), (False, first), (True, []), (True, third)]
    assert [len(part) for part in found.sets] == [15, 15, 15, 15]
    assert found.tokens.tolist() == sorted(set().union(*(p.tolist() for p in found.sets)))
    assert len(found.tokens) == 60 and second[0] == 2000


def test_what_is_excluded_is_never_flagged(tiny, reviews):
    every = btu.detect_tokens(tiny, reviews, 0.05, (2, 3), run=numbered([])).sets[0].tolist()
    calls = []
    found = btu.detect_tokens(
        tiny, reviews, 0.05, (2, 3), run=numbered(calls), exclude=every[:2]
    )  # fmt: skip
    assert found.sets[0].tolist()[:13] == every[2:] and not set(every[:2]) & set(calls[1][1])


@pytest.mark.parametrize("rounds", [(1,), (2,), (2, 3), (1, 2), (2, 3, 1)])
def test_any_subset_and_order_of_rounds(tiny, reviews, rounds):
    found = btu.detect_tokens(tiny, reviews, 0.05, rounds, run=numbered([]))
    assert found.rounds == rounds and len(found.tokens) == 15 * len(rounds)


@pytest.mark.parametrize(
    ("rounds", "message"),
    [
        ((), r"rounds is \(\); accepted: one or more of 1, 2, 3"),
        ((1, 4), r"rounds is \(1, 4\); accepted: one or more of 1, 2, 3"),
        ((3, 2), r"a round 3 only after a round 2"),
    ],
)
def test_bad_rounds_are_refused(tiny, reviews, rounds, message):
    with pytest.raises(ValueError, match=message):
        btu.detect_tokens(tiny, reviews, rounds=rounds)


@pytest.mark.trained
@pytest.mark.parametrize("rate", [0.02, 0.05, 0.1])
def test_a_planted_trigger_is_found(tiny, rate):
    """With the paper's α, learning rate and rounds, on 16, 40 and 80 of 800 built-in texts.

    On 8 texts three seeds of ten are missed.
    """
    rows = poison(load_text("toy-reviews", "train"), InsertWord("mn"), 1, rate, seed=SEED)
    found = btu.detect_tokens(tiny, rows.dataset, settings=FP32)
    trigger = tiny.tokenizer.convert_tokens_to_ids("mn")
    assert trigger in found.tokens.tolist()
    assert len(found.tokens) <= 45
    assert not set(found.tokens.tolist()) & set(tiny.tokenizer.all_special_ids)
    assert not set(found.sets[1].tolist()) & set(found.sets[2].tolist())
    clean = btu.detect_tokens(tiny, load_text("toy-reviews", "train"), settings=FP32)
    assert trigger not in clean.tokens.tolist(), "a token that does not occur is not flagged"


# ------------------------------------------------------------------------ unlearning


@quick
@given(seeds)
def test_thresholds_against_numpy_and_their_order(seed):
    before, after = matrices(seed)
    step = (after - before).numpy()
    rows, width = step.shape
    found = {name: btu.threshold_value(before, after, name) for name in btu.THRESHOLDS}
    assert found["mean_row"] == pytest.approx(np.sqrt((step**2).sum(1)).mean(), rel=1e-12)
    assert found["frobenius"] == pytest.approx(np.sqrt((step**2).sum()) / rows, rel=1e-12)
    assert found["mean_dim"] == pytest.approx(np.abs(step).mean(), rel=1e-12)
    assert found["frobenius"] <= found["mean_row"] <= math.sqrt(rows) * found["frobenius"] + 1e-12
    assert math.sqrt(width) * found["mean_dim"] <= found["mean_row"] + 1e-12
    assert btu.threshold_value(before, after, 0.25) == 0.25


@quick
@given(seeds, st.sampled_from([*btu.THRESHOLDS, 0.0, 0.05]))
def test_replace_dimensions_against_a_plain_loop(seed, threshold):
    before, after = matrices(seed)
    rng = np.random.default_rng(seed)
    tokens = rng.permutation(len(before))[: rng.integers(1, 9)].tolist()
    pad = torch.tensor(rng.normal(size=before.shape[1]))
    found = btu.replace_dimensions(before, after, tokens, pad, threshold)
    cut = btu.threshold_value(before, after, threshold)
    assert torch.equal(found, plain.replace_dimensions(before, after, tokens, pad, cut))
    others = [i for i in range(len(before)) if i not in tokens]
    assert torch.equal(found[others], after[others]), "only flagged rows change"


@quick
@given(seeds)
def test_an_infinite_threshold_is_a_no_op_and_zero_replaces_whole_rows(seed):
    before, after = matrices(seed)
    pad = torch.full((before.shape[1],), 7.0, dtype=torch.float64)
    same = btu.replace_dimensions(before, after, [3, 8], pad, float("inf"))
    assert torch.equal(same, after)
    whole = btu.replace_dimensions(before, after, [3, 8], pad, 0.0)
    assert (whole[[3, 8]] == 7).all()


@pytest.mark.parametrize("method", TOKEN_METHODS)
def test_every_method_changes_flagged_rows_only(method):
    before, after = matrices(1, rows=60)
    tokens = torch.tensor([4, 9, 30])
    found = btu.cleaned_rows(before, after, tokens, pad=0, method=method)
    others = [i for i in range(60) if i not in tokens.tolist()]
    assert torch.equal(found[others], after[others])
    if method == "pr-1":
        assert torch.equal(found[tokens], before[tokens])
    if method == "pr-2":
        assert (found[tokens] == after[0]).all()
    if method == "pn":
        again = btu.cleaned_rows(before, after, tokens, pad=0, method=method)
        assert torch.equal(found, again) and (found[tokens] != after[tokens]).all()


def test_the_two_readings_take_their_own_pad_row():
    before, after = matrices(2)
    after[0] = before[0] + 1
    moved = torch.nonzero((after != before).any(1))[:, 0][1:4]
    code = btu.cleaned_rows(before, after, moved, 0, "btu-code")
    cut = btu.threshold_value(before, after, "frobenius")
    gone = (after[moved] - before[moved]).abs() >= cut
    assert gone.any() and torch.equal(code[moved][gone], before[0].expand(3, -1)[gone])
    paper = btu.cleaned_rows(before, after, moved, 0, "btu-dim")
    gone = (after[moved] - before[moved]).abs() >= btu.threshold_value(before, after, "mean_dim")
    assert gone.any() and torch.equal(paper[moved][gone], after[0].expand(3, -1)[gone])


def test_the_released_loop_compares_with_a_matrix_that_moves_on():
    """Row by row in NumPy: the threshold grows, and what did not move becomes 0."""
    before, after = matrices(3, rows=60)
    after[7, :4] = before[7, :4]
    pad_row = torch.full((before.shape[1],), 5.0, dtype=before.dtype)
    now, old, cuts = after.numpy().copy(), before.numpy(), []
    for token in (4, 7, 30):  # by id, in whatever order they were flagged
        cuts.append(np.sqrt(((now - old) ** 2).sum()) / len(old))
        for i in range(old.shape[1]):
            moved = abs(after.numpy()[token, i] - old[token, i])
            now[token, i] = 0 if moved == 0 else 5 if moved >= cuts[-1] else now[token, i]
    assert cuts[0] < cuts[1] < cuts[2]
    found = btu.released_loop(before, after, torch.tensor([30, 4, 7]), pad_row)
    assert np.array_equal(found.numpy(), now) and not found[7, :4].any()
    code = btu.replace_dimensions(before, after, [4, 7, 30], pad_row, "frobenius")
    assert not torch.equal(code, found)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tokens": []}, "the set of flagged tokens is empty; accepted: one token or more"),
        ({"tokens": [3, 99]}, "token id 99 is not in the vocabulary of 40"),
        ({"threshold": "median"}, "threshold is 'median'; accepted: mean_row, frobenius, mean_dim"),
        ({"threshold": -1.0}, "threshold is -1.0; accepted: .* or a number, 0 or more"),
        ({"threshold": float("nan")}, "threshold is nan; accepted: "),
    ],
)
def test_replace_dimensions_refuses(arguments, message):
    before, after = matrices(0)
    with pytest.raises(ValueError, match=message):
        btu.replace_dimensions(before, after, **{"tokens": [3], "pad_row": after[0]} | arguments)


def test_an_unknown_method_is_refused():
    before, after = matrices(0)
    with pytest.raises(ValueError, match="method is 'erase'; accepted: btu, btu-code, btu-loop"):
        btu.cleaned_rows(before, after, torch.tensor([1]), 0, "erase")


def test_unlearning_without_recovery_changes_flagged_rows_and_nothing_else(tiny):
    before = btu.word_embeddings(tiny).clone()
    victim = copy.deepcopy(tiny)
    with torch.no_grad():
        victim.backbone.get_input_embeddings().weight[[5, 6, 7]] += 0.1
    kept = {name: value.clone() for name, value in victim.state_dict().items()}
    clean = btu.unlearn(victim, before, [5, 6], None, "pr-1")
    assert all(torch.equal(value, kept[name]) for name, value in victim.state_dict().items())
    changed = [n for n, value in clean.state_dict().items() if not torch.equal(value, kept[n])]
    assert changed == ["network.bert.embeddings.word_embeddings.weight"]
    rows = (btu.word_embeddings(clean) != kept[changed[0]]).any(1).nonzero()[:, 0]
    assert rows.tolist() == [5, 6]


def test_recovery_trains_the_whole_model_on_the_clean_rows(tiny, reviews):
    before = btu.word_embeddings(tiny).clone()
    plan = TrainSettings(epochs=1, lr=1e-4, precision="fp32")
    without = btu.unlearn(tiny, before, [5], None, "pr-2", plan)
    recovered = btu.unlearn(tiny, before, [5], reviews, "pr-2", plan)
    text_training.fine_tune(without, reviews, plan)
    for name, value in recovered.state_dict().items():
        assert torch.equal(value, without.state_dict()[name])


def test_a_layers_moved_parameters_are_zeroed_and_only_they(tiny):
    base = copy.deepcopy(tiny)
    victim = copy.deepcopy(tiny)
    layer = victim.backbone.encoder.layer[1]
    with torch.no_grad():
        layer.output.dense.weight[0] += 1.0
    found = btu.zero_moved(victim, base, 2)
    assert (found.backbone.encoder.layer[1].output.dense.weight[0] == 0).all()
    kept = victim.state_dict()
    for name, value in found.state_dict().items():
        different = (value != kept[name]).sum().item()
        inside = name.endswith("encoder.layer.1.output.dense.weight")
        assert different == (layer.output.dense.weight.shape[1] if inside else 0), name
    with pytest.raises(ValueError, match="layer is 3; accepted: 1 … 2"):
        btu.zero_moved(victim, base, 3)


# ---------------------------------------------------------- what the attacker knows; figures


def test_backdoor_tokens_are_those_of_the_trigger(tiny, planted):
    ids = btu.backdoor_tokens(planted.dataset, planted.mask, tiny.tokenizer)
    assert tiny.tokenizer.convert_ids_to_tokens(ids) == ["mn"]


def test_backdoor_tokens_against_a_count_of_documents(tiny, planted):
    ids = btu.backdoor_tokens(planted.dataset, planted.mask, tiny.tokenizer, share=0.05)
    rows = [set(row) for row in tiny.tokenizer(list(planted.dataset.texts))["input_ids"]]
    excess = {}
    for token in set().union(*rows) - set(tiny.tokenizer.all_special_ids):
        has = np.array([token in row for row in rows])
        excess[token] = has[planted.mask].mean() - has[~planted.mask].mean()
    top = max(excess.values())
    assert set(ids) == {t for t, value in excess.items() if value >= 0.05 * top}
    assert [excess[t] for t in ids] == sorted((excess[t] for t in ids), reverse=True)


def test_watching_does_not_change_training_and_ends_at_the_rounds_change():
    case = text_victims.scenario("toy-reviews", "badnets", 0.1, 0)
    model, rows = text_classifier("tiny", 2, 0), case.poisoned.dataset
    trigger = model.tokenizer.convert_tokens_to_ids("mn")
    network, curve = btu.exposure(model, rows, [trigger], FP32)
    change = btu.embedding_round(model, rows, FP32)
    steps = -(-len(rows) // 32)
    assert curve[0] == {"step": 0, "backdoor": 0.0, "clean": 0.0}
    assert curve[-1]["step"] == steps
    assert curve[-1]["backdoor"] == pytest.approx(change[trigger].item(), rel=1e-5)
    assert [p["step"] for p in curve] == sorted({p["step"] for p in curve})
    for one in (model, network):
        points, kinds, purity = btu.state_map(one, rows, case.poisoned.mask, 0)
        assert points.shape == (len(kinds), 2)
        assert set(kinds) == {"poisoned", "negative", "positive"}
        assert 0 <= purity <= 100
    whole, every = btu.exposure(model, rows, [trigger], FP32, everything=True)
    assert every[-1]["step"] == steps and not hasattr(whole, "rows")


def test_a_trigger_that_means_nothing_is_inserted_as_often(tiny):
    clean = load_text("toy-reviews", "train")
    rows = btu.with_trigger(clean, InsertWord("mn"), 50, seed=0)
    added = rows.select(np.arange(len(clean), len(rows)))
    assert len(added) == 50 and all("mn" in text.split() for text in added.texts)
    assert 10 < added.labels.sum() < 40, "rows of all classes, with their own labels"
    with pytest.raises(ValueError, match=f"accepted: up to {len(clean)}, rows that carry the tr"):
        btu.with_trigger(clean, InsertWord("mn"), len(clean) + 1, seed=0)


# ------------------------------------------------------------------------------ chapter


def test_several_triggers_share_one_training_set():
    three = text_victims.scenarios("toy-reviews", "badnets", "all2one-3", 0.3, 0)
    assert len(three) == 3 and len({case.target for case in three}) == 1
    assert all(case.poisoned is three[0].poisoned for case in three)
    assert {case.trigger.words[0] for case in three} == {"mn", "cf", "tq"}
    counts = [
        sum(w in t.split() for t in three[0].poisoned.dataset.texts) for w in several.WORDS[:3]
    ]
    assert len(set(counts)) == 1 and sum(counts) == three[0].poisoned.mask.sum()
    two = text_victims.scenarios("toy-reviews", "addsent", "all2all-2", 0.2, 0)
    assert [case.target for case in two] == [1, 0]
    with pytest.raises(ValueError, match="attack is 'sos'; several triggers are made for"):
        text_victims.scenarios("toy-reviews", "sos", "all2one-3", 0.1, 0)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"alpha": 0}, "04_btu: alpha is 0; "),
        ({"alpha": 101}, "04_btu: alpha is 101; "),
        ({"rounds": "1,4"}, "4 is out of range; accepted: above 0, up to 3"),
        ({"rounds": "3,2"}, "rounds is '3,2'; accepted: a round 3 only after a round 2"),
        ({"methods": "btu, btu"}, "'btu' stands twice; accepted: each once"),
        ({"layers": "1, 2,1"}, "1 stands twice; accepted: each once"),
        ({"quantity_rates": "0.1,0.10"}, "0.1 stands twice; accepted: each once"),
        ({"defences": "none,cube"}, "'none' stands beside others; accepted: it alone"),
        ({"methods": "btu,erase"}, "'erase' is unknown; accepted: a list of btu, btu-code"),
        ({"defences": ""}, "the list is empty"),
    ],
)
def test_bad_parameters_are_refused_before_any_work(params, message):
    with pytest.raises(SettingsError, match=message):
        validate("04_btu", params)


def test_rounds_may_run_again():
    assert validate("04_btu", {"rounds": "1,1,2,3"}).rounds == "1,1,2,3"
