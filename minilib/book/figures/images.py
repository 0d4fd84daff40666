"""Figures of images: what a trigger looks like, and where triggered images lie."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np

from ...names import MEANINGS, label
from ..plots import panels

AMPLIFY = 10  # a difference is drawn this many times as large


def gallery(images: Mapping[str, tuple[np.ndarray, np.ndarray, float]]) -> plt.Figure:
    """Draw one image under each attack: clean, triggered, and the difference × 10.

    A column is an attack. Differences are drawn around mid-grey, which is no change.

    Args:
        images: title → (H, W, C) uint8 without the trigger, with it, and the PSNR (dB).

    Raises:
        ValueError: no attack.
    """
    if not images:
        raise ValueError("no attack to draw; accepted: one or more")
    width = min(7.0, 1.1 * len(images) + 0.6)
    figure, axes = plt.subplots(
        3, len(images), figsize=(width, 0.62 * width * 3 / max(3, len(images)) + 0.6),
        squeeze=False, layout="constrained",
    )  # fmt: skip
    for column, (title, (clean, triggered, decibels)) in zip(axes.T, images.items(), strict=True):
        before, after = clean.astype(float), triggered.astype(float)
        for axis, image in zip(
            column, (before, after, 127.5 + AMPLIFY * (after - before)), strict=True
        ):
            _show_image(axis, image)
        column[0].set_title(title, fontsize=7)
        column[2].set_xlabel(f"{decibels:.0f} dB", fontsize=7)
    for axis, name in zip(axes[:, 0], ("clean", "triggered", f"× {AMPLIFY}"), strict=True):
        axis.set_ylabel(name, fontsize=7)
    return figure


def feature_maps(
    maps: Mapping[str, np.ndarray], truth: Mapping, labels: Mapping, class_names, columns: int = 3
) -> plt.Figure:
    """Draw the victim's feature space, one panel per attack: clean images by label, poisons on top.

    Args:
        maps: attack → (N, 2). truth: attack → (N,) bool. labels: attack → (N,) int.
    """
    figure, axes = panels(len(maps), columns, 2.0)
    shades = plt.get_cmap("Blues")(np.linspace(0.25, 1, len(class_names)))
    for axis, (attack, points) in zip(axes.flat, maps.items(), strict=False):
        clean, poisoned = points[~truth[attack]], points[truth[attack]]
        colours = shades[labels[attack][~truth[attack]]]
        axis.scatter(*clean.T, s=2, c=colours, linewidths=0, rasterized=True)
        axis.scatter(*poisoned.T, s=5, color=MEANINGS["poisoned"], marker="x", linewidths=0.5)
        axis.set(title=label(attack), xticks=[], yticks=[])
    return figure


def _show_image(axis: plt.Axes, image: np.ndarray) -> None:
    image = np.clip(np.rint(image), 0, 255).astype(np.uint8)
    grey = image.shape[2] == 1
    axis.imshow(image[..., 0] if grey else image, cmap="gray" if grey else None, vmin=0, vmax=255)
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set_visible(False)
