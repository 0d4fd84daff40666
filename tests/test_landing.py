"""The landing page: its figure is what the records say, and there is a card for each chapter."""

import json
import re
from xml.etree import ElementTree

import figure
import pytest
import sync
from conftest import ROOT

PAGE = (ROOT / "book" / "intro.md").read_text(encoding="utf-8")


def record(seed: int, **rates) -> dict:
    """A record of 10 triggered rows, 6 of them outside the target class: lfr, pacc per method."""
    rows = [
        {"method": method, "epoch": epoch, "lfr": lfr, "pacc": pacc}
        for method, (lfr, pacc) in rates.items()
        for epoch in (1, 30)
    ]
    rows[0] |= {"lfr": 100 / 6, "pacc": 0.0}  # an earlier epoch, which is not drawn
    return {
        "run_id": f"r{seed}", "metrics": rows, "env": {"device": "cpu", "torch": "2"},
        "params": {"dataset": "d", "model": "m", "attack": "a", "epochs": 30, "seed": seed},
        "data": [{"name": "d", "rows": 10}, {"name": "d+a", "rows": 10}],
    }  # fmt: skip


# Of the 4 target rows GA sends 3 away, RGA none; of the 6 others GA keeps all, RGA loses 2.
BY_HAND = record(
    0, poisoned=(100.0, 40.0), ga=(0.0, 70.0), rga=(100 / 3, 80.0), retrain=(100 / 6, 90.0)
)


def test_the_committed_figure_is_what_the_records_say():
    wrong = [
        path.name
        for path, made in figure.files().items()
        if not path.is_file() or path.read_text(encoding="utf-8") != made
    ]
    assert wrong == [], "run `make figure`"


def test_where_triggered_rows_go_by_hand():
    assert figure.others([BY_HAND]) == (6, 10)
    found = figure.shares([BY_HAND])
    assert found["poisoned"] == {"target": [100.0], "other": [0.0]}
    assert found["ga"]["target"] == [0.0] and found["ga"]["other"] == pytest.approx([75.0])
    assert found["rga"]["target"] == pytest.approx([100 / 3])
    assert found["rga"]["other"] == pytest.approx([0.0], abs=1e-9)
    assert found["retrain"]["other"] == pytest.approx([0.0], abs=1e-9)


def test_rates_that_do_not_tell_their_number_of_rows_are_refused():
    plain = record(0, poisoned=(100.0, 40.0), ga=(50.0, 70.0), rga=(0.0, 80.0), retrain=(0.0, 1.0))
    plain["metrics"][0]["lfr"] = 100.0
    with pytest.raises(SystemExit, match="of 10 rows"):
        figure.others([plain])


def test_seeds_are_averaged_and_the_numbers_reach_picture_text_and_caption():
    other = record(
        1, poisoned=(100.0, 40.0), ga=(0.0, 80.0), rga=(0.0, 100.0), retrain=(0.0, 100.0)
    )
    found = figure.shares([BY_HAND, other])
    assert figure.percent(found["ga"]["other"]) == "62"  # of 75 and 50
    for made in (figure.svg(found), figure.directive([BY_HAND, other], found)):
        assert "62 %" in made or "62" in made
    said = figure.directive([BY_HAND, other], found)
    assert "r0 r1" in said and "2 seeds" in said and "after gradient ascent 0 and 62 %" in said
    ElementTree.fromstring(figure.svg(found))


def test_the_records_are_of_one_setting_and_different_seeds():
    records = figure.published(ROOT)
    settings = [json.dumps(r["params"] | {"seed": 0}, sort_keys=True) for r in records]
    assert len(set(settings)) == 1 and len({r["code"] for r in records}) == 1
    assert len(records) == len({r["params"]["seed"] for r in records}) >= 1


def cards() -> dict[str, str]:
    """Notebook → the text of its card."""
    parts = PAGE.split(":::{grid-item-card} ")[1:]
    return {
        found[1]: part
        for part in parts
        if (found := re.match(r"\{doc\}`[^<]+<\.\./(notebooks/\w+)>`", part))
    }


def test_each_chapter_has_a_card_with_a_button():
    use = sync.settings()
    assert list(cards()) == use["chapters"]
    for chapter, card in cards().items():
        assert f"[Open {chapter[10:12]} in Colab]({use['colab']}/{chapter}.ipynb)" in card


@pytest.mark.parametrize("chapter", list(cards()))
def test_a_card_gives_the_time_that_the_chapter_gives(chapter):
    time = re.search(r"^\*(?:about )?(.+?)\* · \[Open", cards()[chapter], re.MULTILINE)[1]
    book = json.loads((ROOT / f"{chapter}.ipynb").read_text(encoding="utf-8"))
    head = " ".join("".join(book["cells"][0]["source"]).split())
    assert time in head.split("--preset small")[1], time
