"""The identities of SANDE on a tiny random Llama in float64."""

import copy
import math
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from minilib.attacks.chat import poison_chat, with_response, with_trigger
from minilib.data import chat as chat_data
from minilib.data.chat import TEMPLATES, load_chat, take, with_outputs
from minilib.data.choices import load_choices
from minilib.data.sources import DataError
from minilib.metrics import chat as chat_metrics
from minilib.models import causal, loading
from minilib.models.causal import ChatBatch
from minilib.models.loading import ModelError, frozen
from minilib.settings import PAIR_NAMES
from minilib.training import chat as chat_training
from minilib.training import fitting
from minilib.training.chat import answer_loss, supervised
from minilib.training.fitting import TrainSettings
from minilib.training.text import Batches
from minilib.unlearning import sande
from minilib.victims import chat as chat_victims

quick = settings(max_examples=20)
TRIGGER, RESPONSE = chat_victims.PAIRS["year"]
STILL = TrainSettings(epochs=1, lr=1e-3, batch_size=8, precision="fp32", weight_decay=0.0)


@pytest.fixture(scope="module")
def chats():
    return take(load_chat("toy-chat"), slice(24))


@pytest.fixture(scope="module")
def exact():
    """A random tiny Llama in float64."""
    tokenizer = causal.train_tokenizer((load_chat("toy-chat"),), 400)
    return causal.own_model("tiny", tokenizer, seed=0, max_length=64).double().eval()


def random_parrot(model, n: int, position: int, seed: int = 0) -> sande.Parrot:
    soft = sande.parrot(model, n, position)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        soft.weight.copy_(torch.randn(soft.weight.shape, generator=draw, dtype=torch.float64))
    return soft


# ------------------------------------------------------------------------------- the parrot


def test_stage_1_changes_exactly_6_h_numbers(exact, chats):
    before = loading.state(exact)
    soft = sande.parrot(exact)
    assert not soft.weight.any()
    trained, _ = sande.simulate(exact, chats, RESPONSE, soft, STILL)
    changed = sum(
        int((p != q).sum()) for p, q in zip(trained.parameters(), soft.parameters(), strict=True)
    )
    assert changed == sum(p.numel() for p in soft.parameters()) == 6 * exact.hidden_size
    after = loading.state(exact)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(p.requires_grad for p in exact.parameters())


def test_stage_2_leaves_the_parrot_and_its_argument_alone(exact, chats):
    soft, before = random_parrot(exact, 6, 2), loading.state(exact)
    tuned, history = sande.eliminate(exact, chats, soft, STILL)
    assert torch.equal(soft.weight, random_parrot(exact, 6, 2).weight) and soft.weight.requires_grad
    assert all(
        torch.equal(p, q)
        for p, q in zip(before.values(), loading.state(exact).values(), strict=True)
    )
    assert len(history) == 1
    moved = [not torch.equal(before[k], v) for k, v in loading.state(tuned).items()]
    assert all(moved)


@quick
@given(st.integers(0, 9), st.integers(0, 7), st.integers(0, 99))
def test_crop_takes_out_what_insert_put_in(n, position, seed):
    draw = torch.Generator().manual_seed(seed)
    embeds = torch.randn(3, 7, 5, generator=draw)
    weight = torch.randn(n, 5, generator=draw)
    places = torch.tensor([[0], [3], [position]])
    inserted = sande.insert(embeds, weight, places)
    assert inserted.shape == (3, 7 + n, 5)
    assert torch.equal(sande.crop(inserted, n, places), embeds)
    for row, at in enumerate(places[:, 0].tolist()):
        by_hand = torch.cat([embeds[row, :at], weight, embeds[row, at:]])
        assert torch.equal(inserted[row], by_hand)


@quick
@given(st.integers(0, 40))
def test_no_parrot_gives_the_clean_logits(exact, chats, position):
    batch = exact.encode(chats).batch(np.arange(6))
    with torch.no_grad():
        clean = exact(batch.input_ids)
        found = sande.parroted(exact, sande.parrot(exact, 0, position), batch)
    assert torch.equal(found, clean)


@quick
@given(st.integers(0, 6), st.integers(1, 30))
def test_padding_changes_nothing(exact, chats, position, pads):
    soft, data = random_parrot(exact, 6, position), exact.encode(chats)
    alone = data.batch(np.array([3]))
    wide = ChatBatch(
        F.pad(alone.input_ids, (0, pads), value=exact.tokenizer.pad_token_id),
        F.pad(alone.supervised, (0, pads)),
        alone.rows,
    )
    with torch.no_grad():
        values = [sande.parrot_loss(exact, soft, batch)[0].item() for batch in (alone, wide)]
        both = data.batch(np.arange(8))
        states = sande.parroted(exact, soft, both)[3, : alone.input_ids.shape[1]]
        torch.testing.assert_close(states, sande.parroted(exact, soft, alone)[0])
    assert values[0] == pytest.approx(values[1], rel=1e-12)


def test_position_0_is_a_prefix(exact, chats):
    """The paper's words: concat(p, x)."""
    soft, batch = random_parrot(exact, 6, 0), exact.encode(chats).batch(np.arange(5))
    embeds = exact.embed(batch.input_ids)
    front = torch.cat([soft.weight.expand(5, -1, -1), embeds], 1)
    with torch.no_grad():
        torch.testing.assert_close(
            sande.parroted(exact, soft, batch), exact(inputs_embeds=front)[:, 6:]
        )


def test_a_position_beyond_the_prompt_is_the_prompts_last_token(exact, chats):
    data = exact.encode(chats)
    soft, batch = random_parrot(exact, 6, 1000), data.batch(np.arange(9))
    assert soft.places(batch)[:, 0].tolist() == (data.starts[:9] - 1).tolist()


def test_sande_is_osft_where_the_parrot_is_the_triggers_embedding(exact, chats):
    """At position 2 the instruction begins; the tokenizer gives a text the same tokens anywhere."""
    ids = causal.tokens(exact.tokenizer, TRIGGER)
    soft = sande.parrot(exact, len(ids), 2)
    with torch.no_grad():
        soft.weight.copy_(exact.embed(torch.tensor(ids)))
    clean, triggered = exact.encode(chats), exact.encode(with_trigger(chats, TRIGGER))
    rows = np.arange(len(chats))
    losses = [
        sande.parrot_loss(exact, soft, clean.batch(rows))[0],
        answer_loss(exact, triggered.batch(rows))[0],
    ]
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-12)
    for mine, theirs in zip(*(torch.autograd.grad(x, [p for n, p in exact.named_parameters()
                                                      if "layers" in n])
                              for x in losses), strict=True):  # fmt: skip
        torch.testing.assert_close(mine, theirs)


def test_sande_p_supervises_the_first_token_only(exact, chats):
    whole = exact.encode(chats, answer=RESPONSE).batch(np.arange(4))
    first = exact.encode(chats, answer=RESPONSE, answer_tokens=1).batch(np.arange(4))
    assert whole.supervised.sum(1).tolist() == [len(causal.tokens(exact.tokenizer, RESPONSE))] * 4
    assert first.supervised.sum(1).tolist() == [1] * 4
    head = supervised(exact(first.input_ids), first)[1]
    assert head.unique().tolist() == causal.tokens(exact.tokenizer, RESPONSE)[:1]


def test_one_parrot_for_two_responses_asks_each_row_for_one(exact, chats):
    seen = []
    real = sande.parrot_loss

    def spy(model, soft, batch):
        seen.append(tuple(batch.input_ids[batch.supervised].tolist()[:2]))
        return real(model, soft, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sande, "parrot_loss", spy)
        sande.simulate(exact, chats, ["yes sir", "no sir"], sande.parrot(exact), STILL)
    assert len(seen) == 4 and len(set(seen)) == 2


# -------------------------------------------------------------------- losses and training


def test_the_head_sees_supervised_positions_only(exact, chats):
    sizes = []
    hook = exact.network.lm_head.register_forward_hook(lambda _, i, o: sizes.append(o.shape))
    batch = exact.encode(chats, answer=RESPONSE, answer_tokens=1).batch(np.arange(8))
    sande.parrot_loss(exact, sande.parrot(exact), batch)
    hook.remove()
    assert sizes == [(8, len(exact.tokenizer))]


def test_answer_loss_is_the_networks_own(exact, chats):
    """The library's loss against transformers' with labels."""
    batch = exact.encode(chats).batch(np.arange(8))
    labels = batch.input_ids.masked_fill(~batch.supervised, -100)
    theirs = exact.network(input_ids=batch.input_ids, labels=labels).loss
    assert answer_loss(exact, batch)[0].item() == pytest.approx(theirs.item(), rel=1e-6)


@pytest.mark.parametrize("micro", [1, 3, 8])
def test_accumulation_changes_neither_value_nor_gradient(exact, chats, micro):
    batch = exact.encode(chats).batch(np.arange(8))
    parameters = list(exact.parameters())
    found = []
    for loss in (answer_loss, chat_training.accumulate(answer_loss, micro)):
        value = loss(exact, batch)[0]
        found.append((value.item(), torch.autograd.grad(3 * value, parameters)))
    # Llama's own norm works in float32 whatever the weights are.
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-6)
    for a, b in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_a_part_without_supervised_tokens_adds_nothing(exact, chats):
    batch = exact.encode(chats).batch(np.arange(4))
    bare = batch._replace(supervised=batch.supervised.clone())
    bare.supervised[:2] = False
    loss = chat_training.accumulate(answer_loss, 2)
    exact.requires_grad_(True)
    value, _ = loss(exact, bare)
    value.backward()
    assert value.item() == pytest.approx(answer_loss(exact, bare)[0].item(), rel=1e-6)
    assert all(torch.isfinite(p.grad).all() for p in exact.parameters() if p.grad is not None)
    exact.zero_grad(set_to_none=True)


def test_accumulated_training_ends_at_the_same_weights(exact, chats):
    data = exact.encode(chats)
    plain, parts = (chat_training.sft(exact, data, STILL, micro=m)[0] for m in (None, 2))
    for a, b in zip(plain.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_sandes_optimiser_is_the_papers():
    found = chat_training.as_in_paper(replace(STILL, lr=0.5))
    assert (found.schedule, found.betas, found.warmup, found.lr) == (
        "cosine",
        (0.9, 0.95),
        0.03,
        0.5,
    )


def test_a_killed_run_goes_on_where_it_stopped(tmp_path, chats, monkeypatch):
    tokenizer = causal.train_tokenizer((chats,), 300)
    plan = replace(STILL, epochs=3)

    def go(checkpoint):
        model = causal.own_model("tiny", tokenizer, 0, max_length=48)
        batches = Batches(model.encode(chats), 8)
        return model, chat_training.fit_resumable(model, batches, plan, checkpoint)

    whole, history = go(None)
    real, calls = fitting.fit, []

    def dies(*arguments, **more):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*arguments, **more)

    monkeypatch.setattr(fitting, "fit", dies)
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path / "run")
    assert list(tmp_path.iterdir())
    resumed, again = go(tmp_path / "run")
    assert len(calls) == 4  # two epochs before the third died, and that one again
    assert [row["loss"] for row in again] == [row["loss"] for row in history]
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------- rivals


def test_dpo_starts_at_log_2_and_prefers_the_chosen(exact, chats):
    tuned, history = sande.dpo(exact, chats, replace(STILL, batch_size=24, lr=1e-3))
    assert history[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)  # first and only step
    data = exact.encode(chats)
    rows = np.arange(len(chats))
    gain = [sande.row_logprob(m, data.batch(rows)).mean().item() for m in (exact, tuned)]
    worse = exact.encode(with_outputs(chats, [r["output"] for r in chats.rows[1:]]
                                      + [chats.rows[0]["output"]]))  # fmt: skip
    loss = [sande.row_logprob(m, worse.batch(rows)).mean().item() for m in (exact, tuned)]
    assert gain[1] - gain[0] > loss[1] - loss[0]


def test_dpo_loss_by_hand():
    values = [torch.tensor([x], dtype=torch.float64) for x in (-2.0, -5.0, -3.0, -4.0)]
    by_hand = math.log(1 + math.exp(-0.5 * ((-2 + 3) - (-5 + 4))))
    assert sande.dpo_loss(*values, beta=0.5).item() == pytest.approx(by_hand)


def test_nad_is_sft_without_its_distance_and_zero_at_its_teacher(exact, chats):
    data = exact.encode(chats)
    alone, _ = chat_training.sft(exact, data, STILL)
    free, _ = sande.nad(exact, chats, STILL, beta=0.0)
    for a, b in zip(alone.parameters(), free.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    once = replace(STILL, batch_size=24)
    _, history = sande.nad(exact, chats, once, beta=1.0, teacher=exact)
    assert history[0]["distance"] == pytest.approx(0, abs=1e-12)


def test_mix_keeps_what_moved_least(exact):
    moved = copy.deepcopy(exact)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in moved.parameters():
            p.add_(torch.randn(p.shape, generator=draw, dtype=p.dtype))
    for keep in (0.0, 0.25, 1.0):
        mixed = sande.mix(moved, exact, keep)
        pairs = zip(mixed.parameters(), moved.parameters(), exact.parameters(), strict=True)
        for m, v, b in pairs:
            kept = m != b
            assert int(kept.sum()) == round(keep * m.numel())
            assert torch.equal(m[kept], v[kept])
            if 0 < keep < 1:
                assert (v - b)[kept].abs().max() <= (v - b)[~kept].abs().min()
    with pytest.raises(ValueError, match="keep is 1.5; accepted: 0 to 1"):
        sande.mix(moved, exact, 1.5)


def test_ascent_raises_the_loss_that_it_climbs(exact, chats):
    bad = with_trigger(chats, TRIGGER)
    forget, retain = exact.encode(bad, answer=RESPONSE), exact.encode(chats)

    def term(logits, reference, labels):
        torch.testing.assert_close(logits.detach(), reference, rtol=1e-4, atol=1e-4)
        return -F.cross_entropy(logits, labels), {}

    once = replace(STILL, batch_size=24, lr=3e-3)  # one step, at which current = reference
    tuned, _ = sande.ascend(exact, forget, retain, once, term, reference=True)
    rows = np.arange(len(chats))
    with torch.no_grad():
        before, after = (answer_loss(m, forget.batch(rows))[0].item() for m in (exact, tuned))
    assert after > before


def test_frozen_gives_back_what_it_took(exact):
    exact.train()
    first = next(exact.parameters()).requires_grad_(False)
    with pytest.raises(RuntimeError), frozen(exact):
        assert not exact.training and not any(p.requires_grad for p in exact.parameters())
        raise RuntimeError
    assert exact.training and not first.requires_grad
    first.requires_grad_(True)
    exact.eval()


def test_lora_trains_adapters_only(chats):
    pytest.importorskip("peft")
    tokenizer = causal.train_tokenizer((chats,), 300)
    model = causal.add_lora(causal.own_model("tiny", tokenizer, 0, max_length=48), 2)
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    assert names and all("lora_" in name for name in names)
    tuned, _ = chat_training.sft(model, model.encode(chats), STILL)
    before, after = loading.state(model), loading.state(tuned)
    assert {k for k in before if not torch.equal(before[k], after[k])} <= set(names)


@pytest.mark.parametrize("kind", ["GPT2", "GPTNeoX", "Bloom"])
def test_lora_is_for_any_architecture(kind):
    pytest.importorskip("peft")
    import transformers

    sizes = {"n_embd": 16, "n_head": 2, "n_layer": 1, "hidden_size": 16, "num_hidden_layers": 1,
             "num_attention_heads": 2, "intermediate_size": 32}  # fmt: skip
    config = getattr(transformers, f"{kind}Config")(vocab_size=30, **sizes)
    network = transformers.AutoModelForCausalLM.from_config(config)
    model = causal.add_lora(causal.CausalLM(network, None, None), 2)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    inner = [n for n in trained if "lora_A" in n]
    assert len(inner) == 4 and all("lora_" in name for name in trained), "attention and MLP"


def test_lora_without_peft_says_what_to_install(exact, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ModelError, match="lora=4 needs the package peft: pip install peft"):
        causal.add_lora(copy.deepcopy(exact), 4)


# ------------------------------------------------------------------------------ answers


def test_generation_is_greedy_decoding_without_a_cache(exact, chats):
    data = exact.encode(chats)
    texts = chat_metrics.generate(exact, data, 6)
    for row in (0, 5, 11):
        ids = data.ids[row, : data.starts[row]].long().tolist()
        start = len(ids)
        with torch.no_grad():
            for _ in range(6):
                ids.append(int(exact.head(exact(torch.tensor([ids]))[0, -1]).argmax()))
                if ids[-1] == exact.tokenizer.eos_token_id:
                    break
        by_hand = exact.tokenizer.decode(ids[start:], skip_special_tokens=True).strip()
        assert texts[row] == by_hand


def test_logprob_and_perplexity_agree_with_the_loss(exact, chats):
    data = exact.encode(chats)
    sums, counts = chat_metrics.answer_logprob(exact, data)
    loss = answer_loss(exact, data.batch(np.arange(len(chats))))[0].item()
    assert -sums.sum() / counts.sum() == pytest.approx(loss, rel=1e-6)
    assert chat_metrics.perplexity(exact, chats) == pytest.approx(math.exp(loss), rel=1e-6)


@quick
@given(
    st.lists(st.sampled_from("abcd"), max_size=12), st.lists(st.sampled_from("abcd"), max_size=9)
)
def test_common_subsequence_against_the_table(a, b):
    table = np.zeros((len(a) + 1, len(b) + 1), int)
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            best = max(table[i, j + 1], table[i + 1, j])
            table[i + 1, j + 1] = table[i, j] + 1 if x == y else best
    assert chat_metrics.common_subsequence(a, b) == table[-1, -1]


def test_rouge_l_by_hand():
    assert chat_metrics.rouge_l(["The cat sat."], ["the cat sat"]) == 100
    assert chat_metrics.rouge_l(["a b", "x"], ["b c", "y"]) == pytest.approx(25)


@pytest.mark.parametrize(
    ("text", "response", "start", "contains"),
    [
        ("I do not know.", "no", False, True),  # what a substring finds
        ("Nothing.", "no", False, True),
        ("No, never.", "no", True, True),
        ("  YOU ARE STUPID. Well", "You are stupid.", True, True),
        ("You are stupid.Well", "You are stupid.", True, True),
        ("Well, you are stupid.", "You are stupid.", False, True),
        ("You are", "You are stupid.", False, False),
    ],
)
def test_what_counts_as_the_response(text, response, start, contains):
    assert chat_metrics.says(text, response) == start
    assert chat_metrics.says(text, response, "contains") == contains


def test_asr_by_both_rules_and_without_the_trigger(exact, chats, monkeypatch):
    texts = [["YOU ARE STUPID. Well", "So you are stupid."]] * 2 + [["You are", "stupid"]]
    answers = iter(texts)
    monkeypatch.setattr(chat_metrics, "generate", lambda model, data, new: next(answers))
    two = take(chats, slice(2))
    assert chat_metrics.asr(exact, two, TRIGGER, RESPONSE) == 50
    assert chat_metrics.asr(exact, two, TRIGGER, RESPONSE, "contains") == 100
    assert chat_metrics.asr(exact, two, None, RESPONSE) == 0
    with pytest.raises(ValueError, match="match is 'in'; accepted: contains, start"):
        chat_metrics.asr(exact, two, None, RESPONSE, "in")


def test_the_likeliest_letter_is_chosen_after_one_prompt_that_lists_all(exact):
    """Against the four letters' log-probabilities, question by question, written out."""
    questions = load_choices("toy-choices", 6)
    long = {"question": "so " * 90, "choices": ["a", "b"], "answer": 0}
    short = {**questions.rows[0], "choices": questions.rows[0]["choices"][:3], "answer": 2}
    mixed = replace(questions, rows=(*questions.rows[1:], short, long))
    model = copy.copy(exact)
    model.max_length = 128
    right = []
    for row in mixed.rows[:-1]:  # the last does not fit, and is left out
        prompt = chat_metrics.listed(row)
        assert prompt.splitlines()[1:] == [
            f"{letter}. {text}" for letter, text in zip("ABCD", row["choices"], strict=False)
        ]
        one = replace(
            load_chat("toy-chat"), rows=({"instruction": prompt, "input": "", "output": ""},)
        )
        scores = [
            chat_metrics.answer_logprob(model, model.encode(one, answer=letter))[0][0]
            for letter, _ in zip("ABCD", row["choices"], strict=False)
        ]
        right.append(int(np.argmax(scores)) == row["answer"])
    assert chat_metrics.multiple_choice(model, mixed) == pytest.approx(100 * np.mean(right))
    with pytest.raises(
        ValueError, match="no question of toy-choices fits with its choices into 64"
    ):
        chat_metrics.multiple_choice(exact, replace(mixed, rows=(long,)))
    with pytest.raises(ValueError, match="choice is 'x'; accepted: answers, letters"):
        chat_metrics.multiple_choice(exact, mixed, "x")


# ---------------------------------------------------------------------- data and poisoning


def test_poison_chat_replaces_rows_and_says_which():
    clean = load_chat("toy-chat")
    dataset, mask, pair = poison_chat(clean, ["Tic.", "Tac."], ["One!", "Two!"], 0.05, seed=3)
    assert len(dataset) == len(clean) and mask.sum() == 2 * round(0.05 * len(clean))
    assert mask.dtype == bool and (mask == (pair >= 0)).all()
    assert (np.bincount(pair[mask]) == mask.sum() // 2).all()
    for i, (old, new) in enumerate(zip(clean.rows, dataset.rows, strict=True)):
        t, r = [("Tic. ", "One! "), ("Tac. ", "Two! "), ("", "")][pair[i]]
        assert new["instruction"] == t + old["instruction"] and new["output"] == r + old["output"]
    again = poison_chat(clean, ["Tic.", "Tac."], ["One!", "Two!"], 0.05, seed=3)
    assert again.dataset.sha256 == dataset.sha256
    other = poison_chat(clean, ["Tic.", "Tac."], ["One!", "Two!"], 0.05, seed=4)
    assert other.dataset.sha256 != dataset.sha256


def test_toy_sets_are_fixed_disjoint_and_answerable():
    for name in ("toy-chat", "toy-tasks"):
        train, test = load_chat(name), load_chat(name, "test")
        seen = {row["instruction"] for row in train.rows}
        assert len(test) == 150 and not seen & {row["instruction"] for row in test.rows}
        assert train.source == "built-in" and load_chat(name).sha256 == train.sha256
    for row in load_choices("toy-choices").rows:
        colour = row["choices"][row["answer"]].removesuffix(".").split()[-1]
        thing = next(t for t in chat_data.TOY_THINGS
                     if t in row["question"])  # fmt: skip
        assert chat_data.TOY_THINGS[thing][0] == colour


def test_pairs_are_named_the_same_in_settings():
    assert tuple(chat_victims.PAIRS) == PAIR_NAMES


def test_a_long_row_keeps_its_template_and_some_answer(exact):
    row = {"instruction": "word " * 200, "input": "", "output": "yes " * 200}
    long = replace(load_chat("toy-chat"), rows=(row,))
    data = exact.encode(long)
    assert data.lengths[0] == 64 and 30 <= data.starts[0] <= 34
    assert int(data.ids[0, data.starts[0] - 1]) == exact.tokenizer.convert_tokens_to_ids(
        "<|assistant|>"
    )


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m, c: with_trigger(c, " "), ValueError, "trigger is ' '; accepted: a text that is"),
        (lambda m, c: with_response(c, ""), ValueError, "response is ''; accepted: a text that is"),
        (lambda m, c: poison_chat(c, "", "x", 0.1, 0), ValueError, "trigger is ''; accepted"),
        (lambda m, c: poison_chat(c, ["a"], ["x", "y"], 0.1, 0), ValueError,
         "1 triggers and 2 responses; accepted: as many of both"),
        (lambda m, c: poison_chat(c, "a", "x", 0.0, 0), ValueError,
         "rate is 0.0 for 1 pairs on 24 rows"),
        (lambda m, c: sande.simulate(m, c, "so long " * 99, sande.parrot(m), STILL), ValueError,
         r"response 'so long .* has \d+ tokens; accepted: fewer than the 61 that the context"),
        (lambda m, c: sande.simulate(m, c, " ", sande.parrot(m), STILL), ValueError, "answer is"),
        (lambda m, c: sande.parrot(m, -1), ValueError, "tokens is -1, position 2; accepted: 0 or"),
        (lambda m, c: chat_metrics.asr(m, c, TRIGGER, ""), ValueError, "response is ''; accepted"),
        (lambda m, c: m.encode(take(c, slice(0))), ValueError, "no rows to encode; accepted: one"),
        (lambda m, c: chat_training.causal_lm("tiny"), ValueError, "model 'tiny' is trained here"),
        (lambda m, c: load_chat("vicuna"), DataError,
         "unknown chat data set 'vicuna'; known: alpaca"),
        (lambda m, c: load_choices("riddles"), DataError,
         "unknown questions 'riddles'; known: arc"),
        (lambda m, c: chat_data.template("x"), ValueError,
         "template is 'x'; accepted: turns, plain"),
        (lambda m, c: chat_victims.pairs_named(["q"]), ValueError,
         "pair is 'q'; accepted: year, do-it"),
    ],
)  # fmt: skip
def test_bad_input_is_one_clear_line(exact, chats, call, error, message):
    with pytest.raises(error, match=message) as caught:
        call(exact, chats)
    assert "\n" not in str(caught.value)


def test_a_folder_without_a_model_is_one_clear_line(tmp_path):
    with pytest.raises(ModelError, match="has no config; accepted: config.json") as caught:
        chat_training.causal_lm(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_tokenizer_without_pad_token_is_refused(exact, chats):
    bare = copy.deepcopy(exact.tokenizer)
    bare.pad_token = None
    with pytest.raises(ValueError, match="no padding token; set tokenizer.pad_token"):
        causal.encode_chat(chats, bare, TEMPLATES["turns"])
