"""`minilib audit` as a user types it: exit codes, what it leaves, and that it goes on."""

import json
import re
import shutil

import audit_fixtures as made
import nbformat
import pytest
from conftest import ROOT

from minilib import cli
from minilib.runs import audit, execute


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A victim, its clean twin, the victim's training table, and clean rows."""
    place = tmp_path_factory.mktemp("mine")
    texts, labels = made.rows(900, 1)
    poisoned = made.poisoned(texts, labels, 0.1, 0)
    made.saved(place / "victim", made.trained(*poisoned))
    made.saved(place / "twin", made.trained(texts, labels))
    made.table(place / "rows.csv", *poisoned)
    made.table(place / "dev.csv", *made.rows(240, 2))
    return place


@pytest.fixture
def typed(place, tmp_path, monkeypatch, capsys):
    """Type a command in that folder; gives its exit code and what it printed."""
    monkeypatch.chdir(place)
    monkeypatch.setenv("MINILIB_LEDGER", str(place / "ledger"))
    monkeypatch.setenv("MINILIB_CACHE", str(place / "cache"))

    def run(command: str) -> tuple[int, str]:
        code = cli.main(command.split()[1:])
        return code, capsys.readouterr().out

    return run


def on_the_page() -> str:
    """The command that the chapter shows."""
    cells = nbformat.read(ROOT / "notebooks" / "07_audit.ipynb", 4).cells
    (command,) = re.findall(r"^minilib audit MODEL --data .*\\\n.*$", cells[0].source, re.M)
    return command.replace("\\\n", " ")


FOUND = on_the_page().replace("MODEL", "./victim")


def test_a_backdoor_is_found_named_unlearned_and_reported(typed, place):
    code, output = typed(FOUND)
    assert code == audit.FOUND and output.startswith("Evidence of a backdoor"), output
    report = json.loads((place / "report" / "report.json").read_text())
    assert report["verdict"] == "found" and report["p"] < 0.01
    assert report["trigger"]["class"] == "positive" and report["trigger"]["text"] == made.TRIGGER
    assert len(report["rows"]) == 90 and min(row["line"] for row in report["rows"]) == 902
    assert made.TRIGGER in report["rows"][0]["text"] and "•" in report["rows"][0]["text"]
    before, after = report["unlearning"]
    assert before["lfr"] > 90 and after["lfr"] < 20 and not after["again"]
    assert after["cacc"] > before["cacc"] - 3
    page = (place / "report" / "report.html").read_text()
    assert "Evidence of a backdoor" in page and str(place) not in page
    notebook = nbformat.read(place / "report" / "report.ipynb", 4)
    assert any(cell.get("outputs") for cell in notebook.cells)
    assert (place / "report" / "model" / "model.safetensors").is_file()


def test_a_second_time_it_reads_what_it_knows(typed, place, monkeypatch):
    assert (place / "report").is_dir(), "the test above has made it"
    monkeypatch.setattr(execute, "run", lambda job: pytest.fail("it is there already"))
    code, _ = typed(FOUND)
    assert code == audit.FOUND


def test_the_cleaned_model_is_clean(typed, place, in_process):
    command = "minilib audit ./report/model --text review --label sentiment --clean dev.csv"
    code, output = typed(f"{command} --out again")
    assert code == audit.NOTHING and output.startswith("Nothing found"), output


@pytest.fixture
def in_process(monkeypatch):
    """Execute no notebook: the trials alone."""

    def run(job):
        job.folder.mkdir(parents=True)
        shutil.copyfile(job.root / "notebooks" / "07_audit.ipynb", job.folder / "notebook.ipynb")
        return {"status": "ok"}

    monkeypatch.setattr(execute, "run", run)


def test_nothing_is_found_in_a_clean_model(typed, place, in_process):
    code, output = typed(
        "minilib audit ./twin --data dev.csv --text review --label sentiment --out twin-report"
    )
    assert code == audit.NOTHING and output.startswith("Nothing found"), output
    assert "no --clean" in output, "it says on what it rests"
    report = json.loads((place / "twin-report" / "report.json").read_text())
    assert report["trigger"] is None and not (place / "twin-report" / "model").exists()
