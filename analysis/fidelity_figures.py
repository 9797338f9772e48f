"""Figures of the simulator's fidelity, drawn from result files alone."""

import textwrap
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.fidelity_curves import (
    LINES,
    Line,
    draw_line,
    leave_out_horizon_0,
    open_axis,
    select_curve,
)
from analysis.fidelity_summary import draw_summary
from analysis.figure_style import figure_text, save_figures
from analysis.results import read_results
from experiment.errors import require_at_least
from experiment.files import require_writable_folder
from experiment.report import StageReport
from generative.fidelity import BASELINES
from generative.scores import RISING_SCORES

COLUMNS = 3
TITLE_CHARACTERS = 40


@dataclass(frozen=True)
class FidelityPlottingConfig:
    """Flags of `simulator_fidelity_plotting.py`."""

    interpreting_params_name: str = "defaults"
    """Preset in hyperparams/simulator.yml that the other values are taken from."""
    input_dir: Path = Path("analysis/simulator_fidelity")
    """Folder of simulator_fidelity.nc, made by simulator_fidelity_precompute.py."""
    sample_trust: Path | None = None
    """File sample_trust.nc of simulated samples, made by sample_trust_precompute.py; the summary
    then shows the trust in them too."""
    output_dir: Path = Path("analysis/simulator_fidelity_plots")
    """Folder for the figures, each as PNG and PDF."""
    dpi: int = 130
    """Resolution of PNGs."""
    report: Path | None = None
    """JSON file for seconds, outputs and metrics."""


COMPARED = ("mode", "mean_of_samples", "single_sample")
"""Predictions whose differences from the baselines are drawn."""


def plot_fidelity(config: FidelityPlottingConfig, report: StageReport) -> list[Path]:
    """Draw scores and paired differences over the horizon; returns the PNGs.

    Raises:
        UserError: no result file, a foreign one, or an output folder that cannot be written.
    """
    require_at_least(config, "dpi")
    folder = require_writable_folder(config.output_dir, "--output_dir")
    path = config.input_dir / "simulator_fidelity.nc"
    with ExitStack() as opened:
        results = opened.enter_context(read_results(path))
        trust = None
        if config.sample_trust is not None:
            trust = opened.enter_context(read_results(config.sample_trust, "sample_trust"))
        opened.enter_context(figure_text())
        figures = {
            "fidelity_summary": draw_summary(results, trust),
            "fidelity_scores": draw_scores(results),
            "fidelity_differences": draw_differences(results),
        }
        return save_figures(figures.items(), folder, config.dpi, report)


def draw_scores(results: xr.Dataset) -> Figure:
    """One panel per score, one line per prediction, 95% intervals as bands.

    Structural similarity is drawn for single futures as for means, but reads differently there: a
    mean of futures is blurred where they differ.
    """
    figure, axes = _panels(results)
    for axis, measure in zip(axes, results["measure"].values, strict=True):
        for line in LINES:
            chosen = {"measure": measure, "prediction": line.prediction}
            draw_line(axis, select_curve(results, "score", chosen), line)
        better = "higher" if measure in RISING_SCORES else "lower"
        axis.set_title(f"{_meaning(results, measure)}\n({better} is better)")
    _finish(figure, axes, results, "Predictions on levels that the simulator never saw")
    return figure


def draw_differences(results: xr.Dataset) -> Figure:
    """Score of the simulator minus that of its strongest baseline, which a square at zero names, at
    each horizon.

    A band that stays on the better side of zero is a simulator that beats every baseline there.
    """
    figure, axes = _panels(results)
    by_name = {line.prediction: line for line in LINES}
    for axis, measure in zip(axes, results["measure"].values, strict=True):
        rises = measure in RISING_SCORES
        strongest = strongest_baseline(results, measure)
        for prediction in COMPARED:
            chosen = {"measure": measure, "prediction": prediction, "baseline": strongest}
            draw_line(axis, select_curve(results, "difference", chosen), by_name[prediction])
        _mark_strongest(axis, strongest, by_name)
        if measure == "psnr":
            drawn = {"measure": measure, "prediction": list(COMPARED), "baseline": strongest}
            leave_out_horizon_0(axis, results["difference"].sel(**drawn))
            bottom, top = axis.get_ylim()
            axis.set_ylim(min(-1, bottom), max(1, top))
        better = "above" if rises else "below"
        axis.set_title(f"{_meaning(results, measure)}\n(better is {better} zero)")
    _finish(figure, axes, results, "Difference from the strongest baseline, paired over windows")
    return figure


def _mark_strongest(axis: Axes, strongest: xr.DataArray, by_name: Mapping[str, Line]) -> None:
    axis.axhline(0, color="black", linewidth=0.8, zorder=1)
    for baseline in BASELINES:
        horizon = strongest["horizon"].values[strongest.values == baseline]
        line = by_name[baseline]
        axis.plot(horizon, np.zeros(len(horizon)), "s", color=line.colour, label=line.label)


def strongest_baseline(results: xr.Dataset, measure: str) -> xr.DataArray:
    """(horizon,) the baseline with the best mean score at each horizon."""
    means = results["score"].sel(measure=measure, prediction=list(BASELINES))
    sign = -1 if measure in RISING_SCORES else 1
    # A horizon that no window reaches has no score at all; any baseline stands for none.
    filled = (sign * means).fillna(np.inf)
    return results["baseline"].isel(baseline=filled.argmin("prediction"))


def _panels(results: xr.Dataset) -> tuple[Figure, list[Axes]]:
    count = results.sizes["measure"]
    rows = -(-count // COLUMNS)
    figure = Figure(figsize=(3.6 * COLUMNS, 2.9 * rows + 1.1), layout="constrained")
    axes = figure.subplots(rows, COLUMNS, squeeze=False).flatten().tolist()
    for axis in axes[count:]:
        axis.remove()
    return figure, axes[:count]


def _meaning(results: xr.Dataset, measure: str) -> str:
    meaning = str(results["measure_meaning"].sel(measure=measure).values)
    return textwrap.fill(meaning, TITLE_CHARACTERS)


def _finish(figure: Figure, axes: list[Axes], results: xr.Dataset, title: str) -> None:
    for axis in axes:
        axis.set_xlabel("horizon (0 is the last frame given)")
        open_axis(axis)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    windows, levels = results.sizes["window"], len(np.unique(results["level"].values))
    figure.suptitle(
        f"{title}: {windows} windows of {levels} levels, recorded actions; "
        "bands are 95% intervals over levels"
    )
