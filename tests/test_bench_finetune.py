"""Fine-tuning is timed against a Trainer that computes the same losses. No times."""

import json
from dataclasses import replace

import pytest

from bench import finetune as bench


@pytest.fixture(scope="module")
def case():
    return bench.cases("cpu", 1, quick=True)[0]


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    path = bench.main(tmp_path_factory.mktemp("bench"), "cpu", 1, None, quick=True)
    assert path.name == "finetune-cpu-quick.json"
    (found,) = json.loads(path.read_text(encoding="utf-8"))
    return found


def test_the_loops_compute_the_same_losses(record):
    equal = record["equal_losses"]
    assert 0 <= equal["largest_relative_difference"] <= equal["tolerance"] == 1e-4


def test_the_record_says_what_was_measured_on_what(record):
    assert record["case"]["rows"] == 80 and record["case"]["steps timed"] == 3
    assert set(record["hardware"]) == {"cpu", "cores", "threads", "gpu"}
    assert set(record["seconds"]) == set(bench.VARIANTS)
    assert set(record["ratios"]) == {
        f"{name} / minilib" for name in bench.VARIANTS if name != "minilib"
    }
    for one in record["seconds"].values():
        assert one["n"] == 1 and one["min"] > 0
    parts = record["limits"]["parts"]
    assert parts["a step of the optimiser, minilib"]["limit"] == "copy"
    same = ("3 steps, trainer best", "3 steps, minilib fp32")
    assert parts[same[0]]["flops"] == parts[same[1]]["flops"] > 0


def test_the_best_settings_leave_out_what_is_not_training(case, tmp_path):
    how = bench.arguments(case, str(tmp_path), 3, True, "bf16")
    assert how.bf16 and how.optim == "adamw_torch_fused" and not how.logging_nan_inf_filter
    assert how.logging_strategy == how.save_strategy == how.eval_strategy == "no"
    default = bench.arguments(case, str(tmp_path), 3, False, "bf16")
    assert not default.bf16 and default.per_device_train_batch_size == case.batch_size


def test_loops_that_differ_are_not_timed(case, monkeypatch):
    real = bench.ours
    monkeypatch.setattr(bench, "ours", lambda one, precision: real(replace(one, seed=1), precision))
    with pytest.raises(RuntimeError, match=r"losses differ by .* accepted: 1e-04"):
        bench.check(case)


def test_a_gpu_gets_an_encoder_of_the_size_that_the_question_names():
    found = bench.cases("cuda", 4, quick=True)
    assert [one.model for one in found] == ["tiny", bench.LARGE]
