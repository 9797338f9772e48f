"""Figures and videos of behaviour clusters, drawn from their result file alone."""

import textwrap
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from analysis.figure_style import (
    PANEL_TITLE_LETTERS,
    behaviour_colour,
    figure_text,
    save_figures,
    tell_trustworthiness,
)
from analysis.results import BEHAVIOUR_NAME, read_results
from experiment.errors import UserError, require_at_least
from experiment.files import require_writable_folder
from experiment.report import StageReport
from rollouts.video import VideoWriter, draw_text

STRIP_GAP = 4
"""Pixels between the frames of a strip."""


@dataclass(frozen=True)
class BehaviourPlottingConfig:
    """Flags of `combined_agent_env_hx_analysis_plotting.py`."""

    interpreting_params_name: str = "defaults"
    """Preset in hyperparams/dynamics.yml that the other values are taken from."""
    input_dir: Path = Path("analysis/combined_agent_env_hx_analysis_precomp")
    """Folder of behaviour_clusters.nc."""
    output_dir: Path = Path("analysis/combined_agent_env_hx_plots")
    """Folder for the figures, each as PNG and PDF, and the videos."""
    max_drawn_clusters: int = 8
    """Clusters whose exemplars are drawn as a strip, the largest first."""
    videos: bool = True
    """Whether to write one MP4 of the exemplars of each cluster."""
    fps: float = 4.0
    """Steps per second of the videos."""
    dpi: int = 130
    """Resolution of PNGs."""
    report: Path | None = None
    """JSON file for seconds, outputs and metrics."""


def plot_behaviour(config: BehaviourPlottingConfig, report: StageReport) -> list[Path]:
    """Draw the overview, the exemplars and their videos; returns the PNGs.

    Raises:
        UserError: no result file, a foreign one, or an output folder that cannot be written.
    """
    require_at_least(config, "max_drawn_clusters", "dpi")
    if not config.fps > 0:
        raise UserError(f"--fps {config.fps}: must be above 0")
    folder = require_writable_folder(config.output_dir, "--output_dir")
    with (
        read_results(config.input_dir / BEHAVIOUR_NAME) as results,
        figure_text(),
    ):
        figures = {
            "behaviour_clusters": draw_overview(results),
            "behaviour_exemplars": draw_exemplars(results, config.max_drawn_clusters),
        }
        pictures = save_figures(figures.items(), folder, config.dpi, report)
        if config.videos:
            write_exemplar_videos(results, folder / "videos", config.fps)
            report.outputs.append(str(folder / "videos"))
    return pictures


def draw_overview(results: xr.Dataset) -> Figure:
    """Where the clusters lie, how many steps and samples each has, what the agent does there."""
    figure = Figure(figsize=(12.5, 4.2), layout="constrained")
    places, sizes, actions = figure.subplots(1, 3, width_ratios=[1.1, 1, 1.2])
    if "embedding" in results:
        _draw_places(places, results)
    else:
        places.set_axis_off()
    _draw_sizes(sizes, results)
    _draw_actions(actions, results)
    stability = results.attrs.get("cluster_stability_adjusted_rand")
    words = ""
    if stability is not None:
        control = results.attrs["cluster_stability_control"]
        words = f"; stability {stability:.2f}, of samples without clusters {control:.2f}"
    is_described = results["cluster"].values >= 0
    num_samples = int(is_described.any(axis=1).sum())
    figure.suptitle(
        f"Joint dynamics of agent and environment: {is_described.sum():,} steps of {num_samples:,} "
        f"of {results.sizes['sample']:,} samples{words}\n"
        "(adjusted Rand index, halves of the source episodes)"
    )
    return figure


def _draw_places(axis: Axes, results: xr.Dataset) -> None:
    cluster, places = results["cluster"].values, results["embedding"].values
    described = cluster >= 0
    points = places[described]
    axis.scatter(
        points[:, 0], points[:, 1], s=float(np.clip(20_000 / len(points), 1, 14)),
        c=[behaviour_colour(c) for c in cluster[described].tolist()], linewidths=0, rasterized=True,
    )  # fmt: skip
    axis.set(xticks=[], yticks=[], xlabel="embedding 0", ylabel="embedding 1")
    trust = textwrap.wrap(tell_trustworthiness(results.attrs), PANEL_TITLE_LETTERS)
    axis.set_title("\n".join(["steps", *trust]))


def _draw_sizes(axis: Axes, results: xr.Dataset) -> None:
    num_clusters = int(results.attrs["num_clusters"])
    counts = cluster_sizes(results)
    colours = [behaviour_colour(behaviour) for behaviour in range(num_clusters)]
    axis.barh(np.arange(num_clusters), counts, color=colours)
    axis.set(xlabel="samples", ylabel="behaviour", yticks=np.arange(num_clusters))
    axis.invert_yaxis()
    axis.set_title("samples whose behaviour it is")
    axis.spines[["top", "right"]].set_visible(False)


def cluster_sizes(results: xr.Dataset) -> NDArray[np.int64]:
    """(num_clusters,) samples of each behaviour."""
    labels = results["sample_cluster"].values
    return np.bincount(labels[labels >= 0], minlength=int(results.attrs["num_clusters"]))


def _draw_actions(axis: Axes, results: xr.Dataset) -> None:
    share = results["action_share"].values
    names = str(results.attrs["action_names"]).split()
    image = axis.imshow(share, cmap="cividis", vmin=0, aspect="auto")
    axis.set_xticks(np.arange(share.shape[1]), names[: share.shape[1]], rotation=90, fontsize=7)
    axis.set_yticks(np.arange(share.shape[0]))
    axis.set(title="actions in each behaviour", ylabel="behaviour")
    axis.figure.colorbar(image, ax=axis, pad=0.02, label="share of the behaviour's steps")


def draw_exemplars(results: xr.Dataset, max_clusters: int) -> Figure:
    """For each of the first clusters, the samples nearest to its centre, step by step."""
    num_clusters = min(max_clusters, int(results.attrs["num_clusters"]))
    rows = [
        (cluster, exemplar)
        for cluster in range(num_clusters)
        for exemplar in range(results.sizes["exemplar"])
        if int(results["exemplar"][cluster, exemplar]) >= 0
    ]
    num_steps, width = results.sizes["step"], results.sizes["width"]
    figure = Figure(figsize=(0.95 * num_steps + 1.6, 1.0 * len(rows) + 0.6), layout="constrained")
    axes = figure.subplots(len(rows), 1, squeeze=False)[:, 0]
    sizes = cluster_sizes(results)
    for axis, (cluster, exemplar) in zip(axes, rows, strict=True):
        # One picture per sample: an axis per frame takes ten times as long to lay out.
        axis.imshow(_strip(results["exemplar_frame"][cluster, exemplar].values))
        axis.set(xticks=[], yticks=[])
        axis.spines["left"].set(color=behaviour_colour(cluster), linewidth=4)
        sample = int(results["exemplar"][cluster, exemplar])
        axis.set_ylabel(f"behaviour {cluster}\n(n = {sizes[cluster]})\nsample {sample}")
    ticks = (width + STRIP_GAP) * np.arange(num_steps) + width / 2
    axes[0].set_xticks(ticks, [f"step {step}" for step in range(num_steps)])
    axes[0].tick_params(bottom=False, labelbottom=False, labeltop=True)
    heading = f"Samples nearest to the centre of behaviours 0 to {num_clusters - 1}"
    left_out = int(results.attrs["num_clusters"]) - num_clusters
    if left_out:
        heading += f"; the {left_out} smallest are left out (--max_drawn_clusters)"
    figure.suptitle(heading)
    return figure


def _strip(frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(T, H, W, C) → (H, T · (W + gap) − gap, 3), white between the frames."""
    colour = np.broadcast_to(frames, (*frames.shape[:3], 3))
    padded = np.pad(colour, ((0, 0), (0, 0), (0, STRIP_GAP), (0, 0)), constant_values=255)
    return np.concatenate(list(padded), axis=1)[:, :-STRIP_GAP]


def write_exemplar_videos(results: xr.Dataset, folder: Path, fps: float) -> list[Path]:
    """One MP4 per behaviour that has a sample: its exemplars side by side."""
    paths = []
    for cluster in range(int(results.attrs["num_clusters"])):
        exists = results["exemplar"][cluster].values >= 0
        if not exists.any():
            continue
        frames = results["exemplar_frame"][cluster].values[exists]
        path = folder / f"behaviour_{cluster:03d}.mp4"
        with VideoWriter(path, fps) as video:
            for step in range(frames.shape[1]):
                video.write(_side_by_side(frames[:, step], f"step {step}"))
        paths.append(path)
    return paths


def _side_by_side(frames: NDArray[np.uint8], caption: str, height: int = 192) -> NDArray[np.uint8]:
    """(E, H, W, C) → (H', W', 3)"""
    colour = np.broadcast_to(frames, (*frames.shape[:3], 3))
    scale = max(1, height // frames.shape[1])
    large = colour.repeat(scale, axis=1).repeat(scale, axis=2)
    return draw_text(np.concatenate(list(large), axis=1), caption, size=14)
