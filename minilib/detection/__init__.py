"""Chapter 02: from a poisoned data set and its victim to a boolean mask of suspect rows.

Every detector is a function ``(victim, dataset, known, ...) -> Detection``; ``known`` is what
the defender has beside the two. ``DETECTORS`` lists them by name.
"""

from functools import partial

from .evidence import Detection, Knowledge, degrade, hidden_states, quality, ranking, survey
from .fluency import CausalFluency, NGram
from .geometry import (
    RECIPES,
    Recipe,
    detect_activation,
    detect_cube,
    detect_spectral,
    flat_map,
    refilter,
)
from .moderate import detect_moderate, moderate_fit
from .perturb import detect_bki, detect_onion, detect_rap, detect_strip

__all__ = [
    "RECIPES",
    "DETECTORS",
    "CausalFluency",
    "Detection",
    "Knowledge",
    "NGram",
    "Recipe",
    "degrade",
    "detect_activation",
    "detect_bki",
    "detect_cube",
    "detect_moderate",
    "detect_onion",
    "detect_rap",
    "detect_spectral",
    "detect_strip",
    "flat_map",
    "hidden_states",
    "moderate_fit",
    "quality",
    "ranking",
    "refilter",
    "survey",
]

# Every detector of the chapter at its source's settings, in the order of its tables.
DETECTORS = {
    "cube": detect_cube,
    "cube-code": partial(detect_cube, recipe="rga-code"),
    "cube-original": partial(detect_cube, recipe="cube"),
    "cube-pca": partial(detect_cube, recipe="pca"),
    "activation": detect_activation,
    "spectral": detect_spectral,
    "onion": detect_onion,
    "strip": detect_strip,
    "rap": detect_rap,
    "bki": detect_bki,
    "moderate": detect_moderate,
}
