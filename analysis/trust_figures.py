"""Figures of simulated samples beside the real environment, drawn from their result file alone."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from analysis.fidelity_curves import (
    Line,
    draw_line,
    leave_out_horizon_0,
    open_axis,
    select_curve,
    title_of,
)
from analysis.fidelity_summary import draw_trust_histogram, kind_of_levels
from analysis.figure_style import OKABE_ITO, figure_text, save_figure
from analysis.results import SAMPLE_TRUST_NAME, read_results
from experiment.errors import UserError, require_at_least
from experiment.files import require_writable_folder
from experiment.report import StageReport

COLUMNS = 4
LINES = (
    Line("sample", "simulated samples", OKABE_ITO[0]),
    Line("last_frame", "baseline: last frame repeated", OKABE_ITO[1], "-."),
    Line("mean_frame", "baseline: mean frame", "0.45", "-."),
)


@dataclass(frozen=True)
class TrustPlottingConfig:
    """Flags of `sample_trust_plotting.py`."""

    generated_data_dir: Path = Path("generative/rec_gen_mod_data/informed_init")
    """Simulated samples, whose folder holds sample_trust.nc."""
    output_dir: Path = Path("analysis/sample_trust_plots")
    """Folder for the figure, as PNG and PDF."""
    dpi: int = 130
    """Resolution of PNGs."""
    report: Path | None = None
    """JSON file for seconds, outputs and metrics."""


def plot_trust(config: TrustPlottingConfig, report: StageReport) -> Path:
    """Draw trust, and every score against reality over the horizon; returns the PNG.

    Raises:
        UserError: no result file, one without any trust, or a folder that cannot be written.
    """
    require_at_least(config, "dpi")
    path = config.generated_data_dir / SAMPLE_TRUST_NAME
    with (
        read_results(path) as results,
        figure_text(title_size=8),
    ):
        if not np.isfinite(results["trust"]).any():
            raise UserError(f"{path}: no sample has a trust score, so there is nothing to draw")
        folder = require_writable_folder(config.output_dir, "--output_dir")
        picture = save_figure(draw_trust(results), folder / "sample_trust", config.dpi)
    report.outputs.append(str(folder))
    return picture


def draw_trust(results: xr.Dataset) -> Figure:
    """Trust of the samples, then one panel per score with its 95% interval."""
    measures = results["measure"].values
    rows = -(-(len(measures) + 1) // COLUMNS)
    figure = Figure(figsize=(3.1 * COLUMNS, 2.6 * rows + 0.8), layout="constrained")
    first, *axes = figure.subplots(rows, COLUMNS, squeeze=False).flatten()
    known = results["trust"].values[np.isfinite(results["trust"].values)]
    draw_trust_histogram(first, known)
    first.set_title("trust in each sample")
    open_axis(first)
    for axis, measure in zip(axes, measures, strict=False):
        for line in LINES:
            chosen = {"measure": measure, "compared": line.prediction}
            draw_line(axis, select_curve(results, "score", chosen), line)
        if measure == "psnr":
            leave_out_horizon_0(axis, results["score"].sel(measure=measure))
        axis.set(title=title_of(measure), xlabel="horizon (steps)")
        open_axis(axis)
    for axis in axes[len(measures) :]:
        axis.remove()
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    levels = results["level"].values[np.isfinite(results["trust"].values)]
    figure.suptitle(
        f"Samples against the real environment under the same actions: {len(known)} samples of "
        f"{len(np.unique(levels))} {kind_of_levels(levels)}; bands are 95% intervals over levels"
    )
    return figure
