"""The whole book at `smoke`, as `make book` makes it: every chapter executed, every page built."""

import json
import math
import os
import shutil
import subprocess
import sys

import nbformat
import pytest
from conftest import ROOT, minilib
from site_checks import BROWSER, complaints, dead_links, from_elsewhere, look, pages

pytestmark = pytest.mark.slow


def build(*words: str) -> subprocess.CompletedProcess:
    """`tools/build.py`, as the Makefile calls it."""
    return subprocess.run(
        [sys.executable, "tools/build.py", *words],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="session")
def smoke_site(smoke_runs):
    """The site of the smoke runs, built strictly; the builder prints where it is."""
    done = build("--preset", "smoke")
    assert done.returncode == 0, done.stdout + done.stderr
    index = ROOT / done.stdout.strip().splitlines()[-1].removeprefix("the book is at ")
    assert index.is_file() and index.name == "index.html"
    return index.parent


def test_every_chapter_runs_without_an_error_or_a_warning(smoke_runs):
    assert set(smoke_runs) == {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")}
    for chapter, path in smoke_runs.items():
        notebook = nbformat.read(path, as_version=4)
        for output in (o for c in notebook.cells for o in c.get("outputs", [])):
            assert output.output_type != "error", f"{chapter}: {output.evalue}"
            assert output.get("name") != "stderr", f"{chapter}: {output.text}"


def test_every_record_is_whole(smoke_runs):
    for chapter, path in smoke_runs.items():
        record = json.loads((path.parent / "run.json").read_text(encoding="utf-8"))
        assert (record["chapter"], record["preset"], record["status"]) == (chapter, "smoke", "ok")
        assert record["metrics"] and record["params"] and record["env"] and record["data"]
        for row in record["metrics"]:
            for name in {"cacc", "lfr", "pacc", "dpacc"} & set(row):
                value = row[name]
                assert value is None or (math.isfinite(value) and 0 <= value <= 100), (name, row)


def test_a_second_call_runs_nothing_and_reads_no_page_again(smoke_runs, smoke_site):
    again = minilib("run", "--all", "--preset", "smoke")
    assert again.returncode == 0
    lines = again.stdout.strip().splitlines()
    assert len(lines) == len(smoke_runs) and all("exists" in line for line in lines)
    doctrees = sorted((smoke_site.parent / "doctrees").rglob("*.doctree"))
    before = [path.stat().st_mtime_ns for path in doctrees]
    assert build("--preset", "smoke").returncode == 0
    assert [path.stat().st_mtime_ns for path in doctrees] == before


def test_the_site_of_the_smoke_runs(smoke_site, smoke_runs):
    assert dead_links(smoke_site) == []
    assert from_elsewhere(smoke_site) == []
    assert {path.stem for path in pages(smoke_site)} >= set(smoke_runs)
    for chapter in smoke_runs:
        page = (smoke_site / "notebooks" / f"{chapter}.html").read_text(encoding="utf-8")
        assert "their numbers mean nothing" in page
        assert "{glue" not in page and "Traceback (most recent" not in page


@pytest.mark.skipif(not BROWSER, reason="no Chromium or no Playwright")
def test_the_site_of_the_smoke_runs_in_a_browser(smoke_site, smoke_runs):
    """On a phone only: tests/test_pages.py looks at the published site in every way."""
    seen = look(smoke_site, ("light",), (390,), axe=False)
    assert complaints(seen) == []
    for chapter in smoke_runs:
        assert seen[f"/notebooks/{chapter}.html", "light", 390]["images"] > 0, (
            f"{chapter} shows no figure"
        )


def test_published_runs_have_their_records():
    for path in (ROOT / "book" / "_executed").glob("*.ipynb"):
        run = json.loads(path.read_text(encoding="utf-8"))["metadata"]["minilib"]
        record = ROOT / "results" / path.stem / f"{run['run_id']}.json"
        assert record.is_file(), f"{path.name} shows run {run['run_id']}, which has no record"
        assert json.loads(record.read_text(encoding="utf-8"))["preset"] != "smoke"


@pytest.mark.skipif(not shutil.which("make"), reason="make is not installed")
def test_make_book_reuses_all_of_it(smoke_site):
    """`make book` itself, in the environment at hand; only when that is the repository's own."""
    if os.path.realpath(sys.prefix) != os.path.realpath(ROOT / ".venv"):
        pytest.skip("the tests do not run in .venv")
    done = subprocess.run(
        ["make", "book"], cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "exists" in done.stdout and str(smoke_site / "index.html") in done.stdout
