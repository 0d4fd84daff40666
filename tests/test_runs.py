"""Identity of runs, records and reading them back; no kernel is started here."""

import dataclasses
import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest
from fixture_book import edit, make_book

from minilib import runner, runs
from minilib.fingerprint import fingerprint

REPOSITORY = runs.PACKAGE.parent
LIBRARY = {
    "__init__.py": "__version__ = '0'\nstarted = None\ndef hello(): pass\n",
    "settings.py": "class Fine:\n    '''Doc.'''\n    alpha = 2.0\n\nclass Other:\n    beta = 1\n",
    "core.py": (
        "from .deep import inner as renamed\n"
        "TABLE = {'a': renamed}\n"
        "def experiment(x):\n    '''Doc.'''\n    # why\n    x.eval()\n    return TABLE['a'](x)\n"
        "def unused():\n    return 1\n"
    ),
    "deep.py": "def inner(x):\n    return x\ndef spare(x):\n    return -x\n",
    "plots.py": "def figure(): pass\n",
}


@pytest.fixture
def book(tmp_path, monkeypatch):
    """A book with a library of its own, of which one chapter uses a part."""
    root = make_book(tmp_path / "book")
    (root / "minilib").mkdir()
    for name, text in LIBRARY.items():
        (root / "minilib" / name).write_text(text)
    edit(
        root / "notebooks" / "01_fine.ipynb",
        3,
        "from minilib import core\nfrom minilib.settings import Fine\n%time core.experiment(Fine)",
    )
    monkeypatch.chdir(root)
    return root


# ---------------------------------------------------------------- fingerprint


@pytest.mark.parametrize(
    "file, old, new, changes",
    [
        ("core.py", "Doc.", "Better words.", False),
        ("core.py", "# why", "# because", False),
        ("core.py", "return 1", "return 2", False),  # unused by the chapter
        ("core.py", "TABLE['a'](x)", "TABLE['a'](x) + 1", True),
        ("core.py", "{'a': renamed}", "{'a': renamed, 'b': 1}", True),
        ("deep.py", "return x", "return 2 * x", True),  # reached through a table and an alias
        ("deep.py", "return -x", "return +x", False),
        ("settings.py", "beta = 1", "beta = 2", False),  # another chapter's
        ("settings.py", "alpha = 2.0", "alpha = 3.0", True),
        ("plots.py", "pass", "return 1", False),
    ],
)
def test_a_fingerprint_follows_what_a_chapter_can_reach(book, file, old, new, changes):
    before = fingerprint(book, "01_fine")
    path = book / "minilib" / file
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    assert (fingerprint(book, "01_fine") != before) == changes


def test_a_new_module_that_a_chapter_does_not_reach_changes_nothing(book):
    before = fingerprint(book, "01_fine")
    elsewhere = "from . import core, deep\n\n\ndef unheard_of(x):\n    return core.TABLE[x]\n"
    (book / "minilib" / "elsewhere.py").write_text(elsewhere)
    assert fingerprint(book, "01_fine") == before


@pytest.mark.parametrize(
    "code, changes",
    [
        ("from . import deep\ndef experiment(x): return deep.spare(x)", True),
        ("from . import deep as below\ndef experiment(x): return below.spare(x)", True),
        ("import minilib.deep\ndef experiment(x): return minilib.deep.spare(x)", True),
        ("from .deep import *\ndef experiment(x): return spare(x)", True),
        (
            "try:\n    from .deep import spare\nfinally:\n    pass\n"
            "def experiment(x): return spare(x)",
            True,
        ),
        ("def experiment(x):\n    from .deep import spare as s\n    return s(x)", True),
        ("def experiment(x):\n    from . import deep\n    return getattr(deep, x)", True),
        ("def experiment(x): return globals()[x]", True),
        ("from . import deep\ndef experiment(x): return deep.inner(x)", False),
        ("from . import deep\ndef experiment(x): return deep.inner(x).spare", False),
        ("def experiment(x): return x.spare() + x.spare.inner", False),
        ("def experiment(x): return 'spare', getattr(x, x.name)", False),
    ],
)
def test_a_fingerprint_follows_every_way_to_a_definition(book, code, changes):
    (book / "minilib" / "core.py").write_text(code + "\n")
    before = fingerprint(book, "01_fine")
    deep = book / "minilib" / "deep.py"
    deep.write_text(deep.read_text().replace("return -x", "return +x"))
    assert (fingerprint(book, "01_fine") != before) == changes


def test_what_an_imported_module_does_on_import_counts(book):
    before = fingerprint(book, "01_fine")
    deep = book / "minilib" / "deep.py"
    deep.write_text(deep.read_text() + "\nprint('a side effect')\n")
    assert fingerprint(book, "01_fine") != before


def test_cells_that_cannot_be_read_keep_everything(book):
    edit(book / "notebooks" / "01_fine.ipynb", 3, "!ls | wc\n!pip install a b")
    before = fingerprint(book, "01_fine")
    (book / "minilib" / "settings.py").write_text("")
    assert fingerprint(book, "01_fine") != before


def test_cells_count_but_prose_and_bootstrap_do_not(book):
    notebook = book / "notebooks" / "01_fine.ipynb"
    before = fingerprint(book, "01_fine")
    edit(notebook, 0, "# Better prose")
    edit(notebook, 1, "import os  # the repository moved")
    assert fingerprint(book, "01_fine") == before
    edit(notebook, 3, "from minilib import core")
    assert fingerprint(book, "01_fine") != before


def test_the_preset_is_not_part_of_a_runs_identity(book):
    (book / "presets" / "small.yml").write_text("01_fine: {alpha: 0.1}\n")
    smoke, small = (runner.plan("01_fine", name) for name in ("smoke", "small"))
    assert smoke.run_id == small.run_id and smoke.folder != small.folder
    assert smoke.changed == {"alpha": 0.1}
    assert runner.plan("01_fine", "smoke", {"seed": "1"}).run_id != smoke.run_id


def test_code_that_changed_after_planning_is_not_run(book):
    job = runner.plan("01_fine", "smoke")
    edit(book / "notebooks" / "01_fine.ipynb", 3, "1 + 1")
    with pytest.raises(runs.UsageError, match="changed since this run was planned"):
        runner.run(job)


def test_what_a_killed_run_left_is_removed_but_not_what_a_living_one_writes(book):
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    for pid in (process.pid, os.getpid()):
        (book / f"{runner._part()}{pid}").mkdir()
    runner._sweep_up(book)
    assert [path.name for path in book.glob(".part-*")] == [f"{runner._part()}{os.getpid()}"]


# ---------------------------------------------------------------- parameters


@pytest.mark.parametrize(
    "line", ["alpha = 2.0", "alpha: float = f()", "a: list = []", "a: int = 2.5"]
)
def test_a_parameters_cell_that_cannot_be_read_is_refused(book, line):
    edit(book / "notebooks" / "01_fine.ipynb", 2, line)
    with pytest.raises(runs.UsageError):
        runner.plan("01_fine", "smoke")


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
    got = runner.coerce("x", value, kind)
    assert got == result and type(got) is kind


@pytest.mark.parametrize(
    "value, kind",
    [
        ("2.5", int), (2.0, int), (True, int), ("", int), (True, float), ("inf", float),
        (None, float), ([1], float), (1, bool), ("on", bool), (5, str), (None, str),
    ],
)  # fmt: skip
def test_values_that_would_be_guessed_are_refused(value, kind):
    with pytest.raises(runs.UsageError, match=f"x must be an? {kind.__name__}"):
        runner.coerce("x", value, kind)


def test_every_chapter_of_this_book_can_be_planned_at_every_preset():
    for preset in ("smoke", "small", "paper"):
        for chapter in runner.chapters(REPOSITORY):
            assert runner.plan(chapter, preset, root=REPOSITORY).params


# ---------------------------------------------------------------- records


@dataclasses.dataclass(frozen=True)
class Settings:
    alpha: float = 2.0
    seed: int = 0


def test_a_notebook_run_by_hand_records_itself(book):
    metrics = [{"loss": np.float32(0.5), "worst": math.nan, "epoch": np.int64(3), "method": "ga"}]
    made = runs.record("01_fine", Settings(), metrics, [{"name": "toy", "rows": 2}])
    path = book / "runs" / "manual" / "01_fine" / made["run_id"] / "run.json"
    assert json.loads(path.read_text()) == made
    assert made["metrics"] == [{"loss": 0.5, "worst": None, "epoch": 3, "method": "ga"}]
    assert made["params"] == {"alpha": 2.0, "seed": 0}
    assert {"device", "cpu", "torch", "numpy", "python", "commit"} <= made["env"].keys()
    assert not list(path.parent.glob(".*")), "a half-written file was left"
    # By hand is not the book's: such runs are read only when asked for.
    assert runs.load("01_fine").empty
    assert len(runs.load("01_fine", preset="manual")) == 1


@pytest.mark.parametrize("bad", [{"x": object()}, {"x": [1]}, {"x": np.zeros(2)}])
def test_a_record_holds_flat_rows_of_numbers_and_texts(book, bad):
    with pytest.raises(TypeError):
        runs.record("01_fine", {}, [bad], [])


def test_a_record_of_another_chapter_is_refused(book, monkeypatch):
    monkeypatch.setenv("MINILIB_RUN", json.dumps({"chapter": "02_fails"}))
    with pytest.raises(ValueError, match="in the run of '02_fails'"):
        runs.record("01_fine", {}, [{"x": 1.0}], [])


def put(place, run_id, finished, status="ok", preset="small", chapter="01_fine", **params):
    """A record as the runner would leave it."""
    runs.write_json(
        place,
        {
            "run_id": run_id, "chapter": chapter, "preset": preset, "status": status,
            "params": {"alpha": 2.0, **params}, "env": {"device": "cpu"}, "finished": finished,
            "metrics": [{"method": "rga", "cacc": float(len(finished) + params["seed"])}] * 1,
        },
    )  # fmt: skip


def test_load_and_table(book):
    local, results = book / "runs" / "small" / "01_fine", book / "results" / "01_fine"
    put(results / "a.json", "a", "2026-01-01", seed=0)
    put(local / "a" / "run.json", "a", "2026-01-01", seed=0)  # the same run twice
    put(results / "b.json", "b", "2026-01-01", seed=1)
    put(local / "c" / "run.json", "c", "2026-01-02+", seed=1)  # made again with newer code
    put(local / "d" / "run.json", "d", "2026-01-03", status="failed", seed=2)
    put(results / "e.json", "e", "2026-01-01", chapter="02_fails", seed=0)
    (local / "f").mkdir()
    (local / "f" / "run.json").write_text('{"run_id": "f", "stat')

    frame = runs.load("01_fine", "small")
    assert sorted(frame["run_id"]) == ["a", "c"]
    assert {"preset", "chapter", "seed", "alpha", "method", "cacc", "env_device"} <= set(frame)
    assert list(runs.load("01_fine", seed=1)["run_id"]) == ["c"]
    assert len(runs.load()) == 3 and runs.load("01_fine", "paper").empty

    row = runs.summary(frame, by=["method"], values=["cacc"]).loc["rga", "cacc"]
    assert (row["mean"], row["n"]) == (11.0, 2)  # 10 + seed 0, 11 + seed 1, hence mean 11
    assert row["std"] == pytest.approx(math.sqrt(2))
