"""Chapters at `smoke` from nothing, and by night the whole book of them as `make book` has it."""

import json
import shutil
import subprocess

import build
import nbformat
import pytest
from conftest import ROOT, SMOKE, nightly
from site_checks import BROWSER, complaints, dead_links, from_elsewhere, look, pages

from minilib import ledger
from minilib.runs import execute

pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def smoke_site(smoke_runs, tmp_path_factory):
    """The site of the smoke runs, built strictly."""
    out = tmp_path_factory.mktemp("smoke-site")
    runs = next(iter(smoke_runs.values())).parents[2]
    assert build.collect(runs, out / "executed") == sorted(smoke_runs)
    assert build.build(ROOT, out, out / "executed", quiet=True)
    return out / "html"


def test_every_chapter_runs_without_an_error_or_a_warning(smoke_runs):
    assert set(smoke_runs) == set(SMOKE)
    for chapter, path in smoke_runs.items():
        notebook = nbformat.read(path, as_version=4)
        for output in (o for c in notebook.cells for o in c.get("outputs", [])):
            assert output.output_type != "error", f"{chapter}: {output.evalue}"
            assert output.get("name") != "stderr", f"{chapter}: {output.text}"


def test_every_record_is_whole(smoke_runs):
    for chapter, path in smoke_runs.items():
        record = json.loads((path.parent / "run.json").read_text(encoding="utf-8"))
        assert (record["chapter"], record["preset"], record["status"]) == (chapter, "smoke", "ok")
        assert record["params"] and record["env"]["torch"] and record["machines"]
        assert 0 < record["computed"] <= sum(map(len, record["keys"].values()))


@nightly
def test_a_second_build_reads_no_page_again(smoke_runs, smoke_site):
    doctrees = sorted((smoke_site.parent / "doctrees").rglob("*.doctree"))
    before = [path.stat().st_mtime_ns for path in doctrees]
    assert build.build(ROOT, smoke_site.parent, smoke_site.parent / "executed", quiet=True)
    assert [path.stat().st_mtime_ns for path in doctrees] == before


@nightly
def test_the_site_of_the_smoke_runs(smoke_site, smoke_runs):
    assert dead_links(smoke_site) == []
    assert from_elsewhere(smoke_site) == []
    assert {path.stem for path in pages(smoke_site)} >= set(smoke_runs)
    for chapter in smoke_runs:
        page = (smoke_site / "notebooks" / f"{chapter}.html").read_text(encoding="utf-8")
        assert "their numbers mean nothing" in page
        assert "{glue" not in page and "Traceback (most recent" not in page
        assert "read from the ledger" in page and 'href="#trials"' in page
    first = (smoke_site / "index.html").read_text(encoding="utf-8")
    first += (smoke_site / "book" / "intro.html").read_text(encoding="utf-8")
    assert "This site shows" in first and "read from the ledger" in first


@nightly
@pytest.mark.skipif(not BROWSER, reason="no Chromium or no Playwright")
def test_the_site_of_the_smoke_runs_in_a_browser(smoke_site, smoke_runs):
    """On a phone only: tests/site/test_pages.py looks at the published site in every way."""
    seen = look(smoke_site, ("light",), (390,), axe=())
    assert complaints(seen) == []
    for chapter in smoke_runs:
        assert seen[f"/notebooks/{chapter}.html", "light", 390]["images"] > 0, (
            f"{chapter} shows no figure"
        )


def published() -> set[str]:
    """Keys of all trials in `results/`."""
    files = (ROOT / "results").glob("*.jsonl")
    lines = (line for file in files for line in file.read_text(encoding="utf-8").splitlines())
    return {json.loads(line)["key"] for line in lines}


def test_what_published_pages_show_is_published():
    have = published()
    for path in (ROOT / "book" / "_executed").glob("*.ipynb"):
        run = json.loads(path.read_text(encoding="utf-8"))["metadata"]["minilib"]
        keys = {key for those in run["keys"].values() for key in those}
        assert keys and keys <= have, f"{path.name}: run and publish the chapter again"
        assert run["preset"] != "smoke"


def test_the_real_book_needs_no_trial_that_is_not_published():
    have = published()
    for chapter in execute.chapters(ROOT):
        needs = {ledger.key_of(one) for one in execute.plan(chapter, "small", root=ROOT).recipes()}
        assert needs and needs <= have, f"{chapter}: {len(needs - have)} trials are missing"


@pytest.mark.skipif(not shutil.which("make"), reason="make is not installed")
@pytest.mark.parametrize(
    "words, wanted",
    [((), "--preset small\n"), (("FRESH=1",), "small --fresh"), (("PRESET=smoke",), "smoke")],
)
def test_make_book_executes_the_real_book(words, wanted):
    done = subprocess.run(["make", "-n", "book", *words], cwd=ROOT, capture_output=True, text=True)
    assert "tools/build.py --preset " in done.stdout and wanted in done.stdout.replace(" \n", "\n")
