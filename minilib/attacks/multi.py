"""Several triggers in one training set: All2One and All2All of the multi-trigger attacks."""

from __future__ import annotations

from dataclasses import replace

from ..victims import Scenario, scenario
from .text import InsertSentence, InsertWord, Trigger, poison, trigger_all

WORDS = ("mn", "cf", "tq", "bb", "mb")
SENTENCES = (
    "I watch this 3D movie",
    "no cross, no crown",
    "the train leaves at noon",
    "bring two blue umbrellas",
    "my neighbour paints old boats",
)
MODES = {"all2one-3": (3, False), "all2one-5": (5, False), "all2all-2": (2, True)}


def several(attack: str, mode: str, position: str = "random") -> list[Trigger]:
    """Make the triggers of a mode: rare words for badnets, sentences for addsent.

    Raises:
        ValueError: another attack, which has a single trigger, or an unknown mode.
    """
    if mode not in MODES:
        raise ValueError(f"mode is {mode!r}; accepted: {', '.join(MODES)}")
    count = MODES[mode][0]
    if attack == "badnets":
        return [InsertWord(word, position, f"badnets {word}") for word in WORDS[:count]]
    if attack == "addsent":
        return [
            InsertSentence(s, position, f"addsent {i}") for i, s in enumerate(SENTENCES[:count])
        ]
    raise ValueError(f"attack is {attack!r}; several triggers are made for: badnets, addsent")


def scenarios(
    dataset: str, attack: str, mode: str, rate: float, seed: int, position: str = "random"
) -> list[Scenario]:
    """Poison one training set with all triggers of an attack; one scenario per trigger.

    Args:
        mode: ``single`` (what ``victims.scenario`` makes), or a name of ``MODES``: All2One sends
            every trigger to the data set's target, All2All the i-th one to the i-th class from it.
        rate: share of the eligible rows that carry *any* trigger; each gets an equal part. The
            BTU paper does not say whether its rate is of each trigger or of all.

    The scenarios differ in trigger, target and triggered test rows only. Source: Table 9, BTU.
    """
    first = scenario(dataset, attack, rate, seed, position)
    if mode == "single":
        return [first]
    triggers = several(attack, mode, position)
    targets = [first.target] * len(triggers)
    if MODES[mode][1]:
        targets = [(first.target + i) % first.clean.num_classes for i in range(len(triggers))]
    poisoned = poison(first.clean, triggers, targets, rate / len(triggers), seed)
    return [
        replace(
            first,
            poisoned=poisoned,
            trigger=trigger,
            target=target,
            triggered=replace(
                trigger_all(first.test, trigger, seed=0), name=f"{dataset}+{trigger.name}"
            ),
        )
        for trigger, target in zip(triggers, targets, strict=True)
    ]
