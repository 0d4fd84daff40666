"""Trials on what defences compute: counted operations, which no busy machine can stretch."""

from __future__ import annotations

from dataclasses import replace

from ..ledger import recipe, trial
from .images import ImageDefence, case_of, defence_settings, defender_of


@recipe
class ImageDefenceCost:
    """What a defence that runs for epochs computes. What the victim has learnt does not matter."""

    defence: ImageDefence


@trial(version=1)
def image_defence_cost(one: ImageDefenceCost) -> list[dict]:
    """Count the floating-point operations of a defence; one row.

    A network of the victim's shape, with random weights, is defended with one image of each class,
    for one epoch and for two: the difference is an epoch's, and the rest is done once. Convolutions
    and matrix products count, forwards and backwards, and nothing else.

    Returns ``flops`` of all its epochs and ``epoch_flops`` of one, by clean image.
    """
    import numpy as np
    from torch.utils.flop_counter import FlopCounterMode

    from ..models.images import image_classifier
    from ..unlearning import defend

    it, victim = one.defence, one.defence.victim
    case, rows = case_of(victim.data), defender_of(victim, it.share, it.seed)
    rows = rows.select(np.unique(rows.labels, return_index=True)[1])
    network = image_classifier(victim.model, rows.num_classes, rows.shape, victim.width, it.seed)
    settings = defence_settings(it, case.target)
    counts = []
    for epochs in (1, 2):
        with FlopCounterMode(display=False) as counter:
            defend(it.method, network.eval(), rows, replace(settings, epochs=epochs))
        counts.append(counter.get_total_flops())
    once, epoch = 2 * counts[0] - counts[1], counts[1] - counts[0]
    total = once + it.epochs * epoch
    return [{"flops": total / len(rows), "epoch_flops": epoch / len(rows)}]
