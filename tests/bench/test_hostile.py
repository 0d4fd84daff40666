"""Hostile input: a small part of what `python -m bench.hostile` tries, and what it wrote down."""

import pytest

from bench import hostile
from minilib import ledger, provenance

COUNTS = {"parameters": 420, "sweep files": 30, "data files": 3, "records": 40}


def test_nothing_hostile_is_a_traceback_or_taken_for_something_else():
    result = hostile.measure(COUNTS)
    assert result["faults"] == []
    for kind, counts in result["counts"].items():
        assert counts["inputs"] == COUNTS[kind] == counts["refused"] + counts["accepted"]
    accepted = {kind: counts["accepted"] for kind, counts in result["counts"].items()}
    assert accepted["parameters"] > 20, "inputs that nothing could accept would show little"
    assert accepted["data files"] == accepted["records"] == 0


def test_inputs_are_the_same_whenever_they_are_made():
    for inputs in (hostile.parameter_sets, hostile.sweep_files):
        first, again = list(inputs(50)), list(inputs(50))
        assert first == again and sum(one == first[0] for one in first) == 1
    assert list(hostile.forged_records()) == list(hostile.forged_records())


def test_faults_that_were_found_stay_mended(tmp_path):
    refusals = (provenance.UsageError, hostile.settings.SettingsError)
    for chapter in hostile.settings.CHAPTERS:
        params = {n: d for n, (_, d, _) in hostile.settings.declared(chapter).items()}
        for change in ({"seed": 10**5000}, {"seed": 2**32}):
            read = lambda: hostile.read_parameters(chapter, params | change)  # noqa: E731, B023
            assert hostile.outcome(read, refusals)[0] == "refused", (chapter, change)
    params = {n: d for n, (_, d, _) in hostile.settings.declared("07_audit").items()}
    read = lambda: hostile.read_parameters("07_audit", params | {"model": "x"})  # noqa: E731
    assert hostile.outcome(read, refusals)[0] == "refused", "a model and no table"
    for text in ("chapter: !!timestamp x", "chapter: !!binary é"):
        read = lambda: hostile.read_sweep(text, tmp_path / "x.yml")  # noqa: E731, B023
        assert hostile.outcome(read, refusals)[0] == "refused", text


def test_a_record_that_is_not_forged_is_read(tmp_path, monkeypatch):
    monkeypatch.setenv("MINILIB_LEDGER", str(tmp_path / "trials"))
    monkeypatch.setenv("MINILIB_PUBLISHED", str(tmp_path / "results"))
    good = hostile.json.dumps(hostile.a_record()).encode()
    hostile.read_records(good, tmp_path)
    with pytest.raises(provenance.UsageError, match="neither tier"):
        hostile.read_records(good[:-9], tmp_path)
    assert ledger.trials_of(hostile.a_record()["kind"]) == []


@pytest.mark.parametrize("error, word, says", [
    (provenance.UsageError("no"), "refused", "no"),
    (hostile.DataError("no\nno"), "fault", "untidy"),
    (hostile.DataError("x" * 301), "fault", "untidy, 301 characters"),
    (KeyError("no"), "fault", "KeyError"),
    (RecursionError(), "fault", "RecursionError"),
])  # fmt: skip
def test_what_came_of_an_input(error, word, says):
    def read():
        raise error

    found, said = hostile.outcome(read, (provenance.UsageError, hostile.DataError))
    assert found == word and said.startswith(says)
    assert hostile.outcome(lambda: None, ()) == ("accepted", "")


def test_the_figures_that_are_written_down():
    result = provenance.read_json(hostile.Path(hostile.__file__).parent / "results/hostile.json")
    least = {"parameters": 25_000, "sweep files": 600, "data files": 100, "records": 50}
    assert result["faults"] == []
    for kind, counts in result["counts"].items():
        assert counts["inputs"] >= least[kind] and counts["fault"] == 0
        assert counts["refused"] + counts["accepted"] == counts["inputs"]
    assert result["env"]["cpu"] and result["commit"] and "dirty" not in result["commit"]
    assert result["seed"] == 0


def test_kills_and_full_disks_that_are_written_down():
    result = provenance.read_json(hostile.Path(hostile.__file__).parent / "results/hostile.json")
    kills, disks = result["kills"], result["full disks"]
    assert kills.keys() == hostile.hostile_kills.KILLS.keys()
    assert disks.keys() == {"runs", "trials", "cache"}
    assert sum(one["kills"] for one in kills.values()) >= 50
    for one in (*kills.values(), *disks.values()):
        assert one["lost"] == one["doubled"] == one["tracebacks"] == 0
        assert one["env"]["cpu"] and "dirty" not in one["commit"]
    for one in kills.values():
        assert one["damaged"] == one["left running"] == one["the last sweep's exit code"] == 0
        assert one["computed to the end and not kept"] <= one["kills"]
    for one in disks.values():
        assert one["exit codes"][-1] == 0 and one["lines that name the disk"] >= 1
