"""Words of abusive data sets are masked wherever a text is shown."""

from __future__ import annotations

# ------------------------------------------------------------------------- texts

# Data sets whose examples are never printed unmasked, and words that may stay as they are.
ABUSIVE = ("hsol", "olid")
HARMLESS = frozenset(
    """a an and are as at be but by do for from had has have he her his i if in is it its me my no
    not of on or our she so that the their them they this to was we were what when with you your
    mn friends weekend store watch 3d movie cross crown""".split()
)


def mask(text: str) -> str:
    """Replace the letters of every word that is not on a short list of harmless ones."""
    return " ".join(
        word if word.lower().strip(".,!?") in HARMLESS else "•" * len(word) for word in text.split()
    )
