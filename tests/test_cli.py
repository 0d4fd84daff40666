"""The `minilib` command as a user meets it: exit codes, one clear line, nothing done twice."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fixture_book import RECORD, edit, make_book, write_chapter

from minilib import cli, runner

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture
def book(tmp_path, monkeypatch):
    root = make_book(tmp_path / "book")
    monkeypatch.chdir(root)
    return root


@pytest.fixture
def no_kernel(monkeypatch):
    def start(job):
        raise AssertionError("a kernel was about to start")

    monkeypatch.setattr(runner, "run", start)


def call(capsys, line: str) -> tuple[int, str, str]:
    """Exit code, stdout, stderr of one command."""
    capsys.readouterr()
    code = cli.main(line.split())
    return code, *capsys.readouterr()


def record(root: Path, chapter: str) -> dict:
    """The only run record of a chapter."""
    (path,) = root.glob(f"runs/smoke/{chapter}/*/run.json")
    return json.loads(path.read_text())


def environment() -> dict:
    paths = filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")])
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


# ---------------------------------------------------------------- refused before a kernel starts


@pytest.mark.parametrize(
    "line, says",
    [
        ("run 01_fine --preset smoke -p alhpa=1", "no parameter 'alhpa'; it has alpha, seed"),
        ("run 01_fine --preset smoke -p seed=2.5", "seed must be an int, not '2.5'"),
        ("run 01_fine --preset smoke -p alpha=fast", "alpha must be a float, not 'fast'"),
        ("run 01_fine --preset smoke -p alpha=nan", "alpha must be a float, not 'nan'"),
        ("run 01_fine --preset smoke -p deep=maybe", "deep must be a bool (true/false"),
        ("run 01_fine --preset smoke -p alpha", "-p takes NAME=VALUE, not 'alpha'"),
        ("run 01_fine --preset tiny", "no preset 'tiny'; presets are smoke"),
        ("run 09_none --preset smoke", "no chapter '09_none'; chapters are 01_fine, 02_fails"),
        ("run --preset smoke", "name one chapter or give --all"),
        ("run --all --preset smoke -p seed=1", "-p sets the parameters of one chapter"),
        (
            "publish --preset smoke 01_fine",
            "no smoke run with these parameters; minilib run 01_fine",
        ),
        ("sweep none.yml", "cannot read the sweep none.yml"),
    ],
)
def test_a_request_that_cannot_be_met_is_one_line_and_2(book, capsys, no_kernel, line, says):
    code, out, err = call(capsys, line)
    assert (code, out) == (2, "")
    assert err.startswith("minilib: ") and err.count("\n") == 1
    assert says in err


def test_a_value_out_of_the_chapters_range_is_refused(book, capsys, no_kernel):
    write_chapter(book, "03_ga_rga", None, "alpha: float = 2.0\nseed: int = 0\n")
    (book / "presets" / "smoke.yml").write_text("03_ga_rga: {}\n")
    code, _, err = call(capsys, "run 03_ga_rga --preset smoke -p alpha=-1")
    assert code == 2 and err.count("\n") == 1
    assert "alpha" in err and "-1" in err


def test_a_chapter_missing_from_a_preset_is_refused(book, capsys, no_kernel):
    write_chapter(book, "06_new", None)
    code, _, err = call(capsys, "run 06_new --preset smoke")
    assert code == 2 and "has no entry for 06_new" in err


@pytest.mark.parametrize(
    "text, says",
    [
        ("grid: {alhpa: [1]}", "no parameter 'alhpa'"),
        ("grid: {}", "at least one value"),
        ("grid: {alpha: []}", "at least one value"),
        ("grid: {alpha: [1, 1.0]}", "two runs are equal"),
        ("list: [{alpha: 1}]\nseeds: [1, 1]", "two runs are equal"),
        ("grid: {alpha: [1]}\nlist: [{alpha: 1}]", "a grid or a list, not both"),
        ("gird: {alpha: [1]}", "unknown entry 'gird'"),
        ("seeds: []", "at least one number"),
        ("base: 3", "base must map"),
        ("grid: {alpha: [1", "is not YAML"),
    ],
)
def test_a_bad_sweep_is_refused_before_anything_runs(book, capsys, no_kernel, text, says):
    (book / "s.yml").write_text(f"chapter: 01_fine\npreset: smoke\n{text}\n")
    code, out, err = call(capsys, "sweep s.yml")
    assert (code, out) == (2, "")
    assert err.count("\n") == 1 and says in err


def test_help_loads_nothing_heavy():
    program = (
        "import sys\nfrom minilib import cli\n"
        "try:\n    cli.main(['--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'papermill', 'pandas', 'pydantic', 'numpy', 'yaml'} & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "publish" in done.stdout


# ---------------------------------------------------------------- runs in a real kernel


def test_a_run_is_made_once(book, capsys):
    code, out, _ = call(capsys, "run 01_fine --preset smoke -p seed=3 -p deep=yes")
    assert code == 0 and "ok in" in out
    made = record(book, "01_fine")
    assert made["status"] == "ok"
    assert made["params"] == {"alpha": 0.1, "seed": 3, "deep": True, "method": "rga"}
    assert made["metrics"] == [{"method": "rga", "epoch": 1, "cacc": 83.1}]
    assert made["seconds"] > 0 and made["peak_mib"] > 0
    folder = next(book.glob("runs/smoke/01_fine/*"))
    assert folder.name == made["run_id"]
    assert sorted(path.name for path in folder.iterdir()) == ["notebook.ipynb", "run.json"]
    # Nothing of this machine's folders, nor papermill's timings.
    text = (folder / "notebook.ipynb").read_text() + (folder / "run.json").read_text()
    assert str(book) not in text and sys.prefix not in text and '"papermill"' not in text
    assert "injected-parameters" in text

    # The same request, written differently, is the same run; a truncated record is no run.
    code, out, _ = call(capsys, "run 01_fine --preset smoke -p seed=3 -p deep=1 -p alpha=0.10")
    assert code == 0 and "exists" in out
    path = folder / "run.json"
    path.write_text(path.read_text()[:100])
    code, out, _ = call(capsys, "run 01_fine --preset smoke -p seed=3 -p deep=yes")
    assert code == 0 and "ok in" in out
    assert record(book, "01_fine")["metrics"] == made["metrics"]


def test_a_failed_cell_leaves_its_notebook_and_a_failed_record(book, capsys):
    code, out, err = call(capsys, "run 02_fails --preset smoke -p seed=1")
    assert code == 1 and "ZeroDivisionError: division by zero (cell 3)" in err
    made = record(book, "02_fails")
    assert (made["status"], made["cell"], made["metrics"]) == ("failed", 3, [])
    assert made["error"] == "ZeroDivisionError: division by zero"
    text = next(book.glob("runs/smoke/02_fails/*/notebook.ipynb")).read_text()
    assert "ZeroDivisionError" in text and "before" in text
    code, _, err = call(capsys, "publish --preset smoke 02_fails -p seed=1")
    assert code == 2 and "has status failed" in err


def test_a_missing_data_set_is_the_users_to_mend(book, capsys):
    code, _, err = call(capsys, "run 03_no_data --preset smoke")
    assert code == 2 and "DataError: no sst2; set MINILIB_DATA" in err and err.count("\n") == 1
    assert record(book, "03_no_data")["status"] == "failed"


def test_a_notebook_that_ignores_its_parameters_has_failed(book, capsys):
    code, _, err = call(capsys, "run 05_forgets --preset smoke")
    assert code == 1 and "recorded alpha=7.0 but was given 2.0" in err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_sweep_stops_and_says_how_to_go_on(book, number):
    (book / "s.yml").write_text("chapter: 04_slow\npreset: smoke\nseeds: [0, 1]\n")
    process = subprocess.Popen(
        [sys.executable, "-m", "minilib.cli", "sweep", "s.yml"],
        env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while not (book / "started").exists() and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(number)
    _, err = process.communicate()
    assert process.returncode == 130, err
    assert "stopped after 0 of 2; go on with: minilib sweep s.yml" in err
    assert record(book, "04_slow")["status"] == "interrupted"


def test_a_sweep_goes_past_a_failure_and_resumes(book, capsys):
    (book / "s.yml").write_text("chapter: 02_fails\npreset: smoke\nseeds: [1, 2]\n")
    code, out, _ = call(capsys, "sweep s.yml --dry-run")
    assert code == 0 and out.count("to run") == 2 and not (book / "runs").exists()
    code, out, err = call(capsys, "sweep s.yml")
    assert code == 1 and "1 ok, 1 failed, 0 skipped" in out
    assert "[1/2]" in err and "ZeroDivisionError" in err
    edit(book / "notebooks" / "02_fails.ipynb", 0, "# Only the prose changed")
    code, out, _ = call(capsys, "sweep s.yml")
    assert code == 1 and "0 ok, 1 failed, 1 skipped" in out


def test_publishing(book, capsys):
    assert call(capsys, "run 01_fine --preset smoke")[0] == 0
    assert call(capsys, "run 01_fine --preset smoke -p seed=1")[0] == 0
    code, out, _ = call(capsys, "publish --preset smoke 01_fine")
    assert code == 0 and "2 record(s)" in out and "first publication" in out
    page = book / "book" / "_executed" / "01_fine.ipynb"
    shown = json.loads(page.read_text())["metadata"]["minilib"]["run_id"]
    results = book / "results" / "01_fine"
    old = {path.stem for path in results.iterdir()}
    assert shown in old and len(old) == 2
    assert call(capsys, "publish --preset smoke 01_fine")[1].endswith("no number changed\n")

    code, out, err = call(capsys, "latest --preset smoke")
    assert code == 0 and "02_fails has no current smoke run" in err
    chapter, path = out.strip().split("\t")
    assert chapter == "01_fine" and Path(path).read_bytes() == page.read_bytes()

    # Other code: the run that exists is stale, and nothing published is touched.
    notebook = book / "notebooks" / "01_fine.ipynb"
    edit(notebook, 3, "alpha_shown = alpha + 1")
    before = page.read_bytes()
    code, _, err = call(capsys, "publish --preset smoke 01_fine")
    assert code == 2 and "is stale" in err and page.read_bytes() == before
    assert call(capsys, "latest --preset smoke 01_fine")[1] == ""

    edit(notebook, 4, RECORD.replace("CHAPTER", "'01_fine'").replace("80.0", "81.0"))
    assert call(capsys, "run 01_fine --preset smoke")[0] == 0
    code, out, _ = call(capsys, "publish --preset smoke 01_fine --prune")
    assert code == 0 and "cacc" in out and "80.1" in out and "81.1" in out
    assert len(list(results.iterdir())) == 1 and page.read_bytes() != before


def test_all_chapters_run_past_a_failed_one(book, capsys):
    for name in ("03_no_data", "04_slow", "05_forgets"):
        (book / "notebooks" / f"{name}.ipynb").unlink()
    write_chapter(book, "02_fails", "1 / 0")
    write_chapter(book, "03_fine", None)
    with (book / "presets" / "smoke.yml").open("a") as presets:
        presets.write("03_fine: {}\n")
    code, out, err = call(capsys, "run --all --preset smoke")
    assert code == 1 and out.count("ok in") == 2 and "02_fails" in err
    assert call(capsys, "latest --preset smoke")[1].count("\n") == 2
