"""Plain loops and minilib's compute the same, in fp32 and without dropout. No times."""

from functools import partial

import numpy as np
import pytest
from plain import bi_bau, btu, rga, sande, texts, trainer


def agree(build, names, steps=None, rtol=1e-4):
    """Run each loop once and compare it with the first; the first's result."""
    first, *others = (build(name, "fp32")(steps) for name in names)
    for other in others:
        np.testing.assert_allclose(other, first, rtol=rtol)
    return first


@pytest.fixture(scope="module")
def case():
    return texts.toy_case(still=True)


def test_an_epoch_of_rga(case):
    losses = agree(partial(rga.build, case), ("plain", "minilib"))
    assert np.shape(losses) == (3, len(rga.TERMS))


def test_no_switch_changes_what_is_computed(case):
    switches = [name for name in rga.SWITCHES if name != "bf16"]
    agree(partial(rga.build, case), ("plain", *(f"plain: {name}" for name in switches)), 1)


@pytest.mark.parametrize("part", btu.PARTS)
def test_the_parts_of_btu(part, case):
    names = (f"{part}, plain", f"{part}, minilib")
    result = agree(partial(btu.build, case), names, 3, 1e-4 if "train" in part else 0.0)
    assert len(result)


@pytest.mark.parametrize("stage", [1, 2, sande.ANSWERS])
def test_the_stages_of_sande_and_the_answers(stage):
    build = partial(sande.build, sande.Case(stage))
    if stage == sande.ANSWERS:
        plain, ours = (build(name, "fp32")() for name in ("plain", "minilib"))
        assert plain == ours
    else:
        agree(build, (*sande.PLAIN, "minilib"), 3)


@pytest.mark.parametrize("sets", ["AB", "A", "B", ""], ids=["both", "A", "B", "none"])
def test_the_images_that_bi_bau_finds(sets):
    build = partial(bi_bau.build, bi_bau.Case(sets=sets))
    plain, ours = (build(f"pgd of 3 steps, {name}", "fp32")() for name in ("plain", "minilib"))
    # A sign may tip where a slope is nearly 0.
    assert (plain - ours).abs().ge(1e-6).float().mean() <= 0.01


def test_an_epoch_of_adversarial_training():
    agree(partial(bi_bau.build, bi_bau.Case()), bi_bau.EPOCHS[1:], rtol=1e-3)


def test_states_for_detection(case):
    build = partial(texts.build, case, case.rows, None)
    plain, ours = (build(f"states, {whose}", "fp32")() for whose in ("plain", "minilib"))
    assert np.abs(plain - ours).max() <= 1e-4 * np.abs(ours).max()


def test_fine_tuning_by_the_trainer_and_by_minilib(case):
    agree(partial(trainer.build, case), ("trainer best", "minilib"), 3)


def test_the_trainers_best_settings_leave_out_what_is_not_training(case, tmp_path):
    how = trainer.arguments(case, str(tmp_path), 3, True, "bf16")
    assert how.bf16 and how.optim == "adamw_torch_fused" and not how.logging_nan_inf_filter
    assert how.logging_strategy == how.save_strategy == how.eval_strategy == "no"
    default = trainer.arguments(case, str(tmp_path), 3, False, "bf16")
    assert not default.bf16 and default.per_device_train_batch_size == case.batch_size
