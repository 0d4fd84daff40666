"""Chapter 04 as a view: its trials against the plain functions, its rows, its page."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from minilib import ledger
from minilib.chapters import btu as chapter
from minilib.detection import moderate_fit
from minilib.metrics import classification
from minilib.models import text as text_models
from minilib.training import fitting
from minilib.training import text as text_training
from minilib.trials import text
from minilib.trials.text import (
    Detector,
    TextClean,
    TextPoison,
    TextTrigger,
    TokenRound,
    TrainingDefence,
    retrained,
)
from minilib.unlearning import btu
from minilib.victims import text as text_victims

TOY = chapter.Settings(
    dataset="toy-reviews", model="tiny", victim_epochs=1, victim_lr=2e-3, quantity_rates="0.1",
    methods="btu-code,pn,recover", recovery=32, recovery_epochs=1, layers="2", defences="moderate",
    rga_epochs=2, rga_lr=4e-4,
)  # fmt: skip


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINILIB_LEDGER", str(tmp_path_factory.mktemp("trials")))
        patch.setenv("MINILIB_PUBLISHED", "none")
        yield ledger.run(chapter.trials(TOY))


@pytest.fixture(scope="module")
def rows(results):
    return chapter.rows(results)


def test_a_chapter_is_read_without_anything_heavy():
    code = (
        "import sys, minilib.chapters.btu\n"
        "print({'torch', 'numpy', 'pandas', 'transformers'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stdout + done.stderr


# ---------------------------------------------------------------- recipes


def test_what_the_chapter_measures():
    recipes = chapter.trials(chapter.Settings())
    assert len({ledger.key_of(one) for one in recipes}) == len(recipes) == 26
    assert recipes[0].victim == retrained(recipes[1].victim)
    assert text.without_attack(chapter.flagged(TOY)).data == TextClean(dataset="toy-reviews")
    assert chapter.chain(replace(TOY, triggers="all2one-3")) == []
    assert chapter.chain(replace(TOY, then_rga="none")) == []
    assert chapter.defences(chapter.Settings()) == []


def test_rounds_that_train_the_same_are_one_trial():
    data, training = chapter.victim(TOY).data, chapter.flagged(TOY).training
    first = TokenRound(data=data, training=training)
    assert TokenRound(data=data, training=training, alpha=0.3) == first, "it takes nothing out"
    third = TokenRound(data=data, training=training, star=True, after=replace(first, star=True))
    assert replace(third, alpha=0.3) != third


def test_tokens_that_are_never_flagged_are_named_by_their_words():
    spared = replace(TOY, exclude="the,movie")
    found = text.detected(chapter.flagged(spared))
    ids = text.ids_of(("the", "movie"), text.start_of(chapter.flagged(spared)).tokenizer)
    assert not set(ids) & set(found.tokens.tolist())
    third = chapter.flagged(spared)
    round_1 = TokenRound(data=third.data, training=third.training, exclude=("the",))
    assert round_1 == replace(round_1, exclude=()), "it takes nothing out"
    with pytest.raises(ValueError, match="exclude has 'qqzz'; accepted: tokens of the model's"):
        text.detected(chapter.flagged(replace(TOY, exclude="qqzz")))


def test_settings_that_a_method_does_not_read_are_no_part_of_its_trial():
    def keys(name, **settings):
        given = [TOY, *(replace(TOY, **{key: value}) for key, value in settings.items())]
        return len({ledger.key_of(chapter.unlearning(cfg, name)) for cfg in given})

    assert keys("recover", alpha=0.1, rounds="1", round_lr=1e-4) == 1
    assert keys("btu", alpha=0.1, rounds="1", round_lr=1e-4) == 4
    assert keys("btu", layers="1", defences="none", rga_lr=1e-4, quantity_rates="0.5") == 1
    off = replace(TOY, recovery=0)
    again = replace(off, recovery_lr=1.0, recovery_epochs=9)
    assert chapter.unlearning(off, "btu") == chapter.unlearning(again, "btu")
    seeds = [replace(chapter.unlearning(off, name), seed=7).seed for name in ("btu", "pn")]
    assert seeds == [0, 7], "without recovery the noise alone is drawn"


def test_a_recipe_comes_back_from_its_description():
    for one in chapter.trials(replace(TOY, rounds="1,1,2,3")):
        assert ledger.restored(type(one), ledger.described(one)) == one


# ---------------------------------------------------------------- trials


def test_flagged_tokens_are_those_of_the_plain_rounds(results):
    poisoned = text_victims.scenario("toy-reviews", "badnets", 0.1, 0).poisoned
    model = text_models.text_classifier("tiny", 2, 0)
    plain = btu.detect_tokens(model, poisoned.dataset, settings=replace(btu.ROUND, seed=0))
    found = text.detected(chapter.flagged(TOY))
    assert [part.tolist() for part in found.sets] == [part.tolist() for part in plain.sets]
    assert all(torch.equal(a, b) for a, b in zip(found.changes, plain.changes, strict=True))
    *each, counts = results.one("flagged_tokens").rows
    words = model.tokenizer.convert_ids_to_tokens(plain.sets[0].tolist())
    counted = {"flagged": 15, "hits": words.count("mn")}
    assert each[0] == {"round": 1, "tokens": " ".join(words), **counted}
    trigger = model.tokenizer.convert_tokens_to_ids("mn")
    assert counts["flagged"] == len(plain.tokens)
    assert counts["hits"] == (trigger in plain.tokens.tolist())
    assert 0 < counts["innocent"] < counts["flagged"]
    first, last = results.one("token_ranks").rows
    order = plain.changes[2].argsort(descending=True).tolist()
    assert first["token"] == "mn" and first["ranks"][2] == 1 + order.index(trigger)
    assert len(last["only"].split()) == counts["flagged"] - counts["innocent"]


def test_words_of_an_abusive_set_are_hidden():
    tokenizer = text_models.text_classifier("tiny", 2, 0).tokenizer
    ids = tokenizer.convert_tokens_to_ids(["mn", "awful"])
    assert text._words(ids, tokenizer, "sst2") == ["mn", "awful"]
    assert text._words(ids, tokenizer, "olid")[1] != "awful"


def test_unlearning_measures_what_the_plain_function_makes(results):
    case = text_victims.scenario("toy-reviews", "badnets", 0.1, 0)
    victim, _ = text.text_victim(chapter.victim(TOY))
    base = text_models.text_classifier("tiny", 2, 0)
    plan = fitting.TrainSettings(epochs=1, lr=TOY.recovery_lr, seed=0)
    order = np.sort(np.random.default_rng(0).permutation(len(case.clean))[:32])
    tokens = text.detected(chapter.flagged(TOY)).tokens
    plain = btu.unlearn(
        victim, btu.word_embeddings(base), tokens, case.clean.select(order), "btu-code", plan
    )
    expected = classification.evaluator(case, plain.tokenizer, "cpu")(plain)
    (row,) = results.one("token_unlearning", method="btu-code").rows
    assert {k: row[k] for k in ("cacc", "lfr", "pacc")} == {
        k: expected[k] for k in ("cacc", "lfr", "pacc")
    }
    assert 0 < row["replaced"] <= 100 and row["threshold"] > 0
    (alone,) = results.one("token_unlearning", method="recover").rows
    assert alone["replaced"] == 0 and alone["threshold"] is None


def test_several_triggers_are_measured_by_their_mean(results):
    two = TextTrigger(dataset="toy-reviews", attack="badnets", triggers="all2all-2")
    data = TextPoison(trigger=two, rate=0.1, seed=0)
    victim, _ = text.text_victim(chapter.victim(TOY))
    by_case = [
        classification.evaluator(case, victim.tokenizer, "cpu")(victim)
        for case in text.scenarios(data)
    ]
    found = text.measured(data, victim)
    assert len(by_case) == 2 and found["lfr"] == np.mean([one["lfr"] for one in by_case])


def test_a_defence_trains_on_what_its_detector_leaves(results, monkeypatch):
    case = text_victims.scenario("toy-reviews", "badnets", 0.1, 0)
    asked = []

    def oracle(one, name):
        asked.append((one.detector.name, name))
        return case.poisoned.mask.astype(np.uint8)

    monkeypatch.setattr(ledger, "array", oracle)
    one = TrainingDefence(victim=chapter.victim(TOY), detector=Detector(name="cube", seed=0))
    (row,) = ledger.KINDS["training_defence"].compute(one)
    assert asked == [("cube", "mask")] and (row["precision"], row["recall"]) == (100, 100)
    clean = chapter.victim(TOY)
    plain = text_models.text_classifier("tiny", 2, 0)
    text_training.fine_tune(
        plain, case.poisoned.dataset.select(~case.poisoned.mask), text.training(clean)
    )
    expected = classification.evaluator(case, plain.tokenizer, "cpu")(plain)
    assert row["pacc"] == expected["pacc"] and row["cacc"] == expected["cacc"]


def test_mf_is_the_moderately_fitted_model(results):
    case = text_victims.scenario("toy-reviews", "badnets", 0.1, 0)
    plan = fitting.TrainSettings(epochs=1, lr=5e-4, seed=0)
    plain = moderate_fit("tiny", case.poisoned.dataset, plan)
    expected = classification.evaluator(case, plain.tokenizer, "cpu")(plain)
    (row,) = results.one("training_defence").rows
    assert row == {name: expected[name] for name in ("cacc", "dev_cacc", "lfr", "pacc")}


def test_the_same_trigger_without_a_meaning_is_inserted_as_often(results):
    data = chapter.victim(TOY).data
    inserted = text.TextInserted(poison=data)
    one = TokenRound(data=inserted, training=chapter.flagged(TOY).training)
    change, oracle = text.row_changes(one), text.oracle_ids(data, "tiny")
    clean, dirty = (results.one("trigger_quantity", labels=kind) for kind in ("clean", "dirty"))
    assert clean.rows[0]["backdoor"] == pytest.approx(change[oracle].mean().item())
    round_1 = text.detected(chapter.flagged(TOY)).changes[0]
    assert dirty.rows[0]["backdoor"] == pytest.approx(round_1[oracle].mean().item())


# ---------------------------------------------------------------- rows and page


def test_rows(rows):
    kinds = [
        next(name for name in ("method", "round", "map", "trained", "labels") if name in row)
        for row in rows if row["kind"] not in ("backdoor_tokens", "token_ranks", "embedding_change")
    ]  # fmt: skip
    assert {"method", "round", "map", "trained", "labels"} == set(kinds)
    methods = [row["method"] for row in rows if "method" in row]
    assert methods == [
        "retrain", "poisoned", "tokens", "btu-code", "pn", "recover", "moderate", "layer-2", "rga",
        "btu-code+rga",
    ]  # fmt: skip
    by_method = {row["method"]: row for row in rows if "method" in row}
    assert by_method["retrain"]["dpacc"] == 0
    ideal = by_method["retrain"]["pacc"]
    for name in ("poisoned", "btu-code", "pn", "recover", "rga", "btu-code+rga"):
        assert by_method[name]["dpacc"] == abs(ideal - by_method[name]["pacc"])
    assert [row["map"] for row in rows if "map" in row] == ["pre-trained", "embeddings trained"]
    assert {row["seed"] for row in rows} == {0} and {row["attack"] for row in rows} == {"badnets"}


def test_rows_have_the_settings_that_they_depend_on(rows):
    by_method = {row["method"]: row for row in rows if "method" in row}
    asked = {name: getattr(TOY, name) for name in TOY.__dataclass_fields__}
    for row in rows:
        there = row.keys() & asked.keys()
        assert {name: row[name] for name in there} == {name: asked[name] for name in there}
    assert {"alpha", "rounds", "recovery", "victim_lr"} <= by_method["btu-code"].keys()
    assert "alpha" not in by_method["recover"] and "rate" not in by_method["retrain"]
    assert {"rga_lr", "rga_epochs", "recovery"} <= by_method["btu-code+rga"].keys()


def test_a_longer_run_of_rga_serves_as_well(results):
    longer = replace(results.one("text_unlearning"), rows=[
        {"epoch": 1, "pacc": 50.0}, {"epoch": 2}, {"epoch": 3, "pacc": 60.0},
    ])  # fmt: skip
    found = chapter.rows([longer])
    assert [(row["rga_epochs"], row["pacc"]) for row in found] == [(1, 50.0), (3, 60.0)]


def test_tables_take_other_settings_from_the_ledger(results):
    from minilib.book.figures import btu as figures

    points = figures._grid(alpha=[0.05, 0.03], attack=["badnets", "addsent"])
    frame = figures._varied(TOY, (chapter.start, chapter.unlearnings), points)
    assert set(frame["attack"]) == {"badnets"}, "nothing else was computed"
    here = frame[frame["alpha"] == 0.03]
    assert here["method"].tolist() == ["retrain", "poisoned", "recover"], "which read no α"
    assert figures._varied(replace(TOY, rate=0.5), (chapter.unlearnings,), [{}]).empty


def made(attack: str, method: str, lfr: float, seed: int = 0, **point) -> dict:
    return {"attack": attack, "method": method, "cacc": 90.0, "lfr": lfr, "seed": seed, **point}


def test_ours_beside_the_papers():
    import pandas as pd

    from minilib.book.figures import btu as figures

    frame = pd.DataFrame(
        [
            made("addsent", "btu", 7.0, alpha=0.03),
            made("addsent", "btu", 9.0, seed=1, alpha=0.03),
            made("addsent", "btu", 3.0, alpha=0.05),
            made("addsent", "btu-code", 4.0, alpha=0.05),
        ]
    )
    table = figures._beside_paper(
        frame, "4", "alpha", [0.03, 0.05, 0.1], ["addsent", "sos"], "sst2"
    )
    table = figures._shown(table, "sweeps/btu_alpha.yml")
    assert table.loc[("AddSent", "0.03"), ("BTU", "LFR")] == "8.0 ± 1.4"
    assert table.loc[("AddSent", "0.05"), ("BTU", "LFR")] == "3.0"
    assert table.loc[("AddSent", "0.1"), ("paper", "LFR")] == "4.9"
    assert table.loc[("AddSent", "0.1"), ("BTU", "LFR")] == "–"
    assert len(table) == 3, "SOS has no row here and none in the paper"
    nothing = figures._beside_paper(frame[:0], "4", "alpha", [0.3], ["sos"], "sst2")
    assert "minilib sweep sweeps/x.yml" in figures._shown(nothing, "sweeps/x.yml").data


def test_the_page_draws_from_the_ledger_alone(results, monkeypatch, capsys):
    import matplotlib.pyplot as plt

    from minilib.book.figures import btu as figures

    monkeypatch.setattr(ledger, "_compute", None)
    monkeypatch.setattr(text_models, "text_classifier", None)
    for name in ("start", "seeds", "ends", "flagged", "ranks", "company", "variants", "defences",
                 "alphas", "rounds", "adaptive", "several", "datasets", "recoveries", "layers",
                 "then_rga", "glue_numbers"):  # fmt: skip
        getattr(figures, name)(TOY)
    assert "training rows are poisoned" in capsys.readouterr().out
    table = figures.methods(TOY)
    assert table.index.tolist()[2:] == ["BTU, code's threshold", "PN", "recovery alone"]
    titles = [axis.get_title() for axis in figures.exposure(TOY).axes]
    assert titles == ["word embeddings only", "all parameters"]
    first, _ = figures.state_maps(TOY).axes
    names = [told.get_text() for told in first.get_legend().get_texts()]
    assert sorted(names) == ["negative", "poisoned", "positive"] and names[-1] == "poisoned"
    (axis,) = figures.quantities(TOY).axes
    heights = sorted(bar.get_height() for bar in axis.patches if bar.get_height())
    assert len(heights) == 3, "dirty, clean and the average row, at one rate"
    plt.close("all")


def test_the_maps_are_thin(results):
    one = results.one("token_exposure", trained="embeddings")
    before, kind = one.array("before"), one.array("kind")
    assert before.shape == (len(kind), 2) and before.dtype == np.float32
    assert len(kind) <= 3 * btu.MAP_ROWS and set(kind) == {"negative", "positive", "poisoned"}
