"""Benchmarks write records that say what was timed on what, and the page shows them. No times."""

import json
import pickle
import time
from types import SimpleNamespace

import benchmarks
import numpy as np
import pytest
import torch
import toy_loop
from plain import btu, texts, trainer

from bench import __main__ as command
from bench import loops, timing
from bench.timing import Bench, Options
from minilib.detection import DETECTORS

QUICK = Options(quick=True)


@pytest.fixture(scope="module")
def measured():
    """A benchmark's records, made once each; every loop is run once, without a warm-up.

    Detectors have tests of their own, where they take their time; here all but one are handed what
    they would judge.
    """
    kept = {}

    def once(work, *arguments, **how) -> list[float]:
        started = time.perf_counter()
        work(*arguments)
        return [time.perf_counter() - started]

    def verdict(victim, rows, known) -> SimpleNamespace:
        assert len(known.states) == len(rows)
        return SimpleNamespace(mask=np.zeros(len(rows), bool))

    judges = dict.fromkeys(DETECTORS, verdict) | {"spectral": DETECTORS["spectral"]}

    def of(name: str) -> list[dict]:
        if name not in kept:  # as the file has them
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(timing, "seconds_of", once)
                patch.setattr(texts.detection, "DETECTORS", judges)
                patch.setattr(texts.detection, "detect_cube", verdict)
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
            assert one["n"] == len(one["values"]) == 1
        for part in record["limits"]["parts"].values():
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
    assert sum("epoch, bi-bau to" in label for label in record["ratios"]) == 2
    (record,) = measured("detection")
    passes = {label.partition(",")[0] for label in record["ratios"] if "in passes" in label}
    assert passes == set(DETECTORS) - {"cube-code"}
    (record,) = measured("finetune")
    assert set(record["ratios"]) == {f"{name} / minilib" for name in trainer.VARIANTS[:-1]}
    parts = record["limits"]["parts"]
    assert parts[f"3 times {trainer.OPTIMISER}"]["limit"] == "copy"
    assert parts["3 steps, trainer best"]["flops"] == parts["3 steps, minilib fp32"]["flops"] > 0


@pytest.mark.parametrize("name", command.NAMES)
def test_a_benchmark_can_be_handed_to_the_processes_of_its_loops(name):
    benches = getattr(loops, name)(Options(quick=True, switches=True))
    assert benches
    for one in benches:
        assert pickle.loads(pickle.dumps(one)).names == one.names


def test_each_switch_is_left_out_once(monkeypatch):
    monkeypatch.setattr(loops.plain_rga, "SWITCHES", ("bucketed", "heap"))
    (_, bench) = loops.rga(Options(quick=True, switches=True))
    on = "plain: bucketed heap"
    without = {"without bucketed": "plain: heap", "without heap": "plain: bucketed"}
    assert bench.ratios == {label: (name, on) for label, name in without.items()}


def test_cases_are_those_of_the_question(monkeypatch):
    monkeypatch.delenv("MINILIB_DATA", raising=False)
    case, said = loops.text_case(Options())
    assert (len(case.forget), len(case.retain)) == (331, 6920)
    assert (case.model, said["data"]) == ("minilm", "toy-reviews, repeated")
    assert loops.sande_case(1, 1024, Options()).max_length == 1024


def test_a_loop_in_a_process_of_its_own_tells_time_memory_and_work(monkeypatch):
    monkeypatch.setattr(timing, "PRELOADED", ("bench.timing",))
    loops = {"a / b": ("a", "b")}, {"a, alone": "a"}
    bench = Bench("toy", {}, toy_loop.build, *loops, steps=4, less=1, memory=True)
    record = timing.measure(bench, Options(repeats=2))
    assert record["ratios"]["a / b"]["n"] == 2
    assert record["seconds"]["a"]["peak_mib_over_start"] >= 0
    assert record["limits"]["parts"]["a, alone"]["flops"] == 4 * 2 * 3 * 5 * 7


# ------------------------------------------------------------------------ work and limits


def work(call) -> int:
    return timing.Loop(Bench("toy", {}, lambda *_: lambda steps: call(), {}), "", QUICK).work()


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


# ------------------------------------------------------------------------------- the command


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
