"""Figures of how far saliency can be believed, drawn from their result file alone."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.fidelity_curves import Line, open_axis, select_curve
from analysis.figure_style import OKABE_ITO, figure_text, save_figures
from analysis.results import SALIENCY_TRUST_NAME, read_results
from experiment.errors import require_at_least
from experiment.files import require_writable_folder
from experiment.report import StageReport

SIMULATOR_LINES = (
    Line("frozen", "offsets frozen: what gradients are derivatives of", OKABE_ITO[2]),
    Line("discrete", "simulator as it is", OKABE_ITO[0]),
    Line("shuffled", "control: changes of other directions", "0.45", "-."),
)
AGREEMENT_TITLES = {
    "correlation": "correlation over directions\nhigher is better",
    "sign_agreement": "share of signs predicted\nhigher is better",
    "relative_error": "relative error of the prediction\nlower is better",
}
KNOWING_NOTHING = {"correlation": 0.0, "sign_agreement": 0.5, "relative_error": 1.0}
"""What a guess without knowledge reaches; for the error, predicting no change."""
LIKENESS_LINES = (
    Line("to_clean", "a perturbed copy and the clean sample", OKABE_ITO[0]),
    Line("halves", "means over two halves of the copies", OKABE_ITO[2]),
    Line("other_sample", "control: another sample", "0.45", "-."),
)
MAP_LINES = (
    Line("simulator", "saliency of the simulated frame", OKABE_ITO[0]),
    Line("real_gradient", "gradient on the real frame itself", OKABE_ITO[2], ":"),
    Line("edges", "baseline: edges", OKABE_ITO[1], "-."),
    Line("random", "baseline: noise", "0.45", "-."),
)
MODE_TITLES = {
    "deletion": "strongest pixels blurred: higher is better",
    "insertion": "all but the strongest blurred: lower is better",
}
_Choice = dict[str, Any]
"""Labels by dim."""

GROUP_TITLES = {"all": "all", "trusted": "trust ≥ ½", "poor": "trust < ½"}


@dataclass(frozen=True)
class SaliencyTrustPlottingConfig:
    """Flags of `saliency_trust_plotting.py`."""

    saliency_trust: Path = Path("analysis/saliency_trust") / SALIENCY_TRUST_NAME
    """Result of saliency_trust_precompute.py."""
    output_dir: Path = Path("analysis/saliency_trust_plots")
    """Folder for the figures, as PNG and PDF."""
    dpi: int = 130
    """Resolution of PNGs."""
    report: Path | None = None
    """JSON file for seconds, outputs and metrics."""


def plot_saliency_trust(config: SaliencyTrustPlottingConfig, report: StageReport) -> list[Path]:
    """Draw one figure per question; returns the PNGs.

    Raises:
        UserError: no result file, or a folder that cannot be written.
    """
    require_at_least(config, "dpi")
    with (
        read_results(config.saliency_trust, "saliency_trust") as results,
        figure_text(title_size=8),
    ):
        folder = require_writable_folder(config.output_dir, "--output_dir")
        figures = {
            "saliency_finite_changes": draw_finite_changes(results),
            "saliency_stability": draw_stability(results),
        }
        if int(results["group_size"].sel(group="all")):
            figures["saliency_reality"] = draw_reality(results)
        return save_figures(figures.items(), folder, config.dpi, report)


def draw_finite_changes(results: xr.Dataset) -> Figure:
    """How well gradients predict finite changes, over the size of the step."""
    figure = Figure(figsize=(9.6, 3.6), layout="constrained")
    for axis, (measure, title) in zip(
        figure.subplots(1, len(AGREEMENT_TITLES)), AGREEMENT_TITLES.items(), strict=True
    ):
        for line in SIMULATOR_LINES:
            where: _Choice = {"measure": measure, "simulator": line.prediction}
            _draw(axis, results, "agreement", where, line)
        axis.set(title=title, xlabel="length of the step of the latent", xscale="log")
        if measure == "relative_error":
            axis.set(yscale="log")
        axis.axhline(KNOWING_NOTHING[measure], color="0.8", linewidth=0.8, zorder=0)
        open_axis(axis)
    _legend(figure)
    figure.suptitle(
        f"Changes of the value: gradients against finite steps ({_counts(results)}, "
        f"{results.sizes['direction']} directions each)"
    )
    return figure


def draw_stability(results: xr.Dataset) -> Figure:
    """How alike maps are under noise."""
    figure = Figure(figsize=(5.2, 4.2), layout="constrained")
    axis = figure.subplots()
    for line in LIKENESS_LINES:
        _draw(axis, results, "likeness", {"compared": line.prediction}, line)
    axis.set(
        xlabel="standard deviation of the noise on each number of the latent",
        ylabel="cosine of gradients of the frames",
        xscale="log",
        ylim=(min(-0.05, axis.get_ylim()[0]), 1.05),
    )
    open_axis(axis)
    _legend(figure, columns=1)
    figure.suptitle(f"Stability of the value's saliency under noise\n({_counts(results)})")
    return figure


def draw_reality(results: xr.Dataset) -> Figure:
    """Deletion and insertion in the real environment, then areas above the baselines."""
    figure = Figure(figsize=(11.5, 4.0), layout="constrained")
    *curves, areas = figure.subplots(1, 3)
    for axis, (mode, title) in zip(curves, MODE_TITLES.items(), strict=True):
        for line in MAP_LINES:
            _draw(axis, results, "curve", {"map": line.prediction, "mode": mode}, line)
        axis.set(
            title=title, xlabel="share of pixels chosen by the map", ylabel="|change of value|"
        )
        open_axis(axis)
    _draw_areas(areas, results)
    _legend(figure)
    sizes = results["group_size"].sel(group="all")
    figure.suptitle(
        f"The real agent's value on perturbed real frames: {int(sizes)} samples with a real row, "
        "bands and bars are 95% intervals over episodes"
    )
    return figure


def _draw_areas(axis: Axes, results: xr.Dataset) -> None:
    """Deletion area of the simulator's map less each baseline's, by trust in the sample."""
    groups = [group for group in GROUP_TITLES if int(results["group_size"].sel(group=group))]
    for shift, baseline in enumerate(results["baseline"].values):
        chosen: _Choice = {
            "map": "simulator",
            "mode": "deletion",
            "baseline": baseline,
        }
        curve = select_curve(results, "area_difference", chosen)
        mean = curve.mean.sel(group=groups).values
        low, high = (bound.sel(group=groups).values for bound in (curve.low, curve.high))
        axis.errorbar(
            np.arange(len(groups)) + 0.2 * (shift - 0.5),
            mean,
            yerr=np.abs(np.stack([mean - low, high - mean])),
            fmt="os"[shift],
            color=OKABE_ITO[3 + 2 * shift],
            label=f"saliency less {'noise' if baseline == 'random' else baseline}",
        )
    axis.axhline(0, color="0.6", linewidth=0.8)
    sizes = [int(results["group_size"].sel(group=group)) for group in groups]
    labels = [f"{GROUP_TITLES[g]}\n{size} samples" for g, size in zip(groups, sizes, strict=True)]
    axis.set_xticks(range(len(groups)), labels)
    axis.set(
        title="deletion: difference of areas\nabove 0: saliency finds more",
        xlim=(-0.5, len(groups) - 0.5),
        xlabel="trust in the simulated sample",
    )
    open_axis(axis)


def _draw(axis: Axes, results: xr.Dataset, name: str, chosen: _Choice, line: Line) -> None:
    curve = select_curve(results, name, chosen)
    (dim,) = curve.mean.dims
    where = curve.mean[dim].values
    axis.plot(where, curve.mean, line.style, color=line.colour, label=line.label, marker=".")
    axis.fill_between(where, curve.low, curve.high, color=line.colour, alpha=0.18, linewidth=0)


def _legend(figure: Figure, columns: int = 3) -> None:
    labelled = {
        label: handle
        for axis in figure.axes
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        labelled.values(), labelled.keys(), loc="outside lower center", ncols=columns, frameon=False
    )


def _counts(results: xr.Dataset) -> str:
    return f"{results.sizes['sample']} samples of {results.attrs['num_episodes']} episodes"
