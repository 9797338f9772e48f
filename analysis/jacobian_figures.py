"""Figures of Jacobians, drawn from their result file alone."""

import textwrap
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from analysis.cross_causation import summarise_effects
from analysis.cross_figures import bar_ends, colour_limit, draw_matrix
from analysis.figure_style import (
    OKABE_ITO,
    PANEL_TITLE_LETTERS,
    figure_text,
    save_figures,
    tell_trustworthiness,
)
from analysis.hidden_figures import category_colours
from analysis.jacobian_means import lag_means
from analysis.results import JACOBIAN_NAME, PRODUCERS, read_results
from experiment.errors import UserError, require_at_least
from experiment.files import require_writable_folder
from experiment.report import StageReport

COLUMNS = 4
VARIANTS = {"passed": "with the environment", "cut": "environment cut"}


@dataclass(frozen=True)
class JacobianPlottingConfig:
    """Flags of `jacobian_analysis_plotting.py`."""

    interpreting_params_name: str = "defaults"
    """Preset in hyperparams/dynamics.yml that the other values are taken from."""
    input_dir: Path = Path("analysis/jacob_analysis_precomp")
    """Folder of jacobians.nc, made by jacobian_analysis_precompute.py."""
    output_dir: Path = Path("analysis/jacob_plots")
    """Folder for the figures, each as PNG and PDF."""
    max_drawn_clusters: int = 8
    """Clusters whose mean Jacobian is drawn, the largest first."""
    dpi: int = 130
    """Resolution of PNGs."""
    report: Path | None = None
    """JSON file for seconds, outputs and metrics."""


def plot_jacobians(config: JacobianPlottingConfig, report: StageReport) -> list[Path]:
    """Draw the overview and the clusters; returns the PNGs.

    Raises:
        UserError: no result file, a foreign one, one that does not tell which samples are
            independent, or an output folder that cannot be written.
    """
    require_at_least(config, "max_drawn_clusters", "dpi")
    folder = require_writable_folder(config.output_dir, "--output_dir")
    with (
        read_results(config.input_dir / JACOBIAN_NAME) as results,
        figure_text(),
    ):
        if "unit" not in results:
            raise UserError(
                f"--input_dir {config.input_dir}: {JACOBIAN_NAME} does not tell which samples are "
                f"independent; make it anew with: {PRODUCERS['jacobians']}"
            )
        figures = {
            "jacobians": draw_overview(results),
            "jacobian_clusters": draw_clusters(results, config.max_drawn_clusters),
        }
        return save_figures(figures.items(), folder, config.dpi, report)


def draw_overview(results: xr.Dataset) -> Figure:
    """How Jacobians fade with the lag, what pushes do in comparison, where the clusters lie."""
    figure = Figure(figsize=(12.0, 3.8), layout="constrained")
    sizes, pushes, places = figure.subplots(1, 3)
    _draw_sizes(sizes, results)
    if "push_effect" in results:
        _draw_pushes(pushes, results)
    else:
        pushes.set_axis_off()
    if "embedding" in results:
        _draw_places(places, results)
    else:
        places.set_axis_off()
    num_units = len(np.unique(results["unit"].values))
    reproduced = float(results["frames_reproduced"].mean())
    figure.suptitle(
        f"Jacobians between {results.sizes['source']} components of "
        f"{results.sizes['sample']} samples of at most {results.sizes['target_step']} steps "
        f"from {num_units} source episodes ({reproduced:.1%} of stored frames reproduced)"
    )
    return figure


def _draw_sizes(axis: Axes, results: xr.Dataset) -> None:
    lags = list(range(1, results.sizes["source_step"]))
    length = results["length"].values
    for colour, (variant, label) in zip(OKABE_ITO, VARIANTS.items(), strict=False):
        jacobian = results["jacobian"].sel(environment_gradient=variant).values
        per_sample = lag_means(jacobian, length, lags)
        sizes = np.sqrt(np.square(per_sample).mean(axis=(-2, -1)))
        size = summarise_effects(sizes, results["unit"].values)
        axis.plot(lags, size.mean, "-o", ms=3, color=colour, label=label)
        axis.fill_between(lags, *size.interval, color=colour, alpha=0.2, linewidth=0)
    axis.set(xlabel="lag (steps)", ylabel="root mean square over components", ylim=(0, None))
    axis.set_title("size of the Jacobian (95% intervals over source episodes)")
    axis.legend(frameon=False)
    axis.spines[["top", "right"]].set_visible(False)


def _draw_pushes(axis: Axes, results: xr.Dataset) -> None:
    """How well the gradient predicts a finite push, actions free and held."""
    start = int(results.attrs["grad_timestep"])
    later = results.sel(target_step=slice(start + 1, None))
    lags = np.arange(1, later.sizes["target_step"] + 1)
    for colour, (variant, label) in zip(
        OKABE_ITO, {"passed": "actions free", "cut": "actions held"}.items(), strict=False
    ):
        chosen = later.sel(environment_gradient=variant)
        cosines = push_cosines(
            chosen["jacobian"].sel(source_step=start).values, chosen["push_effect"].values
        )
        low, median, high = np.nanquantile(cosines, (0.25, 0.5, 0.75), axis=0)
        axis.plot(lags, median, "-o", ms=3, color=colour, label=f"{label}: median, quartiles")
        axis.fill_between(lags, low, high, color=colour, alpha=0.2, linewidth=0)
    axis.axhline(0, color="black", lw=0.6)
    axis.set(xlabel="lag (steps)", ylabel="cosine", ylim=(-0.3, 1.02))
    axis.set_title(f"Jacobian against a push of ± {results.attrs['push_size']:g} at step {start}")
    axis.legend(frameon=False)
    axis.spines[["top", "right"]].set_visible(False)


def push_cosines(
    predicted: NDArray[np.floating], found: NDArray[np.floating]
) -> NDArray[np.float64]:
    """(N, L, D, D) Jacobians and push effects → (N, L) cosine over all entries."""
    x, y = (np.asarray(a, np.float64).reshape(*a.shape[:2], -1) for a in (predicted, found))
    scale = np.sqrt(np.square(x).sum(axis=-1) * np.square(y).sum(axis=-1))
    top = (x * y).sum(axis=-1)
    return np.divide(top, scale, out=np.full(top.shape, np.nan), where=scale > 0)


def _draw_places(axis: Axes, results: xr.Dataset) -> None:
    places, cluster = results["embedding"].values, results["cluster"].values
    colours = category_colours(int(results.attrs["num_clusters"]))
    axis.scatter(
        places[:, 0], places[:, 1], s=float(np.clip(8000 / len(places), 1, 20)),
        c=[colours(c) for c in cluster], linewidths=0, rasterized=True,
    )  # fmt: skip
    axis.set(xticks=[], yticks=[], xlabel="embedding 0", ylabel="embedding 1")
    told = ["samples by their one-step Jacobian, in their clusters' colours"]
    if "cluster_stability_adjusted_rand" in results.attrs:
        stability = float(results.attrs["cluster_stability_adjusted_rand"])
        control = float(results.attrs["cluster_stability_control"])
        told.append(f"stability (adjusted Rand index) {stability:.2f}, control {control:.2f}")
    told.append(tell_trustworthiness(results.attrs))
    lines = [line for words in told for line in textwrap.wrap(words, PANEL_TITLE_LETTERS)]
    axis.set_title("\n".join(lines))


def draw_clusters(results: xr.Dataset, max_clusters: int) -> Figure:
    """Mean one-step Jacobian of the largest clusters."""
    step = int(results.attrs["grad_timestep"])
    one_step = (
        results["jacobian"]
        .sel(environment_gradient="passed", source_step=step, target_step=step + 1)
        .transpose("sample", "source", "target")
        .values
    )
    cluster = results["cluster"].values
    colours = category_colours(int(results.attrs["num_clusters"]))
    count = min(max_clusters, int(results.attrs["num_clusters"]))
    columns = min(COLUMNS, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(2.8 * columns + 0.8, 2.7 * rows + 0.6), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    means = [one_step[cluster == c].mean(axis=0) for c in range(count)]
    limit = colour_limit(np.stack(means))
    order = np.arange(one_step.shape[1])
    for axis in axes.flat[count:]:
        axis.set_axis_off()
    for c, axis in zip(range(count), axes.flat, strict=False):
        draw_matrix(axis, means[c], limit, order)
        # In the colour that the cluster has among the samples of the overview.
        title = f"cluster {c} (n = {int(np.sum(cluster == c))})"
        axis.set_title(title, color=colours(c), fontweight="bold")
    figure.colorbar(
        axes[0, 0].images[0], ax=axes, pad=0.02, extend=bar_ends(np.stack(means), limit),
        label="∂ component / ∂ component",
    )  # fmt: skip
    figure.supxlabel(f"component at step {step + 1}")
    figure.supylabel(f"component at step {step}")
    figure.suptitle(f"Mean Jacobian from step {step} to {step + 1}, by cluster")
    return figure
