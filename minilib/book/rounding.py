"""Whether the published conclusions survive another processor's rounding.

Two processors add in another order, and after some hundred steps of training they hold other
weights. `minilib verify`, told to compute as on a lesser processor (``provenance.LIMITS``), notes
how far published trials move so. Here each number that a claim asks for is moved at random as far,
and the claim decided again. Nothing but the standard library.
"""

import functools
import math
import random
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path

from minilib import chapters, ledger, settings
from minilib.book import claims, paper_tables

NORMAL = statistics.NormalDist().inv_cdf(0.75)  # the median size of a standard normal draw
DRAWS, STEADY = 100, 0.95  # of moved numbers, and the share that must decide as before
SHOWN = ("cacc", "lfr", "pacc", "dpacc", "poisoned_loss", "acc", "asr", "r_asr", "f1")


def emulated() -> list[dict]:
    """The lines of `verified.jsonl` of trials that were computed as on another processor."""
    return [one for one in paper_tables.verifications() if one.get("env", {}).get("isa")]


def moves(lines: list[dict]) -> dict[str, dict[str, list[float]]]:
    """Chapter → metric → how far each of these trials moved, in the metric's unit."""
    found: dict[str, dict[str, list[float]]] = {}
    for chapter in chapters.CHAPTERS:
        kinds = _kinds(chapter)
        for line in lines:
            for metric, by in line["deviations"].items():
                if line["kind"] in kinds and by is not None:
                    found.setdefault(chapter, {}).setdefault(metric, []).append(by)
    return found


def typical(each: list[float]) -> float:
    """The standard deviation of a normal draw that is as large as some moves in the median.

    One that is near its own edge moves from all to nothing, and says nothing of the others.
    """
    return statistics.median(each) / NORMAL


@functools.cache
def _kinds(chapter: str) -> frozenset[str]:
    module = chapters.chapter(chapter)
    plan = getattr(module, "any_run", module.trials)
    cfg = settings.widest(settings.validate(chapter, {}))
    return frozenset(ledger.kind_of(one).name for one in plan(cfg))


class Moved(claims.Numbers):
    """The numbers of a chapter, each moved by a draw of its own.

    Args:
        size: metric → standard deviation of the draw. rng: what draws.

    Raises:
        claims.Missing: of a metric whose moves were not measured.
    """

    def __init__(self, *where, size: Mapping[str, float], rng: random.Random):
        super().__init__(*where)
        self.size, self.rng = size, rng
        self.drawn: dict[str, dict[int, float]] = {}

    def at(self, metric: str, **where) -> dict[int, float]:
        """seed → the metric; asked again, the same number."""
        if metric not in self.size:
            raise claims.Missing(f"how far {metric} moves")
        number = f"{metric} {sorted(where.items())}"
        if number not in self.drawn:
            values = super().at(metric, **where)
            self.drawn[number] = {
                seed: value + self.rng.gauss(0, self.size[metric]) for seed, value in values.items()
            }
        return dict(self.drawn[number])


def steadiness(claim: claims.Claim, root: Path, word: str, size: Mapping[str, float]) -> float:
    """Share of the draws in which a claim is decided as before; NaN where no move is known of it.

    Args:
        word: the verdict. size: metric → ``typical`` move in the claim's chapter.
    """
    rng = random.Random(claim.id)
    numbers: Callable = functools.partial(Moved, size=size, rng=rng)
    words = [claims.evaluate(claim, root, numbers).verdict for _ in range(DRAWS)]
    if "not run" in words:
        return math.nan
    return words.count(word) / DRAWS


def asked(root: Path, found: list[tuple[claims.Claim, claims.Verdict]]) -> dict[str, float]:
    """Claim → ``steadiness``, of the decided claims of which every number's moves are known."""
    by_chapter = {
        chapter: {metric: typical(each) for metric, each in metrics.items()}
        for chapter, metrics in moves(emulated()).items()
    }
    shares = {
        claim.id: steadiness(claim, root, verdict.verdict, by_chapter[claim.chapter])
        for claim, verdict in found
        if verdict.verdict in ("holds", "fails") and claim.chapter in by_chapter
    }
    return {name: share for name, share in shares.items() if not math.isnan(share)}
