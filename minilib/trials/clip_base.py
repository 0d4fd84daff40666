"""Trials' pre-trained images: a clean CLIP, small and trained here, or from a folder or the Hub."""

from __future__ import annotations

from .. import ledger
from ..ledger import cached, reads, recipe
from ..models.names import pin


@recipe
class ClipBase:
    """A clean CLIP: a small one trained here on captions of a set, or a pre-trained one.

    Attributes:
        dataset: as ``data.images.load_images`` knows it. seed: of captions, weights and batches.
        part: share of each class's images that it learns from; the captions of the others are not
            seen.
        model: ``small``, or a folder or Hub name that ``models.clip.load_clip`` takes.
        width … flip: of the small one and its training; see ``models.clip.small_clip``.
    """

    dataset: str
    seed: int
    model: str = "small"
    width: int = 64
    depth: int = 3
    patch: int = 8
    epochs: int = 12
    lr: float = 2e-3
    batch_size: int = 128
    crop: int = 0
    flip: bool = False
    part: float = 1.0

    def __post_init__(self):
        names = (
            "width", "depth", "patch", "epochs", "lr", "batch_size", "crop", "flip", "part",
        )  # fmt: skip
        reads(self, *names if self.model == "small" else (), of=names)
        pin(self)


@cached(version=1)
@ledger.kept_in_memory(2)
def clip_base(one: ClipBase):
    """Train or load a clean CLIP: (model in eval mode, history). Copy it before changing it."""
    from .. import cache
    from ..data.captions import captioned
    from ..data.images import defender_rows, load_images
    from ..models import clip, loading
    from ..training.clip import fit_pairs
    from ..training.fitting import TrainSettings

    device = loading.default_device()
    if one.model != "small":
        return clip.load_clip(one.model).to(device), []
    images = load_images(one.dataset, "train")
    ledger.note(images.info())
    if one.part < 1:
        images = defender_rows(images, one.part, [one.seed, 4])
    pairs = captioned(images, one.seed)
    settings = TrainSettings(
        one.epochs, one.lr, one.batch_size, schedule="linear", warmup=0.05, seed=one.seed
    )

    def build():
        size = {"width": one.width, "depth": one.depth, "patch": one.patch}
        return clip.small_clip(pairs.class_names, pairs.shape, **size, seed=one.seed).to(device)

    return cache.kept_model(
        one, build, lambda net: fit_pairs(net, pairs, settings, crop=one.crop, flip=one.flip)
    )
