"""The image sections of chapters 01 and 02."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
from vision_fixtures import case, digits  # noqa: F401

from minilib.attacks.images import psnr
from minilib.detection import pictures
from minilib.figures.vision import feature_maps
from minilib.image_study import Pictured, image_rows, image_training, pictured
from minilib.settings import BiBau, DetectionChapter, Pictures
from minilib.vision import image_classifier, pixels, predict_images

SMALL = {"image_dataset": "digits", "image_model": "cnn", "image_width": 0.5}


def test_the_victims_are_those_of_chapter_06():
    """The same defaults, so that whoever has run one chapter has the other's victims."""
    here, there = Pictures(), BiBau()
    assert here.image_dataset == there.dataset
    assert (here.image_model, here.image_width) == (there.model, there.width)
    settings, crop = image_training(here, seed=3)
    assert (settings.epochs, settings.lr) == (there.victim_epochs, there.victim_lr)
    assert settings.batch_size == there.victim_batch and settings.seed == 3
    assert here.image_augment == there.augment and crop == {"crop": 4, "flip": True}


def test_digits_are_not_mirrored_and_augmentation_can_be_left_out():
    assert image_training(Pictures(**SMALL), 0)[1] == {"crop": 4, "flip": False}
    assert image_training(Pictures(**SMALL, image_augment=False), 0)[1] == {}


def test_images_can_be_left_out():
    assert pictured(Pictures(image_dataset="none"), 0) == {}
    assert image_rows({}) == []


def test_one_victim_per_attack_beside_one_clean_model():
    cfg = Pictures(**SMALL, image_attacks="badnets,sig", image_epochs=1, image_augment=False)
    both = pictured(cfg, 0)
    assert list(both) == ["badnets", "sig"]
    patch, wave = image_rows(both)
    assert patch["relabelled"] and not wave["relabelled"]
    assert patch["poisons"] == both["badnets"].case.poisoned.mask.sum()
    assert patch["clean_acc"] == wave["clean_acc"]
    assert patch["dpacc"] == pytest.approx(abs(patch["clean_pacc"] - patch["pacc"]))
    one = both["sig"].case
    each = psnr(pixels(one.test.images), pixels(one.triggered.images))
    assert wave["psnr"] == pytest.approx(float(each.median()))
    assert "attack" not in patch  # the word of the texts


@pytest.fixture
def shot(case):  # noqa: F811
    """A victim of random weights: what is tested is what is made of its features."""
    network = image_classifier("cnn", 10, case.clean.shape, 0.5, seed=0).eval()
    return Pictured(case, network, network)


def test_islands_judge_the_detectors_and_the_division(shot, monkeypatch):
    from sklearn.metrics import silhouette_samples

    monkeypatch.setattr(pictures, "GEOMETRIC", "activation,spectral")
    monkeypatch.setattr(pictures, "plane", lambda cfg, states, how: states[:, :2])
    cfg = DetectionChapter(**SMALL)
    seen = pictures.islands(cfg, "badnets", shot)
    assert [row["detector"] for row in seen.rows] == ["activation", "spectral"]
    data, truth = shot.case.poisoned.dataset, shot.case.poisoned.mask
    for row in seen.rows:
        mask = seen.found[row["detector"]].mask
        assert row["recall"] == pytest.approx(100 * (mask & truth).sum() / truth.sum())
        assert row["picture_attack"] == "badnets"
    states = predict_images(shot.victim, data, output=shot.victim.features).numpy()
    claimed = data.labels == shot.case.target
    each = silhouette_samples(states[claimed], truth[claimed])
    assert seen.rows[0]["silhouette"] == pytest.approx(each.mean(), abs=1e-6)
    assert np.array_equal(seen.points, states[:, :2])


def test_feature_maps_put_the_poisons_on_top():
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
