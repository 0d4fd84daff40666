"""The benchmark of detection compares loops that compute the same. No times are asserted."""

import json

import pytest

from bench import detection as bench
from minilib.detection import DETECTORS


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    path = bench.main(tmp_path_factory.mktemp("bench"), "cpu", 1, None, quick=True)
    assert path.name == "detection-cpu-quick.json"
    return json.loads(path.read_text(encoding="utf-8"))


def test_the_loops_collect_the_same_states(record):
    assert 0 <= record["agreement"]["states"] < bench.TOLERANCE


def test_every_detector_is_timed_beside_a_pass_over_its_rows(record):
    timed = set(record["seconds"]["detectors"]) - {"states"}
    assert timed == set(DETECTORS) - set(bench.LEFT_OUT)
    assert len(record["ratios"]) == 2 + len(timed)
    for ratio in record["ratios"].values():
        assert ratio["n"] == 1 and ratio["median"] > 0


def test_loops_that_differ_are_not_timed(monkeypatch):
    case = bench.make_case("cpu", 1, quick=True)
    monkeypatch.setattr(bench, "TOLERANCE", -1.0)
    with pytest.raises(RuntimeError, match="states: the loops differ"):
        bench.check(case, bench.rows_of(case))
