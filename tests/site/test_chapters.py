"""What makes a chapter's page a page of a book: numbers, tables that fold, side studies."""

import re

import pytest
from conftest import ROOT

pytest.importorskip("sphinx")

import chapters
from docutils import nodes
from docutils.utils import new_document


def document(*children) -> nodes.document:
    whole = new_document("a page")
    whole += children
    return whole


def figure(name: str, *classes: str) -> nodes.figure:
    node = nodes.figure("", nodes.paragraph("", "what it shows"), nodes.caption("", "Its caption."))
    node["names"], node["ids"], node["classes"] = [name], [name], list(classes)
    return node


def test_a_cells_table_becomes_a_table_and_its_figure_stays():
    page = document(figure("tab-a", "folded"), figure("fig-a"))
    chapters.TablesOfCells(page).apply()
    box, other = page.children
    assert isinstance(box, chapters.numbered_table) and isinstance(other, nodes.figure)
    assert chapters.caption_of(box) == "Its caption." and box["classes"] == ["folded"]
    assert box["ids"] == box["names"] == ["tab-a"] and page.ids["tab-a"] is box
    assert [type(one) for one in box] == [chapters.table_caption, nodes.paragraph]


def section(name: str, *children) -> nodes.section:
    node = nodes.section("", nodes.title("", "A study"), *children)
    node["names"] = [name]
    return node


def test_a_side_study_shows_its_heading_and_first_paragraph():
    hidden = [nodes.paragraph("", "how"), figure("fig-a"), figure("fig-b")]
    page = document(section("side-a", nodes.paragraph("", "what was found"), *hidden))
    chapters.SideStudies(page).apply()
    (study,) = page.children
    assert [type(one) for one in study] == [nodes.title, nodes.paragraph, chapters.fold]
    assert study[1].astext() == "what was found" and list(study[2]) == hidden
    assert study[2]["summary"] == "Show this side study (2 figures)"


def test_sections_within_a_side_study_stay():
    inner = section("main", nodes.paragraph("", "another"))
    page = document(
        section("side-a", nodes.paragraph("", "what"), nodes.paragraph("", "how"), inner)
    )
    chapters.SideStudies(page).apply()
    (study,) = page.children
    assert [type(one) for one in study][2:] == [chapters.fold, nodes.section]
    assert study[3] is inner


def test_other_sections_and_studies_of_one_paragraph_do_not_fold():
    page = document(
        section("main", nodes.paragraph("", "a"), nodes.paragraph("", "b")),
        section("side-a", nodes.paragraph("", "a")),
    )
    chapters.SideStudies(page).apply()
    assert not list(page.findall(chapters.fold))


PAGES = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_a_label_of_a_side_study_stands_over_a_heading(path):
    """Elsewhere it would be a label like any other, and nothing would fold."""
    import json

    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        text = "".join(cell["source"])
        for found in re.finditer(r"^\(side-[a-z0-9-]+\)=\n(.*)\n\n(.*)", text, re.MULTILINE):
            assert found[1].startswith("#") and found[2].strip(), found[0]
