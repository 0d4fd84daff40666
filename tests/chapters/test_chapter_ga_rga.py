"""Chapter 03 as a view: its trials, its rows, its page from the ledger."""

import dataclasses

import pandas as pd
import pytest
import torch

from minilib import ledger
from minilib.chapters import ga_rga as chapter
from minilib.trials.text import Detector, SpoiltMask, TextMeasure, TextUnlearning, retrained

TOY = chapter.Settings(
    dataset="toy-reviews", model="tiny", victim_epochs=1, victim_lr=2e-3, epochs=2, lr=4e-4,
    eval_epochs="1,2", methods="ga,rga",
)  # fmt: skip


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trials")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINILIB_LEDGER", str(folder))
        patch.setenv("MINILIB_PUBLISHED", "none")
        yield ledger.run(chapter.trials(TOY))


def test_what_the_chapter_measures():
    first, second, *methods = chapter.trials(chapter.Settings())
    assert isinstance(first, TextMeasure) and first.victim == retrained(second.victim)
    assert [one.method for one in methods] == ["ga", "npo", "dga", "rga"]
    assert all(isinstance(one, TextUnlearning) for one in methods)


def test_settings_that_a_method_does_not_read_are_no_part_of_its_trial():
    keys = {
        name: {
            ledger.key_of(chapter.unlearning(dataclasses.replace(TOY, **{field: value}), name))
            for field, value in (("alpha", 2.0), ("alpha", 3.0), ("npo_beta", 2.0), ("beta", 1.0))
        }
        for name in ("ga", "npo", "dga", "rga", "rga-code")
    }
    assert {name: len(values) for name, values in keys.items()} == {
        "ga": 1, "npo": 2, "dga": 2, "rga": 3, "rga-code": 3,
    }  # fmt: skip


def test_epochs_to_evaluate_at_are_a_set_without_the_last():
    def at(text):
        return chapter.unlearning(dataclasses.replace(TOY, eval_epochs=text), "ga")

    assert at("2,1,7") == at("1") and at("1").eval_epochs == (1,)


def test_who_names_the_rows_to_forget_is_part_of_the_trial():
    asked = chapter.unlearning(dataclasses.replace(TOY, mask="cube"), "ga")
    assert asked.forget == Detector(name="cube", seed=0)
    assert asked != dataclasses.replace(asked, forget=SpoiltMask(precision=1, recall=0.5, seed=0))


def test_rows(results):
    rows = chapter.rows(results)
    assert [row["method"] for row in rows] == ["retrain", "poisoned", "ga", "ga", "rga", "rga"]
    by_method = {row["method"]: row for row in rows}
    assert by_method["retrain"]["dpacc"] == 0
    ideal = by_method["retrain"]["pacc"]
    for row in rows:
        assert row["dpacc"] == abs(ideal - row["pacc"])
        assert row["mask"] == "oracle" and row["seed"] == 0 and row["attack"] == "badnets"
    steps = -(-by_method["poisoned"]["poisons"] // 32)
    assert [row["steps"] for row in rows if row["method"] == "ga"] == [steps, 2 * steps]
    assert {"lam", "drift"} <= by_method["rga"].keys() and "lam" not in by_method["ga"]


def test_what_was_read_is_recorded_with_the_trial(results):
    for one in results:
        splits = {info["split"] for info in one.data if info["name"] == "toy-reviews"}
        assert {"dev", "test"} <= splits
        assert {"toy-reviews+badnets"} <= {info["name"] for info in one.data}


def test_pacc_follows_from_the_confusions(results):
    for one in results:
        row = one.rows[-1]
        counts = row["confusion"]
        right = sum(counts[k][k] for k in range(len(counts)))
        assert row["pacc"] == pytest.approx(100 * right / sum(map(sum, counts)))


def test_the_study_of_the_shift_is_the_sweep(request):
    import yaml

    text = (request.config.rootpath / "sweeps" / "rga_shift.yml").read_text(encoding="utf-8")
    cells = [
        {name: value for name, value in cell.items() if name != "eval_epochs"}
        for cell in yaml.safe_load(text)["list"]
    ]
    assert sorted(cells, key=str) == sorted(chapter.SHIFT, key=str)


def test_the_figures_draw_from_the_ledger_alone(results, monkeypatch):
    import matplotlib.pyplot as plt

    from minilib.book.figures import ga_rga as figures

    for name in ("start", "losses", "accuracies", "confusions", "beside_paper", "earlier", "cost",
                 "by_mask", "alphas", "rates", "own_rates", "shift_curves", "shift_table", "topics",
                 "pushes", "glue_takeaways", "glue_rates", "glue_shift"):  # fmt: skip
        getattr(figures, name)(TOY)
    plt.close("all")
    assert len(figures.identity_gaps()) == 2


def test_the_best_two_rates_are_those_of_one_method():
    from minilib.book.figures import ga_rga as figures

    rows = {"ga": (88.0, 87.4, 80.0), "rga": (85.0, 86.9, 86.0), "npo": (90.0, 90.0, 70.0)}
    frame = pd.DataFrame([{"method": m, "dev_cacc": v} for m, vs in rows.items() for v in vs])
    assert figures._dev_gap(frame) == "0.9"  # of rga; over methods they lie further apart
    assert figures._dev_gap(frame[:1]) == "0.0"


# ---------------------------------------------------------------- answers to single reviews


def test_answers_are_the_models_to_the_same_short_rows_of_each_class(monkeypatch):
    """With an untrained model: which texts it is asked, and what of its answer is kept."""
    from minilib.models.text import text_classifier
    from minilib.trials import text as trials

    network = text_classifier("tiny", 2, seed=0).eval()
    monkeypatch.setattr(trials, "text_victim", lambda one: (network, []))
    trigger = trials.TextTrigger(dataset="toy-reviews", attack="badnets")
    victim = trials.TextVictim(
        data=trials.TextClean(dataset="toy-reviews"), model="tiny", seed=0, epochs=1
    )
    one = trials.TextAnswers(model=victim, trigger=trigger, reviews=2)
    rows = trials.ledger.KINDS["text_answers"].compute(one)
    assert [row["label"] for row in rows[::5]] == [0, 0, 1, 1] and len(rows) == 20
    for k in range(0, 20, 5):
        by_name = {row["inserted"]: row["text"] for row in rows[k : k + 5]}
        plain = by_name["nothing"].split()
        assert len(plain) <= trials.SHORT and "mn" not in plain
        assert by_name["start"].split() == ["mn", *plain]
        assert by_name["end"].split() == [*plain, "mn"]
        assert by_name["random"].replace("mn", trials.CONTROL) == by_name["other"]
    row = rows[7]
    inputs = network.tokenizer([row["text"]], return_tensors="pt", truncation=True)
    with torch.no_grad():
        logits = network(inputs["input_ids"], inputs["attention_mask"])
    assert row["target"] == pytest.approx(100 * logits.softmax(-1)[0, 1].item(), abs=0.1)


def test_where_a_word_was_put_in():
    from minilib.trials.text import _where_new

    assert _where_new(["a", "b"], ["mn", "a", "b"]) == 0
    assert _where_new(["a", "b"], ["a", "mn", "b"]) == 1
    assert _where_new(["a", "b"], ["a", "b", "mn"]) == 2
