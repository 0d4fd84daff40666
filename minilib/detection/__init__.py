"""Chapter 02: from a poisoned data set and its victim to a boolean mask of suspect rows.

Every detector is a function ``(victim, dataset, known, ...) -> Detection``; ``known`` is what
the defender has beside the two. ``DETECTORS`` lists them by name.
"""

from functools import partial

from .common import DefenderData, Detection, degrade, hidden_states, quality, ranking
from .feature_space import (
    RECIPES,
    Recipe,
    detect_activation,
    detect_cube,
    detect_spectral,
    flat_map,
    refilter,
)
from .fluency import CausalFluency, NGram
from .moderate_fitting import detect_moderate, moderate_fit
from .perturbation import detect_bki, detect_onion, detect_rap, detect_strip, without_outliers

__all__ = [
    "RECIPES",
    "DETECTORS",
    "CausalFluency",
    "Detection",
    "DefenderData",
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
    "without_outliers",
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
