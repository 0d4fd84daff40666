"""The trigger gallery."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
from vision_fixtures import digits  # noqa: F401

from minilib.attacks.images import BlendTrigger, PatchTrigger, trigger_images
from minilib.book.figures.images import gallery


def test_the_gallery_draws_clean_triggered_and_difference(digits):  # noqa: F811
    clean = digits[1].select(np.arange(4))
    triggers = {"badnets": PatchTrigger(), "blended": BlendTrigger()}
    before, after = (
        clean.images[3],
        {name: trigger_images(clean, one).images[3] for name, one in triggers.items()},
    )
    figure = gallery({name: (before, image, 20.4) for name, image in after.items()})
    assert len(figure.axes) == 6 and max(figure.get_size_inches()) <= 7
    drawn = [axis.images[0].get_array() for axis in figure.axes]
    assert np.array_equal(drawn[0], before[..., 0])
    assert np.array_equal(drawn[2], after["badnets"][..., 0])
    unchanged = after["badnets"][..., 0] == before[..., 0]
    assert (drawn[4][unchanged] == 128).all()
    assert figure.axes[0].get_title() == "badnets" and figure.axes[4].get_xlabel() == "20 dB"
    plt.close(figure)


def test_without_an_attack_there_is_nothing_to_draw():
    with pytest.raises(ValueError, match="no attack to draw"):
        gallery({})
