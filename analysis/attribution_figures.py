"""Figures that sum up many saliency maps, drawn from files of saliency_experiments.py alone."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from analysis.attribution_summary import (
    SOURCES,
    MethodAgreement,
    PathNorms,
    convergence,
    mean_of_known,
    mean_over_samples,
    method_agreement,
    path_norms,
)
from analysis.fidelity_curves import open_axis
from analysis.figure_style import OKABE_ITO, figure_text, save_figures
from analysis.results import SALIENCY_NAME, read_results
from experiment.errors import require_at_least
from experiment.files import require_writable_folder
from experiment.report import StageReport

Summary = TypeVar("Summary")

PATH_STYLES = {
    "passed": ("all", "black", "-"),
    "cut": ("agent's memory alone", OKABE_ITO[0], "-"),
    "only": ("environment alone", OKABE_ITO[5], "-"),
    "neither": ("control: no recurrence of the agent", "0.55", "--"),
    "mixed": ("mixed: all − agent − environment", OKABE_ITO[3], ":"),
}
COLUMNS = 3
SMALLEST_DRAWN = 1e-4
"""Gradients smaller than this share of the largest are not drawn."""
WIDEST_LINE = 3.0
"""Of all paths together, in points: seen beneath the line of a path that carries nearly all."""
TOLERANCE = 0.01
"""Share of the difference that integrated gradients may miss."""


@dataclass(frozen=True)
class AttributionPlottingConfig:
    """Flags of `saliency_plotting.py`."""

    paths: Path | None = None
    """Folder of a saliency.nc made with --split_paths; None to do without."""
    integrated: Path | None = None
    """Folder of a saliency.nc made with --integrate frames and --no-env_grads; None to do without.
    """
    output_dir: Path = Path("analysis/attribution_plots")
    """Folder for the figures, each as PNG and PDF, and a contact sheet."""
    num_resamples: int = 1000
    """Bootstrap resamples of the source episodes, for the 95% intervals."""
    dpi: int = 130
    """Resolution of PNGs."""
    seed: int = 0
    """Draws the resamples."""
    report: Path | None = None
    """JSON file for seconds, outputs and metrics."""


def plot_attributions(config: AttributionPlottingConfig, report: StageReport) -> list[Path]:
    """Draw what the two files hold, and a contact sheet; returns the PNGs.

    Raises:
        UserError: no file is named, one is missing or lacks what is drawn, or the output folder
            cannot be written.
    """
    require_at_least(config, "num_resamples", "dpi")
    for chosen in (config.paths, config.integrated):
        if chosen is not None:
            read_results(chosen / SALIENCY_NAME, "saliency").close()
    folder = require_writable_folder(config.output_dir, "--output_dir")
    with figure_text(title_size=8):
        return save_figures(_figures(config), folder, config.dpi, report, columns=2)


def _figures(config: AttributionPlottingConfig) -> Iterator[tuple[str, Figure]]:
    # Both files are summed up before anything is drawn: what one of them lacks is told at once.
    norms = None if config.paths is None else _sum_up(config.paths, path_norms)
    agreement = None
    if config.integrated is not None:
        agreement = _sum_up(config.integrated, method_agreement)
    if norms is not None:
        for index, source in enumerate(SOURCES):
            name = f"paths_{source.replace(' ', '_')}"
            yield name, draw_paths(norms, index, source, config)
        yield "path_shares", draw_shares(norms, config)
    if config.integrated is not None and agreement is not None:
        yield "convergence", _sum_up(config.integrated, draw_convergence)
        yield "method_agreement", draw_methods(agreement)


def _sum_up(folder: Path, summarise: Callable[[xr.Dataset], Summary]) -> Summary:
    """What a function makes of the saliency of a folder."""
    with read_results(folder / SALIENCY_NAME, "saliency") as results:
        return summarise(results)


def draw_paths(
    norms: PathNorms, source: int, name: str, config: AttributionPlottingConfig
) -> Figure:
    """One panel per target: size of the gradient by step and path, means over samples."""
    figure, axes = _panels(len(norms.targets))
    steps = np.arange(norms.norm.shape[-1])
    sizes = norms.norm[:, source].mean(axis=0).max(axis=(0, 2))
    smallest = SMALLEST_DRAWN * sizes
    for index, (axis, target) in enumerate(zip(axes, norms.targets, strict=True)):
        least = sizes[index].max()
        for path, (label, colour, style) in PATH_STYLES.items():
            of_path = norms.norm[:, source, norms.paths.index(path), index]
            mean = mean_over_samples(of_path, norms.unit, config.num_resamples, config.seed)
            # Nothing, and the rounding error of nothing, has no place on a logarithmic axis.
            shown = np.where(mean.value > smallest[index], mean.value, np.nan)
            width = WIDEST_LINE if path == "passed" else 1.2
            axis.plot(steps, shown, style, marker=".", color=colour, label=label, linewidth=width)
            axis.fill_between(
                steps, mean.lower, mean.upper, where=np.isfinite(shown), color=colour, alpha=0.15,
                linewidth=0,
            )  # fmt: skip
            least = np.nanmin(shown, initial=least)
        axis.set(title=f"{target} at step {len(steps) - 1}", yscale="log", xticks=steps)
        axis.set_ylim(bottom=least / 2)
        axis.tick_params(labelbottom=True)
        open_axis(axis)
    figure.supylabel("root mean square of the gradient", fontsize=8)
    for axis in axes[-COLUMNS:]:
        axis.set_xlabel(f"step of the {name}")
    _legend(figure, axes[0])
    figure.suptitle(
        f"Gradients with respect to the {name}, by the path that they came by: means over "
        f"{len(norms.norm)} samples, bands are 95% intervals; what is zero is not drawn"
    )
    return figure


def draw_shares(norms: PathNorms, config: AttributionPlottingConfig) -> Figure:
    """Size of each path against all of them together, over the steps before the target's."""
    figure = Figure(figsize=(11.0, 0.42 * len(norms.targets) + 1.4), layout="constrained")
    axes = figure.subplots(1, len(SOURCES), sharey=True)
    mean = mean_over_samples(norms.shares(), norms.unit, config.num_resamples, config.seed)
    places = np.arange(len(norms.targets))
    shown = [path for path in PATH_STYLES if path != "passed"]
    for source, (axis, name) in enumerate(zip(axes, SOURCES, strict=True)):
        for number, path in enumerate(shown):
            label, colour, _ = PATH_STYLES[path]
            at = source, norms.paths.index(path)
            value, height = mean.value[at], places + 0.18 * (number - 1.5)
            ends = np.abs(np.stack([mean.lower[at], mean.upper[at]]) - value)
            axis.errorbar(value, height, xerr=ends, fmt="o", ms=3, lw=1, color=colour, label=label)
        axis.axvline(1, color="black", linewidth=0.6)
        axis.set(title=f"gradient with respect to the {name}", xlim=(0, None))
        axis.set_yticks(places, norms.targets)
        open_axis(axis)
    axes[0].invert_yaxis()
    _legend(figure, axes[0])
    figure.suptitle(
        "Size of each path's gradient against that of all together (1), over the steps before "
        f"those that the target reads; means over {len(norms.norm)} samples, bars are 95% intervals"
    )
    return figure


def draw_methods(agreement: MethodAgreement) -> Figure:
    """One column per target: cosines of maps of the same sample, and below of different ones."""
    count = len(agreement.targets)
    figure = Figure(figsize=(2.5 * count + 2.2, 5.6), layout="constrained")
    axes = figure.subplots(2, count, squeeze=False, sharex=True, sharey=True)
    rows = {"same sample": agreement.same, "control:\nanother sample": agreement.other}
    for line, (name, cosines) in zip(axes, rows.items(), strict=True):
        for axis, target, values in zip(
            line, agreement.targets, mean_of_known(cosines, 0), strict=True
        ):
            _draw_cosines(axis, values, agreement.methods)
            axis.set_title(target)
        line[0].set_ylabel(name, fontsize=9)
    figure.colorbar(axes[0, 0].images[0], ax=axes, pad=0.02, label="cosine")
    figure.suptitle(
        f"Agreement of attributions to frames, means over {len(agreement.same)} samples; the "
        "environment does not answer"
    )
    return figure


def _draw_cosines(axis: Axes, values: NDArray[np.float64], methods: tuple[str, ...]) -> None:
    axis.imshow(values, cmap="RdBu_r", vmin=-1, vmax=1)
    places = np.arange(len(methods))
    axis.set_xticks(places, methods, rotation=90)
    axis.set_yticks(places, methods)
    for row, column in np.ndindex(*values.shape):
        colour = "white" if abs(values[row, column]) > 0.6 else "black"
        text = f"{values[row, column]:z.2f}"
        axis.text(column, row, text, ha="center", va="center", fontsize=6, color=colour)


def draw_convergence(results: xr.Dataset) -> Figure:
    """What integrated gradients missed of the change that they share out, one dot per sample."""
    kinds, targets = convergence(results), results["target"].values.tolist()
    figure = Figure(figsize=(2.6 * len(kinds) + 1.0, 3.0), layout="constrained")
    axes = figure.subplots(1, len(kinds), squeeze=False, sharey=True)[0]
    # Limits by hand: where nothing but the tolerance is drawn, a logarithmic axis may find none.
    missed = np.concatenate([kind.missed.ravel() for kind in kinds])
    shown = np.append(missed[np.isfinite(missed) & (missed > 0)], TOLERANCE)
    axes[0].set(yscale="log", ylim=(shown.min() / 2, shown.max() * 2))
    for axis, kind in zip(axes, kinds, strict=True):
        for place, of_target in enumerate(kind.missed.T):
            spread = place + np.linspace(-0.2, 0.2, len(of_target))
            axis.plot(spread, of_target, ".", color=OKABE_ITO[0])
        axis.axhline(TOLERANCE, color=OKABE_ITO[5], linewidth=0.8, linestyle="--")
        within = kind.share_within(TOLERANCE)
        told = "no change to share out" if np.isnan(within) else f"{within:.0%}"
        axis.set_title(f"over {kind.name}\nwithin {TOLERANCE:.0%}: {told}")
        axis.set_xticks(np.arange(len(targets)), targets, rotation=20)
        open_axis(axis)
    axes[0].set_ylabel("share of the difference that is missed")
    figure.suptitle(
        f"Convergence of integrated gradients, {results.sizes['sample']} samples; one dot per "
        "sample, dashed: tolerance"
    )
    return figure


def _panels(count: int) -> tuple[Figure, list[Axes]]:
    columns = min(COLUMNS, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(3.4 * columns + 0.6, 2.2 * rows + 1.0), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True).ravel()
    for unused in axes[count:]:
        unused.remove()
    return figure, list(axes[:count])


def _legend(figure: Figure, axis: Axes) -> None:
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False)
