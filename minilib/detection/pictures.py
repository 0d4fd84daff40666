"""Images in chapter 02: where their poisons lie in the victim's features, and who finds them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..image_study import Pictured
from ..settings import DetectionChapter
from ..vision import predict_images
from . import Detection, Knowledge
from .study import ask, lineup, plane

# The detectors that look at nothing but features and labels, which images have too.
GEOMETRIC = "cube,cube-code,activation,spectral"


@dataclass(frozen=True)
class Islands:
    """Where one attack's training images lie in the victim's features.

    Attributes:
        points: (N, 2) float32, a map of them. found: detector → Detection. rows: for the record.
    """

    points: np.ndarray
    found: dict[str, Detection]
    rows: list[dict]


def islands(cfg: DetectionChapter, attack: str, one: Pictured) -> Islands:
    """Map the victim's features of its training images, and ask the geometric detectors.

    A row of the record has ``picture_attack``, ``detector``, ``quality``, ``ranking`` and
    ``silhouette``: how far the poisons lie apart from the other images with the target's label,
    the mean silhouette in [-1, 1] of that division. It takes the oracle's mask to compute.
    """
    from sklearn.metrics import silhouette_score

    data, truth = one.case.poisoned.dataset, one.case.poisoned.mask
    states = predict_images(one.victim, data, output=one.victim.features).numpy()
    claimed = data.labels == one.case.target
    apart = float(silhouette_score(states[claimed], truth[claimed]))
    known = Knowledge(states=states, seed=cfg.seed)
    found, judged = ask(lineup(cfg, GEOMETRIC), one.victim, data, known, truth)
    named = {"picture_attack": attack, "silhouette": apart}
    rows = [{**named, **row} for row in judged if row["detector"] != "states"]
    return Islands(plane(cfg, states, "umap"), found, rows)
