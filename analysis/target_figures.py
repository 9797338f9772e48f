"""Figures of latents that were searched for, drawn from their result file alone."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.fidelity_curves import open_axis
from analysis.figure_style import OKABE_ITO, figure_text, save_figure
from analysis.results import TARGET_FUNCTIONS_NAME, read_results
from analysis.saliency_targets import DIRECTION_PREFIX
from experiment.errors import require_at_least
from experiment.files import require_writable_folder
from experiment.report import StageReport

COLUMNS = 3


@dataclass(frozen=True)
class TargetPlottingConfig:
    """Flags of `target_functions_plotting.py`."""

    results_dir: Path = Path("analysis/target_functions")
    """Folder that holds target_functions.nc."""
    output_dir: Path = Path("analysis/target_functions_plots")
    """Folder for the figure, as PNG and PDF."""
    dpi: int = 130
    """Resolution of the PNG."""
    report: Path | None = None
    """JSON file for seconds, outputs and metrics."""


def plot_target_functions(config: TargetPlottingConfig, report: StageReport) -> Path:
    """Draw every search beside its control; returns the PNG.

    Raises:
        UserError: no result file, or a folder that cannot be written.
    """
    require_at_least(config, "dpi")
    with (
        read_results(config.results_dir / TARGET_FUNCTIONS_NAME) as results,
        figure_text(title_size=8),
    ):
        folder = require_writable_folder(config.output_dir, "--output_dir")
        figure = draw_target_functions(results)
        picture = save_figure(figure, folder / "target_functions", config.dpi)
    report.outputs.append(str(folder))
    return picture


def draw_target_functions(results: xr.Dataset) -> Figure:
    """One panel per target function: each copy's score by iteration, and the random latents'."""
    names = results["target"].values
    rows = -(-len(names) // COLUMNS)
    figure = Figure(figsize=(3.6 * COLUMNS, 2.5 * rows + 0.7), layout="constrained")
    axes = figure.subplots(rows, COLUMNS, squeeze=False).ravel()
    for axis in axes[len(names) :]:
        axis.remove()
    for axis, name in zip(axes, names, strict=False):
        _draw_search(axis, results.sel(target=name))
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    figure.suptitle(
        f"Latents searched for along the simulation's gradient, {results.sizes['copy']} copies each"
    )
    return figure


def _draw_search(axis: Axes, search: xr.Dataset) -> None:
    score = search["score"].transpose("iteration", "copy").values
    score = score[np.isfinite(score).all(axis=1)]
    control = search["control_score"].values
    axis.axhspan(
        control.min(), control.max(), color="0.8", label="best of as many random latents, range"
    )
    axis.axhline(control.mean(), color="0.4", linestyle="--", label="their mean")
    singles = axis.plot(score, color=OKABE_ITO[4], linewidth=0.6, alpha=0.6)
    singles[0].set_label("single copies")
    axis.plot(score.mean(axis=1), color=OKABE_ITO[0], linewidth=1.8, label="mean of copies")
    name = str(search["target"].values)
    axis.set(title=name, xlabel="iteration", ylabel=score_label(name))
    open_axis(axis)


def score_label(target_function: str) -> str:
    """What the score of a target function is, with its sign and unit."""
    kind, _, what = target_function.partition("_")
    if kind == "action":
        return "log-probability (nats)"
    number = what.rpartition("_")[2]
    meanings = {
        "value": "mean value",
        "value_delta": "value, late − early steps",
        f"{DIRECTION_PREFIX}_{number}": f"component {number}",
        f"hx_neuron_{number}": f"hidden unit {number}",
    }
    meaning = meanings[what]
    return f"−({meaning})" if kind == "decrease" else meaning
