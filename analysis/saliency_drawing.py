"""Saliency made visible: raw signed gradients laid over the frames.

Orange marks pixels whose brightening raises the target, blue those whose brightening lowers it
(a pair that colour-blind readers can tell apart); strength is opacity.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

POSITIVE_COLOUR = np.array([230.0, 97.0, 1.0])
NEGATIVE_COLOUR = np.array([33.0, 102.0, 230.0])
BACKGROUND_STRENGTH = 0.55
"""How much of the grey frame remains visible under the colours."""
STRONGEST_QUANTILE = 0.995
"""Gradients at this quantile of all steps, or beyond, are drawn fully opaque."""

STRIP_DPI = 100
"""Resolution at which frames are drawn pixel by pixel."""

_MARGIN = 6
_TEXT_HEIGHT = 18
_FONT_PIXELS = 12


@dataclass(frozen=True)
class StripCaption:
    """Words on a strip."""

    title: str
    target_step: int


def signed_maps(gradient: NDArray[np.floating], blur: float = 1.5) -> NDArray[np.float32]:
    """One signed map per step, between −1 and 1, on a scale shared by all steps.

    Args:
        gradient: (K, H, W, C) raw gradients with respect to the frames.
        blur: standard deviation of the Gaussian blur, in pixels.

    Returns:
        (K, H, W)
    """
    maps = np.asarray(gradient, np.float32).mean(axis=-1)
    if blur > 0:
        maps = gaussian_filter(maps, sigma=(0, blur, blur))
    magnitude = np.abs(maps)
    affected = magnitude[magnitude > 0]
    limit = np.quantile(affected, STRONGEST_QUANTILE) if affected.size else 1.0
    scaled = maps / max(float(limit), float(np.finfo(np.float32).tiny))
    return np.clip(scaled, -1.0, 1.0).astype(np.float32)


def overlay(frames: NDArray[np.uint8], maps: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Lay signed maps over greyed frames.

    Args:
        frames: (K, H, W, C)
        maps: (K, H, W) between −1 and 1.

    Returns:
        (K, H, W, 3)
    """
    grey = frames.mean(axis=-1, keepdims=True) * BACKGROUND_STRENGTH
    colour = np.where(maps[..., None] >= 0, POSITIVE_COLOUR, NEGATIVE_COLOUR)
    opacity = np.abs(maps)[..., None]
    blended = (1.0 - opacity) * grey + opacity * colour
    # Rounding and clipping before the cast: a cast alone wraps bright spots around to dark ones.
    return np.clip(np.rint(blended), 0, 255).astype(np.uint8)


def draw_strip(
    frames: NDArray[np.uint8],
    gradient: NDArray[np.floating],
    caption: StripCaption,
    scale: int = 2,
) -> Figure:
    """All steps side by side: frames above, saliency below, the target step framed.

    Args:
        frames: (K, H, W, C)
        gradient: (K, H, W, C) raw.
        caption: title and target step.
        scale: magnification of the pixels.
    """
    rows = [
        _enlarge(_as_rgb(frames), scale),
        _enlarge(overlay(frames, signed_maps(gradient)), scale),
    ]
    num_steps, height, width = rows[0].shape[:3]
    size = (
        _MARGIN + num_steps * (width + _MARGIN),
        2 * _TEXT_HEIGHT + 2 * (height + _MARGIN) + _TEXT_HEIGHT,
    )
    canvas = np.full((size[1], size[0], 3), 255, np.uint8)
    figure = Figure(figsize=(size[0] / STRIP_DPI, size[1] / STRIP_DPI))
    axis = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axis.set_axis_off()
    _write(axis, (_MARGIN, 2), caption.title)
    for step in range(num_steps):
        left = _MARGIN + step * (width + _MARGIN)
        label = f"step {step}" + (" (target)" if step == caption.target_step else "")
        _write(axis, (left, _TEXT_HEIGHT), label)
        for row, images in enumerate(rows):
            top = 2 * _TEXT_HEIGHT + row * (height + _MARGIN)
            canvas[top : top + height, left : left + width] = images[step]
        if step == caption.target_step:
            corner = (left - 2, 2 * _TEXT_HEIGHT - 2)
            axis.add_patch(Rectangle(corner, width + 4, 2 * height + _MARGIN + 4, fill=False, lw=2))
    # One picture, whose pixels are those of the PNG: one for each frame takes ten times as long.
    extent = (0, size[0], size[1], 0)
    axis.imshow(canvas, extent=extent, aspect="auto", interpolation="none")
    legend = "orange: brighter pixels raise the target; blue: they lower it"
    _write(axis, (_MARGIN, size[1] - _TEXT_HEIGHT), legend)
    return figure


def _write(axis: Axes, place: tuple[int, int], text: str) -> None:
    axis.text(*place, text, va="top", fontsize=_FONT_PIXELS * 72 / STRIP_DPI)


def video_frames(
    frames: NDArray[np.uint8], gradient: NDArray[np.floating], scale: int = 4
) -> Iterator[NDArray[np.uint8]]:
    """Yield (H', W', 3) pictures, one per step: the frame left, its saliency right."""
    shown = _enlarge(_as_rgb(frames), scale)
    salient = _enlarge(overlay(frames, signed_maps(gradient)), scale)
    for left, right in zip(shown, salient, strict=True):
        yield np.concatenate([left, right], axis=1)


def _as_rgb(frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.repeat(frames, 3, axis=-1) if frames.shape[-1] == 1 else frames


def _enlarge(images: NDArray[np.uint8], scale: int) -> NDArray[np.uint8]:
    return images.repeat(scale, axis=1).repeat(scale, axis=2)
