"""The trigger gallery and its table."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
from vision_fixtures import digits  # noqa: F401

from minilib.attacks.images import BlendTrigger, PatchTrigger, trigger_images
from minilib.figures.vision import gallery, visibility


@pytest.fixture
def shown(digits):  # noqa: F811
    clean = digits[1].select(np.arange(20))
    triggers = {"badnets": PatchTrigger(), "blended": BlendTrigger()}
    return clean, {name: trigger_images(clean, one) for name, one in triggers.items()}


def test_visibility(shown):
    clean, triggered = shown
    patch, blend = visibility(clean, triggered)
    assert patch["attack"] == "badnets" and 0 < patch["changed"] <= 100 * 9 / 256
    assert blend["changed"] > 80 and blend["largest"] <= 0.2 * 255 + 1
    change = triggered["blended"].images.astype(float) - clean.images
    error = (change**2).mean((1, 2, 3))
    # torch's median of an even number of values is the lower of the middle two
    assert blend["psnr"] == pytest.approx(np.sort(10 * np.log10(255**2 / error))[9], abs=1e-3)


def test_the_gallery_draws_clean_triggered_and_difference(shown):
    clean, triggered = shown
    figure = gallery(clean, triggered, row=3)
    assert len(figure.axes) == 6 and max(figure.get_size_inches()) <= 7
    drawn = [axis.images[0].get_array() for axis in figure.axes]
    assert np.array_equal(drawn[0], clean.images[3, ..., 0])
    assert np.array_equal(drawn[2], triggered["badnets"].images[3, ..., 0])
    unchanged = triggered["badnets"].images[3, ..., 0] == clean.images[3, ..., 0]
    assert (drawn[4][unchanged] == 128).all()
    assert figure.axes[0].get_title() == "badnets" and figure.axes[4].get_xlabel().endswith("dB")
    plt.close(figure)


def test_errors_are_one_line(shown):
    with pytest.raises(ValueError, match="row is 20; accepted: 0 … 19"):
        gallery(*shown, row=20)
    with pytest.raises(ValueError, match="no attack to draw"):
        gallery(shown[0], {})
