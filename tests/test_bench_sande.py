"""The benchmark of SANDE compares loops that compute the same, and says what it did. No times."""

import json

import pytest
import torch

from bench import sande as bench


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    path = bench.main(tmp_path_factory.mktemp("bench"), "cpu", 1, None, quick=True)
    assert path.name == "sande-cpu-quick.json"
    return json.loads(path.read_text(encoding="utf-8"))


def test_both_stages_and_the_answers_are_measured(records):
    assert [record["case"]["stage"] for record in records] == [1, 2, "answers"]
    for record in records:
        assert 0 <= record["largest_relative_difference"] <= bench.TOLERANCE
        assert set(record["hardware"]) == {"cpu", "cores", "threads", "gpu"}
        assert {"torch", "transformers", "minilib"} <= set(record["versions"])
        assert "plain / minilib" in record["ratios"]
        for one in record["runs"].values():
            assert one["n"] == 1 and one["min"] > 0 and one["peak_mib_over_start"] >= 0
    answers = records[-1]
    assert answers["largest_relative_difference"] == 0
    assert not any("longest" in name for name in answers["runs"])


def test_every_loop_stands_beside_its_limit(records):
    for record in records:
        machine, parts = record["limits"]["machine"], record["limits"]["parts"]
        assert set(parts) == set(record["runs"])
        for part in parts.values():
            assert part["share"] == pytest.approx(part["rate"] / machine[part["limit"]])
    flops = {name: part["flops"] for name, part in records[0]["limits"]["parts"].items()}
    assert flops["plain"] > flops["plain, to the longest"] > flops["minilib fp32"]


def test_lengths_are_those_of_the_question():
    found = bench.cases(False, "cpu", 2)
    assert {(case.stage, case.max_length) for case in found} == {
        (stage, length) for stage in (1, 2, bench.ANSWERS) for length in (256, 1024)
    }


@pytest.mark.parametrize("stage", [1, bench.ANSWERS])
def test_loops_that_differ_are_not_timed(stage, monkeypatch):
    case = bench.make_case(stage, True, "cpu", torch.get_num_threads())
    if stage == bench.ANSWERS:
        monkeypatch.setattr(bench, "until_end", lambda model, ids: [id(ids)])
    else:
        monkeypatch.setattr(bench, "TOLERANCE", -1.0)
    with pytest.raises(RuntimeError, match="differ.*accepted"):
        bench.check_losses(case)
