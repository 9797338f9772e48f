"""Figures of the probe analysis, drawn from its result file alone."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.figure_style import OKABE_ITO, figure_text, save_figures
from analysis.probe_names import SIMULATOR_STATES
from analysis.results import PROBE_ANALYSIS_NAME, read_results
from experiment.errors import require_at_least
from experiment.files import require_writable_folder
from experiment.report import StageReport

LOWEST_SCORE = -0.25
SCORE_LABEL = "R², Brier skill score"
"""Scores below are drawn here, with an arrow to the left or down: far below zero, one is as wrong
as the other."""
COLUMNS = 4
MAX_READ_VARIABLES = 12


@dataclass(frozen=True)
class ProbePlottingConfig:
    """Flags of `probe_analysis_plotting.py`."""

    interpreting_params_name: str = "defaults"
    """Preset in hyperparams/probe_analysis.yml that the other values are taken from."""
    input_dir: Path = Path("analysis/probe_analysis_precomp")
    """Folder of probe_analysis.nc, made by probe_analysis_precompute.py."""
    output_dir: Path = Path("analysis/probe_plots")
    """Folder for the figures, each as PNG and PDF."""
    dpi: int = 130
    """Resolution of PNGs."""
    report: Path | None = None
    """JSON file for seconds, outputs and metrics."""


@dataclass(frozen=True)
class Mark:
    """How one representation is drawn."""

    representation: str
    label: str
    colour: str
    shape: str = "o"
    probe: str = "linear"


MARKS = (
    Mark("hidden", "hidden state, linear", OKABE_ITO[0]),
    Mark("hidden", "hidden state, perceptron", OKABE_ITO[4], "D", "perceptron"),
    Mark("components", "components, linear", OKABE_ITO[2], "s"),
    Mark("pixels", "baseline: pixels, linear", OKABE_ITO[1], "^"),
    Mark("untrained", "baseline: untrained agent, linear", OKABE_ITO[5], "v"),
)
STATE_PANELS = {
    "env_state": "environment state",
    "latent": "bottleneck vector",
    "simulated_hidden": "agent's hidden state,\nsimulated",
    "real_hidden": "agent's hidden state\non the real frames",
}
"""What is asked of the simulator, a panel each."""
STATE_MARKS = (
    Mark("", "the state of the panel's title, linear", OKABE_ITO[0]),
    Mark("", "baseline: pixels of its frames, linear", OKABE_ITO[1], "^"),
    Mark("", "baseline: untrained agent over its frames, linear", OKABE_ITO[5], "v"),
)
"""How a state and its two baselines are drawn; which these are depends on the panel."""
READ_STYLES = {"real": "--", "simulated": "-"}
READ_COLOURS = {
    "hidden": OKABE_ITO[0],
    "components": OKABE_ITO[2],
    "pixels": OKABE_ITO[1],
    "untrained": OKABE_ITO[5],
}


def plot_probes(config: ProbePlottingConfig, report: StageReport) -> list[Path]:
    """Draw all figures; returns the PNGs.

    Raises:
        UserError: no result file, a foreign one, or an output folder that cannot be written.
    """
    require_at_least(config, "dpi")
    folder = require_writable_folder(config.output_dir, "--output_dir")
    with (
        read_results(config.input_dir / PROBE_ANALYSIS_NAME, "probe_analysis") as file,
        figure_text(),
    ):
        # Small, and read in hundreds of pieces.
        results = file.load()
        figures = {
            "probe_scores": draw_scores(results),
            "component_variables": draw_components(results),
        }
        if "reading_score" in results:
            figures["simulated_reading"] = draw_reading(results)
            figures["simulator_scores"] = draw_states(results)
        return save_figures(figures.items(), folder, config.dpi, report)


def draw_scores(results: xr.Dataset) -> Figure:
    """One line per variable, one mark per representation with its 95% interval.

    Representations that the file lacks are left out.
    """
    marks = [mark for mark in MARKS if mark.representation in results["representation"]]
    names = _names_by_strength(results, "representation", "score")
    figure = Figure(figsize=(8.6, 1.9 + 0.3 * len(names)), layout="constrained")
    axis = figure.subplots()
    heights = np.arange(len(names))[::-1].astype(float)
    _draw_shuffled(axis, results["shuffled_maximum"].max("representation"), names, heights)
    _draw_scores(axis, results, marks, "", names, heights)
    _label_variables(axis, results, names, heights, "")
    axis.set_xlabel("R² (of yes-or-no variables the Brier skill score); 0 is the mean")
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    figure.suptitle(f"Of real decisions: {_how_judged(results, '')}")
    return figure


def draw_states(results: xr.Dataset) -> Figure:
    """A panel per state of simulator and agent, each with its own baselines beside it.

    Baselines that the file lacks are left out.
    """
    prefix = "simulator_"
    dim = f"{prefix}representation"
    names = _names_by_strength(results, dim, f"{prefix}score")
    figure = Figure(figsize=(12.0, 2.3 + 0.26 * len(names)), layout="constrained")
    axes = figure.subplots(1, len(STATE_PANELS), sharey=True)
    heights = np.arange(len(names))[::-1].astype(float)
    for axis, (state, title) in zip(axes, STATE_PANELS.items(), strict=True):
        members = (state, *SIMULATOR_STATES[state])
        marks = [
            replace(mark, representation=member)
            for mark, member in zip(STATE_MARKS, members, strict=True)
            if member in results[dim]
        ]
        shuffled = results[f"{prefix}shuffled_maximum"].sel({dim: state})
        _draw_shuffled(axis, shuffled, names, heights)
        _draw_scores(axis, results, marks, prefix, names, heights)
        _label_variables(axis, results, names, heights, prefix)
        axis.set_title(title)
        axis.set_xlabel(SCORE_LABEL)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    figure.suptitle(f"Of simulated states, all on the same rows: {_how_judged(results, prefix)}")
    return figure


def _how_judged(results: xr.Dataset, prefix: str) -> str:
    levels = int(results[f"{prefix}num_levels"].max())
    return (
        f"what probes tell of the game on levels they were not fitted on, {levels} levels; "
        "bars are 95% intervals over levels"
    )


def _names_by_strength(results: xr.Dataset, dim: str, score: str) -> list[str]:
    known = np.isfinite(results[score].values).any(axis=(0, 1))
    return _by_strength(results[score].isel({dim: 0}).sel(probe="linear"), known)


def _draw_scores(
    axis: Axes,
    results: xr.Dataset,
    marks: Sequence[Mark],
    prefix: str,
    names: list[str],
    heights: np.ndarray,
) -> None:
    for number, mark in enumerate(marks):
        chosen = {
            f"{prefix}representation": mark.representation,
            "probe": mark.probe,
            "variable": names,
        }
        offset = 0.36 - 0.72 * (number + 0.5) / len(marks)
        score, interval = (
            results[f"{prefix}{name}"].sel(chosen) for name in ("score", "score_interval")
        )
        _draw_marks(axis, score, interval, heights + offset, mark)


def _by_strength(scores: xr.DataArray, known: np.ndarray) -> list[str]:
    order = np.argsort(-np.nan_to_num(scores.values, nan=-np.inf), kind="stable")
    return [str(scores["variable"].values[i]) for i in order if known[i]]


def _draw_shuffled(
    axis: Axes, maximum: xr.DataArray, names: list[str], heights: np.ndarray
) -> None:
    reach = np.maximum(maximum.sel(variable=names).values, 0.0)
    axis.barh(heights, reach, height=0.8, color="0.85", label="control: best of shuffled levels")


def _draw_marks(
    axis: Axes, score: xr.DataArray, interval: xr.DataArray, heights: np.ndarray, mark: Mark
) -> None:
    shown = np.maximum(score.values, LOWEST_SCORE)
    low, high = (np.maximum(interval.sel(bound=b).values, LOWEST_SCORE) for b in ("lower", "upper"))
    axis.hlines(heights, low, high, color=mark.colour, linewidth=1.0)
    axis.plot(shown, heights, mark.shape, color=mark.colour, markersize=4, label=mark.label)
    below = score.values < LOWEST_SCORE
    axis.plot(shown[below], heights[below], "<", color=mark.colour, markersize=6)


def _label_variables(
    axis: Axes, results: xr.Dataset, names: list[str], heights: np.ndarray, prefix: str
) -> None:
    chosen = results.sel(variable=names)
    units = [str(unit) for unit in chosen["unit"].values]
    levels = chosen[f"{prefix}num_levels"].values
    labels = [f"{n} ({u}), {c} levels" for n, u, c in zip(names, units, levels, strict=True)]
    axis.set_yticks(heights, labels)
    axis.set_ylim(-0.6, len(names) - 0.4)
    axis.set_xlim(LOWEST_SCORE - 0.03, 1.02)
    axis.axvline(0, color="black", linewidth=0.8)
    axis.grid(axis="x", color="0.9")
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)


def draw_components(results: xr.Dataset) -> Figure:
    """Partial correlations of components with variables; those that count as found are written."""
    known = np.isfinite(results["partial_correlation"].values).any(axis=0)
    table = results["partial_correlation"].isel(variable=known)
    rate = float(results.attrs["false_discovery_rate"])
    found = results["q_value"].isel(variable=known).values < rate
    count, width = table.shape
    figure = Figure(figsize=(2.2 + 0.36 * width, 1.9 + 0.26 * count), layout="constrained")
    axis = figure.subplots()
    picture = axis.imshow(table.values, cmap="RdBu_r", vmin=-1, vmax=1, aspect="auto")
    for row, column in np.argwhere(found):
        value = float(table.values[row, column])
        colour = "white" if abs(value) > 0.6 else "black"
        text = f"{value:.2f}".replace("0.", ".")
        axis.text(column, row, text, ha="center", va="center", fontsize=5.5, color=colour)
    axis.set_xticks(np.arange(width), table["variable"].values, rotation=60, ha="right")
    axis.set_yticks(np.arange(count), [str(c) for c in table["component"].values])
    axis.set_ylabel("component")
    figure.colorbar(picture, ax=axis, pad=0.01, label="partial correlation given the step")
    figure.suptitle(
        f"Components and the game's variables, {int(results['num_levels'].max())} levels: numbers "
        f"where the false-discovery rate is below {rate:.0%} ({found.sum()} of {found.size} pairs)"
    )
    return figure


def draw_reading(results: xr.Dataset) -> Figure:
    """Probes of real decisions over simulated time: read on real and on simulated states."""
    score = results["reading_score"]
    first = score.sel(read_source="real", read_representation="hidden").isel(step=0)
    names = _by_strength(first, np.isfinite(first.values))[:MAX_READ_VARIABLES]
    rows = max(1, -(-len(names) // COLUMNS))
    figure = Figure(figsize=(2.7 * COLUMNS, 2.1 * rows + 1.0), layout="constrained")
    axes = figure.subplots(rows, COLUMNS, squeeze=False, sharex=True, sharey=True).ravel()
    for axis, name in zip(axes, names, strict=False):
        for representation in score["read_representation"].values:
            for source in score["read_source"].values:
                chosen = {"read_representation": representation, "read_source": source}
                _draw_reading(axis, results, {**chosen, "variable": name})
        axis.set_title(name)
        axis.axhline(0, color="black", linewidth=0.8)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes[len(names) :]:
        axis.set_visible(False)
    for axis in axes[: len(names)][-COLUMNS:]:
        axis.set_xlabel("simulated step")
        axis.tick_params(labelbottom=True)
    for axis in axes[::COLUMNS]:
        axis.set_ylabel(SCORE_LABEL)
    axes[0].set_ylim(LOWEST_SCORE - 0.05, 1.02)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    figure.suptitle(
        f"Probes of real decisions of {int(results['num_levels'].max())} levels, read on simulated "
        f"ones of other levels under recorded actions;\nbands are 95% intervals; at {LOWEST_SCORE} "
        "and below, lines are cut"
    )
    return figure


def _draw_reading(axis: Axes, results: xr.Dataset, chosen: dict[str, str]) -> None:
    source, representation = chosen["read_source"], chosen["read_representation"]
    score = results["reading_score"].sel(chosen)
    interval = results["reading_score_interval"].sel(chosen)
    low, high = (np.maximum(interval.sel(bound=b).values, LOWEST_SCORE) for b in ("lower", "upper"))
    shown = np.maximum(score.values, LOWEST_SCORE)
    steps, colour = score["step"].values, READ_COLOURS[representation]
    style = READ_STYLES[source]
    axis.plot(steps, shown, style, color=colour, label=f"{representation}, {source}")
    axis.fill_between(steps, low, high, color=colour, alpha=0.15, linewidth=0)
