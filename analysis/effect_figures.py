"""The page on what an intervention does, drawn from its result file alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from analysis.effect_names import (
    ACTION_PREFIX,
    CLUSTER_PREFIX,
    COMPONENT_PREFIX,
    INTERVENTION_ATTRIBUTE,
    SIGN_FLIP,
    TESTED,
)
from analysis.effect_verdict import (
    SIGNIFICANT,
    VERDICT_COLUMNS,
    describe,
    main_measures,
    meaning,
    random_controls,
    row_of,
    strength_lines,
)
from analysis.fidelity_curves import open_axis
from analysis.figure_style import OKABE_ITO, figure_text, save_figure
from analysis.results import INTERVENTION_EFFECTS_NAME, read_results
from experiment.errors import require_at_least
from experiment.files import atomic_file, require_writable_folder
from experiment.report import StageReport

WORLD_COLOURS = {"simulated": OKABE_ITO[0], "real": OKABE_ITO[5]}
MAX_CURVES = 4
MAX_BARS = 32
COLUMN_WIDTHS = (0.22, 0.1, 0.11, 0.16, 0.14, 0.27)
WRAPPED_AT = (44, 20, 20, 30, 26, 50)
"""Characters that fit into a line of each column."""
LINE_HEIGHT = 0.17
"""Inches of a line of the table."""
NOTE_LINES = 6
"""Lines for the table's head and for the notes below it."""
ROUNDING = 1e-4
"""Changes below this share of the largest are rounding: components that an intervention spares
differ from the twin's in the last bits."""
CELL_PAD = 0.02
"""Room at the left of a cell, as a share of its width."""


@dataclass(frozen=True)
class EffectPlottingConfig:
    """Flags of `intervention_effects_plotting.py`."""

    results_dir: Path = Path("analysis/intervention_effects")
    """Folder that holds intervention_effects.nc."""
    output_dir: Path | None = None
    """Folder for the page, as PNG, PDF and text; by default RESULTS_DIR/plots."""
    dpi: int = 130
    """Resolution of the PNG."""
    report: Path | None = None
    """JSON file for seconds, outputs and metrics."""


def plot_effects(config: EffectPlottingConfig, report: StageReport) -> Path:
    """Draw the page and write the verdict as text; returns the PNG.

    Raises:
        UserError: no result file, or a folder that cannot be written.
    """
    require_at_least(config, "dpi")
    with (
        read_results(config.results_dir / INTERVENTION_EFFECTS_NAME) as results,
        figure_text(title_size=8),
    ):
        results.load()
        folder = config.output_dir or config.results_dir / "plots"
        require_writable_folder(folder, "--output_dir")
        picture = save_figure(draw_effects(results), folder / "intervention_effects", config.dpi)
        with atomic_file(folder / "verdict.md") as path:
            path.write_text(describe(results) + "\n")
    report.outputs.append(str(folder))
    return picture


def draw_effects(results: xr.Dataset) -> Figure:
    """The verdict as a table, effects by row, and all actions, components and clusters."""
    measures = main_measures(results)
    by_row = [m for m in measures if m in results["row_measure"].values][:MAX_CURVES]
    groups = [
        prefix
        for prefix in (ACTION_PREFIX, COMPONENT_PREFIX, CLUSTER_PREFIX)
        if _members(results, prefix)
    ]
    worlds = results["world"].values.tolist()
    rows = verdict_rows(results, measures)
    heights = [LINE_HEIGHT * (_num_lines(rows) + NOTE_LINES) + 0.2, 2.3 * len(worlds) + 0.4, 3.2]
    if COMPONENT_PREFIX in groups:
        heights.append(3.2)
    figure = Figure(figsize=(13, sum(heights) + 0.3), layout="constrained")
    parts = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False).ravel()
    table, curves, bars = parts[:3]
    _draw_table(table.subplots(), results, rows)
    panels = curves.subplots(len(worlds), len(by_row), squeeze=False)
    for axes, world in zip(panels, worlds, strict=True):
        for axis, measure in zip(axes, by_row, strict=True):
            _draw_curves(axis, results, measure, world)
    handles, labels = curves.axes[0].get_legend_handles_labels()
    curves.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False)
    if COMPONENT_PREFIX in groups:
        _draw_trajectories(parts[3], results)
    for axis, prefix in zip(bars.subplots(1, len(groups), squeeze=False)[0], groups, strict=True):
        _draw_bars(axis, results, prefix)
    bars.supxlabel(
        "mean over rows: blue simulated, orange real; grey: range of random directions", fontsize=8
    )
    num_pairs, num_levels = results.sizes["pair"], len(np.unique(results["level"].values))
    figure.suptitle(
        f"{results.attrs.get(INTERVENTION_ATTRIBUTE, 'Intervention')}: against its unmodified "
        f"twin, {num_pairs} pairs from {num_levels} levels;\nbands and bars are 95% intervals over "
        f"levels; verdicts see effects of q < {SIGNIFICANT} among all measures of a world"
    )
    return figure


def verdict_rows(results: xr.Dataset, measures: Sequence[str]) -> list[list[str]]:
    """One row per measure and world, its cells broken into lines that fit."""
    return [
        [fill(cell, width) for cell, width in zip(row_of(results, w, m), WRAPPED_AT, strict=True)]
        for m in measures
        for w in results["world"].values.tolist()
    ]


def _num_lines(rows: Sequence[Sequence[str]]) -> float:
    """Lines of the whole table; a row has a bit of room above and below."""
    return sum(_lines_of(row) for row in rows)


def _lines_of(row: Sequence[str]) -> float:
    return 0.35 + max(cell.count("\n") + 1 for cell in row)


def _draw_table(axis: Axes, results: xr.Dataset, rows: Sequence[Sequence[str]]) -> None:
    axis.set_axis_off()
    cells = axis.table(
        rows, colLabels=VERDICT_COLUMNS, colWidths=COLUMN_WIDTHS, loc="upper center",
        cellLoc="left", edges="horizontal",
    )  # fmt: skip
    cells.auto_set_font_size(False)
    cells.set_fontsize(7.5)
    # Of the axis' height, some lines are left for the notes below the table.
    line = 1.0 / (_num_lines(rows) + NOTE_LINES)
    for (row, _), cell in cells.get_celld().items():
        cell.set(linewidth=0.4, height=line * (_lines_of(rows[row - 1]) if row else 1.5))
        cell.PAD = CELL_PAD
        if row == 0:
            cell.set_text_props(fontweight="bold")
    notes = "\n".join(fill(line, 190) for line in strength_lines(results))
    axis.text(0, 0, notes, transform=axis.transAxes, va="bottom", fontsize=7.5)


def _draw_curves(axis: Axes, results: xr.Dataset, measure: str, world: str) -> None:
    """Effects by row in one world, what was predicted for it, and the controls."""
    at = results.sel(row_measure=measure, world=world)
    steps, colour = np.arange(results.sizes["step"]), WORLD_COLOURS[world]
    for number, control in enumerate(random_controls(results)):
        label = None if number else "random directions"
        values = at["row_effect"].sel(variant=control).values
        axis.plot(steps, values, color="0.65", linewidth=0.8, label=label)
    if SIGN_FLIP in results["control"].values:
        flip = at["row_effect"].sel(variant=SIGN_FLIP).values
        axis.plot(steps, flip, "--", color=OKABE_ITO[3], linewidth=1.0, label="sign flip")
    low, high = at["row_effect_interval"].sel(variant=TESTED).transpose("bound", "step").values
    axis.fill_between(steps, low, high, color=colour, alpha=0.18, linewidth=0)
    values = at["row_effect"].sel(variant=TESTED).values
    axis.plot(steps, values, color=colour, linewidth=1.6, label="observed")
    for prediction, words, style in (("readout", "heads", "k:"), ("gradient", "gradient", "k--")):
        name = f"{prediction}_{world}"
        if name in results["prediction"].values:
            predicted = at["predicted_row"].sel(prediction=name, variant=TESTED).values
            axis.plot(steps, predicted, style, linewidth=1.0, label=f"predicted: {words}")
    axis.axhline(0, color="black", linewidth=0.6)
    axis.set(title=f"{meaning(measure)}, {world}", xlabel="row", ylabel="change")
    open_axis(axis)


def _draw_trajectories(figure: SubFigure, results: xr.Dataset) -> None:
    """Change of every component by row, a panel per world on one scale of colours."""
    members = _members(results, COMPONENT_PREFIX)
    at = results.sel(row_measure=members, variant=TESTED)
    effect = at["row_effect"].transpose("world", "row_measure", "step").values
    bounds = at["row_effect_interval"].transpose("bound", "world", "row_measure", "step").values
    reach = float(np.nanmax(np.abs(effect), initial=1e-9))
    axes = figure.subplots(1, len(effect), squeeze=False)[0]
    for index, (axis, world) in enumerate(zip(axes, results["world"].values, strict=True)):
        picture = axis.imshow(
            effect[index], cmap="RdBu_r", vmin=-reach, vmax=reach, aspect="auto", origin="lower"
        )
        low, high = bounds[:, index]
        is_seen = ((low > 0) | (high < 0)) & (np.abs(effect[index]) > ROUNDING * reach)
        component, row = np.nonzero(is_seen)
        axis.plot(row, component, ".", color="black", markersize=2.5)
        axis.set_title(
            f"components by row, {world}; dots: interval excludes 0 (by chance 1 in 20 does)"
        )
        axis.set(xlabel="row", ylabel="component")
        figure.colorbar(picture, ax=axis, pad=0.01, label="change, in coordinates")


def _members(results: xr.Dataset, prefix: str) -> list[str]:
    return [name for name in results["measure"].values if name.startswith(prefix)]


def _draw_bars(axis: Axes, results: xr.Dataset, prefix: str) -> None:
    """Effects of a family of measures, the largest of many, beside what controls do."""
    members = _members(results, prefix)
    size = np.abs(results["effect"].sel(variant=TESTED, measure=members).values).max(axis=0)
    kept = np.sort(np.argsort(-size)[:MAX_BARS])
    members = [members[index] for index in kept]
    places = np.arange(len(members))
    worlds = results["world"].values.tolist()
    for offset, world in zip(np.linspace(-0.2, 0.2, len(worlds)), worlds, strict=True):
        here = results.sel(world=world, measure=members)
        randoms = here["effect"].sel(variant=random_controls(results)).transpose("variant", ...)
        axis.vlines(
            places + offset, randoms.min("variant"), randoms.max("variant"), color="0.75", lw=4
        )
        value = here["effect"].sel(variant=TESTED).values
        bounds = here["effect_interval"].sel(variant=TESTED).transpose("bound", "measure").values
        axis.errorbar(
            places + offset, value, np.abs(bounds - value), fmt="o", ms=2.5, lw=1,
            color=WORLD_COLOURS[world], label=world,
        )  # fmt: skip
    axis.axhline(0, color="black", linewidth=0.6)
    labels = [name.removeprefix(prefix) for name in members]
    axis.set_xticks(places, labels, rotation=90 if prefix != COMPONENT_PREFIX else 0, fontsize=6.5)
    what = {
        ACTION_PREFIX: "probability of each action",
        COMPONENT_PREFIX: "components of the hidden state",
        CLUSTER_PREFIX: "share of rows in each cluster",
    }[prefix]
    axis.set_title(f"change of {what}")
    open_axis(axis)
