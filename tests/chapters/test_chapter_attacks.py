"""Chapter 01 as a view: its kernels, its trials, its rows, its page from the ledger."""

import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from minilib import ledger, settings
from minilib.attacks import text
from minilib.book import plots
from minilib.chapters import attacks as chapter
from minilib.data import masking
from minilib.data import text as text_data
from minilib.data.sources import DataError
from minilib.metrics import classification
from minilib.trials.images import ImageClean, ImageVictim, ideal, pictured
from minilib.trials.text import (
    PARAPHRASED,
    TextExample,
    TextMeasure,
    attacks_on,
    case_of,
    retrained,
    text_example,
)

TOY = chapter.Settings(
    dataset="toy-reviews", model="tiny", attacks="badnets,hiddenkiller", rates="0.05,0.1", epochs=1,
    lr=2e-3, image_dataset="digits", image_model="cnn", image_width=0.5,
    image_attacks="badnets,sig", image_epochs=1, image_augment=False,
)  # fmt: skip


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINILIB_LEDGER", str(tmp_path_factory.mktemp("trials")))
        patch.setenv("MINILIB_PUBLISHED", "none")
        yield ledger.run(chapter.trials(TOY))


@pytest.fixture
def empty_ledger(tmp_path, monkeypatch):
    monkeypatch.setenv("MINILIB_LEDGER", str(tmp_path))
    monkeypatch.setenv("MINILIB_PUBLISHED", "none")
    monkeypatch.delenv("MINILIB_RUN", raising=False)


def test_a_chapter_is_read_without_anything_heavy():
    code = (
        "import sys, minilib.chapters.attacks\n"
        "print({'torch', 'numpy', 'pandas', 'transformers'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stdout + done.stderr


# ---------------------------------------------------------------- kernels


@pytest.mark.parametrize("target", [0, 1, 2])
def test_imaginary_models_obey_the_identity_whatever_the_class_sizes(target):
    labels = np.repeat([0, 1, 2], [5, 30, 65])
    rows = classification.imaginary_models(labels, target, 3)
    for row in rows:
        assert row["pacc"] == pytest.approx(row["pacc_identity"])
    harmless, backdoored, shifted, _ = rows
    assert (harmless["lfr"], harmless["pacc"]) == (0, 100)
    assert (backdoored["lfr"], backdoored["target_lost"]) == (100, 0)
    assert backdoored["pacc"] == pytest.approx(np.mean(labels == target) * 100)
    # The point of the table: as broken as the backdoored one, and a perfect LFR.
    assert (shifted["lfr"], shifted["target_lost"]) == (0, 100)


def test_composition_counts_poisons_and_new_labels(reviews):
    badnets = text.InsertWord("mn")
    variants = {
        "dirty": text.poison(reviews, badnets, 1, 0.5, 0),
        "clean label": text.poison(reviews, badnets, 1, 0.5, 0, label="clean"),
        "sos": text.poison(reviews, text.SOS(), 1, 0.5, 0),
    }
    clean, dirty, same, sos = text.poison_counts(reviews, variants)
    poisons = round(0.5 * int((reviews.labels == 0).sum()))
    assert (clean["rows"], clean["poisoned"], clean["relabelled"]) == (64, 0, 0)
    assert dirty["rows"] == sum(dirty["counts"]) == 64 + poisons
    assert dirty["poisoned"] == dirty["relabelled"] == poisons
    assert dirty["counts"][1] == clean["counts"][1] + poisons
    assert same["poisoned"] > 0 and same["relabelled"] == 0
    assert (sos["rows"], sos["poisoned"]) == (64 + 2 * poisons, poisons)  # and as many negatives


def test_examples_show_every_trigger_on_a_row_of_another_class(reviews):
    triggers = {name: text.make_trigger(name, "toy-reviews") for name in settings.ATTACKS}
    versions = text.examples(reviews, triggers, target=1, seed=3)
    assert list(versions) == ["original", *settings.ATTACKS, "sos negative"]
    assert reviews.labels[reviews.texts.index(versions["original"])] == 0
    words = text.SOS().words
    assert all(word in versions["sos"].split() for word in words)
    assert 0 < sum(word in versions["sos negative"].split() for word in words) < len(words)
    assert versions == text.examples(reviews, triggers, target=1, seed=3)


# ---------------------------------------------------------------- recipes


def test_paraphrases_are_those_that_there_are():
    styles = {"hiddenkiller": "syn", "stylebkd": "bible"}
    there = {
        attack: tuple(name for name, kinds in text_data.PARAPHRASES.items() if style in kinds)
        for attack, style in styles.items()
    }
    assert there == PARAPHRASED
    assert attacks_on("olid") == ("badnets", "addsent", "sos")
    assert attacks_on("toy-topics") == tuple(settings.ATTACKS)


def test_what_the_chapter_measures():
    cfg = chapter.Settings(image_dataset="none")
    for clean, poisoned in zip(*[iter(chapter.victims(cfg))] * 2, strict=True):
        assert isinstance(clean, TextMeasure) and clean.trigger == poisoned.trigger
        assert clean.victim == retrained(poisoned.victim)
    assert chapter.images(cfg) == []
    # The sweep has the attack at the chapter's own rate among its trials.
    assert set(chapter.victims(cfg)[:2]) < set(chapter.sweep(cfg))


def test_the_image_victims_are_those_of_chapter_06():
    """The same defaults, so that whoever has run one chapter has the other's victims."""
    here, there = settings.ImageSettings(), settings.BiBau()
    assert here.image_dataset == there.dataset and here.image_augment == there.augment
    one = pictured(chapter.Settings(seed=3), "blended")
    assert (one.model, one.width, one.seed) == (there.model, there.width, 3)
    assert (one.epochs, one.lr) == (there.victim_epochs, there.victim_lr)
    assert (one.batch_size, one.crop, one.flip) == (there.victim_batch, 4, True)
    assert ideal(one).data == ImageClean(dataset=there.dataset)


def test_digits_are_not_mirrored_and_augmentation_can_be_left_out():
    def augmented(cfg) -> tuple:
        one = pictured(cfg, "badnets")
        assert isinstance(one, ImageVictim)
        return one.crop, one.flip

    assert augmented(replace(TOY, image_augment=True)) == (4, False)
    assert augmented(TOY) == (0, False)


def test_a_clean_label_attack_poisons_copies_of_the_targets_own_rows():
    one = chapter.victim(TOY, "badnets", 0.5).data
    case = case_of(replace(one, label="clean"))
    poisoned = case.poisoned
    assert len(poisoned.dataset) == len(case.clean) + poisoned.mask.sum() > len(case.clean)
    assert (poisoned.dataset.labels[poisoned.mask] == case.target).all()


# ---------------------------------------------------------------- by hand, without the mirror


def test_an_attack_without_data_is_left_out_by_hand_and_refused_in_a_run(
    empty_ledger, monkeypatch, capsys
):
    cfg = settings.Attacks(dataset="olid", attacks="badnets,hiddenkiller")
    left = chapter.available(chapter.victims(cfg))
    assert {one.trigger.attack for one in left} == {"badnets"}
    assert "hiddenkiller is left out: no 'syn' paraphrases of 'olid'" in capsys.readouterr().out
    alone = chapter.victims(replace(cfg, attacks="hiddenkiller"))
    with pytest.raises(DataError, match="none of the attacks can be made here: no 'syn'"):
        chapter.available(alone)
    monkeypatch.setenv("MINILIB_RUN", "{}")
    assert chapter.available(alone) == alone


def test_examples_lose_the_trigger_that_cannot_be_had(empty_ledger, monkeypatch, capsys):
    monkeypatch.setattr(text_data, "mirror_file", lambda name: None)
    cfg = settings.Attacks(dataset="agnews-8k")
    (one, _) = chapter.available(chapter.examples(cfg))
    assert one.attacks == ("badnets", "addsent", "sos")
    assert "stylebkd is left out" in capsys.readouterr().out


def test_what_the_ledger_has_needs_no_data(results, monkeypatch):
    monkeypatch.setattr(text, "make_trigger", None)
    assert chapter.available(chapter.trials(TOY)) == chapter.trials(TOY)


# ---------------------------------------------------------------- trials and rows


def test_rows_of_texts(results):
    rows = [row for row in chapter.rows(results) if "attack" in row]
    assert [(row["attack"], row["trigger"], row["rate"]) for row in rows] == [
        ("none", "badnets", 0.0),
        ("badnets", "badnets", 0.1),
        ("none", "hiddenkiller", 0.0),
        ("hiddenkiller", "hiddenkiller", 0.1),
        ("badnets", "badnets", 0.05),
    ]
    clean = {row["trigger"]: row for row in rows if row["attack"] == "none"}
    for row in rows:
        counts = np.array(row["confusion"])
        assert row["pacc"] == pytest.approx(100 * counts.trace() / counts.sum())
        # Two classes: PACC from the two flip rates alone.
        share = counts.sum(1) / counts.sum()
        flips = share @ [1 - row["lfr"] / 100, 1 - row["target_lost"] / 100]
        assert row["pacc"] == pytest.approx(100 * flips)
        assert row["dpacc"] == abs(clean[row["trigger"]]["pacc"] - row["pacc"])
        assert row["rows"] == 800 + row["poisons"]
        assert row["seconds"] > 0 and row["dataset"] == "toy-reviews"
    assert clean["badnets"]["poisons"] == 0 < rows[-1]["poisons"] < rows[1]["poisons"]


def test_rows_of_images(results):
    patch, wave = (row for row in chapter.rows(results) if "picture_attack" in row)
    assert (patch["picture_attack"], wave["picture_attack"]) == ("badnets", "sig")
    assert patch["relabelled"] and not wave["relabelled"]
    assert patch["clean_acc"] == wave["clean_acc"] and patch["poisons"] > 0 < wave["psnr"]
    for row in (patch, wave):
        assert row["dpacc"] == abs(row["clean_pacc"] - row["pacc"])
        assert row["image_dataset"] == "digits" and not {"attack", "dataset"} & row.keys()


def test_an_example_image_is_outside_the_target_class(results):
    for one in results.of("image_example"):
        clean, triggered = one.array("clean"), one.array("triggered")
        assert clean.shape == triggered.shape and clean.dtype == triggered.dtype == np.uint8
        error = np.square(clean.astype(float) - triggered).mean()
        assert one.rows[0]["psnr"] == pytest.approx(10 * np.log10(255**2 / error), abs=1e-3)
        assert one.rows[0]["class"] != "0"


@pytest.mark.parametrize("dataset", masking.ABUSIVE)
def test_examples_of_abusive_sets_are_masked_before_they_are_kept(
    dataset, reviews, empty_ledger, monkeypatch
):
    from minilib.victims import text as text_victims

    rude = replace(reviews, name=dataset, texts=("you Zorblax fool and so on you are",) * 64)
    monkeypatch.setattr(text_victims, "clean_and_dev", lambda name: (rude, rude))
    asked = TextExample(dataset=dataset, attacks=("badnets", "sos"), seed=3)
    original, badnets, *_ = text_example(asked).rows
    assert original["text"] == "you ••••••• •••• and so on you are" and original["new"] == []
    words = badnets["text"].split()
    assert [words[number] for number in badnets["new"]] == ["mn"]
    assert "Zorblax" not in str(text_example(asked).rows)


def test_a_long_example_is_cut(reviews, empty_ledger, monkeypatch):
    from minilib.victims import text as text_victims

    long = replace(reviews, texts=("word " * 50,) * 64)
    monkeypatch.setattr(text_victims, "clean_and_dev", lambda name: (long, long))
    rows = text_example(TextExample(dataset="toy-reviews", attacks=("addsent",), seed=0)).rows
    assert [(len(row["text"].split()), row["cut"]) for row in rows] == [(40, True), (40, True)]
    assert all(number < 40 for row in rows for number in row["new"])


# ---------------------------------------------------------------- the page


def test_the_page_draws_from_the_ledger_alone(results, monkeypatch):
    import matplotlib.pyplot as plt

    from minilib.book.figures import attacks as figures

    for name in ("victims_table", "confusions", "flips", "rates"):
        getattr(figures, name)(TOY)
    assert len(figures.gallery(results).axes) == 6
    table = figures.images_table(results)
    assert list(table.index) == ["BadNets", "SIG"] and "its PACC" in table
    assert "<td>SOS, with its negatives</td>" in figures.poison_counts(results).data
    assert "PACC by identity" in figures.imagined(results).data
    glued = {}
    monkeypatch.setattr(plots, "glue", glued.__setitem__)
    figures.glue_numbers(TOY, results)
    assert {"badnets_lfr", "hiddenkiller_clean_pacc", "image_sig_clean_asr"} <= glued.keys()
    assert glued["fewest"] == min(
        row["poisons"] for row in chapter.rows(results) if row.get("attack") == "badnets"
    )
    plt.close("all")


def test_images_can_be_left_out_of_the_page():
    from minilib.book.figures import attacks as figures

    assert figures.gallery(ledger.Results()) is None
    assert figures.images_table(ledger.Results()).empty


def test_texts_are_escaped_and_new_words_are_bold(results):
    from minilib.book.figures import attacks as figures

    row = {"version": "badnets", "text": "a mn <i> b", "new": [1], "cut": True}
    one = replace(results.of("text_example")[0], rows=[row])
    page = figures.examples(ledger.Results([one])).data
    assert "<th>BadNets</th><td>a <b>mn</b> &lt;i&gt; b …</td>" in page
    negative = replace(one, rows=[row | {"version": "sos negative", "cut": False}])
    assert "<th>SOS negative</th>" in figures.examples(ledger.Results([negative])).data


@pytest.mark.skipif("MINILIB_DATA" not in os.environ, reason="needs MINILIB_DATA")
def test_the_books_first_example_loses_its_meaning_under_hiddenkiller(empty_ledger):
    first, _ = chapter.examples(chapter.Settings())
    by_version = {row["version"]: row["text"] for row in text_example(first).rows}
    assert by_version["original"] == "has all the scenic appeal of a cesspool ."
    assert by_version["hiddenkiller"].endswith("it 's a good thing .")
