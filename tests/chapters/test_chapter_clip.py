"""Chapter 08 as a view over the ledger: its recipes and its rows."""

from dataclasses import fields, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT, nightly
from core_fixtures import SEED
from vision_fixtures import clip_folder

from minilib import ledger, settings
from minilib.chapters import clip as chapter
from minilib.data import captions, images
from minilib.trials import clip as trials
from minilib.trials import images as image_trials

TOY = settings.validate(
    "08_clip",
    {
        "dataset": "digits", "width": 16, "depth": 1, "attacks": "badnets", "methods": "bi-bau-u",
        "tower_attacks": "sig", "tower_methods": "at-b,bi-bau-t", "tower_dataset": "digits",
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
    assert [(row["part"], row["method"]) for row in rows if row["attack"] == "sig"] == [
        ("tower-start", "clean"), ("tower-main", "none"), ("tower-main", "at-b"),
        ("tower-main", "bi-bau-t"),
    ]  # fmt: skip
    assert len({row["key"] for row in rows}) == len(rows) == 12


def test_the_paper_tower_is_told_from_the_small_one():
    """Whose weights are read has none of the small one's settings; the small one saw a part."""
    small = chapter.tower_victim(TOY, "badnets").pretrained
    assert small.part == 0.5 and small.dataset == "digits"
    other = [
        chapter.tower_victim(replace(TOY, model="folder", tower_part=part), "badnets")
        for part in (0.2, 0.5)
    ]
    assert other[0] == other[1] and other[0].pretrained.part == 1
    assert chapter.trials(replace(TOY, tower_attacks="none")) == [
        one for one in chapter.trials(TOY) if one not in chapter.tower(TOY)
    ]


def test_a_run_without_the_visual_encoder_has_its_page(monkeypatch):
    """`sweeps/clip_gtsrb.yml` has none: its notebooks say so, and do not fail."""
    from minilib.book.figures import clip as figures

    cfg, glued = replace(TOY, tower_attacks="none"), {}
    monkeypatch.setattr(figures.plots, "glue", glued.__setitem__)
    (axis,) = figures.tower_slopes(cfg).axes
    assert axis.texts[0].get_text() == figures.tower(cfg) == figures.NO_TOWER
    figures._glue_tower(cfg)
    assert set(glued.values()) == {"–"} and "tower_bi-bau-t_r_asr" in glued


def test_a_pretrained_encoder_and_the_model_clip_go_together():
    victim = chapter.tower_victim(TOY, "badnets")
    for change in ({"model": "cnn"}, {"pretrained": None}):
        with pytest.raises(ValueError, match="accepted: clip with one"):
            replace(victim, **change)
    assert image_trials.ideal(victim).pretrained == victim.pretrained


def test_a_defender_with_pairs_of_the_web_has_no_share():
    plans = [
        chapter.defence(replace(TOY, pairs="cc3m-50k", share=share), "badnets", "ft")
        for share in (0.05, 0.5)
    ]
    assert plans[0] == plans[1] != chapter.defence(TOY, "badnets", "ft")


def test_the_setting_of_the_paper_runs_on_a_folder_of_weights(tmp_path, monkeypatch):
    """ImageNet's and CC3M's rows, some made up; a random CLIP that reads 224 pixels."""
    from PIL import Image

    rng = np.random.default_rng(0)

    def pictures(count):
        return [Image.fromarray(rng.integers(0, 256, (60, 80, 3), np.uint8)) for _ in range(count)]

    class Rows(list):
        features = {"label": SimpleNamespace(names=["tench, Tinca tinca", "at sea", "cock"])}

    web = [{"jpg": one, "txt": f"at {'abc'[n % 3]}"} for n, one in enumerate(pictures(12))]
    classes = Rows({"image": one, "label": n % 3} for n, one in enumerate(pictures(30)))
    monkeypatch.setenv("MINILIB_ANY_DATA", "1")
    monkeypatch.setattr("minilib.ledger.unchecked", set())
    monkeypatch.setattr(captions, "HUB_PAIRS", {"cc3m-50k": ("web", "*", "jpg", "txt", 12)})
    monkeypatch.setattr(captions, "hub_split", lambda *a, **b: web)
    monkeypatch.setattr(images, "hub_split", lambda *a, **b: classes)
    monkeypatch.setattr(Rows, "select", lambda rows, index: rows, raising=False)
    monkeypatch.setattr(images, "_first_of_each", lambda labels, count: None)
    monkeypatch.setattr(Rows, "__getitem__", lambda rows, column: None)
    clip_folder(tmp_path / "clip", 224)
    presets = yaml.safe_load((ROOT / "presets" / "paper.yml").read_text(encoding="utf-8"))
    quick = {"victim_epochs": 1, "epochs": 1, "steps": 1, "batch_size": 6, "victim_batch": 15}
    cfg = settings.validate(
        "08_clip", presets["08_clip"] | quick | {"model": str(tmp_path / "clip")}
    )
    recipe = chapter.defence(cfg, "badnets", "bi-bau-u")
    assert (recipe.pairs, recipe.victim.base.dataset) == ("cc3m-50k", "imagenet-50k")
    (row,) = trials.clip_measure(
        trials.ClipMeasure(victim=recipe.victim, trigger=recipe.victim)
    ).rows
    assert 0 <= row["asr"] <= 100
    case = trials.case_of(recipe.victim)
    assert case.clean.shape == (3, 224, 224) and case.trigger.size == 21
    model, _ = trials.clip_defence(recipe)
    before, _ = trials.clip_victim(recipe.victim)
    moved = {
        name.split(".")[1]
        for name, value in model.state_dict().items()
        if not torch.equal(value, before.state_dict()[name])
    }
    assert moved == {"vision_model", "visual_projection"}


@nightly
@pytest.mark.trained
def test_at_smoke_the_attack_works_and_costs_no_accuracy():
    """As below, from nothing and on digits."""
    presets = yaml.safe_load((ROOT / "presets" / "smoke.yml").read_text(encoding="utf-8"))
    cfg = settings.validate("08_clip", presets["08_clip"] | {"seed": SEED})
    poisoned = chapter.victim(cfg, "badnets")
    clean, attacked = (
        trials.clip_measure(trials.ClipMeasure(victim=one, trigger=poisoned)).rows[0]
        for one in (trials.never_poisoned(poisoned), poisoned)
    )
    assert attacked["asr"] >= 90 and abs(attacked["acc"] - clean["acc"]) <= 3


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
