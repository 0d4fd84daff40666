"""Benchmarks write records that say what was timed on what, and the page shows them. No times."""

import json
import subprocess

import benchmarks
import pytest
import torch

from bench import __main__ as command
from bench import book, btu, detection, finetune, sande, seeds, texts, timing
from bench.timing import Bench, Options
from minilib.detection import DETECTORS

QUICK = Options(quick=True)


@pytest.fixture(scope="module")
def measured():
    """A benchmark's records, made once each."""
    kept = {}

    def of(name: str) -> list[dict]:
        if name not in kept:  # as the file has them
            kept[name] = json.loads(json.dumps(command.records(name, QUICK)))
        return kept[name]

    return of


@pytest.mark.parametrize("name", command.NAMES)
def test_the_record_says_what_was_timed_on_what(name, measured):
    for record in measured(name):
        assert set(record["versions"]) == {"python", "torch", "transformers", "minilib"}
        assert set(record["hardware"]) == {"cpu", "cores", "threads", "gpu"}
        assert record["case"]["device"] == "cpu" and record["case"]["precision"]
        for one in record["ratios"].values():
            if isinstance(one, dict):
                assert one["n"] == len(one["values"]) == 1
        for part in record.get("limits", {}).get("parts", {}).values():
            most = record["limits"]["machine"][part["limit"]]
            assert part["share"] == pytest.approx(part["rate"] / most)
        text = benchmarks.table(record, name)
        assert all(label in text for label in record["ratios"] if "'" not in label)


def test_each_record_has_the_ratios_of_its_page(measured):
    (record,) = measured("rga")
    assert set(record["ratios"]) == {"plain / minilib", "plain / minilib fp32"}
    assert record["case"]["rows"] == 80
    (record,) = measured("btu")
    assert set(record["ratios"]) == set(btu.PARTS)
    records = measured("sande")
    assert [one["case"]["stage"] for one in records] == [1, 2, "answers"]
    assert not any("longest" in name for name in records[-1]["seconds"])
    flops = {name: part["flops"] for name, part in records[0]["limits"]["parts"].items()}
    assert flops["plain"] > flops["plain, to the longest"] > flops["minilib fp32"]
    (record,) = measured("bi_bau")
    assert record["ratios"]["epoch, the paper's"] == pytest.approx(1.357, abs=1e-3)
    assert len(record["images_per_second"]) == 3  # of a rehearsal: few steps are all steps
    (record,) = measured("detection")
    passes = {label.partition(",")[0] for label in record["ratios"] if "in passes" in label}
    assert passes == set(DETECTORS) - set(detection.LEFT_OUT)
    (record,) = measured("finetune")
    assert set(record["ratios"]) == {f"{name} / minilib" for name in finetune.VARIANTS[:-1]}
    parts = record["limits"]["parts"]
    assert parts[f"3 times {finetune.OPTIMISER}"]["limit"] == "copy"
    assert parts["3 steps, trainer best"]["flops"] == parts["3 steps, minilib fp32"]["flops"] > 0
    assert set(measured("seeds")[0]["ratios"]) == {f"{seeds.ALONE} / {seeds.STACKED}"}


def test_each_switch_is_left_out_once(monkeypatch):
    from bench import rga

    monkeypatch.setattr(rga, "SWITCHES", ("bucketed", "heap"))
    (bench,) = rga.benches(Options(quick=True, switches=True))
    on = "plain: bucketed heap"
    assert bench.switches == {"bucketed": ("plain: heap", on), "heap": ("plain: bucketed", on)}
    assert {on, "plain: heap", "minilib"} <= set(bench.names)


def test_the_best_settings_leave_out_what_is_not_training(tmp_path):
    case = texts.make_case(QUICK)
    how = finetune.arguments(case, str(tmp_path), 3, True, "bf16")
    assert how.bf16 and how.optim == "adamw_torch_fused" and not how.logging_nan_inf_filter
    assert how.logging_strategy == how.save_strategy == how.eval_strategy == "no"
    default = finetune.arguments(case, str(tmp_path), 3, False, "bf16")
    assert not default.bf16 and default.per_device_train_batch_size == case.batch_size


def test_cases_are_those_of_the_question(monkeypatch):
    monkeypatch.delenv("MINILIB_DATA", raising=False)
    case = texts.make_case(Options())
    assert (len(case.forget), len(case.retain)) == (331, 6920)
    assert (case.model, case.source) == ("minilm", "toy-reviews, repeated")
    assert sande.make_case(1, Options(), 1024).max_length == 1024


def counting(name: str):
    """A loop that can be sent to another process, whose step is a product of known size."""
    a = torch.ones(3, 5)
    return lambda steps: [a @ torch.ones(5, 7) for _ in range(steps)]


def test_a_loop_in_a_process_of_its_own_tells_time_memory_and_work():
    bench = Bench("toy", {}, counting, {"a / b": ("a", "b")}, {"a, alone": "a"}, steps=4, less=1,
                  memory=True)  # fmt: skip
    record = timing.measure(bench, Options(repeats=2))
    assert record["ratios"]["a / b"]["n"] == 2
    assert record["seconds"]["a"]["peak_mib_over_start"] >= 0
    assert record["limits"]["parts"]["a, alone"]["flops"] == 4 * 2 * 3 * 5 * 7


# ------------------------------------------------------------------------ work and limits


def work(call) -> int:
    return timing.Loop(lambda name: lambda steps: call(), "", None, 0, QUICK).work()


def test_a_product_has_two_flops_per_multiplication():
    a, b = torch.ones(3, 5), torch.ones(5, 7, requires_grad=True)
    assert work(lambda: a @ b) == 2 * 3 * 5 * 7
    # and the gradient of b
    assert work(lambda: (a @ b).sum().backward()) == 2 * (2 * 3 * 5 * 7)


def test_attention_is_counted_whichever_kernel_computes_it():
    attend = torch.nn.functional.scaled_dot_product_attention
    q = torch.randn(2, 3, 8, 16, requires_grad=True)
    forward = 2 * 2 * (2 * 3 * 8 * 8 * 16)  # two products
    assert work(lambda: attend(q, q, q)) == forward
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        assert work(lambda: attend(q, q, q)) == forward
    assert work(lambda: attend(q, q, q).sum().backward()) == forward * 7 // 2


def test_a_part_stands_beside_the_limit_of_its_work():
    machine = {"fp32": 100.0, "bf16": 200.0, "copy": 10.0}
    part = timing.part(machine, 2.0, "bf16", flops=50, moved=0)
    assert part == {"flops": 50, "limit": "bf16", "seconds": 2.0, "rate": 25.0, "share": 0.125}
    moved = timing.part(machine, 2.0, "bf16", flops=0, moved=10)
    assert (moved["limit"], moved["share"]) == ("copy", 0.5)


# ------------------------------------------------------------------------ the book, the command


def test_the_books_record_and_what_fails(tmp_path, monkeypatch):
    monkeypatch.setattr(book, "PARTS", {"HTML only": book.BUILD})
    (record,) = book.records(QUICK)
    assert set(record["seconds"]) == set(record["whole_seconds"]) == {"HTML only"}
    assert "<td>HTML only</td>" in benchmarks.table(record, "book")
    with pytest.raises(subprocess.CalledProcessError):
        book.seconds(("-c", "raise SystemExit(3)"), tmp_path)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--repeats", "0"], "--repeats: it is 0; accepted: 1 or more"),
        (["--threads", "0"], "--threads: it is 0; accepted: 1 or more"),
        (["--device", "tpu"], "invalid choice: 'tpu'"),
        (["nothing"], "no benchmark nothing; accepted: rga"),
    ],
)
def test_bad_options_are_refused(words, message, capsys):
    with pytest.raises(SystemExit) as ended:
        command.main(words)
    assert ended.value.code == 2 and message in capsys.readouterr().err


def test_a_rehearsal_is_written_apart_and_summed_up(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "records", lambda name, how: [
        timing.record("toy: x", how, {}, ratios={"plain / minilib": timing.spread([6.0])})
    ])  # fmt: skip
    command.main(["rga", "--quick", "--threads", "1", "--out", str(tmp_path)])
    assert (tmp_path / "rga-cpu-quick.json").is_file()
    assert "6.00      ≥ 5  yes" in capsys.readouterr().out
