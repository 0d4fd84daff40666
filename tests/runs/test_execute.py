"""Identity of runs and what they are told to be; no kernel is started here."""

import json
import os
import re
import signal

import pytest
from fixture_book import edit, make_book, write_chapter

from minilib import chapters, ledger, provenance, settings
from minilib.runs import execute

REPOSITORY = provenance.PACKAGE.parent


@pytest.fixture
def book(tmp_path, monkeypatch):
    root = make_book(tmp_path / "book")
    monkeypatch.chdir(root)
    return root


# ---------------------------------------------------------------- identity


def test_cells_count_but_prose_and_bootstrap_do_not(book):
    notebook = book / "notebooks" / "01_fine.ipynb"
    before = execute.plan("01_fine", "smoke").run_id
    edit(notebook, 0, "# Better prose")
    edit(notebook, 1, "import os  # the repository moved")
    assert execute.plan("01_fine", "smoke").run_id == before
    edit(notebook, 3, "print('beta', alpha)")
    assert execute.plan("01_fine", "smoke").run_id != before


def test_the_preset_is_not_part_of_a_runs_identity(book):
    (book / "presets" / "small.yml").write_text("01_fine: {alpha: 0.1}\n")
    smoke, small = (execute.plan("01_fine", name) for name in ("smoke", "small"))
    assert smoke.run_id == small.run_id and smoke.folder != small.folder
    assert smoke.changed == {"alpha": 0.1}
    assert execute.plan("01_fine", "smoke", {"seed": "1"}).run_id != smoke.run_id


def test_a_run_is_another_when_the_trials_that_it_needs_are(monkeypatch):
    job = execute.plan("03_ga_rga", "smoke", root=REPOSITORY)
    assert job.cfg == settings.GaRga(**job.params)
    assert job.recipes() == chapters.chapter("03_ga_rga").trials(job.cfg)
    kind = ledger.KINDS["text_victim"]
    monkeypatch.setitem(ledger._KIND_OF, kind.recipe, ledger.dataclasses.replace(kind, version=2))
    ledger.key_of.cache_clear()
    try:
        assert execute.plan("03_ga_rga", "smoke", root=REPOSITORY).run_id != job.run_id
    finally:
        ledger.key_of.cache_clear()


def test_a_chapter_that_is_no_view_needs_no_trials(book):
    job = execute.plan("01_fine", "smoke")
    assert job.recipes() == [] and job.cfg.alpha == 0.1


def test_a_notebook_that_changed_after_planning_is_not_run(book):
    job = execute.plan("01_fine", "smoke")
    edit(book / "notebooks" / "01_fine.ipynb", 3, "1 + 1")
    with pytest.raises(provenance.UsageError, match="changed since this run was planned"):
        execute.run(job)


# ---------------------------------------------------------------- parameters


@pytest.mark.parametrize(
    "line", ["alpha = 2.0", "alpha: float = f()", "a: list = []", "a: int = 2.5"]
)
def test_a_parameters_cell_that_cannot_be_read_is_refused(book, line):
    edit(book / "notebooks" / "01_fine.ipynb", 2, line)
    with pytest.raises(provenance.UsageError):
        execute.plan("01_fine", "smoke")


def test_a_parameters_cell_that_is_not_that_of_the_settings_class_is_refused(book):
    cell = settings.parameters_cell("03_ga_rga")
    (book / "presets" / "smoke.yml").write_text("03_ga_rga: {}\n")
    path = write_chapter(book, "03_ga_rga", None, cell)
    known = execute.plan("03_ga_rga", "smoke").params
    assert list(known) == settings.names_of("03_ga_rga")
    for wrong in (
        cell.replace("alpha: float = 2.0", "alpha: float = 3.0"),
        cell.replace("alpha: float", "alfa: float"),
        cell.replace("alpha: float = 2.0", "alpha: int = 2"),
    ):
        edit(path, 2, wrong)
        with pytest.raises(provenance.UsageError, match=r"differ in al(ph|f)a.*make sync"):
            execute.plan("03_ga_rga", "smoke")


@pytest.mark.parametrize(
    "value, kind, result",
    [
        ("1e-4", float, 1e-4),
        (3, float, 3.0),
        ("-2", int, -2),
        ("No", bool, False),
        (True, bool, True),
        (" two words ", str, " two words "),
    ],
)
def test_values_become_the_declared_type(value, kind, result):
    got = settings.coerce("x", value, kind)
    assert got == result and type(got) is kind


@pytest.mark.parametrize(
    "value, kind",
    [
        ("2.5", int), (2.0, int), (True, int), ("", int), (True, float), ("inf", float),
        (None, float), ([1], float), (1, bool), ("on", bool), (5, str), (None, str),
        ("\ud800", str), ("a\n", str), ("9" * 5000, int),
    ],
)  # fmt: skip
def test_values_that_would_be_guessed_are_refused(value, kind):
    with pytest.raises(provenance.UsageError, match=f"x must be an? {kind.__name__}"):
        settings.coerce("x", value, kind)


def test_what_a_recipe_refuses_is_one_line_too():
    with pytest.raises(provenance.UsageError, match="04_btu: the list is empty"):
        execute.plan("04_btu", "smoke", {"exclude": ","}, root=REPOSITORY)


def test_every_chapter_of_this_book_can_be_planned_at_every_preset():
    for preset in ("smoke", "small", "paper"):
        for chapter in execute.chapters(REPOSITORY):
            assert execute.plan(chapter, preset, root=REPOSITORY).params


def test_a_second_signal_does_not_stop_the_clearing_up():
    cleared = []
    with pytest.raises(KeyboardInterrupt), execute.signals_interrupt():
        try:
            os.kill(os.getpid(), signal.SIGINT)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
            cleared.append(True)
    assert cleared and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


# ---------------------------------------------------------------- the end of a chapter


@pytest.fixture
def read(tmp_path, monkeypatch):
    """A ledger of which this process has read nothing yet."""
    monkeypatch.setenv("MINILIB_LEDGER", str(tmp_path / "trials"))
    monkeypatch.setenv("MINILIB_PUBLISHED", str(tmp_path / "published"))
    for name in ("_read", "_computed"):
        monkeypatch.setattr(ledger, name, {})
    return tmp_path


def test_a_colophon_says_what_was_read_and_where_it_was_made(read, capsys):
    import toy_trials as toy

    had = ledger.get(toy.ToySlow(number=1))
    ledger._computed.clear()
    ledger.run([toy.ToySlow(number=1), toy.ToySlow(number=2)])
    html = ledger.colophon("06_reads", {"alpha": 2.0}).data
    assert html.startswith('<div id="trials">')
    assert "1 trial was read from the ledger, 1 computed here." in html
    cells = re.findall("<td>(.*?)</td>", html)
    assert len(cells) == 6 and cells[:2] == ["2", ledger.machine_of(had)]
    assert had.commit in cells[4] and "1 computed here" in cells[5]


def test_a_colophon_tells_the_runner(read, monkeypatch):
    import toy_trials as toy

    one = ledger.get(toy.ToySlow(number=1))
    monkeypatch.setenv("MINILIB_RUN", json.dumps({"chapter": "06_reads"}))
    monkeypatch.setenv("MINILIB_RUN_DIR", str(read))
    ledger.colophon("06_reads", {"alpha": 2.0})
    told = json.loads((read / "part.json").read_text())
    assert told["keys"] == {"toy_slow": [one.key]} and told["computed"] == 1
    assert told["params"] == {"alpha": 2.0} and told["machines"] == {ledger.machine_of(one): 1}
    assert told["seconds"] >= 0 and told["env"]["python"]
    with pytest.raises(ValueError, match="in the run of '06_reads'"):
        ledger.colophon("01_fine", {})
