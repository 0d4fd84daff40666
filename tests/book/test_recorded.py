"""What components of pages show: closed forms as the library's, numbers as the trials have them."""

import re
from xml.etree import ElementTree

import pytest
import torch
from conftest import ROOT

from minilib import ledger, names
from minilib.book import claims, drawings, recorded
from minilib.unlearning import gradient_ascent


@pytest.mark.parametrize("method", ["ga", "rga", "ce"])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 2.0, 8.0])
def test_the_push_is_the_librarys(method, alpha):
    losses = torch.tensor([0.0015, 0.01, 0.2, 0.6931, 2.0, 6.0], dtype=torch.float64)
    settings = gradient_ascent.UnlearnSettings(alpha=alpha)
    expected = gradient_ascent.push(method, losses, settings, recorded.REF_LOSS).tolist()
    ours = [recorded.push(method, loss, alpha) for loss in losses.tolist()]
    assert ours == pytest.approx(expected, abs=1e-5)


def test_the_brake_is_open_at_the_poisoned_model_and_closes():
    assert recorded.weight(recorded.REF_LOSS, 5.0) == pytest.approx(1)
    weights = [recorded.weight(loss, 1.0) for loss in (0.001, 0.01, 0.1, 0.5, 1, 3)]
    assert weights == sorted(weights, reverse=True) and weights[-1] < 0.01
    assert recorded.weight(2.0, 0.0) == 1


def test_epochs_are_the_trials_of_every_seed():
    found = recorded.epochs(ROOT)
    assert found["epochs"][0] == 0 and len(found["seeds"]) >= 3
    for method in ("ga", "rga"):
        steps = found["methods"][method]
        assert len(steps) == len(found["epochs"])
        assert steps[0] == found["methods"]["poisoned"][0]
        assert all(len(step["target"]) == len(found["seeds"]) for step in steps)
    one = next(
        trial
        for trial in ledger._published("text_unlearning").values()
        if trial.recipe["method"] == "ga" and len(trial.rows) == found["epochs"][-1]
        and trial.recipe["victim"]["data"]["trigger"] == {
            "is": "TextTrigger", "dataset": "sst2", "attack": "badnets"}
        and trial.recipe["victim"]["data"]["rate"] == 0.1 and "reset_optimizer" not in trial.recipe
        and trial.recipe["seed"] == found["seeds"][0] and "lr" not in trial.recipe
        and "forget" not in trial.recipe
    )  # fmt: skip
    negative, positive = one.rows[-1]["confusion"]
    last = found["methods"]["ga"][-1]
    assert last["target"][0] == pytest.approx(100 * negative[1] / sum(negative))
    assert last["other"][0] == pytest.approx(100 * positive[0] / sum(positive))


def test_rates_rise_from_the_clean_model():
    rows = recorded.rates(ROOT)
    assert [row["rate"] for row in rows] == sorted(row["rate"] for row in rows)
    assert rows[0]["poisons"] == 0 and len(rows) >= 3
    assert all(len(row["lfr"]) == len(row["seeds"]) for row in rows)


QUESTIONS = recorded.questions(ROOT)


@pytest.mark.parametrize("name", QUESTIONS)
def test_a_question_has_an_answer_on_its_scale_and_types_no_result(name):
    one = QUESTIONS[name]
    found = recorded.measured(ROOT, one)
    assert found.keys() == {"", *one.beside}
    assert one.low <= found[""]["low"] and found[""]["high"] <= one.high
    assert found[""]["n"] >= 2 and not any(c.isdigit() for c in one.after.replace("BI-BAU", ""))


def test_a_question_that_is_no_number_is_one_line():
    for text in ("at(", 'at("lfr") < 1', "open('x')", '"text"'):
        with pytest.raises(claims.ClaimError) as refused:
            claims.check_number("predict-x", text)
        assert str(refused.value).startswith("predict-x: ") and "\n" not in str(refused.value)


def test_without_trials_nothing_is_shown(monkeypatch):
    monkeypatch.setenv("MINILIB_PUBLISHED", "none")
    assert recorded.epochs(ROOT) == {} and recorded.rates(ROOT) == []
    assert recorded.answers(ROOT) == {} and recorded.example(ROOT) is None
    assert recorded.measured(ROOT, next(iter(QUESTIONS.values()))) == {}


@pytest.mark.parametrize("name", drawings.DRAWINGS)
def test_a_drawing_is_svg_with_words_and_no_colour_of_its_own(name):
    text = drawings.DRAWINGS[name]()
    root = ElementTree.fromstring(text)
    about = {node.tag.rpartition("}")[2]: node.text for node in root}
    assert about["title"] and len(about["desc"]) > 80
    colours = re.findall(r"(?:fill|stroke)[=:]\"?(?:#|rgb|white|black)", text)
    assert colours == [], "a colour that is the same on dark pages"
    ids = [node.get("id") for node in root.iter() if node.get("id")]
    assert len(ids) == len(set(ids))


def test_the_colours_of_pages_are_those_of_the_registry():
    sheet = (ROOT / "book" / "_static" / "components.css").read_text(encoding="utf-8")
    light = sheet.partition(":root {")[2].partition("}")[0]
    for name, colour in {**names.MEANINGS, **names.VERDICTS}.items():
        assert f"--book-{name}: {colour};" in light, name
    every = [*names.MEANINGS.values(), *names.VERDICTS.values()]
    assert len(set(every)) == len(every), "a verdict has a colour of its own"
