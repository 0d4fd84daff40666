"""BI-BAU's benchmark runs, compares loops that compute the same, and says so. No times."""

import json
from functools import partial

import pytest
import torch

from bench import bi_bau as bench


@pytest.fixture(scope="module")
def case():
    return bench.make_case("cpu", torch.get_num_threads(), quick=True)


def test_the_record_says_what_was_measured(tmp_path):
    path = bench.main(tmp_path, "cpu", 1, None, quick=True)
    record = json.loads(path.read_text(encoding="utf-8"))
    equal = record["equal_losses"]
    assert equal["steps"] == 3 and equal["pixels_that_agree"] >= 0.99
    assert 0 <= equal["largest_relative_difference"] <= equal["tolerance"]
    assert set(record["pgd_seconds"]) == {"plain", "minilib", "minilib fp32"}
    assert all(part["n"] == 1 and part["min"] > 0 for part in record["epoch_seconds"].values())
    assert record["ratios"]["epoch, the paper's"] == pytest.approx(1.357, abs=1e-3)


def test_compiled_networks_are_compared_and_timed(case, monkeypatch):
    made, traced = [], partial(torch.compile, backend="aot_eager")  # needs no C++ compiler
    monkeypatch.setattr(bench.torch, "compile", lambda f, mode: (made.append(f), traced(f))[1])
    record = bench.measure(case, 1, switches=True)
    assert len(made) == 4  # two networks in two precisions
    for name in ("minilib", "minilib fp32"):
        assert record["ratios"][f"pgd, {name} to itself compiled"]["n"] == 1
    assert record["compiled"]["minilib fp32"]["pixels_that_agree"] > 0.99


def test_a_compiler_that_changes_the_images_is_refused(case, monkeypatch):
    monkeypatch.setattr(bench.torch, "compile", lambda f, mode: lambda x: f(x.flip(-1)).square())
    with pytest.raises(RuntimeError, match="compiled: .* of the pixels agree; accepted: 0.99"):
        bench.with_compiler(case, 1)


@pytest.mark.parametrize("sets", ["AB", "A", "B", ""])
def test_the_plain_loop_finds_the_same_images(sets, case):
    case = bench.replace(case, settings=bench.replace(case.settings, sets=sets))
    ours, plain = bench.our_steps(case, "fp32")()[1], bench.plain_steps(case)()[1]
    assert (ours - plain).abs().lt(1e-6).float().mean() > 0.99


def test_loops_that_differ_are_not_timed(case, monkeypatch):
    monkeypatch.setattr(bench, "plain_objective", lambda o, m, x, s, y, how: s.square().sum())
    with pytest.raises(RuntimeError, match="the loops differ: .* accepted: 0.99"):
        bench.check_equal(case)
