"""The landing page: its figure is what the trials say, and there is a card for each chapter."""

import json
import re
from xml.etree import ElementTree

import figure
import pytest
import sync
from conftest import ROOT

from minilib import settings
from minilib.chapters import ga_rga

SVG = "{http://www.w3.org/2000/svg}"
PAGE = (ROOT / "book" / "intro.md").read_text(encoding="utf-8")


def rows(**matrices) -> list[dict]:
    """Chapter 03's rows of one seed: confusion matrices on 6 negative and 4 positive texts."""
    made = [{"method": "ga", "epoch": 1, "confusion": [[5, 1], [4, 0]]}]  # is not drawn
    for method, matrix in matrices.items():
        made += [{"method": method, "epoch": 30, "confusion": matrix}]
        made += [{"method": method, "epoch": 31, "poisoned_loss": 1.0}]  # was not tested
    return made


# Of the 4 positive texts GA sends 3 away, RGA none; of the 6 negative GA keeps all, RGA loses 2.
BY_HAND = rows(
    poisoned=[[0, 6], [0, 4]], ga=[[6, 0], [3, 1]], rga=[[4, 2], [0, 4]], retrain=[[5, 1], [0, 4]]
)
OTHER = rows(
    poisoned=[[0, 6], [0, 4]], ga=[[6, 0], [2, 2]], rga=[[6, 0], [0, 4]], retrain=[[6, 0], [0, 4]]
)


def test_the_committed_figure_is_what_the_trials_say():
    wrong = [
        path.name
        for path, made in figure.files().items()
        if not path.is_file() or path.read_text(encoding="utf-8") != made
    ]
    assert wrong == [], "run `make figure`"


def test_where_triggered_rows_go_by_hand():
    found = figure.shares([figure.confusions(BY_HAND)])
    assert found["poisoned"] == {"target": [100.0], "other": [0.0]}
    assert found["ga"] == {"target": [0.0], "other": [75.0]}
    assert found["rga"]["target"] == pytest.approx([100 / 3]) and found["rga"]["other"] == [0.0]
    assert found["retrain"]["target"] == pytest.approx([100 / 6])


def test_seeds_are_averaged_and_the_numbers_reach_picture_text_and_caption():
    by_seed = [figure.confusions(BY_HAND), figure.confusions(OTHER)]
    found = figure.shares(by_seed)
    assert figure.percent(found["ga"]["other"]) == "62"  # of 75 and 50
    cfg = settings.GaRga(dataset="sst2", attack="sos")
    said = figure.directive(cfg, by_seed, found)
    assert "62 %" in said and "62 %" in figure.svg(found, [0, 1])
    assert "6 negative and 4 positive" in said and "2 seeds of MiniLM-L6 on SST-2" in said
    assert "gradient ascent 0 and 62 %" in figure.alternative(found)
    picture = ElementTree.fromstring(figure.svg(found, [0, 1]))
    groups = {one.get("data-seed"): one for one in picture.iter(f"{SVG}g")}
    shown = {seed: [one.text for one in group.iter(f"{SVG}text")] for seed, group in groups.items()}
    assert [shown[seed][3] for seed in ("", "0", "1")] == ["62 %", "75 %", "50 %"]
    assert [groups[seed].get("display") for seed in ("", "0", "1")] == [None, "none", "none"]
    assert "(seed 1 alone)" in groups["1"].find(f"{SVG}desc").text


def test_the_trials_are_of_one_setting_and_different_seeds():
    by_seed = figure.published(ROOT)
    assert len(by_seed) >= 1
    for seed, trials in by_seed.items():
        methods = {row["method"] for row in ga_rga.rows(trials)}
        assert methods == set(figure.ROWS)
        assert all(one.tier == "published" and seed in ledger_seeds(one.recipe) for one in trials)


def ledger_seeds(recipe: dict) -> set[int]:
    """Every seed that a recipe holds."""
    inner = [ledger_seeds(value) for value in recipe.values() if isinstance(value, dict)]
    return set().union(*inner, {recipe.get("seed", 0)})


def cards() -> dict[str, str]:
    """Notebook → the text of its card."""
    parts = PAGE.split(":::{grid-item-card} ")[1:]
    return {
        found[1]: part
        for part in parts
        if (found := re.match(r"\{doc\}`[^<]+<\.\./(notebooks/\w+)>`", part))
    }


def test_each_chapter_has_a_card_with_a_button():
    assert list(cards()) == sync.settings()["chapters"]
    for chapter, card in cards().items():
        assert f"{{launch}}`{chapter.removeprefix('notebooks/')}`" in card


@pytest.mark.parametrize("chapter", list(cards()))
def test_a_card_gives_the_time_that_the_chapter_gives(chapter):
    time = re.search(r"\*(?:about )?([^*]+)\* {launch}", cards()[chapter])
    book = json.loads((ROOT / f"{chapter}.ipynb").read_text(encoding="utf-8"))
    head = " ".join("".join(book["cells"][0]["source"]).split())
    if time is None:  # the chapter must not give one either
        assert "--preset small` takes" not in head
    else:
        assert time[1] in head.split("--preset small")[1], time[1]
