"""The site: merging a clean notebook with its executed copy, strict builds, pages in a browser."""

import base64
import copy
import html
import importlib.util
import json
import re
import shutil
from argparse import Namespace
from pathlib import Path
from xml.etree import ElementTree

import nbformat
import pytest
from conftest import ROOT, nightly
from markdown_it import MarkdownIt
from nbformat import v4
from site_checks import (
    BROWSER,
    PROBE,
    SETTLE,
    Page,
    browser,
    complaints,
    dead_links,
    from_elsewhere,
    look,
    new_tab,
    pages,
)

pytest.importorskip("jupyter_book")

import benchmarks
import build
import executed
import pages as page_furniture
import pdf
import reader
import sync
from pypdf import PdfReader

needs_browser = pytest.mark.skipif(not BROWSER, reason="no Chromium or no Playwright")
PNG = base64.b64encode(
    base64.b64decode(
        "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
    )
).decode()
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
EXTENSIONS = ("api", "chapters", "components", "executed", "ledger", "offline", "pages", "reader",
              "slides")  # fmt: skip
ADDRESS = "https://github.com/some-one/a.book"
BASE = "https://some-one.github.io/a.book/"
CHAPTERS = {path.stem: f"ch:{path.stem[:2]}" for path in NOTEBOOKS}


def chapter(label: str, other: str) -> nbformat.NotebookNode:
    """A clean chapter with all that chapters use: label, citation, formula, figure, table."""

    def code(source, *tags, **metadata):
        cell = v4.new_code_cell(source, metadata={"tags": list(tags)} | metadata)
        cell.id = f"c{len(source)}"
        return cell

    picture = {"image": {"alt": "a dot"}, "figure": {"name": f"fig-{label[3:]}", "caption": "Dot."}}
    cells = [
        v4.new_markdown_cell(
            f"({label})=\n# Chapter {label[3:]}\n\nAfter {{cite:t}}`zhao2026rga`; "
            f"see {{ref}}`{other}` and {{doc}}`../book/notation`."
        ),
        code(sync.bootstrap(f"git+{ADDRESS}@v1"), "bootstrap"),
        code("alpha: float = 2.0", "parameters"),
        v4.new_markdown_cell(
            f"## Result\n\n$$\\lambda = e^{{-\\alpha}}$$ (eq-{label[3:]})\n\n"
            f"See {{eq}}`eq-{label[3:]}` and {{numref}}`fig-{label[3:]}`."
        ),
        code("plot()", mystnb=picture),
        code("table"),
    ]
    return v4.new_notebook(
        cells=cells,
        metadata={
            "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}
        },
    )


def ran(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """What papermill would make of it with alpha=3."""
    done = copy.deepcopy(notebook)
    given = v4.new_code_cell("# Parameters\nalpha = 3.0")
    given.metadata["tags"] = ["injected-parameters"]
    done.cells.insert(3, given)
    for number, cell in enumerate((c for c in done.cells if c.cell_type == "code"), 1):
        cell.execution_count = number
        if cell.source == "plot()":
            cell.outputs = [v4.new_output("display_data", {"image/png": PNG})]
        if cell.source == "table":
            row = "".join(f"<td>wide-number-{i}</td>" for i in range(30))
            table = f'<div id="trials"><table class="dataframe"><tr>{row}</tr></table></div>'
            cell.outputs = [
                v4.new_output(
                    "execute_result",
                    {"text/html": table, "text/plain": "t"},
                    execution_count=number,
                )
            ]
    read = {"keys": {"toy": ["a", "b"]}, "computed": 0, "machines": {"A machine": 2}}
    done.metadata["minilib"] = {"run_id": "0123abcd", "preset": "smoke", **read}
    return done


@pytest.fixture(scope="session")
def tiny_book(tmp_path_factory):
    """The book's own pages and configuration around chapters of five cells."""
    root = tmp_path_factory.mktemp("tiny")
    for name in ("_config.yml", "_toc.yml"):
        shutil.copy(ROOT / name, root)
    (root / "_toc.yml").write_text(
        "".join(
            line
            for line in (ROOT / "_toc.yml").read_text().splitlines(keepends=True)
            if "notebooks/" not in line or any(name in line for name in CHAPTERS)
        )
    )
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    project += f'\n[project.urls]\nRepository = "{ADDRESS}"\n'
    (root / "pyproject.toml").write_text(project, encoding="utf-8")
    shutil.copytree(ROOT / "book", root / "book", ignore=shutil.ignore_patterns("_executed", "__*"))
    sources = shutil.ignore_patterns("__*__", "*.csv")  # the reference page reads them
    shutil.copytree(ROOT / "minilib", root / "minilib", ignore=sources)
    shutil.copytree(ROOT / "examples", root / "examples")
    shutil.copytree(ROOT / "presets", root / "presets")  # claims ask what a chapter's scale is
    (root / "notebooks").mkdir()
    (root / "book" / "_executed").mkdir()
    labels = list(CHAPTERS.values())
    for name, label in CHAPTERS.items():
        clean = chapter(label, labels[labels.index(label) - 1])
        nbformat.write(clean, root / "notebooks" / f"{name}.ipynb")
        done = ran(clean)
        nbformat.write(done, root / "book" / "_executed" / f"{name}.ipynb")
    return root


@pytest.fixture(scope="session")
def tiny_site(tiny_book):
    """The tiny book, built."""
    assert build.build(tiny_book, tiny_book / "_build", quiet=True)
    return tiny_book / "_build" / "html"


# ---------------------------------------------------------------- merging


def test_prose_and_metadata_of_one_outputs_of_the_other():
    clean = chapter("ch:01", "ch:03")
    done = ran(clean)
    clean.cells[0].source = "# Better words"
    clean.cells[4].metadata["mystnb"] = {"image": {"alt": "better words"}}
    page, problems = executed.merge(clean, done)
    assert problems == []
    assert page.cells[0].source == "# Better words"
    assert [c.source for c in page.cells if c.cell_type == "code"] == [
        c.source for c in done.cells if c.cell_type == "code"
    ]
    assert page.cells[3].source == "# Parameters\nalpha = 3.0"
    picture = next(c for c in page.cells if c.source == "plot()")
    assert picture.metadata.mystnb.image.alt == "better words"
    assert picture.outputs and picture.execution_count == 4


def test_a_figure_that_was_not_drawn_is_not_referred_to():
    clean = chapter("ch:01", "ch:03")
    picture = next(c for c in clean.cells if c.source == "plot()")
    picture.metadata["mystnb"] = {"figure": {"name": "fig-here"}, "image": {"alt": "a line"}}
    clean.cells[0].source += "\n{numref}`fig-here` and {numref}`fig-elsewhere`"
    page, _ = executed.merge(clean, ran(clean))
    assert "{numref}`fig-here`" in page.cells[0].source
    bare = ran(clean)
    next(c for c in bare.cells if c.source == "plot()").outputs = []
    page, problems = executed.merge(clean, bare)
    assert problems == []
    assert page.cells[0].source.endswith("a figure of other runs and {numref}`fig-elsewhere`")


def test_what_a_figure_has_of_single_seeds_becomes_data_of_its_page():
    clean = chapter("ch:01", "ch:03")
    done = ran(clean)
    data = next(c for c in done.cells if c.source == "plot()").outputs[0]["data"]
    assert executed.merge(clean, done)[0].cells[-1].cell_type == "code"
    data[executed.SEEDS] = json.dumps({"seeds": [0, 1], "panels": ["</script><b>\n```"]})
    page, problems = executed.merge(clean, done)
    picture = next(c for c in page.cells if c.source == "plot()")
    assert problems == [] and list(picture.outputs[0]["data"]) == ["image/png"]
    fence, script, end = page.cells[-1].source.split("\n")
    assert (fence, end) == ("```{raw} html", "```") and 'data-seeds="fig-01"' in script
    held = script.partition(">")[2].removesuffix("</script>")
    assert "<" not in held and json.loads(held)["panels"] == ["</script><b>\n```"]


FORGED = "small`\n:::\n```{include} /etc/passwd\n```\n<b onclick=x>[a](b) *c* {{d}} $e$ _f_ &lt;"


def test_what_a_run_tells_of_itself_is_shown_as_text():
    """A forged preset or machine is no directive, no markup and no HTML."""
    done = ran(chapter("ch:01", "ch:03"))
    done.metadata["minilib"] |= {"preset": FORGED, "machines": {FORGED: 2}}
    note = executed.run_note(done).source
    assert note.count("\n") == 4 and "```" not in note and "<b" not in note
    tokens = MarkdownIt("commonmark").parse(note.split("\n\n")[1].removesuffix("\n:::"))
    assert [token.type for token in tokens] == ["paragraph_open", "inline", "paragraph_close"]
    kinds = {(child.type, child.content) for child in tokens[1].children if child.type != "text"}
    assert kinds <= {("html_inline", tag) for tag in
                     ("<code>", "</code>", '<a href="#trials">', "</a>")}  # fmt: skip
    words = html.unescape(note)
    assert words.count(" ".join(FORGED.split())) == 2
    assert executed.counted([done.metadata["minilib"]]) in note


@pytest.mark.parametrize("told", [[1], {"preset": 3}, {"preset": "a", "keys": {"k": [{}]}},
                                  {"preset": "a", "machines": ["m"]}])  # fmt: skip
def test_metadata_that_no_run_writes_is_refused(told):
    done = ran(chapter("ch:01", "ch:03"))
    done.metadata["minilib"] = told
    with pytest.raises(ValueError, match="is not what a run writes"):
        executed.run_of(done)


def test_merging_leaves_the_clean_notebook_alone():
    clean = chapter("ch:01", "ch:03")
    before = nbformat.writes(clean)
    executed.merge(clean, ran(clean))
    assert nbformat.writes(clean) == before


def test_without_a_parameter_cell_the_injected_one_stands_first():
    clean = v4.new_notebook(cells=[v4.new_markdown_cell("# T"), v4.new_code_cell("x")])
    done = copy.deepcopy(clean)
    done.cells.insert(0, v4.new_code_cell("alpha = 3", metadata={"tags": ["injected-parameters"]}))
    for cell in done.cells:
        if cell.cell_type == "code":
            cell.execution_count = 1
    page, problems = executed.merge(clean, done)
    assert problems == [] and [c.source for c in page.cells] == ["# T", "alpha = 3", "x"]


def test_the_bootstrap_cell_may_change_its_address():
    clean = chapter("ch:01", "ch:03")
    done = ran(clean)
    clean.cells[1].source = "import minilib  # from a new address"
    assert executed.merge(clean, done)[1] == []


def other_code(done):
    done.cells[-1].source = "tables"


def one_cell_more(done):
    done.cells.append(v4.new_code_cell("more", execution_count=9))


def error(done):
    wrong = v4.new_output("error", ename="ValueError", evalue="alpha", traceback=[])
    done.cells[-1].outputs = [wrong]


def never_ran(done):
    done.cells[-1].execution_count = None


FAULTS = {
    other_code: "differs from the executed copy",
    one_cell_more: "has 5 code cells",
    error: "ended in ValueError: alpha",
    never_ran: "never ran",
}


@pytest.mark.parametrize("spoil", FAULTS)
def test_each_fault_is_named(spoil):
    clean = chapter("ch:01", "ch:03")
    done = ran(clean)
    spoil(done)
    page, problems = executed.merge(clean, done)
    assert len(problems) == 1 and FAULTS[spoil] in problems[0]
    if spoil in (other_code, one_cell_more):  # no output stands under code that did not make it
        assert not any(c.get("outputs") for c in page.cells)


def test_an_error_that_the_chapter_announces_is_none():
    clean = chapter("ch:01", "ch:03")
    clean.cells[-1].metadata["tags"] = ["raises-exception"]
    done = ran(clean)
    error(done)
    assert executed.merge(clean, done)[1] == []


# ---------------------------------------------------------------- strict builds


def test_a_whole_book_builds_without_a_warning(tiny_site):
    page = (tiny_site / "notebooks" / "03_ga_rga.html").read_text(encoding="utf-8")
    for wanted in ("3.0", "wide-number-29", 'alt="a dot"', "Zhao", "their numbers mean nothing"):
        assert wanted in page, wanted


def test_pages_say_how_many_trials_were_read_and_computed(tiny_site):
    page = (tiny_site / "notebooks" / "03_ga_rga.html").read_text(encoding="utf-8")
    one = "2 trials: 2 read from the ledger, 0 computed for this site; made on A machine."
    assert one in re.sub(r"<[^>]+>", "", page), "a word of the glossary is a link"
    assert 'href="#trials"' in page
    first = (tiny_site / "book" / "intro.html").read_text(encoding="utf-8")
    assert "This site shows 2 trials: " in first, "each counts once"


def test_the_reference_page_has_an_anchor_for_each_function(tiny_site):
    for folder, name in {
        "data": "data.text.load_text",
        "unlearning": "unlearning.gradient_ascent.unlearn",
        "base": "ledger.run",
    }.items():
        page = (tiny_site / "book" / "api" / f"{folder}.html").read_text(encoding="utf-8")
        assert f'id="minilib.{name}"' in page and f'href="#minilib.{name}"' in page, name


def test_buttons_and_download_give_the_clean_notebook(tiny_site, tiny_book):
    page = (tiny_site / "notebooks" / "01_attacks.html").read_text(encoding="utf-8")
    row = page.partition('<p class="launch-row">')[2].partition("</p>")[0]
    file = "some-one/a.book/blob/main/notebooks/01_attacks.ipynb"
    assert re.findall(r'href="([^"]+)"', row) == [
        f"https://colab.research.google.com/github/{file}",
        "../_sources/notebooks/01_attacks.ipynb",
        f"https://github.com/{file}",
        "../slides/01_attacks.html",
    ]
    download = tiny_site / "_sources" / "notebooks" / "01_attacks.ipynb"
    assert download.read_bytes() == (tiny_book / "notebooks" / "01_attacks.ipynb").read_bytes()
    landing = (tiny_site / "book" / "intro.html").read_text(encoding="utf-8")
    assert f'href="https://colab.research.google.com/github/{file}"' in landing
    told = (tiny_site / "book" / "setup.html").read_text(encoding="utf-8")
    assert re.search(rf'The repository is <a [^>]*href="{ADDRESS}"', told)


def test_slides_hold_what_their_page_shows(tiny_site):
    path = tiny_site / "slides" / "03_ga_rga.html"
    text, page = path.read_text(encoding="utf-8"), Page(path)
    assert text.count("<section") == 2 and "1/1" in text and text.count('alt="a dot"') == 1
    assert "<h2>Result</h2>" in text and "Dot." in text
    for link in [*page.links, *page.resources]:
        assert (path.parent / link.partition("#")[0]).is_file(), link


@needs_browser
def test_a_printed_chapter_is_whole(tiny_site, tmp_path):
    page = tiny_site / "notebooks" / "03_ga_rga.html"
    (made,) = pdf.printed(tiny_site, tmp_path, [page])
    assert made.name == "03_ga_rga.pdf" and made.read_bytes().startswith(b"%PDF")
    with browser(tiny_site) as (opened, address):
        tab = new_tab(opened, viewport={"width": 688, "height": 1000})  # A4 between its margins
        tab.emulate_media(media="print")
        tab.goto(f"{address}/notebooks/{page.name}")
        tab.evaluate(SETTLE)
        tab.evaluate("window.dispatchEvent(new Event('beforeprint'))")
        wide = tab.evaluate(PROBE)["wide"]
        assert not [one for one in wide if "wide-number" not in one], "of thirty columns"
        assert tab.locator(".bd-article h1").is_visible()
        assert tab.get_by_text("alpha: float = 2.0").is_visible(), "a folded cell is open"
        hidden = ".launch-row, .bd-sidebar-primary, .bd-sidebar-secondary, .bd-header-article"
        assert tab.locator(hidden).locator("visible=true").count() == 0


@needs_browser
def test_the_book_is_one_pdf_with_bookmarks_numbers_and_links_that_stay_in_it(tiny_site, tmp_path):
    every = pdf.contents(tiny_site)
    assert [page.stem for page, _ in every][:2] == ["intro", "setup"]
    assert {page.stem for page, _ in every} >= {*CHAPTERS, "glossary", "performance"}
    assert not [page for page, _ in every if "api" in str(page.relative_to(tiny_site.resolve()))]
    chosen = [one for one in every if one[0].stem in ("notation", "glossary", "03_ga_rga")]
    pdf.printed(tiny_site, tmp_path, [page for page, _ in chosen])
    whole = PdfReader(pdf.joined(chosen, tmp_path, "A book", "Its authors"))
    assert whole.metadata.title == "A book"
    tops = [item for item in whole.outline if not isinstance(item, list)]
    assert [item.title for item in tops] == [title for _, title in chosen]
    starts = [whole.get_destination_page_number(item) for item in tops]
    assert starts[0] == 0 and starts == sorted(set(starts))
    assert "Result" in str(whole.outline), "sections of a chapter stand below it"
    assert "Notation" in whole.pages[0].extract_text()
    for number, page in enumerate(whole.pages, start=1):
        assert page.extract_text().split()[-1] == str(number)
    links = [note.get_object() for page in whole.pages for note in page.get("/Annots", ())]
    inside = [link["/Dest"][0].get_object() for link in links if "/Dest" in link]
    assert len(inside) > 5 and all(place["/Type"] == "/Page" for place in inside)
    said = [link["/A"] for link in links if "/A" in link]
    assert not [one for one in said if one["/S"] != "/URI" or "127.0.0.1" in one["/URI"]]


def test_buttons_need_an_address_and_notebooks_that_install_from_it(tiny_book):
    config = Namespace(repository="", repository_branch="main", launches=False)
    row = reader.buttons(config, "notebooks/01_attacks")
    assert "Download" in row and "github" not in row and "colab" not in row
    assert reader.launchable(tiny_book, ADDRESS)
    assert not reader.launchable(tiny_book, "https://github.com/a-fork/a.book")
    assert not reader.launchable(tiny_book / "book", ADDRESS), "no notebooks"


def test_cards_and_site_map(tiny_site):
    listed = {
        node.text for node in ElementTree.parse(tiny_site / "sitemap.xml").getroot().iter()
        if node.tag.endswith("loc")
    }  # fmt: skip
    assert listed == {f"{BASE}{path.relative_to(tiny_site)}" for path in pages(tiny_site)}
    for path in pages(tiny_site):
        text = path.read_text(encoding="utf-8")
        tags = dict(re.findall(r'<meta property="(og:[a-z_]+)" content="([^"]*)"', text))
        assert tags["og:title"] and len(tags["og:description"]) > 5, path.name
        assert tags["og:url"] == f"{BASE}{path.relative_to(tiny_site)}"
        picture = tags["og:image"].removeprefix(BASE)
        assert (tiny_site / picture).is_file()
        assert path.parent.name in ("book", "api") or picture != "_static/card.png", path.name


def test_every_page_says_its_version_and_how_to_cite_it(tiny_site):
    for path in pages(tiny_site):
        foot = path.read_text(encoding="utf-8").partition('class="page-foot"')[2]
        cited = html.unescape(foot.partition("<pre")[2].partition("</pre>")[0].partition(">")[2])
        assert cited.startswith("@misc{minilib_") and cited.rstrip().endswith("}"), path.name
        assert cited.count("{") == cited.count("}"), path.name
        assert f"{BASE}{path.relative_to(tiny_site)}" in cited
        assert f"Version {page_furniture.version(ROOT)}" in foot


def test_the_first_use_of_a_word_links_to_the_glossary(tiny_site):
    page = (tiny_site / "book" / "notation.html").read_text(encoding="utf-8")
    link = r'<a class="[^"]*term[^"]*" href="glossary.html#([^"]+)" title="[^"]{20,}">([^<]+)<'
    links = re.findall(link, page)
    words = [word for _, word in links]
    assert "RGA" in words and len(words) == len(set(words)), "the first use alone"
    glossary = (tiny_site / "book" / "glossary.html").read_text(encoding="utf-8")
    assert all(f'id="{anchor}"' in glossary for anchor, _ in links)
    assert 'class="term reference' not in glossary


def test_an_address_that_leads_nowhere_has_a_page(tiny_site):
    page = (tiny_site / "404.html").read_text(encoding="utf-8")
    links = re.findall(r'href="([^"]+)"', page)
    assert links and all(link.startswith(BASE) for link in links), "whole: it may stand anywhere"
    assert all((tiny_site / link.removeprefix(BASE)).is_file() for link in links)


def test_the_four_papers_come_first(tiny_site):
    page = (tiny_site / "book" / "bibliography.html").read_text(encoding="utf-8")
    first, _, rest = page.partition('id="all-others"')
    assert "robust gradient ascent" in first and "https://arxiv.org/abs/2405.07667" in first
    assert "robust gradient ascent" not in rest and "https://doi.org/" in first


def test_no_page_needs_another_host(tiny_site):
    assert from_elsewhere(tiny_site) == []


def test_links_and_anchors_lead_somewhere(tiny_site):
    assert dead_links(tiny_site) == []


@needs_browser
def test_pages_in_a_browser(tiny_site):
    """Two, on a phone: tests/site/test_pages.py looks at the published site in every way."""
    assert len(pages(tiny_site)) == len(CHAPTERS) + len(
        re.findall(r"(?:file|root): book/", (ROOT / "_toc.yml").read_text())
    )
    every = [tiny_site / "book" / "intro.html", tiny_site / "notebooks" / "01_attacks.html"]
    seen = look(tiny_site, ("dark",), (390,), axe=(), every=every)
    assert complaints(seen) == []
    assert seen["/notebooks/01_attacks.html", "dark", 390]["images"] == 1
    assert seen["/notebooks/01_attacks.html", "dark", 390]["h1"] == ["1. Chapter 01"]


# What is wrong with a page, and the words that tell. Each with a page of its own, in one book.
def spoil(root: Path) -> dict[str, str]:
    """Spoil a book in every way, and leave no other page; returns page → what a build must say."""
    executed_copies, notebooks = root / "book" / "_executed", root / "notebooks"
    (executed_copies / "01_attacks.ipynb").unlink()
    (executed_copies / "02_detection.ipynb").write_text('{"cells": [')
    for name, old, new in (("03_ga_rga", "plot()", "plot(1)"), ("04_btu", '"a dot"', '""')):
        path = notebooks / f"{name}.ipynb"
        path.write_text(path.read_text().replace(old, new))
    for page in [*(root / "book").rglob("*.md"), *(executed_copies.glob("0[5-9]*.ipynb"))]:
        page.unlink()
    for page in notebooks.glob("0[5-9]*.ipynb"):
        page.unlink()
    for name, line in (("intro", "{cite}`nobody1999`"), ("setup", "{doc}`nowhere` [x](none.md)")):
        (root / "book" / f"{name}.md").write_text(f"# {name}\n\n{line}\n")
    pages = [
        "book/setup",
        *(f"notebooks/{path.stem}" for path in sorted(notebooks.glob("*.ipynb"))),
    ]
    listed = "".join(f"  - file: {page}\n" for page in pages)
    (root / "_toc.yml").write_text(f"format: jb-book\nroot: book/intro\nchapters:\n{listed}")
    return {
        "01_attacks": "there is no executed copy",
        "02_detection": "cannot be read",
        "03_ga_rga": "differs from the executed copy",
        "04_btu": "image without alternative text",
        "intro": "nobody1999",
        "setup": "nowhere",
    }


def test_a_strict_build_fails_twice_and_names_each_fault(tiny_book, tmp_path, capsys):
    """Twice: Sphinx does not repeat a warning about a page that it need not read again."""
    spoiled = tmp_path / "book"
    shutil.copytree(tiny_book, spoiled, ignore=shutil.ignore_patterns("_build", "minilib"))
    faults = spoil(spoiled)
    for _ in range(2):
        assert not build.build(spoiled, spoiled / "_build", quiet=True)
        told = capsys.readouterr().err.splitlines()
        for page, words in faults.items():
            assert any(page in line and words in line for line in told), (page, told)


def test_what_an_interrupted_build_left_is_thrown_away(tiny_book, tmp_path, monkeypatch):
    out = tmp_path / "_build"
    (out / "html").mkdir(parents=True)
    (out / "html" / "searchindex.js").write_text("Search.setIndex({half")
    (out / "doctrees").mkdir()
    (out / "doctrees" / "environment.pickle").write_bytes(b"\x80\x04half")
    (out / "executed").mkdir()

    class Killed(BaseException):
        """As a signal ends a process."""

    def killed(*args, **more):
        raise Killed

    import jupyter_book.sphinx

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(jupyter_book.sphinx, "build_sphinx", killed)
        build.build(tiny_book, out, quiet=True)
    seen = []
    monkeypatch.setattr(
        jupyter_book.sphinx, "build_sphinx", lambda *args, **more: seen.extend(out.iterdir()) or 0
    )
    assert build.build(tiny_book, out, quiet=True)
    assert sorted(path.name for path in seen) == ["begun", "executed"]
    assert not (out / "begun").exists()


def test_collect_takes_what_was_executed_and_drops_what_is_gone(tmp_path):
    made = tmp_path / "runs" / "01_attacks" / "0123" / "notebook.ipynb"
    made.parent.mkdir(parents=True)
    made.write_text("new")
    folder = tmp_path / "executed"
    folder.mkdir()
    (folder / "gone.ipynb").write_text("old")
    assert build.collect(tmp_path / "runs", folder) == ["01_attacks"]
    assert [path.name for path in folder.iterdir()] == ["01_attacks.ipynb"]
    first = (folder / "01_attacks.ipynb").stat().st_mtime_ns
    build.collect(tmp_path / "runs", folder)
    assert (folder / "01_attacks.ipynb").stat().st_mtime_ns == first  # unchanged, so not touched


@pytest.mark.parametrize("fresh", [True, False])
def test_chapters_are_executed_from_nothing_where_that_is_asked(tmp_path, monkeypatch, fresh):
    seen = {}

    def run(command, cwd, env):
        seen.update(env)
        out = command[command.index("--out") + 1]
        made = build.Path(out, "small", "01_attacks", "0123", "notebook.ipynb")
        made.parent.mkdir(parents=True)
        made.write_text("{}")
        return build.subprocess.CompletedProcess(command, 0)

    monkeypatch.delenv("MINILIB_PUBLISHED", raising=False)
    monkeypatch.setattr(build.subprocess, "run", run)
    assert build.execute("small", fresh, tmp_path)
    assert (seen.get("MINILIB_PUBLISHED") == "none") == fresh
    assert (tmp_path / "executed" / "01_attacks.ipynb").is_file()


def test_the_site_needs_no_torch():
    """Neither the build script nor the extensions import the library."""
    for name in ("tools/build.py", *(f"book/_ext/{name}.py" for name in EXTENSIONS)):
        text = (ROOT / name).read_text(encoding="utf-8")
        assert "import torch" not in text and "import minilib" not in text
    assert importlib.util.find_spec("build").origin == str(ROOT / "tools" / "build.py")


def test_every_committed_benchmark_is_shown():
    page = (ROOT / "book" / "performance.md").read_text(encoding="utf-8")
    shown = set(re.findall(r"^```\{benchmarks\} (\w+)$", page, re.M))
    files = [
        f for f in (ROOT / benchmarks.RESULTS).glob("*.json") if f.stem not in ("sweep", "hostile")
    ]
    assert files and {file.stem.rpartition("-")[0] for file in files} <= shown
    for file in files:
        found = json.loads(file.read_text(encoding="utf-8"))
        for record in found if isinstance(found, list) else [found]:
            text = benchmarks.table(record)
            assert all(html.escape(name) in text for name in record["ratios"])
            assert record["versions"]["torch"] in text


# ---------------------------------------------------------------- what changes the tiny book


def test_a_new_run_is_read_alone(tiny_site, tiny_book):
    """Behind the tests of this book's pages, which it changes."""
    out = tiny_site.parent
    read = [out / "doctrees" / "notebooks" / f"{name}.doctree" for name in CHAPTERS]
    before = [path.stat().st_mtime_ns for path in read]
    copied = tiny_book / "book" / "_executed" / "03_ga_rga.ipynb"
    copied.write_text(copied.read_text().replace("wide-number-7", "other-number-7"))
    assert build.build(tiny_book, out, quiet=True)
    again = [a.stat().st_mtime_ns > b for a, b in zip(read, before, strict=True)]
    assert again == [name == "03_ga_rga" for name in CHAPTERS]
    assert "other-number-7" in (tiny_site / "notebooks" / "03_ga_rga.html").read_text()


@nightly
def test_a_new_style_sheet_reaches_the_site(tiny_site, tiny_book):
    with open(tiny_book / "book" / "_static" / "book.css", "a") as sheet:
        sheet.write("/* new */")
    assert build.build(tiny_book, tiny_site.parent, quiet=True)
    assert "/* new */" in (tiny_site / "_static" / "book.css").read_text()


@pytest.mark.parametrize("name", ["_static/book.css", "_ext/reader.py"])
def test_a_new_style_sheet_or_extension_is_another_version_of_the_site(tmp_path, name):
    """With it all pages are made again: Sphinx does not look there by itself."""
    for folder in ("_static", "_ext"):
        shutil.copytree(ROOT / "book" / folder, tmp_path / "book" / folder)
    assert build.version(tmp_path) == build.version(ROOT)
    with open(tmp_path / "book" / name, "a") as file:
        file.write("\n")
    assert build.version(tmp_path) != build.version(ROOT)
