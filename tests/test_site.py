"""The site: merging a clean notebook with its executed copy, strict builds, pages in a browser."""

import base64
import copy
import html
import importlib.util
import json
import re
import shutil

import nbformat
import plotly.graph_objects as graph
import pytest
from conftest import ROOT
from nbformat import v4
from site_checks import BROWSER, complaints, dead_links, from_elsewhere, look

pytest.importorskip("jupyter_book")

import benchmarks
import build
import executed

needs_browser = pytest.mark.skipif(not BROWSER, reason="no Chromium or no Playwright")
PNG = base64.b64encode(
    base64.b64decode(
        "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
    )
).decode()
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
EXTENSIONS = ("api", "executed", "offline", "reader")
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
        code("import minilib", "bootstrap"),
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
            table = f'<table class="dataframe"><tr>{row}</tr></table>'
            cell.outputs = [
                v4.new_output(
                    "execute_result",
                    {"text/html": table, "text/plain": "t"},
                    execution_count=number,
                )
            ]
    done.metadata["minilib"] = {"run_id": "0123abcd", "preset": "smoke", "code": "c"}
    return done


def interactive() -> nbformat.NotebookNode:
    """What a cell with a Plotly figure leaves behind: it asks a network for Plotly's script."""
    figure = graph.Figure().add_scatter(x=[0, 1], y=[1, 0])
    html = figure.to_html(full_html=False, include_plotlyjs="cdn", div_id="dots")
    return v4.new_output("display_data", {"text/html": html, "text/plain": "t"})


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
    shutil.copytree(ROOT / "book", root / "book", ignore=shutil.ignore_patterns("_executed", "__*"))
    sources = shutil.ignore_patterns("__*__", "*.csv")  # the reference page reads them
    shutil.copytree(ROOT / "minilib", root / "minilib", ignore=sources)
    (root / "notebooks").mkdir()
    (root / "book" / "_executed").mkdir()
    labels = list(CHAPTERS.values())
    for name, label in CHAPTERS.items():
        clean = chapter(label, labels[labels.index(label) - 1])
        nbformat.write(clean, root / "notebooks" / f"{name}.ipynb")
        done = ran(clean)
        if name == "02_detection":
            next(c for c in done.cells if c.source == "plot()").outputs = [interactive()]
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
    for wanted in ("alpha = 3.0</span>", "wide-number-29", 'alt="a dot"', "Run <code", "Zhao"):
        assert wanted.split("</span>")[0].replace("alpha = 3.0", "3.0") in page, wanted
    assert "their numbers mean nothing" in page


def test_the_reference_page_has_an_anchor_for_each_function(tiny_site):
    page = (tiny_site / "book" / "api.html").read_text(encoding="utf-8")
    for name in ("minilib.data.load_text", "minilib.rga.unlearn", "minilib.runs.load"):
        assert f'id="{name}"' in page and f'href="#{name}"' in page, name


def test_buttons_and_download_give_the_clean_notebook(tiny_site, tiny_book):
    page = (tiny_site / "notebooks" / "01_attacks.html").read_text(encoding="utf-8")
    assert "colab.research.google.com/github/" in page
    download = tiny_site / "_sources" / "notebooks" / "01_attacks.ipynb"
    assert "../_sources/notebooks/01_attacks.ipynb" in page
    assert download.read_bytes() == (tiny_book / "notebooks" / "01_attacks.ipynb").read_bytes()


def test_no_page_needs_another_host(tiny_site):
    assert from_elsewhere(tiny_site) == []


def test_interactive_figures_find_their_script_in_the_site(tiny_site):
    script = "_static/plotly/plotly.min.js"
    assert (tiny_site / script).stat().st_size > 1e6
    having = [p.stem for p in tiny_site.glob("notebooks/*.html") if script in p.read_text("utf-8")]
    assert having == ["02_detection"]
    page = (tiny_site / "notebooks" / "02_detection.html").read_text("utf-8")
    assert '<div class="interactive" role="group" aria-label="a dot">' in page


def test_links_and_anchors_lead_somewhere(tiny_site):
    assert dead_links(tiny_site) == []


@needs_browser
def test_pages_in_a_browser(tiny_site):
    """On a phone only: tests/test_pages.py looks at the published site in every way."""
    seen = look(tiny_site, ("dark",), (390,), axe=False)
    assert complaints(seen) == []
    assert len(seen) == len(CHAPTERS) + len(list((ROOT / "book").glob("*.md")))
    assert seen["/notebooks/01_attacks.html", "dark", 390]["images"] == 1
    assert seen["/notebooks/01_attacks.html", "dark", 390]["h1"] == ["Chapter 01"]


@pytest.fixture
def spoiled(tiny_book, tmp_path):
    """A copy of the tiny book to spoil."""
    return shutil.copytree(tiny_book, tmp_path / "book", ignore=shutil.ignore_patterns("_build"))


def no_copy(root):
    (root / "book" / "_executed" / "03_ga_rga.ipynb").unlink()


def unreadable_copy(root):
    (root / "book" / "_executed" / "03_ga_rga.ipynb").write_text('{"cells": [')


def edited_code(root):
    path = root / "notebooks" / "03_ga_rga.ipynb"
    path.write_text(path.read_text().replace("plot()", "plot(1)"))


def no_alternative_text(root):
    path = root / "notebooks" / "03_ga_rga.ipynb"
    path.write_text(path.read_text().replace('"a dot"', '""'))


def unknown_citation(root):
    with open(root / "book" / "intro.md", "a") as page:
        page.write("\n{cite}`nobody1999`\n")


def dead_reference(root):
    with open(root / "book" / "intro.md", "a") as page:
        page.write("\n{doc}`nowhere` and [there](nowhere.md)\n")


SPOILS = {
    no_copy: "there is no executed copy",
    unreadable_copy: "cannot be read",
    edited_code: "differs from the executed copy",
    no_alternative_text: "image without alternative text",
    unknown_citation: "nobody1999",
    dead_reference: "nowhere",
}


@pytest.mark.parametrize("spoil", SPOILS)
def test_a_strict_build_fails_twice(spoiled, spoil, capsys):
    """Twice: Sphinx does not repeat a warning about a page that it need not read again."""
    spoil(spoiled)
    for _ in range(2):
        assert not build.build(spoiled, spoiled / "_build", quiet=True)
        assert SPOILS[spoil] in capsys.readouterr().err


def test_a_new_run_is_read_and_no_other_page_is(spoiled):
    out = spoiled / "_build"
    assert build.build(spoiled, out, quiet=True)
    read = [out / "doctrees" / "notebooks" / f"{name}.doctree" for name in CHAPTERS]
    before = [path.stat().st_mtime_ns for path in read]
    copied = spoiled / "book" / "_executed" / "03_ga_rga.ipynb"
    copied.write_text(copied.read_text().replace("wide-number-7", "other-number-7"))
    assert build.build(spoiled, out, quiet=True)
    again = [a.stat().st_mtime_ns > b for a, b in zip(read, before, strict=True)]
    assert again == [name == "03_ga_rga" for name in CHAPTERS]
    assert "other-number-7" in (out / "html" / "notebooks" / "03_ga_rga.html").read_text()


def test_a_new_style_sheet_reaches_the_site(spoiled):
    assert build.build(spoiled, spoiled / "_build", quiet=True)
    with open(spoiled / "book" / "_static" / "book.css", "a") as sheet:
        sheet.write("/* new */")
    assert build.build(spoiled, spoiled / "_build", quiet=True)
    assert "/* new */" in (spoiled / "_build" / "html" / "_static" / "book.css").read_text()


def test_collect_takes_the_latest_runs_and_drops_what_is_gone(tmp_path, monkeypatch):
    (tmp_path / "a.ipynb").write_text("new")
    folder = tmp_path / "executed"
    folder.mkdir()
    (folder / "gone.ipynb").write_text("old")

    class Answer:
        stdout = "01_attacks\ta.ipynb\n"

    monkeypatch.setattr(build.subprocess, "run", lambda *_, **__: Answer)
    assert build.collect("smoke", folder, tmp_path) == ["01_attacks"]
    assert [path.name for path in folder.iterdir()] == ["01_attacks.ipynb"]
    first = (folder / "01_attacks.ipynb").stat().st_mtime_ns
    build.collect("smoke", folder, tmp_path)
    assert (folder / "01_attacks.ipynb").stat().st_mtime_ns == first  # unchanged, so not touched


def test_the_site_needs_no_torch():
    """Neither the build script nor the extensions import the library."""
    for name in ("tools/build.py", *(f"book/_ext/{name}.py" for name in EXTENSIONS)):
        text = (ROOT / name).read_text(encoding="utf-8")
        assert "import torch" not in text and "import minilib" not in text
    assert importlib.util.find_spec("build").origin == str(ROOT / "tools" / "build.py")


def test_every_committed_benchmark_is_shown():
    page = (ROOT / "book" / "performance.md").read_text(encoding="utf-8")
    shown = set(re.findall(r"^```\{benchmarks\} (\w+)(?: cpu)?$", page, re.M))
    files = [f for f in (ROOT / benchmarks.RESULTS).glob("*.json") if f.stem != "sweep"]
    assert files and {file.stem.rpartition("-")[0] for file in files} <= shown
    for file in files:
        found = json.loads(file.read_text(encoding="utf-8"))
        for record in found if isinstance(found, list) else [found]:
            text = benchmarks.table(record)
            assert all(html.escape(name) in text for name in record["ratios"])
            assert record["versions"]["torch"] in text
