"""Strips and videos of saliency, drawn from its result file alone."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from numpy.typing import NDArray

from analysis.figure_style import draw_pictures, figure_text, write_contact_sheet
from analysis.results import read_results
from analysis.saliency_config import DrawingSettings, DrawnAttribution
from analysis.saliency_drawing import STRIP_DPI, StripCaption, draw_strip, video_frames
from analysis.saliency_file import COMBINED_ID
from analysis.sample_trust import POOR_TRUST
from rollouts.video import VideoWriter


def draw_samples(result: Path, settings: DrawingSettings, folder: Path) -> list[Path]:
    """Draw strips, each as PNG and PDF, a contact sheet, and videos of the first samples.

    Returns:
        The folders written to.
    """
    if not settings.num_drawn_samples:
        return []
    strips, videos = folder / "strips", folder / "videos"
    with read_results(result, "saliency") as dataset, figure_text():
        drawn = draw_pictures(strips, _strips(dataset, settings, videos), STRIP_DPI)
    write_contact_sheet(drawn, folder)
    return [strips, videos]


def _strips(
    dataset: xr.Dataset, settings: DrawingSettings, videos: Path
) -> Iterator[tuple[str, Figure]]:
    """Every strip by name; its video is written on the way, as both need the same gradient."""
    for index in range(min(settings.num_drawn_samples, dataset.sizes["sample"])):
        sample = dataset.isel(sample=index)
        frames = sample["frame"].values
        for picture in _pictures(sample, settings.drawn_attribution):
            gradient = _attribution(picture.gradient, frames, settings.drawn_attribution)
            with VideoWriter(videos / f"{picture.name}.mp4", settings.fps) as video:
                for image in video_frames(frames, gradient):
                    video.write(image)
            yield picture.name, draw_strip(frames, gradient, picture.caption)


def _attribution(
    chosen: xr.Dataset, frames: NDArray[np.uint8], kind: DrawnAttribution
) -> NDArray[np.float32]:
    """(K, H, W, C)"""
    gradient = chosen["gradient_frame"].values
    return gradient if kind == "gradient" else gradient_times_input(gradient, frames)


def gradient_times_input(
    gradient: NDArray[np.floating], frames: NDArray[np.uint8]
) -> NDArray[np.float32]:
    """(..., K, H, W, C) gradients, (K, H, W, C) frames → what each number adds, to first order.

    Shrikumar et al., "Not Just a Black Box: Learning Important Features Through Propagating
    Activation Differences", 2016. The gradients are those of frames whose values run from 0 to 1.
    """
    return (gradient * (frames / np.float32(255.0))).astype(np.float32)


@dataclass(frozen=True, eq=False)
class _Picture:
    name: str
    caption: StripCaption
    gradient: xr.Dataset


def _pictures(sample: xr.Dataset, kind: DrawnAttribution) -> Iterator[_Picture]:
    """One per variant, target and target step at which the target is defined."""
    sample_id = int(sample["sample_id"])
    label = "combined" if sample_id == COMBINED_ID else f"sample_{sample_id:05d}"
    for variant in sample["environment_gradient"].values:
        for target in sample["target"].values:
            for step in sample["target_step"].values:
                chosen = sample.sel(environment_gradient=variant, target=target, target_step=step)
                if np.isnan(chosen["target_value"]):
                    continue
                suffix = "" if variant == "passed" else f"_environment_{variant}"
                title = (
                    f"{label}: {kind.replace('_', ' ')} of {target} at step {step}, "
                    f"environment gradient {variant}"
                    f"{trust_mark(float(sample['simulator_trust']))}"
                )
                method = "" if kind == "gradient" else f"_{kind}"
                name = f"{label}_{target}_step{step}{suffix}{method}"
                yield _Picture(name, StripCaption(title, int(step)), chosen)


def trust_mark(trust: float) -> str:
    """How a title says what a sample's trust (0 to 1, or NaN) is; nothing where it is unknown."""
    if np.isnan(trust):
        return ""
    mark = " (POOR)" if trust < POOR_TRUST else ""
    return f"; simulator trust {trust:.2f}{mark}"
