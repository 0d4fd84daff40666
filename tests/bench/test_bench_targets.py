"""Targets belong to numbers that benchmarks have, and tables say whether they are reached."""

import json
import subprocess
from pathlib import Path

import benchmarks
import pytest
from plain import sande, trainer

from bench import __main__ as command
from bench import loops, targets
from bench.targets import MEMORY, SHARES, Target, target

ROOT = Path(__file__).resolve().parents[2]
MACHINE = {"cpu": "a", "cores": 2, "threads": 2, "gpu": None}


def record(name: str = "plain / minilib", median: float = 6.0, **case) -> dict:
    case = {"device": "cpu"} | case
    spread = {"n": 3, "median": median, "min": median - 1, "max": median + 1}
    return {
        "what": "a loop", "case": case, "hardware": MACHINE, "versions": {"torch": "2"},
        "ratios": {name: spread},
    }  # fmt: skip


def test_a_target_is_found_by_benchmark_ratio_device_and_case():
    assert target("rga", record(), "plain / minilib").value == 5
    assert target("rga", record(device="cuda"), "plain / minilib").value == 10
    assert target("rga", record(), "plain / minilib fp32") is None
    long = record(stage=1, max_length=1024)
    assert target("sande", long, "plain / minilib").value == 4
    assert target("sande", long, "plain / minilib", MEMORY).value == 3
    assert target("sande", record(stage=2, max_length=1024), "plain / minilib") is None


def test_every_target_names_a_number_that_its_benchmark_has():
    """As far as names are known without running anything."""
    sande_ratios = {f"{a} / {b}" for a in sande.PLAIN for b in sande.OURS}
    for one in targets.TARGETS:
        assert one.benchmark in command.NAMES and set(one.devices) <= set(targets.DEVICES)
        if one.benchmark == "sande":
            assert one.ratio in sande_ratios
        if one.benchmark == "finetune" and one.kind != SHARES:
            assert one.ratio.removesuffix(" / minilib") in trainer.VARIANTS
        if one.kind == SHARES:
            assert one.ratio == f"{loops.STEPS['finetune']['cuda']} steps, minilib"
            assert one.where == {"model": trainer.LARGE}


@pytest.mark.parametrize(
    ("most", "median", "reached"), [(False, 5, True), (False, 4.9, False), (True, 5.1, False)]
)
def test_reached(most, median, reached):
    assert Target("rga", "x", 5, most=most).reached(median) is reached


def test_the_summary_has_a_line_per_ratio(tmp_path):
    path = tmp_path / "rga-cpu-quick.json"
    path.write_text(json.dumps([record(), record(median=2.0), record("other")]))
    head, *lines = targets.summary([path]).splitlines()
    assert head.split() == ["median", "target", "reached", "ratio"]
    assert [line.split()[-6:-5] or line for line in lines][:2] == [["yes"], ["no"]]
    assert lines[0].split()[:3] == ["6.00", "≥", "5"] and lines[2].split()[1] == "–"


def test_the_page_shows_targets_and_limits():
    found = record()
    parts = {
        "epoch, minilib": {"flops": 5e9, "limit": "bf16", "seconds": 2.0, "rate": 2.5e9,
                           "share": 0.25},
        "rank": {"bytes": 4e6, "limit": "copy", "seconds": 1e-3, "rate": 4e9, "share": 0.5},
    }  # fmt: skip
    found["limits"] = {"machine": {"bf16": 1e10, "copy": 8e9}, "parts": parts}
    text = benchmarks.table(found, "rga")
    assert '<td class="holds">≥ 5, reached</td>' in text
    assert '<td class="fails">≥ 5, not reached</td>' in benchmarks.table(record(median=3), "rga")
    assert "≥ 5" not in benchmarks.table(record())  # of no benchmark that is known
    assert "left out" not in text
    found["switches"] = {"cached_reference": {"slowdown": found["ratios"]["plain / minilib"]}}
    assert "<td>cached reference</td><td>6.00</td><td>5.00 to 7.00</td>" in benchmarks.table(found)
    for words in ("5.0 GFLOP", "2.5 GFLOP/s", "10.0 GFLOP/s (bf16)", "25 %", "4.0 MB", "50 %"):
        assert f"<td>{words}</td>" in text


def test_what_takes_long_is_named_and_not_run_by_default():
    options = command.commands().parse_args([])
    assert options.names == [] and not options.switches
    assert command.LONG == ("sweep",) and not {*command.LONG} & {*command.NAMES}


def test_make_passes_the_device_on():
    words = ["make", "--dry-run", "--always-make", "bench", "DEVICE=cuda"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "-m bench --device cuda" in done.stdout
