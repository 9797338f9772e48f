"""One page that says how far a simulator can be trusted."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from analysis.fidelity_curves import (
    LINES,
    Line,
    draw_line,
    leave_out_horizon_0,
    open_axis,
    select_curve,
    title_of,
)
from analysis.figure_style import OKABE_ITO
from environments.protocol import TRAINING_LEVELS

COLUMNS = 4
SHOWN = ("mode", "single_sample", "observed", "shuffled_actions", "last_frame", "mean_frame")
"""Predictions on the page; all are in the figure of scores."""
EVENT_COLOURS = {"reward": OKABE_ITO[2], "terminal": OKABE_ITO[5]}
LARGEST_R2 = 1.0
"""R² beyond this, on either side of zero, has the colour of this."""
NUM_TRUST_BINS = 20


@dataclass(frozen=True, eq=False)
class Panel:
    """One part of the page."""

    title: str
    draw: Callable[[Axes], None]


def draw_summary(results: xr.Dataset, trust: xr.Dataset | None = None) -> Figure:
    """Pixels, the agent's view, events, and where there are any, components and trust.

    Args:
        results: content of simulator_fidelity.nc.
        trust: content of sample_trust.nc; None leaves trust out.
    """
    panels = [*_score_panels(results), _control_panel(results)]
    if "component_r2" in results:
        panels.append(_component_panel(results))
    if "auroc" in results:
        panels += [_discrimination_panel(results), _reliability_panel(results)]
    if trust is not None and np.isfinite(trust["trust"]).any():
        panels.append(_trust_panel(trust))
    rows = -(-len(panels) // COLUMNS)
    figure = Figure(figsize=(3.1 * COLUMNS, 2.5 * rows + 0.9), layout="constrained")
    axes = figure.subplots(rows, COLUMNS, squeeze=False).flatten()
    for axis in axes[len(panels) :]:
        axis.remove()
    for letter, axis, panel in zip("abcdefghijkl", axes, panels, strict=False):
        panel.draw(axis)
        open_axis(axis)
        axis.set_title(panel.title, fontsize=8)
        axis.set_title(f"{letter} ", loc="left", fontsize=10, fontweight="bold")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    figure.suptitle(_page_title(results))
    return figure


def _page_title(results: xr.Dataset) -> str:
    windows, levels = results.sizes["window"], len(np.unique(results["level"].values))
    return (
        f"Simulator on {kind_of_levels(results['level'].values)}: {windows} windows of {levels} "
        "levels, recorded actions; bands and bars are 95% intervals over levels"
    )


def kind_of_levels(levels: NDArray[np.int64]) -> str:
    """What level seeds are of, in words."""
    if (levels >= TRAINING_LEVELS).all():
        return "held-out levels"
    return "training levels" if (levels < TRAINING_LEVELS).all() else "levels of either kind"


def _score_panels(results: xr.Dataset) -> list[Panel]:
    return [_score_panel(results, measure) for measure in results["measure"].values]


def _score_panel(results: xr.Dataset, measure: str) -> Panel:
    def draw(axis: Axes) -> None:
        for line in LINES:
            if line.prediction in SHOWN:
                chosen = {"measure": measure, "prediction": line.prediction}
                draw_line(axis, select_curve(results, "score", chosen), line)
        axis.set_xlabel("horizon")
        if measure == "psnr":
            leave_out_horizon_0(axis, results["score"].sel(measure=measure))

    return Panel(title_of(measure), draw)


def _control_panel(results: xr.Dataset) -> Panel:
    """What the true actions are worth: the error with them less that with others."""

    def draw(axis: Axes) -> None:
        chosen = {"measure": "mse", "prediction": "mode", "baseline": "shuffled_actions"}
        line = Line("mode", "", OKABE_ITO[0])
        draw_line(axis, select_curve(results, "difference", chosen), line)
        axis.axhline(0, color="black", linewidth=0.8)
        axis.set_xlabel("horizon")

    return Panel("squared error, true less other actions\nbelow zero: it heeds its actions", draw)


def _component_panel(results: xr.Dataset) -> Panel:
    def draw(axis: Axes) -> None:
        values = results["component_r2"].sel(prediction="mode").transpose("component", "horizon")
        image = axis.imshow(
            values, aspect="auto", cmap="RdBu", vmin=-LARGEST_R2, vmax=LARGEST_R2, origin="lower"
        )
        axis.set_xlabel("horizon")
        axis.set_ylabel("component")
        colours = axis.figure.colorbar(image, ax=axis, extend="min")
        colours.set_label("R²")

    return Panel("R² of hidden components, most probable\nfuture; 0: as good as their mean", draw)


def _discrimination_panel(results: xr.Dataset) -> Panel:
    """How well rows with an event are told from those without, at each horizon."""
    by_horizon = results.isel(span=slice(0, -1))
    horizon = by_horizon["span"].values.astype(int)

    def draw(axis: Axes) -> None:
        for event, colour in EVENT_COLOURS.items():
            chosen = {"event": event, "forecast": "mode"}
            value = by_horizon["auroc"].sel(chosen).values
            low, high = by_horizon["auroc_interval"].sel(chosen).transpose("bound", "span").values
            axis.plot(horizon, value, color=colour, label=event)
            axis.fill_between(horizon, low, high, color=colour, alpha=0.18, linewidth=0)
            seen = by_horizon["auroc"].sel(event=event, forecast="observed").values
            axis.plot(horizon, seen, ":", color=colour)
        axis.axhline(0.5, color="0.45", linestyle="-.", label="base rate")
        axis.set_xticks(horizon)
        axis.set_xlabel("horizon")
        axis.legend(frameon=False, fontsize=7)

    return Panel("AUROC of events (dotted: upper bound)\nhigher is better", draw)


def _reliability_panel(results: xr.Dataset) -> Panel:
    """Predicted against observed frequencies; square-root axes, since events are rare."""
    span = str(results["span"].values[-1])

    def draw(axis: Axes) -> None:
        axis.set_xlim(0, 1)
        axis.set_ylim(0, 1)
        axis.set_xscale("function", functions=(np.sqrt, np.square))
        axis.set_yscale("function", functions=(np.sqrt, np.square))
        ticks = [0.01, 0.1, 0.3, 0.6, 1]
        axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axis.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
        axis.plot([0, 1], [0, 1], color="black", linewidth=0.8)
        for event, colour in EVENT_COLOURS.items():
            chosen = results.sel(event=event, forecast="mode")
            filled = chosen["bin_count"].values > 0
            if not filled.any():
                continue
            frequency = chosen["event_frequency"].values[filled]
            bounds = chosen["event_frequency_interval"].transpose("bound", "bin").values[:, filled]
            events, rows = (int(chosen[name][..., -1]) for name in ("num_events", "num_rows"))
            axis.errorbar(
                chosen["mean_forecast"].values[filled],
                frequency,
                yerr=np.abs(bounds - frequency),
                fmt="o-",
                markersize=3,
                linewidth=1,
                color=colour,
                label=f"{event}: {events} in {rows} rows",
            )
        axis.set_xlabel("predicted probability")
        axis.set_ylabel("share that happened")
        axis.legend(frameon=False, fontsize=7, loc="upper left")

    return Panel(f"reliability, horizons {span}\non the diagonal is better", draw)


def draw_trust_histogram(axis: Axes, trust: NDArray[np.float64]) -> None:
    """(N,) trust scores, with their median and with that of the averages."""
    counts = axis.hist(trust, NUM_TRUST_BINS, range=(0, 1), color=OKABE_ITO[4], alpha=0.6)[0]
    median = float(np.median(trust))
    axis.axvline(0.5, ymax=0.75, color="0.3", linestyle="-.", label="errors of the averages")
    axis.axvline(median, ymax=0.75, color=OKABE_ITO[0], label=f"median {median:.2f}")
    # Room for the legend.
    axis.set_ylim(0, 1.4 * float(np.max(counts)))
    axis.set(xlim=(0, 1), xlabel="trust", ylabel="samples")
    axis.legend(frameon=False, fontsize=7, loc="upper left")


def _trust_panel(trust: xr.Dataset) -> Panel:
    known = trust["trust"].values[np.isfinite(trust["trust"].values)]
    levels = trust["level"].values[np.isfinite(trust["trust"].values)]

    def draw(axis: Axes) -> None:
        draw_trust_histogram(axis, known)

    where = f"{len(np.unique(levels))} {kind_of_levels(levels)}"
    return Panel(f"against reality, the agent's own actions:\n{len(known)} samples, {where}", draw)
