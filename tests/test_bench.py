"""The benchmark runs, compares loops that compute the same, and writes what it says. No times."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench import rga as bench

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def case():
    return bench.make_case("cpu", threads=torch.get_num_threads(), quick=True)


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    path = bench.main(tmp_path_factory.mktemp("bench"), "cpu", 1, None, quick=True, switches=True)
    assert path.name == "rga-cpu-quick.json"
    return json.loads(path.read_text(encoding="utf-8"))


def test_the_loops_compute_the_same_losses(record):
    equal = record["equal_losses"]
    assert equal["steps"] == 3
    assert 0 <= equal["largest_relative_difference"] <= equal["tolerance"] == 1e-4


def test_the_record_says_what_was_measured_on_what(record):
    assert record["case"]["forget_rows"] == 20 and record["case"]["retain_rows"] == 60
    assert record["case"]["device"] == "cpu" and record["case"]["steps"] == 3
    assert set(record["versions"]) == {"python", "torch", "transformers", "minilib"}
    assert set(record["hardware"]) == {"cpu", "cores", "threads", "gpu"}
    assert set(record["seconds"]) == {"plain", "minilib", "minilib fp32"}
    for spread in record["seconds"].values():
        assert spread["n"] == len(spread["values"]) == 1
        assert 0 < spread["min"] <= spread["median"] <= spread["max"]
        assert spread["setup_seconds"] >= 0
    for ratio in record["ratios"].values():
        assert (ratio["median"] if isinstance(ratio, dict) else ratio) > 0


def test_each_switch_is_left_out_once(record):
    usable = {name for name in bench.SWITCHES if bench.switchable(name, "cpu")}
    assert set(record["switches"]) == usable >= {"tokenise_once", "bucketed", "sdpa"}
    for value in record["switches"].values():
        assert set(value) == {"all on", "left out", "slowdown"}


@pytest.mark.parametrize("name", bench.SWITCHES)
def test_no_switch_changes_what_is_computed(case, name):
    """bf16 rounds; every other switch leaves the four terms of each step as they were."""
    still = bench.replace(case, dropout=False)
    logs = [bench.make(still, on)[0](2)[1] for on in (bench.PLAIN, frozenset({name}))]
    assert len(logs[0]) == 2
    assert bench.difference(*logs) < (1e-2 if name == "bf16" else 1e-4)


def test_loops_that_differ_are_not_timed(case, monkeypatch):
    real = bench.ours

    def other(*arguments):
        monkeypatch.setattr(bench, "LR", 5e-3)
        return real(*arguments)

    monkeypatch.setattr(bench, "ours", other)
    with pytest.raises(RuntimeError, match=r"losses differ by .* accepted: 1e-04"):
        bench.check_losses(case)


def test_a_loop_in_a_process_of_its_own(case):
    found = bench.alternate(case, {"minilib": "minilib"}, repeats=2, warm_steps=1)
    assert found["minilib"]["n"] == 2 and found["minilib"]["min"] > 0


def test_without_real_data_the_counts_are_the_real_ones(monkeypatch):
    monkeypatch.delenv("MINILIB_DATA", raising=False)
    case = bench.make_case("cpu", threads=1, quick=False)
    assert (len(case.forget), len(case.retain)) == (331, 6920)
    assert case.model == "minilm" and case.source == "toy-reviews, repeated"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--repeats", "0"], "--repeats is 0; accepted: 1 or more"),
        (["--device", "tpu"], "invalid choice: 'tpu'"),
    ],
)
def test_bad_options_are_refused(words, message):
    command = [sys.executable, "-m", "bench", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and message in done.stderr
