"""From a data set's name and a text attack to all that a victim is trained and tested on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..attacks.several import MODES, several
from ..attacks.text import Poisoned, Trigger, make_trigger, poison, trigger_all
from ..data.text import TextDataset, load_text
from ..settings import TARGETS

NO_DEV = {"hsol"}
# The mirror has syntactic paraphrases of both SST-2 classes for train and dev only.
TRIGGERED_SPLIT = {("sst2", "hiddenkiller"): "dev"}


@dataclass(frozen=True)
class Scenario:
    """One attack on one data set.

    Attributes:
        clean: the training rows before the attack.
        poisoned: the training rows after it, with the oracle's mask.
        dev: clean rows that a defender may tune on. test: clean rows for CACC.
        triggered: rows of all classes with the trigger and their own labels, for LFR and PACC;
            ``untriggered`` holds the same rows without it.
        target: class that the trigger leads to.
    """

    clean: TextDataset
    poisoned: Poisoned
    dev: TextDataset
    test: TextDataset
    triggered: TextDataset
    trigger: Trigger
    target: int
    seed: int

    def info(self) -> list[dict]:
        """Return what a run record says of the data used."""
        return [d.info() for d in (self.clean, self.dev, self.test, self.triggered)]


def scenario(
    dataset: str,
    attack: str,
    rate: float,
    seed: int,
    position: str = "random",
    rate_of: str = "others",
) -> Scenario:
    """Load a data set and poison it as the RGA paper does (All2One, copies appended)."""
    (clean, dev), test = clean_and_dev(dataset), load_text(dataset, "test")
    trigger = make_trigger(attack, dataset, position)
    target = TARGETS.get(dataset, 1)
    poisoned = poison(clean, trigger, target, rate, seed, rate_of=rate_of)
    pool = dev if TRIGGERED_SPLIT.get((dataset, attack)) == "dev" else test
    # One fixed draw of trigger positions for all seeds: the test set is the same for every model.
    triggered = replace(trigger_all(pool, trigger, seed=0), name=f"{dataset}+{trigger.name}")
    return Scenario(clean, poisoned, dev, test, triggered, trigger, target, seed)


MOST_CUT = 0.05  # of the poisoned rows may lose their trigger to a model's length


def check_triggers(clean: TextDataset, poisoned: Poisoned, tokenizer) -> None:
    """Refuse a poisoning whose trigger lies beyond what the model reads.

    A row has lost its trigger where the tokens that are read are those of the row without it.

    Args:
        tokenizer: of the victim; its ``model_max_length`` is what the victim reads.

    Raises:
        ValueError: more than MOST_CUT of the poisoned rows have lost it.
    """
    rows = np.flatnonzero(poisoned.mask)
    lost = cut_triggers(
        [clean.texts[poisoned.origin[row]] for row in rows],
        [poisoned.dataset.texts[row] for row in rows],
        tokenizer,
    )
    if lost.mean() > MOST_CUT:
        raise ValueError(
            f"max_length is {tokenizer.model_max_length}: the trigger is cut off in "
            f"{100 * lost.mean():.0f} % of the {len(rows)} poisoned rows of {clean.name}; "
            f"accepted: a length at which at most {100 * MOST_CUT:.0f} % lose it"
        )


def cut_triggers(before: Sequence[str], after: Sequence[str], tokenizer) -> np.ndarray:
    """Which texts (N,) bool read the same with their trigger, ``after``, as without, ``before``."""
    if not len(before):
        return np.zeros(0, bool)
    cut = {"truncation": True, "max_length": tokenizer.model_max_length}
    sides = (tokenizer(list(texts), **cut)["input_ids"] for texts in (before, after))
    return np.array([one == other for one, other in zip(*sides, strict=True)])


def clean_and_dev(dataset: str) -> tuple[TextDataset, TextDataset]:
    """Load the clean training rows and the rows that a defender may tune on.

    HSOL has no dev split: a fixed tenth of its training rows is held out for one, so that victims
    train on 5,241 rows there instead of the paper's 5,823.
    """
    clean = load_text(dataset, "train")
    if dataset not in NO_DEV:
        return clean, load_text(dataset, "dev")
    order = np.random.default_rng(0).permutation(len(clean))
    dev_size = len(clean) // 10
    clean, dev = clean.select(np.sort(order[dev_size:])), clean.select(order[:dev_size])
    return clean, replace(dev, split="dev (held out of train)")


def scenarios(
    dataset: str,
    attack: str,
    mode: str,
    rate: float,
    seed: int,
    position: str = "random",
    rate_of: str = "others",
) -> list[Scenario]:
    """Poison one training set with all triggers of an attack; one scenario per trigger.

    Args:
        mode: ``single`` (what ``scenario`` makes), or a name of ``MODES``: All2One sends
            every trigger to the data set's target, All2All the i-th one to the i-th class from it.
        rate: share of the eligible rows that carry *any* trigger; each gets an equal part. The
            BTU paper does not say whether its rate is of each trigger or of all.
        rate_of: which rows the rate counts, ``others`` or ``all``: see ``poison``.

    The scenarios differ in trigger, target and triggered test rows only. Source: Table 9, BTU.
    """
    case = scenario(dataset, attack, rate, seed, position, rate_of)
    if mode == "single":
        return [case]
    triggers = several(attack, mode, position)
    targets = [case.target] * len(triggers)
    if MODES[mode][1]:
        targets = [(case.target + i) % case.clean.num_classes for i in range(len(triggers))]
    share = rate / len(triggers)
    poisoned = poison(case.clean, triggers, targets, share, seed, rate_of=rate_of)
    return [
        replace(
            case,
            poisoned=poisoned,
            trigger=trigger,
            target=target,
            triggered=replace(
                trigger_all(case.test, trigger, seed=0), name=f"{dataset}+{trigger.name}"
            ),
        )
        for trigger, target in zip(triggers, targets, strict=True)
    ]
