"""The benchmark of BTU compares loops that compute the same, and writes what it says. No times."""

import json

import pytest

from bench import btu as bench


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    path = bench.main(tmp_path_factory.mktemp("bench"), "cpu", 1, None, quick=True)
    assert path.name == "btu-cpu-quick.json"
    return json.loads(path.read_text(encoding="utf-8"))


def test_the_loops_compute_the_same(record):
    agreement = record["agreement"]
    assert set(agreement) == set(bench.PARTS)
    assert all(agreement[part] < bench.TOLERANCE for part in ("train", "train star"))
    assert agreement["rank"] == agreement["unlearn"] == "equal"


def test_the_record_says_what_was_measured_on_what(record):
    assert record["case"]["rows"] == 80 and record["case"]["steps timed"] == bench.QUICK_STEPS
    assert set(record["hardware"]) == {"cpu", "cores", "threads", "gpu"}
    assert set(record["seconds"]) == set(record["ratios"]) == set(bench.PARTS)
    for part in bench.PARTS:
        for loop in ("plain", "minilib"):
            assert record["seconds"][part][loop]["n"] == 1
            assert record["seconds"][part][loop]["median"] > 0
        assert record["ratios"][part]["median"] > 0


def test_loops_that_differ_are_not_timed(monkeypatch):
    case = bench.make_case("cpu", 1, quick=True)
    monkeypatch.setattr(bench, "TOLERANCE", -1.0)
    with pytest.raises(RuntimeError, match="train: the loops differ"):
        bench.check(case, 2)
