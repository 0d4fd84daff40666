"""From an image set and an attack to a poisoned CLIP: a clean one is tuned on poisoned pairs."""

from __future__ import annotations

from ..attacks.clip import BadClipSettings, badclip_trigger, poison_pairs
from ..attacks.images import ImageScenario, make_image_trigger, trigger_images
from ..attacks.text import Poisoned
from ..checks import one_of
from ..data.images import defender_rows, load_images
from ..models.clip import Clip
from ..settings import CLIP_ATTACKS


def clip_scenario(
    dataset: str,
    attack: str,
    clip: Clip,
    rate: float,
    seed: int,
    target: int = 0,
    share: float = 0.05,
    badclip: BadClipSettings | None = None,
) -> ImageScenario:
    """Load an image set and poison its image–caption pairs.

    Args:
        dataset: a name that ``load_images`` knows. attack: one of CLIP_ATTACKS.
        clip: the clean CLIP that BadCLIP optimises its trigger against.
        rate: share of the images of other classes than the target.
        share: of the clean training rows, given to the defender. badclip: its settings.

    Returns: ``ImageScenario``, whose ``poisoned.dataset`` alone has captions for classes.
    """
    one_of("attack", attack, CLIP_ATTACKS)
    clean, test = load_images(dataset, "train"), load_images(dataset, "test")
    if attack == "badclip":
        trigger = badclip_trigger(clip, clean, target, badclip or BadClipSettings(seed=seed))
    else:
        trigger = make_image_trigger(attack, clean, target, seed)
    poisoned: Poisoned = poison_pairs(clean, trigger, target, rate, seed)
    triggered = trigger_images(test, trigger, seed=0)
    defender = defender_rows(clean, share, seed)
    return ImageScenario(attack, clean, poisoned, defender, test, triggered, trigger, target, seed)
