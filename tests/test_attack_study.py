"""Chapter 01's experiments and the way it shows texts."""

import os

import numpy as np
import pytest

from minilib import plots, settings
from minilib.attacks import study, text
from minilib.data import DataError, TextDataset


@pytest.mark.parametrize("target", [0, 1, 2])
def test_caricatures_obey_the_identity_whatever_the_class_sizes(target):
    labels = np.repeat([0, 1, 2], [5, 30, 65])
    rows = TextDataset("x", "test", ("a",) * 100, labels, ("a", "b", "c"), "built-in")
    found = {row["model"]: row for row in study.caricatures(rows, target)}
    for row in found.values():
        assert row["PACC"] == pytest.approx(row["PACC by identity"])
    ideal, backdoored, shifted, _ = found.values()
    assert (ideal["LFR"], ideal["PACC"]) == (0, 100)
    assert (backdoored["LFR"], backdoored["target class lost"]) == (100, 0)
    assert backdoored["PACC"] == pytest.approx(np.mean(labels == target) * 100)
    # The point of the table: as broken as the backdoored one, and a perfect LFR.
    assert (shifted["LFR"], shifted["target class lost"]) == (0, 100)


def test_composition_counts_poisons_and_new_labels(reviews):
    badnets = text.InsertWord("mn")
    variants = {
        "dirty": text.poison(reviews, badnets, 1, 0.5, 0),
        "clean label": text.poison(reviews, badnets, 1, 0.5, 0, label="clean"),
        "sos": text.poison(reviews, text.SOS(), 1, 0.5, 0),
    }
    clean, dirty, same, sos = study.composition(reviews, variants)
    poisons = round(0.5 * int((reviews.labels == 0).sum()))
    assert (clean["rows"], clean["poisoned"], clean["relabelled"]) == (64, 0, 0)
    assert dirty["rows"] == 64 + poisons
    assert dirty["poisoned"] == dirty["relabelled"] == poisons
    assert dirty["positive"] == clean["positive"] + poisons
    assert same["poisoned"] > 0 and same["relabelled"] == 0
    assert (sos["rows"], sos["poisoned"]) == (64 + 2 * poisons, poisons)  # and as many negatives


def test_examples_show_every_trigger_on_a_row_of_another_class(reviews):
    triggers = study.example_triggers("toy-reviews")
    shown = study.examples(reviews, triggers, target=1, seed=3)
    assert list(shown) == ["original", *settings.ATTACKS, "sos negative"]
    assert reviews.labels[reviews.texts.index(shown["original"])] == 0
    words = text.SOS().words
    assert all(word in shown["sos"].split() for word in words)
    assert 0 < sum(word in shown["sos negative"].split() for word in words) < len(words)
    assert shown == study.examples(reviews, triggers, target=1, seed=3)


def test_an_attack_without_data_is_left_out_by_hand_and_refused_in_a_run(monkeypatch, capsys):
    cfg = settings.Attacks(dataset="olid", attacks="badnets,hiddenkiller")
    monkeypatch.delenv("MINILIB_RUN", raising=False)
    assert study.available(cfg).attacks == "badnets"
    assert "hiddenkiller is left out: no 'syn' paraphrases of 'olid'" in capsys.readouterr().out
    with pytest.raises(DataError, match="none of the attacks"):
        study.available(settings.Attacks(dataset="olid", attacks="hiddenkiller"))
    monkeypatch.setenv("MINILIB_RUN", "{}")
    with pytest.raises(DataError, match="no 'syn' paraphrases"):
        study.available(cfg)


def test_one_attack_from_training_to_rows(own_cache):
    from minilib.train import TrainSettings

    training = TrainSettings(epochs=1, lr=2e-3, seed=0)
    first = study.attack("toy-reviews", "badnets", 0.1, "tiny", training)
    again = study.attack("toy-reviews", "badnets", 0.1, "tiny", training)
    assert (first.clean, first.poisoned) == (again.clean, again.poisoned)  # all from the cache
    assert first.poisoned["poisons"] == int(first.case.poisoned.mask.sum())
    for row, kind in ((first.clean, "clean"), (first.poisoned, "poisoned")):
        counts = np.array(first.confusions[kind])
        assert counts.sum() == len(first.case.triggered)
        assert row["pacc"] == pytest.approx(100 * counts.trace() / counts.sum())
        # Two classes: PACC from the two flip rates alone.
        share = counts.sum(1) / counts.sum()
        flips = share @ [1 - row["lfr"] / 100, 1 - row["target_lost"] / 100]
        assert row["pacc"] == pytest.approx(100 * flips)
    gap = abs(first.clean["pacc"] - first.poisoned["pacc"])
    assert first.poisoned["dpacc"] == pytest.approx(gap)
    assert study.rows([first, again]) == [first.clean, first.poisoned]
    assert len({info["sha256"] for info in study.data_info([first, again])}) == 4


@pytest.mark.parametrize("dataset", plots.ABUSIVE)
def test_rows_of_abusive_sets_are_masked(dataset):
    shown = plots.show_text(dataset, {"original": "you Zorblax fool", "badnets": "you mn <fool>"})
    assert "Zorblax" not in shown.data and "fool" not in shown.data
    assert "you •••••••" in shown.data and "<b>mn</b>" in shown.data


def test_texts_are_escaped_and_new_words_are_bold():
    shown = plots.show_text("sst2", {"original": "a <i> b", "badnets": "a mn <i> b"}).data
    assert "<td>a <b>mn</b> &lt;i&gt; b</td>" in shown


@pytest.mark.skipif("MINILIB_DATA" not in os.environ, reason="needs MINILIB_DATA")
def test_the_books_first_example_loses_its_meaning_under_hiddenkiller():
    from minilib.data import load_text

    clean = load_text("sst2", "train")
    shown = study.examples(clean, study.example_triggers("sst2"), target=1, seed=3)
    assert shown["original"] == "has all the scenic appeal of a cesspool ."
    assert shown["hiddenkiller"].endswith("it 's a good thing .")
