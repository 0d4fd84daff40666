"""Seeds that are trained at once have the losses that they have alone. No times."""

import json

import numpy as np
import pytest
import torch

from bench import seeds as bench
from bench import workers
from minilib.train import TrainSettings


@pytest.fixture(scope="module")
def case():
    return bench.cases("cpu", 1, quick=True)[0]


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    path = bench.main(tmp_path_factory.mktemp("bench"), "cpu", 1, None, quick=True)
    assert path.name == "seeds-cpu-quick.json"
    (found,) = json.loads(path.read_text(encoding="utf-8"))
    return found


def test_stacked_seeds_have_the_losses_of_each_alone(record):
    equal = record["equal_losses"]
    assert 0 <= equal["largest_relative_difference"] <= equal["tolerance"] == 1e-4


def test_the_record_says_what_was_measured_on_what(record):
    assert record["case"]["seeds"] == 3 and record["case"]["rows"] % record["case"]["batch"] == 0
    assert set(record["seconds"]) == {bench.ALONE, bench.STACKED, bench.BESIDE}
    assert set(record["ratios"]) == {
        f"{bench.ALONE} / {name}" for name in (bench.STACKED, bench.BESIDE)
    }
    assert all(one["n"] == 1 and one["min"] > 0 for one in record["seconds"].values())
    parts = record["limits"]["parts"]
    assert parts[f"3 steps, {bench.STACKED}"]["flops"] >= parts[f"3 steps, {bench.ALONE}"]["flops"]


def test_seeds_differ(case):
    _, losses = bench.alone(case, "fp32")(2)
    assert len(losses) == 3 and all(len(one) == 2 for one in losses)
    assert len({one[0] for one in losses}) == 3


def test_a_seed_does_not_depend_on_the_others_in_the_stack(case, monkeypatch):
    still = bench.replace(case, dropout=False)
    _, three = bench.stacked(still, "fp32")(3)
    monkeypatch.setattr(bench, "SEEDS", (2,))
    _, one = bench.stacked(still, "fp32")(3)
    assert np.allclose(one[0], three[2], rtol=1e-5)


def test_gradients_are_clipped_seed_by_seed():
    rng = torch.Generator().manual_seed(0)
    shapes = ((3, 4, 5), (3, 7))
    weights = [torch.zeros(shape, requires_grad=True) for shape in shapes]
    scale = torch.tensor([0.01, 1.0, 100.0])  # the first is short enough as it is
    for p in weights:
        p.grad = torch.randn(p.shape, generator=rng) * scale.view(-1, *[1] * (p.dim() - 1))
    before = [p.grad.clone() for p in weights]
    bench.clip(weights, TrainSettings().clip)
    for seed in range(3):
        alone = [torch.zeros(shape[1:], requires_grad=True) for shape in shapes]
        for p, grad in zip(alone, before, strict=True):
            p.grad = grad[seed].clone()
        torch.nn.utils.clip_grad_norm_(alone, TrainSettings().clip)
        for p, stack in zip(alone, weights, strict=True):
            assert torch.allclose(p.grad, stack.grad[seed], rtol=1e-5)
    assert torch.equal(weights[0].grad[0], before[0][0])


def test_loops_that_differ_are_not_timed(case, monkeypatch):
    monkeypatch.setattr(bench, "clip", lambda weights, most: [p.grad.neg_() for p in weights])
    with pytest.raises(RuntimeError, match=r"losses differ by .* accepted: 1e-04"):
        bench.check(case)


def test_processes_run_at_the_same_time_and_are_waited_for(case):
    builds = [bench.partial(bench.one_seed, case, seed) for seed in bench.SEEDS[:2]]
    found = workers.alternate({"two": builds}, "cpu", 2, 1, 2, 1)
    assert found["two"]["n"] == 1 and found["two"]["min"] > 0
