"""Figures of how causal statements fare, drawn from their result files alone."""

import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.effect_figures import draw_effects
from analysis.effect_verdict import describe
from analysis.fidelity_curves import open_axis
from analysis.figure_style import OKABE_ITO, figure_text, save_figures
from analysis.results import (
    INTERVENTION_EFFECTS_NAME,
    STATEMENT_EFFECTS_NAME,
    read_results,
)
from analysis.statement_outcomes import (
    GROUPS,
    Outcome,
    outcome,
    signed_effects,
    statement_group,
)
from experiment.errors import require_at_least
from experiment.files import atomic_file, require_writable_folder
from experiment.report import StageReport

COLOURS = {"supported": OKABE_ITO[5], "others": "0.6"}
COMPARISON_STYLES = {
    "gradient_simulated": ("gradient and simulated response", OKABE_ITO[0], "o"),
    "gradient_real": ("gradient and real response", OKABE_ITO[5], "s"),
    "simulated_real": ("simulated and real response", OKABE_ITO[2], "^"),
}
COMPARED_STYLES = {
    "supported": ("all evidence for them (below: those with a match)", COLOURS["supported"]),
    "matched": ("others (below: of the same predicted size)", COLOURS["others"]),
    "difference": ("difference", "black"),
}
MAX_ERROR_BARS = 60
NUM_SIZE_BINS = 8
MIN_IN_BIN = 3
"""Bins of fewer statements have no point."""


@dataclass(frozen=True)
class StatementPlottingConfig:
    """Flags of `statement_effects_plotting.py`."""

    input_dir: Path = Path("analysis/statement_effects")
    """Folder of statement_effects.nc, made by statement_effects_precompute.py."""
    output_dir: Path = Path("analysis/statement_effects_plots")
    """Folder for the figures, each as PNG and PDF, a contact sheet, and the verdicts as text."""
    dpi: int = 130
    """Resolution of PNGs."""
    report: Path | None = None
    """JSON file for seconds, outputs and metrics."""


def plot_statements(config: StatementPlottingConfig, report: StageReport) -> list[Path]:
    """Draw responses, their agreement and the page of every swap and collapse; returns the PNGs.

    Raises:
        UserError: no result file, or a folder that cannot be written.
    """
    require_at_least(config, "dpi")
    with (
        read_results(config.input_dir / STATEMENT_EFFECTS_NAME) as results,
        figure_text(title_size=8),
    ):
        results.load()
        folder = require_writable_folder(config.output_dir, "--output_dir")
        return save_figures(_figures(results, config, folder), folder, config.dpi, report)


def _figures(
    results: xr.Dataset, config: StatementPlottingConfig, folder: Path
) -> Iterator[tuple[str, Figure]]:
    yield "responses", draw_responses(results)
    yield "matched", draw_matched(results)
    if "agreement" in results:
        yield "response_agreement", draw_agreement(results)
    for name in intervention_names(results):
        yield name, _draw_intervention(config, name, folder)


def intervention_names(results: xr.Dataset) -> Iterator[str]:
    """Folders of swaps and collapses, beside statement_effects.nc."""
    yield from results.attrs["swaps"].split()
    yield from results.attrs["collapses"].split()


def _draw_intervention(config: StatementPlottingConfig, name: str, folder: Path) -> Figure:
    """The page of a swap or collapse; its verdict as text is written beside."""
    with read_results(config.input_dir / name / INTERVENTION_EFFECTS_NAME) as effects:
        effects.load()
        with atomic_file(folder / f"{name}.md") as path:
            path.write_text(describe(effects) + "\n")
    return draw_effects(effects)


def draw_responses(results: xr.Dataset) -> Figure:
    """What the gradient predicted against what is observed, in simulation and in reality."""
    worlds = results["world"].values.tolist()
    figure = Figure(figsize=(5.2 * len(worlds), 5.0), layout="constrained")
    axes = figure.subplots(1, len(worlds), squeeze=False, sharex=True, sharey=True)[0]
    for axis, world in zip(axes, worlds, strict=True):
        for group in reversed(GROUPS):
            _draw_group(axis, results, world, group)
        limits = (*axis.get_xlim(), *axis.get_ylim())
        ends = (max(limits[0], limits[2]), min(limits[1], limits[3]))
        axis.plot(ends, ends, color="0.4", linewidth=0.8, linestyle="--")
        axis.axhline(0, color="black", linewidth=0.6)
        axis.axvline(0, color="black", linewidth=0.6)
        lines = [f"{name}: {tell(outcome(results, world, name))}" for name in GROUPS]
        axis.set(title="\n".join([world, *lines]), xlabel="predicted by the mean Jacobian")
        open_axis(axis)
    axes[0].set_ylabel("observed change of the target")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    size, starts = results.attrs["push_size"], results.attrs["num_starts"]
    figure.suptitle(
        f"Responses of {results.sizes['target']} components to pushes of "
        f"{results.sizes['source']} by {size:g} standard deviation ({starts} starts), in "
        f"coordinates;\none dot per pair of components and lag from {results['lag'].values[0]} to "
        f"{results['lag'].values[-1]}; bars are 95% intervals over levels"
    )
    return figure


def tell(found: Outcome) -> str:
    """Counts in words."""
    return (
        f"{found.num_seen} of {found.num_statements} with the predicted sign, "
        f"{found.num_opposite} with the opposite"
    )


def _draw_group(axis: Axes, results: xr.Dataset, world: str, group: str) -> None:
    chosen = statement_group(results, group)
    at = results.sel(world=world)
    dims = ("source", "lag", "target")
    predicted = results["gradient"].transpose(*dims).values[chosen]
    observed = at["effect"].transpose(*dims).values[chosen]
    low, high = at["effect_interval"].transpose("bound", *dims).values[:, chosen]
    label = f"statements with {GROUPS[group]} ({len(predicted)})"
    axis.plot(predicted, observed, ".", color=COLOURS[group], markersize=3, label=label)
    if group == "supported":
        drawn = np.argsort(-np.abs(predicted))[:MAX_ERROR_BARS]
        axis.vlines(predicted[drawn], low[drawn], high[drawn], color=COLOURS[group], linewidth=0.6)


def draw_matched(results: xr.Dataset) -> Figure:
    """How often statements come true by the size that is predicted, and at the same size."""
    worlds = results["world"].values.tolist()
    figure = Figure(figsize=(5.2 * len(worlds), 6.0), layout="constrained")
    axes = figure.subplots(2, len(worlds), squeeze=False, sharey="row")
    for column, world in enumerate(worlds):
        _draw_by_size(axes[0, column], results, world)
        _draw_rates(axes[1, column], results.sel(world=world))
    axes[0, 0].set_ylabel("share seen, with the predicted sign")
    handles, labels = axes[1, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    known, left_out = (results.attrs[f"num_supported_{name}_match"] for name in ("with", "without"))
    has_intervals = np.isfinite(results["matched_rate_interval"]).any()
    bars = "too few components were pushed for intervals"
    if has_intervals:
        bars = "bars are 95% intervals over pushed components"
    ratio, mean = results.attrs["match_ratio"], results.attrs["matched_size_ratio"]
    figure.suptitle(
        f"{known} of {known + left_out} supported statements have others whose predicted size "
        f"differs by less than a factor {ratio:g}\n(mean size of the matches {mean:.2f} times that "
        f"of the supported); {bars}"
    )
    return figure


def _draw_by_size(axis: Axes, results: xr.Dataset, world: str) -> None:
    size = np.abs(results["gradient"].transpose("source", "lag", "target").values)
    is_seen = signed_effects(results, world).is_seen
    chosen = {group: statement_group(results, group) & (size > 0) for group in GROUPS}
    every = size[chosen["supported"] | chosen["others"]]
    ends = (every.min(), every.max()) if every.size else (1.0, 1.0)
    edges = np.geomspace(ends[0], ends[1] * (1 + 1e-9), NUM_SIZE_BINS + 1)
    middle, shares, counts = np.sqrt(edges[1:] * edges[:-1]), {}, {}
    for group in GROUPS:
        place = np.digitize(size[chosen[group]], edges) - 1
        counts[group] = np.bincount(place, minlength=NUM_SIZE_BINS)
        seen = np.bincount(place, is_seen[chosen[group]], NUM_SIZE_BINS)
        is_kept = counts[group] >= MIN_IN_BIN
        shares[group] = np.divide(
            seen, counts[group], out=np.full(NUM_SIZE_BINS, np.nan), where=is_kept
        )
    # Numbers stand on the side that is turned away from the other group's curve.
    is_above = {"supported": ~(shares["supported"] < shares["others"])}
    is_above["others"] = ~is_above["supported"]
    for group in GROUPS:
        axis.plot(middle, shares[group], "o-", color=COLOURS[group], markersize=4)
        for index in np.flatnonzero(np.isfinite(shares[group])):
            axis.annotate(
                f"{counts[group][index]}", (middle[index], shares[group][index]),
                (0, 5 if is_above[group][index] else -11), textcoords="offset points", ha="center",
                color=COLOURS[group] if group == "supported" else "0.4", fontsize=7,
            )  # fmt: skip
    axis.set(
        xscale="log", ylim=(-0.12, 1.12), title=f"{world}; numbers count statements",
        xlabel="predicted size of the effect, in coordinates",
    )  # fmt: skip
    open_axis(axis)


def _draw_rates(axis: Axes, at: xr.Dataset) -> None:
    rates = at["rate"].values.tolist()
    for number, (name, (label, colour)) in enumerate(COMPARED_STYLES.items()):
        chosen = at.sel(compared=name)
        low, high = chosen["matched_rate_interval"].transpose("bound", "rate").values
        place = np.arange(len(rates)) + 0.2 * (number - 1)
        axis.plot(
            chosen["matched_rate"].values, place, "o", color=colour, label=label, markersize=4
        )
        has_interval = np.isfinite(low)
        axis.hlines(place[has_interval], low[has_interval], high[has_interval], color=colour)
    axis.axvline(0, color="black", linewidth=0.6)
    meanings = at["rate_meaning"].values.tolist()
    axis.set_yticks(range(len(rates)), [textwrap.fill(meaning, 24) for meaning in meanings])
    axis.set_ylim(len(rates) - 0.5, -0.5)
    axis.set_title("at the same predicted size")
    open_axis(axis)


def draw_agreement(results: xr.Dataset) -> Figure:
    """Agreement of responses over the lags, beside that of permuted components."""
    measures = results["measure"].values.tolist()
    figure = Figure(figsize=(3.6 * len(measures), 3.4), layout="constrained")
    axes = figure.subplots(1, len(measures), squeeze=False)[0]
    lag = results["lag"].values
    for axis, measure in zip(axes, measures, strict=True):
        for name, (label, colour, marker) in COMPARISON_STYLES.items():
            at = results.sel(comparison=name, measure=measure)
            axis.plot(lag, at["agreement"], color=colour, linewidth=1.2)
            is_filled = at["agreement_p"].values < 0.05
            face = [colour if filled else "white" for filled in is_filled]
            axis.scatter(
                lag, at["agreement"], s=22, marker=marker, facecolors=face, edgecolors=colour,
                zorder=3, label=label,
            )  # fmt: skip
            axis.plot(lag, at["agreement_null"], ":", color=colour, linewidth=0.8)
        axis.set(title=str(results["measure_meaning"].sel(measure=measure).values), xlabel="lag")
        open_axis(axis)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    figure.suptitle(
        "Agreement of responses between different components; filled: p < 0.05 against permuted "
        "components (dotted: their mean)"
    )
    return figure
