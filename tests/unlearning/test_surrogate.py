"""The surrogate for the trigger: its images by hand, and what it says of models known to us."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from vision_fixtures import case, clean_model, same, victim, weights  # noqa: F401

from minilib.data.images import defender_rows, further_rows
from minilib.metrics.reactivation import RetuneSettings, retune
from minilib.models.images import frozen_copy, model_copy
from minilib.training.fitting import seeded
from minilib.training.images import image_data
from minilib.unlearning.surrogate import scored, surrogate

RA = RetuneSettings(precision="fp32", seed=3)


@pytest.fixture(scope="module")
def held(case):  # noqa: F811
    return further_rows(case.clean, 0.1, 0.1, 0)


@pytest.fixture(scope="module")
def images(case, victim, held):  # noqa: F811
    return surrogate(victim, case.defender, held, 2)


def perturbed_by_hand(model, rows, labels, sign):
    """Twenty signed steps of two grey levels within 25, from a random start."""
    device = next(model.parameters()).device
    x = torch.as_tensor(rows.images, device=device).permute(0, 3, 1, 2).float() / 255
    y = torch.as_tensor(labels, device=device)
    low, high = (x - 25 / 255).clamp(min=0), (x + 25 / 255).clamp(max=1)
    moved = (x + torch.empty_like(x).uniform_(-25 / 255, 25 / 255)).clamp(0, 1)
    for _ in range(20):
        moved.requires_grad_(True)
        loss = sign * F.cross_entropy(model(moved), y, reduction="sum")
        (slope,) = torch.autograd.grad(loss, moved)
        moved = torch.maximum(low, torch.minimum(high, moved.detach() - 2 / 255 * slope.sign()))
    return (255 * moved).round().byte().permute(0, 2, 3, 1).cpu().numpy()


def test_the_images_and_the_scores_by_hand(case, victim, clean_model, held, images):  # noqa: F811
    changed = np.flatnonzero((images.tune.images != case.defender.images).any((1, 2, 3)))
    assert len(changed) == round(0.1 * len(case.defender))
    # The rows and the classes aimed at are drawn here; the images are not.
    rows = np.random.default_rng([2, 7]).permutation(len(case.defender))[: len(changed)]
    assert np.array_equal(np.sort(rows), changed)
    model = frozen_copy(victim)
    with seeded(2, next(model.parameters()).device):
        poisons = perturbed_by_hand(model, case.defender.select(rows), images.tune.labels[rows], 1)
        aimed = perturbed_by_hand(model, held, images.aimed.labels, 1)
        fooling = perturbed_by_hand(model, held, held.labels, -1)
    for ours, by_hand in (
        (images.tune.images[rows], poisons),
        (images.aimed.images, aimed),
        (images.fooling.images, fooling),
    ):
        # The sign of a gradient that is nearly 0 is chance.
        assert (ours == by_hand).mean() > 0.999

    unlearned = clean_model
    state, score = weights(unlearned), scored(unlearned, images, RA)
    assert same(unlearned, state)

    device = next(model.parameters()).device

    def right(network, shown):
        x = torch.as_tensor(shown.images, device=device).permute(0, 3, 1, 2).float() / 255
        with torch.no_grad():
            return 100 * (network.eval()(x).argmax(1).cpu().numpy() == shown.labels).mean()

    tuned = model_copy(unlearned).requires_grad_(True).train()
    optimizer, rng = torch.optim.SGD(tuned.parameters(), 0.01, 0.9), np.random.default_rng(3)
    x = torch.as_tensor(images.tune.images, device=device).permute(0, 3, 1, 2).float() / 255
    y = torch.as_tensor(images.tune.labels, device=device)
    batches = -(-len(images.tune) // 128)
    for _ in range(-(-40 // batches)):  # forty steps, as the attack makes
        for batch in np.array_split(rng.permutation(len(y)), batches):
            optimizer.zero_grad()
            F.cross_entropy(tuned(x[batch]), y[batch]).backward()
            optimizer.step()
    one_image = 100 / len(held)
    assert score["held_acc"] == pytest.approx(right(unlearned, held), abs=one_image)
    assert score["perturbed_acc"] == pytest.approx(right(unlearned, images.fooling), abs=one_image)
    assert score["surrogate_asr"] == pytest.approx(right(tuned, images.aimed), abs=2 * one_image)


def test_the_images_lead_to_all_classes_and_none_to_its_own(case, victim, held, images):  # noqa: F811
    assert images.held is held and np.array_equal(images.fooling.labels, held.labels)
    assert (images.aimed.labels != held.labels).all()
    counts = np.bincount(images.aimed.labels, minlength=10)
    assert counts.min() >= len(held) // 10 - 4 and counts.max() <= len(held) // 10 + 5
    changed = (images.tune.images != case.defender.images).any((1, 2, 3))
    assert (images.tune.labels != case.defender.labels).tolist() == changed.tolist()
    one_each = surrogate(victim, case.defender, held, 2, share=0.01)
    changed = (one_each.tune.images != case.defender.images).any((1, 2, 3))
    assert changed.sum() == 10
    for rows, clean in ((images.aimed, held), (images.fooling, held), (images.tune, case.defender)):
        assert np.abs(rows.images.astype(int) - clean.images).max() <= 26  # rounded


def test_the_scores_know_a_model_that_unlearned_what_fools_the_victim(
    case,  # noqa: F811
    victim,  # noqa: F811
    images,
):
    """Its own classes taught on perturbed images of the defender's rows, which is base AT."""
    lessons = surrogate(victim, case.defender, case.defender, 3).fooling
    taught = retune(victim, image_data(lessons), replace(RA, epochs=40))
    bad, good = (scored(model, images, RA) for model in (victim, taught))
    assert bad["perturbed_acc"] < 5 < 40 < good["perturbed_acc"]
    assert bad["surrogate_asr"] > good["surrogate_asr"] + 20
    assert min(bad["held_acc"], good["held_acc"]) > 80


def test_further_rows_are_not_the_defenders(case):  # noqa: F811
    owned, both = (defender_rows(case.clean, share, 5) for share in (0.1, 0.3))
    more = further_rows(case.clean, 0.1, 0.2, 5)
    keys = [{row.tobytes() for row in some.images} for some in (owned, more, both)]
    assert not keys[0] & keys[1] and keys[0] | keys[1] == keys[2]
    assert len(more) == len(both) - len(owned)
    with pytest.raises(ValueError, match="more is 0.0 beside 0.1: no row; accepted: a larger sha"):
        further_rows(case.clean, 0.1, 0.0, 5)
    with pytest.raises(ValueError, match="share is 1.5; accepted: in"):
        further_rows(case.clean, 0.5, 1.0, 5)
    few = case.clean.select(np.flatnonzero(case.clean.labels < 2)[:40])
    lone = replace(few, labels=np.where(np.arange(40) == 0, 2, few.labels % 2))
    assert not (further_rows(lone, 0.2, 0.2).labels == 2).any(), "a class with one row has it owned"
