"""The published site as a reader meets it: in a browser, by keyboard, on a phone, in the dark."""

import json
import re
import subprocess
import sys
from urllib.parse import quote

import address
import pytest
import sync
from conftest import NIGHTLY, ROOT, nightly
from site_checks import (
    BROWSER,
    LARGEST,
    browser,
    complaints,
    dead_links,
    from_elsewhere,
    look,
    new_tab,
    not_in_repository,
    pages,
    too_large,
)

pytest.importorskip("jupyter_book")

CHAPTERS = sorted((ROOT / "notebooks").glob("*.ipynb"))
needs_browser = pytest.mark.skipif(not BROWSER, reason="no Chromium or no Playwright")
# Name → a page that a search for it must find.
SOUGHT = {
    "RGA": "notebooks/03_ga_rga",
    "NPO": "notebooks/03_ga_rga",
    "BTU": "notebooks/04_btu",
    "SANDE": "notebooks/05_sande",
    "BI-BAU": "notebooks/06_bi_bau",
    "CleanCLIP": "notebooks/08_clip",
    "CUBE": "notebooks/02_detection",
    "ONION": "notebooks/02_detection",
    "HiddenKiller": "notebooks/01_attacks",
    "rga_weight": "book/api/unlearning",
}
# What a chapter is about leads to the chapter before all others.
FIRST = {
    "trigger shifting": "notebooks/03_ga_rga", "BTU": "notebooks/04_btu",
    "SANDE": "notebooks/05_sande", "blind inversion": "notebooks/06_bi_bau",
}  # fmt: skip


@pytest.fixture(scope="module")
def site():
    """The site of the published runs, built strictly."""
    done = subprocess.run(
        [sys.executable, "tools/build.py"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return ROOT / "_build" / "published" / "html"


def test_links_lead_somewhere_and_nothing_comes_from_elsewhere(site):
    assert dead_links(site) == [] and from_elsewhere(site) == []


def test_buttons_of_a_chapter_lead_to_its_notebook(site):
    url = address.repository()
    if url:
        name = url.removeprefix("https://github.com/")
        assert not_in_repository(site, ROOT, name, address.branch()) == []
    launches = url is not None and {pin and pin[0] for pin in sync.pins().values()} == {url}
    expected = ["Open in Colab"] * launches + ["Download notebook"]
    expected += ["Source on GitHub"] * (url is not None) + ["Slides of the pictures"]
    for path in CHAPTERS:
        page = (site / "notebooks" / f"{path.stem}.html").read_text(encoding="utf-8")
        row = page.partition('<p class="launch-row">')[2].partition("</p>")[0]
        words = re.findall(r'href="([^"]+)"[^>]*>([^<]+)<', row)
        assert [word for _, word in words] == expected
        download = site / "notebooks" / words[launches][0]
        assert download.resolve().read_bytes() == path.read_bytes()
        assert launches or "colab.research.google.com" not in page
    told = (site / "book" / "setup.html").read_text(encoding="utf-8")
    assert ("does not know the address" in told) == (url is None)


def test_each_picture_of_a_chapter_is_a_slide(site):
    for path in CHAPTERS:
        page, slides = (
            (site / folder / f"{path.stem}.html").read_text(encoding="utf-8")
            for folder in ("notebooks", "slides")
        )
        drawn = re.findall(r'<figure[^>]*id="(fig-[^"]+)"', page)
        assert drawn and drawn == re.findall(rf'notebooks/{path.stem}.html#(fig-[^"]+)"', slides)


def test_pages_are_light(site):
    assert too_large(site) == []


@needs_browser
@pytest.mark.parametrize("theme, width", [
    ("dark", 390), ("light", 1280),
    pytest.param("light", 390, marks=nightly), pytest.param("dark", 1280, marks=nightly),
])  # fmt: skip
def test_every_page_in_both_themes_on_phone_and_desk(site, theme, width):
    every, how = pages(site), {}
    if not NIGHTLY:
        # By day each page is looked at once, what is wide on a desk and the rest on a phone, where
        # some of the wide ones are too; the reference's pages are alike, one has the longest names.
        wide = (*(path.stem for path in CHAPTERS), "intro", "results", "performance", "unlearning")
        both = ("intro", "results", "03_ga_rga", "06_bi_bau")
        every = [path for path in every if path.parent.name != "api" or path.stem == "unlearning"]
        every = [path for path in every if (path.stem in wide) == (width == 1280)
                 or path.stem in both]  # fmt: skip
        # Two thirds of the time are WCAG's rules: once a page, and of a long table the first rows.
        how["axe"] = [path for path in every if (path.stem in wide) == (width == 1280)]
        how["without"] = "tbody > tr:nth-child(n+9)"
    seen = look(site, (theme,), (width,), every=every, **how)
    assert len(seen) == len(every)
    assert complaints(seen) == []
    for path in CHAPTERS if NIGHTLY or width == 1280 else ():
        assert seen[f"/notebooks/{path.stem}.html", theme, width]["images"] > 0


@needs_browser
def test_search_finds_methods_and_functions(site):
    with browser(site) as (opened, address):
        tab = new_tab(opened)
        for name, page in SOUGHT.items():
            tab.goto(f"{address}/search.html?q={name}")
            tab.wait_for_function("document.querySelector('#search-results .search-summary')"
                                  "?.textContent.match(/\\d/)")  # fmt: skip
            found = tab.eval_on_selector_all("#search-results a", "a => a.map(x => x.href)")
            assert any(f"/{page}.html" in link for link in found), (name, found)
        for name, page in FIRST.items():
            tab.goto(f"{address}/search.html?q={quote(name)}")
            tab.wait_for_function("document.querySelector('#search-results .search-summary')"
                                  "?.textContent.match(/\\d/)")  # fmt: skip
            first = tab.locator("#search-results a").first.get_attribute("href")
            assert f"{page}.html" in first, (name, first)


@needs_browser
@pytest.mark.parametrize("page, width", [("book/intro", 390), ("notebooks/01_attacks", 1280)])
def test_tab_walks_through_a_page_in_order(site, page, width):
    """Real key presses: from link to link, down the text, until the page is left."""
    where = """() => {
      const at = document.activeElement, top = at.getBoundingClientRect().top + scrollY;
      return [at.tagName, at.closest('.bd-article') ? top : -1, at.getAttribute('href')]; }"""
    with browser(site) as (opened, address):
        tab = new_tab(opened, viewport={"width": width, "height": 900})
        tab.goto(f"{address}/{page}.html")
        tab.wait_for_load_state("load")
        stops = []
        for _ in range(600):
            tab.keyboard.press("Tab")
            stops.append(tab.evaluate(where))
            if stops[-1][0] == "BODY":
                break
        else:
            raise AssertionError(f"the keyboard is caught: {stops[-3:]}")
        heights = [top for _, top, _ in stops if top >= 0]
        wanted = tab.eval_on_selector_all(
            ".bd-article a[href]",
            "a => a.filter(x => x.checkVisibility({visibilityProperty: true}))"
            ".map(x => x.getAttribute('href'))",
        )
    assert set(wanted) <= {href for _, _, href in stops}
    assert len(heights) > 10
    assert all(b > a - 200 for a, b in zip(heights, heights[1:], strict=False)), "jumps upwards"


# ---------------------------------------------------------------- that the checks can fail


BAD = """<!doctype html><html lang="en" data-theme="light"><title>Bad</title>
<main class="bd-article"><h1>Bad</h1><div style="width:2000px">wide</div>
<p style="color:#bbb;background:#fff">pale</p>
<pre style="width:200px;overflow:auto">a long line that is cut at the end of its box</pre>
<a href="#x" tabindex="-1">skipped</a> <a href="#x" style="outline:none">unseen</a>
<figure id="fig-x"><select aria-label="seeds"><option>all<option>1</select>
<span class="seed-stage"><img src="none.png"><svg viewBox="0 0 9 9"></svg></span></figure>
<span class="math">\\\\(x\\\\)</span>
<a href="https://colab.research.google.com/github/O/R/blob/main/notebooks/none.ipynb">C</a>
<a href="https://github.com/O/R/blob/other/README.md">G</a><p>%s</p>
<script>undefined_name()</script></main></html>"""


@pytest.fixture
def bad(tmp_path):
    """A site of one page on which everything is wrong."""
    (tmp_path / "book").mkdir()
    (tmp_path / "book" / "bad.html").write_text(BAD % ("word " * (LARGEST // 5)))
    return tmp_path


@needs_browser
def test_what_is_wrong_in_a_browser_is_told(bad):
    (bad / "book" / "bad.html").write_text(BAD % "")
    told = "\n".join(complaints(look(bad, ("light",), (390,))))
    for wanted in (
        "console: undefined_name", "broken: none.png", "formulas are left", "px wider",
        "lost: not reached: skipped", "lost: focus unseen: unseen", "axe: color-contrast",
        "axe: image-alt", "shifted: fig-x",
    ):  # fmt: skip
        assert wanted in told, wanted
    told = complaints(look(bad, ("light",), (1280,), ()))
    assert any("wide: " in line and "a long line" in line for line in told)
    assert "shown in the theme light" in "\n".join(complaints(look(bad, ("dark",), (390,), ())))


def test_what_is_wrong_in_a_file_is_told(bad):
    assert too_large(bad) == ["book/bad.html: 1.50 MB"]
    missing = not_in_repository(bad, ROOT, "O/R", "main")
    assert len(missing) == 2 and "none.ipynb" in missing[0] and "/other/" in missing[1]


# ---------------------------------------------------------------- what each chapter has


def prose(path) -> list[str]:
    """Sources of a notebook's Markdown cells."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return ["".join(c["source"]) for c in cells if c["cell_type"] == "markdown"]


def figures(path) -> list[dict]:
    """Caption, name and alternative text of every picture that the published run shows."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    copy = ROOT / "book" / "_executed" / path.name
    ran = {
        "".join(c["source"]).strip(): json.dumps(c["outputs"])
        for c in json.loads(copy.read_text(encoding="utf-8"))["cells"]
        if c["cell_type"] == "code"
    }
    found = []
    for cell in cells:
        source = "".join(cell["source"]).strip()
        out = ran.get(source, "") if cell["cell_type"] == "code" else ""
        if '"image/png"' in out:
            about = cell["metadata"].get("mystnb", {})
            found.append(
                {"source": source[:60], "alt": about.get("image", {}).get("alt")}
                | {key: about.get("figure", {}).get(key) for key in ("caption", "name")}
            )
    return found


def tables(path) -> list[dict]:
    """Source, name and caption of every cell whose published output is a table; not the record's.

    A name that does not begin with ``tab-`` is a figure's (`book/_ext/chapters.py`).
    """
    copy = json.loads((ROOT / "book" / "_executed" / path.name).read_text(encoding="utf-8"))
    ran = {"".join(c["source"]).strip(): c for c in copy["cells"] if c["cell_type"] == "code"}
    shown = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"]).strip()
        outputs = ran.get(source, {}).get("outputs", []) if cell["cell_type"] == "code" else []
        pages = "".join("".join(o.get("data", {}).get("text/html", "")) for o in outputs)
        about = cell["metadata"].get("mystnb", {}).get("figure", {})
        figure = about.get("name", "").startswith("fig-")
        if "<table" in pages and "colophon" not in source and not figure:
            named = about.get("name", "").startswith("tab-")
            caption = about.get("caption", "") if named else ""
            folded = "folded" in about.get("classes", "")  # it repeats the figure above it
            shown.append(
                {"source": source[:60], "name": about.get("name"), "caption": caption}
                | {"folded": folded}
            )
    return shown


def takeaways(text: str) -> list[str]:
    """What the takeaways lack: a few points in words, the numbers in what they point to."""
    part = re.search(r"^## Takeaways$(.*?)^## ", text, re.MULTILINE | re.DOTALL)
    points = (
        re.split(r"^\* ", part[1].partition("**Limits.**")[0], flags=re.MULTILINE) if part else []
    )
    wrong = []
    if not 3 <= len(points[1:]) <= 5:
        wrong.append("takeaways: three to five points")
    for point in points[1:]:
        if point.count("{glue") > 1:
            wrong.append(f"a takeaway with at most one number: {point[:60]!r}")
    if sum("{numref}" in point for point in points) < 3:
        wrong.append("takeaways that point to figures and tables")
    return wrong


def lacking(path) -> list[str]:
    """What a chapter owes its reader and does not have."""
    parts, wrong = prose(path), []
    text, everywhere = "\n\n".join(parts), "\n".join(t for p in CHAPTERS for t in prose(p))
    needs = re.search(r"What this chapter needs\n.*?\n:::", parts[0], re.DOTALL)
    if not needs or not all(
        re.search(rf"--preset {preset}\b((?!--preset).)*(minute|hour)", " ".join(needs[0].split()))
        for preset in ("smoke", "small")
    ):
        wrong.append("its time at smoke and at small, and what it needs")
    if re.search(r"^\$\$[ \t]*\n.*?^\$\$[ \t]*$", re.sub(r"(?s)```.*?```", "", text), re.M | re.S):
        wrong.append("a number for each equation")
    equations = re.findall(r":label: (eq-\S+)|^\$\$ \((eq-[^)]+)\)", text, re.MULTILINE)
    names = [first or second for first, second in equations]
    if not names:
        wrong.append("an equation")
    wrong += [f"a reference to {name}" for name in names if f"{{eq}}`{name}`" not in everywhere]
    shown = figures(path)
    if not shown:
        wrong.append("a figure")
    for figure in shown:
        if not figure["caption"] or not figure["alt"]:
            wrong.append(f"caption and alternative text of {figure['source']!r}")
        elif f"{{numref}}`{figure['name']}`" not in everywhere:
            wrong.append(f"a reference to {figure['name']}")
    for table in tables(path):
        if not table["caption"]:
            wrong.append(f"a caption and a number for the table of {table['source']!r}")
        elif not table["folded"] and f"{{numref}}`{table['name']}`" not in text:
            wrong.append(f"a reference to {table['name']}")
    wrong += takeaways(text)
    asked = re.findall(r"\{exercise\}[^\n]*\n:label: (\S+)", text)
    hidden = re.findall(r"\{solution\} (\S+)\n:class: dropdown", text)
    if len(asked) < 2 or asked != hidden:
        wrong.append("exercises, each with a hidden solution")
    if not re.search(r"\*\*Change this and see:\*\* `\w+=", text):
        wrong.append("something to change")
    if "{cite" not in text:
        wrong.append("a citation")
    if not re.search(r"\(0\d_\w+\.ipynb|\{doc\}`[^`]*0\d_|\{ref\}`ch", text):
        wrong.append("a reference to another chapter")
    return wrong


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_a_chapter_has_all_that_it_owes(path):
    assert lacking(path) == []


SPOILS = {
    "its time at smoke and at small, and what it needs": ("about half a minute", "some time"),
    "a number for each equation": ("$$ (eq-ascent-descent)", "$$"),
    "a reference to eq-rga": ("{eq}`eq-rga`", "the loss"),
    "a reference to fig-shift": ("{numref}`fig-shift`", "the figure"),
    "takeaways: three to five points": ("## Takeaways", "## In short"),
    "a reference to tab-rga-masks": ("{numref}`tab-rga-masks`", "the table"),
    "exercises, each with a hidden solution": ("{solution} ex-code\n:class: dropdown", "{tip}"),
    "something to change": ("**Change this and see:**", "See also"),
    "a citation": ("{cite", "{note"),
    "a reference to another chapter": (".ipynb)", ")"),
}


@pytest.mark.parametrize("owed", SPOILS)
def test_what_a_chapter_lacks_is_named(owed, tmp_path, monkeypatch):
    path = ROOT / "notebooks" / "03_ga_rga.ipynb"
    old, new = (json.dumps(part, ensure_ascii=False)[1:-1] for part in SPOILS[owed])
    book = json.loads(path.read_text(encoding="utf-8"))
    for cell in book["cells"]:
        cell["source"] = "".join(cell["source"])
    text = json.dumps(book, ensure_ascii=False)
    assert old in text
    spoilt = tmp_path / path.name
    spoilt.write_text(text.replace(old, new), encoding="utf-8")
    monkeypatch.setattr(sys.modules[__name__], "CHAPTERS", [spoilt])
    assert owed in lacking(spoilt)
