"""Several triggers of one attack, for All2One and All2All."""

from __future__ import annotations

from ..checks import one_of
from .text import InsertSentence, InsertWord, Trigger

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
    one_of("mode", mode, MODES)
    count = MODES[mode][0]
    if attack == "badnets":
        return [InsertWord(word, position, f"badnets {word}") for word in WORDS[:count]]
    if attack == "addsent":
        return [
            InsertSentence(s, position, f"addsent {i}") for i, s in enumerate(SENTENCES[:count])
        ]
    raise ValueError(f"attack is {attack!r}; several triggers are made for: badnets, addsent")
