"""Figures of the image attacks: what a trigger looks like, and how visible it is."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np

from ..attacks.images import psnr
from ..images import ImageDataset
from ..plots import LABELS, label, panels
from ..vision import pixels

LABELS.update(
    {
        "blended": "Blended", "wanet": "WaNet", "refool": "Refool", "iad": "IAD",
        "issba": "ISSBA", "sig": "SIG", "narcissus": "Narcissus", "adap-blend": "Adap-Blend",
        "adap-patch": "Adap-Patch", "adap-blend+": "enhanced Adap-Blend",
        "adap-patch+": "enhanced Adap-Patch",
    }
)  # fmt: skip
AMPLIFY = 10  # a difference is drawn this many times as large


def visibility(clean: ImageDataset, triggered: Mapping[str, ImageDataset]) -> list[dict]:
    """How visible each attack is: median PSNR and largest change over the images.

    Args:
        triggered: attack → the rows of ``clean`` with its trigger.

    Returns:
        One dict per attack: ``attack``, ``psnr`` (dB; higher is less visible), ``largest`` (grey
        levels, the median over images of the largest change) and ``changed`` (percent of pixels).
    """
    before = pixels(clean.images)
    rows = []
    for attack, dataset in triggered.items():
        after = pixels(dataset.images)
        change = (after.int() - before.int()).abs().amax(1)  # (N, H, W)
        rows.append(
            {
                "attack": attack,
                "psnr": float(psnr(before, after).median()),
                "largest": float(change.flatten(1).amax(1).float().median()),
                "changed": float(100 * (change > 0).float().mean()),
            }
        )
    return rows


def gallery(clean: ImageDataset, triggered: Mapping[str, ImageDataset], row: int = 0) -> plt.Figure:
    """Draw one image under each attack: clean, triggered, and the difference × 10.

    A column is an attack. Differences are drawn around mid-grey, which is no change.

    Args:
        triggered: attack → the rows of ``clean`` with its trigger. row: the image to draw.

    Raises:
        ValueError: no attack, or a row that is not there.
    """
    if not triggered:
        raise ValueError("no attack to draw; accepted: one or more")
    if not 0 <= row < len(clean):
        raise ValueError(f"row is {row!r}; accepted: 0 … {len(clean) - 1}")
    width = min(7.0, 1.1 * len(triggered) + 0.6)
    figure, axes = plt.subplots(
        3, len(triggered), figsize=(width, 0.62 * width * 3 / max(3, len(triggered)) + 0.6),
        squeeze=False, layout="constrained",
    )  # fmt: skip
    before = clean.images[row].astype(float)
    for column, (attack, dataset) in zip(axes.T, triggered.items(), strict=True):
        after = dataset.images[row].astype(float)
        shown = before, after, 127.5 + AMPLIFY * (after - before)
        decibels = psnr(pixels(clean.images[[row]]), pixels(dataset.images[[row]])).item()
        for axis, image in zip(column, shown, strict=True):
            _picture(axis, image)
        column[0].set_title(attack, fontsize=7)
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
    figure, axes = panels(len(maps), columns, 2.4)
    shades = plt.get_cmap("Blues")(np.linspace(0.25, 1, len(class_names)))
    for axis, (attack, points) in zip(axes.flat, maps.items(), strict=False):
        clean, poisoned = points[~truth[attack]], points[truth[attack]]
        colours = shades[labels[attack][~truth[attack]]]
        axis.scatter(*clean.T, s=2, c=colours, linewidths=0, rasterized=True)
        axis.scatter(*poisoned.T, s=5, color="#d55e00", marker="x", linewidths=0.5)
        axis.set(title=label(attack), xticks=[], yticks=[])
    return figure


def _picture(axis: plt.Axes, image: np.ndarray) -> None:
    image = np.clip(np.rint(image), 0, 255).astype(np.uint8)
    grey = image.shape[2] == 1
    axis.imshow(image[..., 0] if grey else image, cmap="gray" if grey else None, vmin=0, vmax=255)
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set_visible(False)
