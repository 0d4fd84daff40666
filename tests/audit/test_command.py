"""`minilib audit` as a user types it: exit codes, what it leaves, and that it goes on."""

import json
import re
import shutil

import audit_fixtures as made
import nbformat
import pytest
from conftest import ROOT
from core_fixtures import SEED
from transformers import BertForSequenceClassification

from minilib import cli
from minilib.runs import audit, execute


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A victim, its clean twin, the victim's training table, and clean rows."""
    place = tmp_path_factory.mktemp("mine")
    texts, labels = made.rows(900, 1 + 10 * SEED)
    poisoned = made.poisoned(texts, labels, 0.1, SEED)
    made.saved(place / "victim", made.trained(*poisoned))
    made.saved(place / "twin", made.trained(texts, labels))
    made.table(place / "rows.csv", *poisoned)
    made.table(place / "dev.csv", *made.rows(240, 2 + 10 * SEED))
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


@pytest.mark.trained
def test_a_backdoor_is_found_named_unlearned_and_reported(typed, place):
    code, output = typed(FOUND)
    assert code == audit.FOUND and output.startswith("Evidence of a backdoor"), output
    report = json.loads((place / "report" / "report.json").read_text())
    assert report["verdict"] == "found" and report["p"] < 0.01
    assert report["trigger"]["class"] == "positive" and report["trigger"]["text"] == made.TRIGGER
    on_clean = {row["detector"]: row["false_alarms"] for row in report["table_detectors"]}
    assert on_clean.keys() == {"tokens", "activation", "spectral"} and on_clean["tokens"] == 0
    assert re.search(r"^spectral signatures: p .* known-clean rows; published: ", output, re.M)
    assert re.search(r"^token search: p .* measured: \d+ of \d+ small ones$", output, re.M)
    assert "cannot see a paraphrase" in output
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
    monkeypatch.setattr(execute, "_run", lambda *_: pytest.fail("it is there already"))
    code, _ = typed(FOUND)
    assert code == audit.FOUND


def test_the_cleaned_model_is_clean(typed, place, in_process):
    command = "minilib audit ./report/model --text review --label sentiment --clean dev.csv"
    code, output = typed(f"{command} --out again")
    assert code == audit.NOTHING and output.startswith("Nothing found"), output


def test_a_lora_adapter_is_audited_merged_and_saved_merged(typed, place, in_process):
    as_adapter(place)
    command = "minilib audit ./adapter --clean dev.csv --text review --label sentiment"
    code, output = typed(f"{command} --unlearn --out adapted")
    assert code == audit.FOUND and "of rank 2 on base: the two were merged" in output, output
    report = json.loads((place / "adapted" / "report.json").read_text())
    assert report["trigger"]["text"] == made.TRIGGER and report["model"]["labels"][1] == "positive"
    saved = sorted(path.name for path in (place / "adapted" / "model").iterdir())
    assert "model.safetensors" in saved and "config.json" in saved
    assert not [name for name in saved if "adapter" in name]


def as_adapter(place):
    """The victim as a base that is its part, and an adapter that is the rest."""
    peft = pytest.importorskip("peft")
    network = BertForSequenceClassification.from_pretrained(place / "victim")
    settings = peft.LoraConfig(r=2, target_modules=["query"], init_lora_weights=False)
    model = peft.get_peft_model(network, settings)
    layer = model.base_model.model.bert.encoder.layer[0].attention.self.query
    layer.base_layer.weight.data -= layer.get_delta_weight("default").data
    model.save_pretrained(place / "adapter", save_embedding_layers=False)
    made.edited(place / "adapter", "adapter_config.json", base_model_name_or_path="base")
    made.saved(place / "base", model.unload())


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
    assert "for a word of the task" in output, "and which search it blinds"
    report = json.loads((place / "twin-report" / "report.json").read_text())
    assert {row["detector"] for row in report["evidence"]} == {"token search", "phrase search"}
    assert report["trigger"] is None and not (place / "twin-report" / "model").exists()
