"""The loops that benchmarks time compute the same, in fp32 and without dropout. No times."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from bench import bi_bau, btu, detection, finetune, rga, sande, seeds, texts
from bench.timing import Options
from minilib.training.fitting import TrainSettings

EXACT = Options(quick=True, exact=True)


def agree(build, names, steps=None, rtol=1e-4):
    """Run each loop once and compare it with the first; the first's result."""
    first, *others = (build(name)(steps) for name in names)
    for other in others:
        np.testing.assert_allclose(other, first, rtol=rtol)
    return first


@pytest.fixture(scope="module")
def case():
    return texts.make_case(EXACT)


def test_an_epoch_of_rga(case):
    losses = agree(partial(rga.build, case), rga.NAMES[:2])
    assert len(losses) == len(rga.models_of(case)[3]) and len(losses[0]) == len(rga.TERMS)


@pytest.mark.parametrize("name", [name for name in rga.SWITCHES if name != "bf16"])
def test_no_switch_changes_what_is_computed(name, case):
    agree(partial(rga.build, case), ("plain", f"plain: {name}"), 1)


@pytest.mark.parametrize("part", btu.PARTS)
def test_the_parts_of_btu(part, case):
    names = (f"{part}, plain", f"{part}, minilib")
    result = agree(partial(btu.build, case), names, 3, 0.0 if part in btu.MATRICES else 1e-4)
    assert len(result)


@pytest.mark.parametrize("stage", [1, 2, sande.ANSWERS])
def test_the_stages_of_sande_and_the_answers(stage):
    build = partial(sande.build, sande.make_case(stage, EXACT))
    if stage == sande.ANSWERS:
        assert build("plain")() == build("minilib")()
    else:
        agree(build, (*sande.PLAIN, "minilib"), 3)


@pytest.mark.parametrize("sets", ["AB", "A", "B", ""], ids=["both", "A", "B", "none"])
def test_the_images_that_bi_bau_finds(sets):
    case = bi_bau.make_case(EXACT)
    case = replace(case, settings=replace(case.settings, sets=sets))
    plain, ours = (bi_bau.build(case, f"pgd of 3 steps, {name}")() for name in bi_bau.PGD[:2])
    # A sign may tip where a slope is nearly 0.
    assert (plain - ours).abs().ge(1e-6).float().mean() <= 0.01


def test_an_epoch_of_adversarial_training():
    agree(partial(bi_bau.build, bi_bau.make_case(EXACT)), bi_bau.EPOCHS[1:], rtol=1e-3)


def test_states_for_detection(case):
    plain, ours = (detection.build(case, f"states, {whose}")() for whose in ("plain", "minilib"))
    assert np.abs(plain - ours).max() <= 1e-4 * np.abs(ours).max()


def test_fine_tuning_by_the_trainer_and_by_minilib(case):
    agree(partial(finetune.build, case), ("trainer best", "minilib"), 3)


# ------------------------------------------------------------------------ several seeds


def stack_of():
    (bench, *_) = seeds.benches(EXACT)
    return bench.build


def test_seeds_alone_stacked_and_side_by_side():
    three = agree(stack_of(), (seeds.ALONE, seeds.STACKED, seeds.BESIDE), 2)
    assert len(set(three[0])) == 3


def test_gradients_are_clipped_seed_by_seed():
    rng = torch.Generator().manual_seed(0)
    shapes = ((3, 4, 5), (3, 7))
    weights = [torch.zeros(shape, requires_grad=True) for shape in shapes]
    scale = torch.tensor([0.01, 1.0, 100.0])  # the first is short enough as it is
    for p in weights:
        p.grad = torch.randn(p.shape, generator=rng) * scale.view(-1, *[1] * (p.dim() - 1))
    before = [p.grad.clone() for p in weights]
    seeds.clip(weights, TrainSettings().clip)
    for seed in range(3):
        alone = [torch.zeros(shape[1:], requires_grad=True) for shape in shapes]
        for p, grad in zip(alone, before, strict=True):
            p.grad = grad[seed].clone()
        torch.nn.utils.clip_grad_norm_(alone, TrainSettings().clip)
        for p, stack in zip(alone, weights, strict=True):
            assert torch.allclose(p.grad, stack.grad[seed], rtol=1e-5)
    assert torch.equal(weights[0].grad[0], before[0][0])
