"""Chapter 02 as a view: its trials, its rows, its page from the ledger."""

import dataclasses
import subprocess
import sys

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from core_fixtures import SEED
from hypothesis import given, settings
from hypothesis import strategies as st

from minilib import ledger
from minilib.book import plots
from minilib.chapters import detection as chapter
from minilib.chapters import ga_rga
from minilib.data import masking
from minilib.detection import feature_space
from minilib.trials import text
from minilib.trials.chat import ChatBase, chat_base
from minilib.trials.images import ImageSilhouette, case_of, features_of
from minilib.trials.text import Detector, SpoiltMask, TextClean, TextDetection, TextExcerpts

DEFAULT = chapter.Settings()
TOY = chapter.Settings(
    dataset="toy-reviews", model="tiny", attacks="badnets,addsent", epochs=1, lr=2e-3,
    detectors="cube-pca,activation", slow_detectors="spectral", precisions="1,0.5", recalls="1",
    unlearn_epochs=2, rates="0.3", other_victims="toy-topics/tiny", image_dataset="digits",
    image_model="cnn", image_width=0.5, image_attacks="badnets", image_epochs=1,
    image_augment=False, seed=SEED,
)  # fmt: skip


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """The chapter at toy size, with maps and clusters that need no UMAP."""

    def pca(states, recipe, seed):
        return np.asarray(states - states.mean(0))[:, : max(recipe.dims, 2)]

    folder = tmp_path_factory.mktemp("trials")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINILIB_LEDGER", str(folder))
        patch.setenv("MINILIB_PUBLISHED", "none")
        patch.setattr(feature_space, "flat_map", pca)
        yield ledger.run(chapter.trials(TOY))


# ------------------------------------------------------------------------- what is measured


def test_planning_imports_nothing_heavy():
    code = (
        "import sys; from minilib.chapters import detection as c; c.trials(c.Settings()); "
        "print([m for m in ('torch', 'numpy', 'pandas') if m in sys.modules])"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"


def test_who_is_asked_about_what():
    asked = [(one.victim.data.trigger.attack, one.detector.name)
             for one in chapter.detections(DEFAULT)]  # fmt: skip
    quick = DEFAULT.detectors.split(",")
    assert [name for attack, name in asked if attack == "addsent"] == quick
    slow = DEFAULT.slow_detectors.split(",")
    assert [name for attack, name in asked if attack == "badnets"] == [*quick, *slow]
    assert all(isinstance(one.victim.data, TextClean) for one in chapter.clean_victims(DEFAULT))
    none = dataclasses.replace(DEFAULT, slow_detectors="none", other_victims="none",
                               image_dataset="none")  # fmt: skip
    assert chapter.other_victims(none) == chapter.images(none) == []
    assert chapter.detectors(none, "badnets") == quick


def test_settings_that_a_detector_does_not_read_are_no_part_of_its_trial():
    other = dataclasses.replace(
        DEFAULT, neighbours=50, min_cluster=40, min_samples=30, moderate_rank=8
    )
    same = {
        name for name in (*DEFAULT.detectors.split(","), *DEFAULT.slow_detectors.split(","))
        if chapter.detector(DEFAULT, name) == chapter.detector(other, name)
    }  # fmt: skip
    assert same == {"activation", "spectral", "onion", "strip", "rap", "bki"}
    fewer = dataclasses.replace(DEFAULT, min_cluster=40)
    assert chapter.detector(DEFAULT, "cube-original") == chapter.detector(fewer, "cube-original")


def test_the_true_list_is_the_trial_of_the_chapter_on_rga():
    assert chapter.costs(DEFAULT)[0] == ga_rga.unlearning(ga_rga.Settings(), "rga")
    spoilt = chapter.costs(DEFAULT)[1:]
    assert [(one.forget.precision, one.forget.recall) for one in spoilt] == [
        (1, 0.4), (0.5, 1), (0.5, 0.4),
    ]  # fmt: skip
    assert all(one.same_steps for one in spoilt)


def test_the_maps_of_ordinary_training_are_the_same_in_both_figures():
    assert chapter.embeddings(DEFAULT)[0] == chapter.maps(DEFAULT)[0]
    tsne = dataclasses.replace(DEFAULT, neighbours=50)
    assert chapter.embeddings(tsne)[2] == chapter.embeddings(DEFAULT)[2]


# ------------------------------------------------------------------------------- rows


@pytest.mark.trained
def test_rows(results):
    rows = chapter.rows(results)
    kinds = {
        name: [row for row in rows if test(row)]
        for name, test in {
            "main": lambda r: r.get("poisoning") == "10 %" and r["data"] == "toy-reviews",
            "clean_victims": lambda r: r.get("attack") == "none",
            "hard": lambda r: r.get("poisoning") in ("30 %", "10 %, clean label"),
            "other_victims": lambda r: r.get("data") == "toy-topics",
            "lists": lambda r: "mask" in r,
            "images": lambda r: "picture_attack" in r,
        }.items()
    }
    assert {name: len(part) for name, part in kinds.items()} == {
        "main": 5, "clean_victims": 2, "hard": 2, "other_victims": 1, "lists": 3, "images": 4,
    }  # fmt: skip
    assert sum(map(len, kinds.values())) == len(rows)
    for row in kinds["main"]:
        assert {"attack", "detector", "precision", "recall", "f1", "fpr", "suspects", "auroc", "ap",
                "seconds", "rate", "victim", "poisons"} <= row.keys()  # fmt: skip
    assert all(row["f1"] is None and row["poisons"] == 0 for row in kinds["clean_victims"])
    (there,) = kinds["other_victims"]
    assert there["victim"] == "tiny" and there["lfr"] > 90 and there["cacc"] > 50
    assert [(row["mask"], row.get("asked_precision")) for row in kinds["lists"]] == [
        ("oracle", 100), ("spoilt", 50), ("cube-pca", None),
    ]  # fmt: skip
    assert all("dpacc" in row and "lfr" in row for row in kinds["lists"])
    assert len({row["silhouette"] for row in kinds["images"]}) == 1


def test_the_quality_of_a_mask_follows_from_its_arrays(results):
    for one in results.of("text_detection"):
        mask, truth = one.array("mask").astype(bool), one.array("truth").astype(bool)
        assert one.rows[0]["suspects"] == mask.sum() and one.rows[0]["poisons"] == truth.sum()
        if truth.any():
            assert one.rows[0]["recall"] == pytest.approx(100 * mask[truth].mean())
        assert ("score" in one.arrays) == (one.rows[0]["detector"] in ("activation", "spectral"))


def test_a_list_twice_as_long_gets_half_the_epochs(results):
    (oracle, spoilt, _) = results.of("text_unlearning")
    assert len(oracle.rows) == 2 and len(spoilt.rows) == 1
    assert spoilt.rows[0]["steps"] == pytest.approx(oracle.rows[-1]["steps"], abs=1)


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1), st.integers(1, 60), st.integers(1, 120))
def test_a_list_of_any_length_gets_the_steps_of_the_true_one(seed, epochs, suspects):
    truth, accused = np.arange(300) < 40, np.random.default_rng(seed).permutation(300) < suspects
    assert text.epochs_alike(epochs, truth, truth) == epochs
    taken = text.epochs_alike(epochs, truth, accused)
    wanted = epochs * truth.sum()
    assert taken == 1 or abs(taken * accused.sum() - wanted) <= accused.sum() / 2


def test_nobody_suspected_is_nothing_to_unlearn(results, monkeypatch):
    one = chapter.unlearning(TOY, SpoiltMask(precision=0.9, recall=0.9, seed=7))
    monkeypatch.setattr(text, "forget_mask", lambda _: np.zeros_like(truth))
    truth = text.case_of(one.victim.data).poisoned.mask
    done = ledger.get(one)
    assert done.rows == [{"epoch": 0, "steps": 0, "mask_precision": 0, "mask_recall": 0}]
    assert chapter.rows([done]) == []


# ------------------------------------------------------------------------- single trials


def test_both_readings_of_a_recipe_share_one_map(results, monkeypatch):
    maps = []
    monkeypatch.setattr(
        feature_space, "flat_map", lambda states, *_: maps.append(1) or states[:, :4]
    )
    one = chapter.victim(TOY, "badnets")
    asked = [TextDetection(victim=one, detector=Detector(name=name, seed=0, min_samples=90))
             for name in ("cube-code", "cube")]  # fmt: skip
    code, cube = map(ledger.get, asked)
    assert len(maps) == 1
    assert (code.array("clusters") == cube.array("clusters")).all()


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1), st.integers(1, 900), st.floats(0, 1))
def test_the_rows_of_a_small_map_are_among_those_of_a_large_one(seed, count, share):
    truth = np.random.default_rng(seed).random(count) < share
    few, many = text.shown_rows(truth, 90), text.shown_rows(truth, 300)
    assert set(few) <= set(many) and len(set(many)) == len(many) <= 300
    assert truth[many].sum() == min(truth.sum(), 100)


def test_words_of_abusive_sets_are_masked(results, monkeypatch):
    monkeypatch.setattr(masking, "ABUSIVE", ("toy-reviews",))
    data = dataclasses.replace(chapter.victim(TOY, "badnets").data, rate=0.02)
    texts = ledger.get(TextExcerpts(data=data)).array("texts")
    words = {word.strip(".,") for line in texts for word in line.lower().split()}
    assert words and all(
        word in masking.HARMLESS or set(word) <= {"•", "…"} for word in words - {""}
    )


def test_embeddings_alone_are_trained(results):
    one = dataclasses.replace(chapter.victim(TOY, "badnets"), trained="embeddings")
    network, _ = text.text_victim(one)
    from minilib.models.text import text_classifier

    start = text_classifier(one.model, 2, one.seed).state_dict()
    moved = {name for name, value in network.cpu().state_dict().items()
             if not torch.equal(value, start[name])}  # fmt: skip
    assert moved == {"network.bert.embeddings.word_embeddings.weight"}
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_a_language_model_becomes_a_classifier(results):
    language = ChatBase(corpus=("toy-chat",), model="tiny", max_length=64, epochs=1)
    base = chat_base(language)[0]
    before = {name: value.clone() for name, value in base.state_dict().items()}
    one = text.TextVictim(data=TextClean(dataset="toy-topics"), model=language, seed=0, epochs=1,
                          lr=1e-9)  # fmt: skip
    network, history = text.text_victim(one)
    assert len(history) == 1 and network.num_labels == 4
    assert all(torch.equal(before[name], value) for name, value in base.state_dict().items())
    encoded = base.tokenizer(["a few words", "and more of them"], padding=True, return_tensors="pt")
    ids, mask = encoded["input_ids"], encoded["attention_mask"]
    with torch.no_grad():
        states = base(ids)[torch.arange(2), mask.sum(1) - 1]
        assert torch.allclose(network.features(ids, mask), states, atol=1e-5)


def test_silhouettes_compare_the_rows_of_the_target(results):
    from sklearn.metrics import silhouette_samples

    (one,) = (one for one in chapter.images(TOY) if isinstance(one, ImageSilhouette))
    case = case_of(one.victim.data)
    data, truth = case.poisoned.dataset, case.poisoned.mask
    claimed = data.labels == case.target
    each = silhouette_samples(features_of(one.victim)[claimed], truth[claimed])
    assert ledger.get(one).rows[0]["silhouette"] == pytest.approx(each.mean(), abs=1e-6)


def test_every_detector_has_a_null_with_poison_and_without(results):
    from minilib import detection
    from minilib.detection.calibration import calibrate
    from minilib.trials.text import asked_rows, text_victim

    rows = chapter.null_rows(results)
    asked = [(row["of"], row["detector"], row["poisoned"]) for row in rows]
    assert sorted(asked) == sorted(
        (of, name, poisoned) for poisoned in (True, False)
        for of, name in [("texts", name) for name in ("cube-pca", "activation", "spectral")]
        + [("images", name) for name in ("cube", "activation", "spectral")]
    )  # fmt: skip
    for row in rows:
        assert 0 <= row["false_alarms"] <= 100 and 0 < row["set_p"] <= 1
        assert (row["recall"] is None) == (not row["poisoned"])
        assert (row["calibrated_fpr"] is None) == row["detector"].startswith("cube")
    # The trial says what a call of the library says.
    one = chapter.null_victim(TOY)
    network, (train, truth, dev) = text_victim(one)[0], asked_rows(one.data)
    known = detection.DefenderData(dev.select(range(0, len(dev), 2)), model="tiny", seed=0)
    outcome = calibrate(
        detection.DETECTORS["activation"], network, train, known,
        dev.select(range(1, len(dev), 2)),
    )  # fmt: skip
    (row,) = (r for r in rows if (r["of"], r["detector"], r["poisoned"]) == ("texts", "activation",
                                                                             True))  # fmt: skip
    recall = 100 * outcome.accused(0.05)[truth].mean()
    assert row["calibrated_recall"] == pytest.approx(recall, abs=3)


# ------------------------------------------------------------------------------- the page


def test_the_figures_draw_from_the_ledger_alone(results, monkeypatch, capsys):
    from minilib.book.figures import detection as figures

    monkeypatch.setattr(ledger, "_compute", None)
    plots.style()
    for name in ("counts", "maps", "embeddings", "curves", "costs", "image_maps", "beside_paper",
                 "seconds", "clean_victims", "by_list", "paper_hsol", "image_table",
                 "false_alarms", "nulls", "glue_numbers"):  # fmt: skip
        getattr(figures, name)(TOY)
    plt.close("all")
    assert "BadNets: 39 of 839 rows are poisoned" in capsys.readouterr().out
    assert list(figures.quality(TOY).index.get_level_values(0)) == ["BadNets"] * 3 + ["AddSent"] * 2
    assert figures.hard(TOY).index.tolist() == ["30 %", "10 %, clean label"]
    assert figures.other_victims(TOY).index[0][:2] == ("toy topics", "tiny")
    nothing = dataclasses.replace(TOY, other_victims="none", image_dataset="none")
    assert figures.other_victims(nothing) == "no other data or model in this run"
    said = figures.image_maps(nothing).axes[0].texts[0].get_text()
    assert "no map of images" in said and isinstance(figures.image_table(nothing), str)


def test_every_point_of_the_map_has_its_text_and_its_line_in_a_table(results):
    from minilib.book.figures import detection as figures

    page = figures.texts(TOY).data
    shown = ledger.get(chapter.excerpts(TOY)[0]).array("texts")
    assert page.count("<circle") == page.count("<title>") == len(shown) == 400
    assert page.count("<tr>") == 401 and page.count("<td>poisoned</td>") == 39
    assert len(page) < 200_000 and "<script" not in page
    assert 'role="img" aria-label="' in page


def test_feature_maps_put_the_poisons_on_top():
    from minilib.book.figures.images import feature_maps

    rng = np.random.default_rng(0)
    points = {name: rng.normal(size=(30, 2)) for name in ("badnets", "wanet")}
    truth = {name: np.arange(30) < 7 for name in points}
    labels = {name: np.arange(30) % 3 for name in points}
    figure = feature_maps(points, truth, labels, ("a", "b", "c"))
    assert [axis.get_title() for axis in figure.axes] == ["BadNets", "WaNet"]
    clean, poisoned = figure.axes[0].collections
    assert len(clean.get_offsets()) == 23 and len(poisoned.get_offsets()) == 7
    assert len(np.unique(clean.get_facecolors(), axis=0)) == 3
    plt.close(figure)
