"""Conclusions under another processor's rounding: what moved, and which claims that overturns."""

import json
import math

import pytest
from conftest import ROOT

from minilib.book import claims, paper_tables, rounding

LINES = [
    {"key": "a", "kind": "text_unlearning", "when": "2026-01-02T00:00:00Z", "env": {"isa": "AVX2"},
     "deviations": {"pacc": 3.0, "lfr": 0.0, "confusion": None}},
    {"key": "b", "kind": "text_unlearning", "when": "2026-01-02T00:00:00Z", "env": {"isa": "AVX2"},
     "deviations": {"pacc": 4.0}},
    {"key": "a", "kind": "text_unlearning", "when": "2026-01-01T00:00:00Z", "env": {},
     "deviations": {"pacc": 9.0}},
]  # fmt: skip


@pytest.fixture
def noted(tmp_path, monkeypatch):
    (tmp_path / "verified.jsonl").write_text("".join(json.dumps(one) + "\n" for one in LINES))
    monkeypatch.setenv("MINILIB_PUBLISHED", str(tmp_path))


def test_only_what_another_processor_computed_counts(noted):
    assert [one["key"] for one in rounding.emulated()] == ["a", "b"]
    assert rounding.moves(rounding.emulated())["03_ga_rga"] == {"pacc": [3.0, 4.0], "lfr": [0.0]}
    assert "06_bi_bau" not in rounding.moves(rounding.emulated())  # its trials are of other kinds
    assert rounding.typical([3.0, 4.0, 90.0]) == pytest.approx(4 / 0.6745, 1e-4)
    assert paper_tables.verified()["a"]["deviations"] == {"pacc": 9.0}


CLAIM, VERDICT = next(
    pair for pair in claims.verdicts(ROOT) if pair[0].id == "rga-beats-ga" and pair[1].shown
)


def test_a_claim_is_decided_alike_until_its_numbers_move_far():
    def share(size: float) -> float:
        return rounding.steadiness(CLAIM, ROOT, VERDICT.verdict, {"dpacc": size})

    assert share(0.0) == 1.0 >= share(20.0) > share(1000.0)
    assert math.isnan(rounding.steadiness(CLAIM, ROOT, VERDICT.verdict, {"lfr": 0.0}))


def test_a_number_that_is_asked_for_twice_moves_once():
    import random

    params = claims.preset_of(ROOT, CLAIM.chapter, "small")
    numbers = rounding.Moved(
        CLAIM.chapter, params, "small", size={"dpacc": 5.0}, rng=random.Random(0)
    )
    plain = claims.Numbers(CLAIM.chapter, params, "small")
    where = {"method": "rga", "epoch": 30}
    first = numbers.at("dpacc", **where)
    assert first == numbers.at("dpacc", **where) != plain.at("dpacc", **where)
    assert len({first[seed] - was for seed, was in plain.at("dpacc", **where).items()}) == 3


def test_the_books_conclusions_were_asked():
    lines = rounding.emulated()
    assert {one["env"]["isa"] for one in lines} and len({one["key"] for one in lines}) >= 4
    shares = rounding.asked(ROOT, claims.verdicts(ROOT))
    assert len(shares) >= 5 and all(0 <= share <= 1 for share in shares.values())
