"""Chapter 08 as a view over the ledger: its recipes and its rows."""

from dataclasses import fields, replace

import numpy as np
import pytest

from minilib import ledger, settings
from minilib.chapters import clip as chapter
from minilib.trials import clip as trials

TOY = settings.validate(
    "08_clip",
    {
        "dataset": "digits", "width": 16, "depth": 1, "attacks": "badnets", "methods": "bi-bau-u",
    },
)  # fmt: skip


def test_the_chapters_lists_are_the_librarys():
    from minilib.unlearning.clip import DEFENCES

    assert set(settings.CLIP_DEFENCES) == set(trials.DEFENCE_READS) == {*DEFENCES, "at-b"}


@pytest.mark.parametrize("method", settings.CLIP_DEFENCES)
def test_a_defences_recipe_has_what_its_method_reads_alone(method):
    plan = chapter.defence(TOY, "badnets", method)
    read = set(trials.DEFENCE_READS[method])
    every = set().union(*trials.DEFENCE_READS.values())
    assert every <= {field.name for field in fields(plan)}
    for name in every:
        changed = replace(plan, **{name: getattr(plan, name) + 1})
        assert (changed == plan) == (name not in read), name


def test_a_model_from_elsewhere_has_none_of_the_small_ones_settings():
    base, other = (
        chapter.victim(replace(TOY, model="folder", width=width), "badnets").base
        for width in (16, 32)
    )
    assert base == other
    assert chapter.victim(TOY, "badnets").base != chapter.victim(replace(TOY, width=32), "badnets")


def test_the_never_poisoned_are_the_same_for_all_attacks():
    both = [trials.never_poisoned(chapter.victim(TOY, name)) for name in settings.CLIP_ATTACKS]
    assert len(set(both)) == 1 and both[0].attack == "none"


def trial_of(one, **row) -> ledger.Trial:
    """A trial that was never run: its recipe, and a row."""
    kind = ledger.kind_of(one)
    return ledger.Trial(kind.name, kind.version, ledger.key_of(one), ledger.described(one), [row])


def test_rows_say_what_they_are_of():
    cfg = replace(TOY, attacks="badnets,badclip")
    rows = chapter.rows([trial_of(one, acc=50.0) for one in chapter.trials(cfg)])
    for attack in ("badnets", "badclip"):
        assert [(row["part"], row["method"]) for row in rows if row["attack"] == attack] == [
            ("start", "clean"), ("main", "none"), ("control", "clean"), ("main", "bi-bau-u"),
        ]  # fmt: skip
    assert len({row["key"] for row in rows}) == len(rows) == 8


def test_the_published_attacks_work_and_cost_no_accuracy():
    """An ASR of 90 % or more, and a CA within three points of that of the model never poisoned."""
    cfg = settings.validate("08_clip", {})
    with ledger.published_only():
        rows = chapter.rows(ledger.available(chapter.victims(cfg)))
    rates = {(row["attack"], row["method"]): row for row in rows if row["part"] != "control"}
    for attack in settings.split(cfg.attacks):
        clean, poisoned = rates[attack, "clean"], rates[attack, "none"]
        assert poisoned["asr"] >= 90 and abs(poisoned["acc"] - clean["acc"]) <= 3


def test_a_published_search_frames_what_carries_the_patch():
    cfg = settings.validate("08_clip", {})
    with ledger.published_only():
        found = ledger.get(chapter.searches(cfg, "badnets")["none"])
    patch = 255 * (np.indices((3, 3)).sum(0) % 2 == 0)[..., None]
    for row, image in zip(found.rows, found.array("images"), strict=True):
        assert row["triggered"] == bool((image[-4:-1, -4:-1] == patch).all())
