"""Figures of cross-correlation and cross-causation, drawn from their result file alone."""

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import matplotlib as mpl
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from analysis.cross_dynamics import ALL
from analysis.cross_states import States, cross_name
from analysis.figure_style import figure_text, save_figures
from analysis.results import read_results
from experiment.errors import UserError, require_at_least
from experiment.files import require_writable_folder
from experiment.report import StageReport

COLOUR_MAP = "RdBu_r"
SIGNIFICANT = 0.05
TITLE_LETTERS_PER_INCH, TITLE_LINE = 13, 0.16
"""Of the text around all matrices; the height of a line in inches."""
JACOBIAN_UNIT = "s.d. of the target\nper s.d. of the source"
COMPONENTS = {
    "agent": "",
    "environment": ", components of the environment's state",
    "both": ", components of the agent's state (a) and of the environment's (e)",
}
VARIANTS = {"passed": "Jacobian", "cut": "Jacobian, environment cut"}


@dataclass(frozen=True)
class CrossDrawing:
    """What is drawn."""

    drawn_lags: tuple[int, ...] = (0, 1, 2, 4, 8)
    """Lags to draw; those that there are."""
    max_drawn_groups: int = 8
    """Groups to draw: all episodes, then the behaviours with the most."""
    seriate: bool = False
    """Order components by a hierarchical clustering of their correlations."""
    dpi: int = 130
    """Resolution of PNGs."""


def check_drawing(drawing: CrossDrawing) -> None:
    """Raise `UserError` for senseless values."""
    require_at_least(drawing, "max_drawn_groups", "dpi")
    if any(lag < 0 for lag in drawing.drawn_lags) or not drawing.drawn_lags:
        words = " ".join(map(str, drawing.drawn_lags))
        raise UserError(f"--drawn_lags {words}: expected lags of at least 0")


def lags_to_draw(drawing: CrossDrawing, known: Sequence[int]) -> list[int]:
    """Those of the lags asked for that are `known`; raises `UserError` where none is."""
    lags = [lag for lag in drawing.drawn_lags if lag in known]
    if not lags:
        words = " ".join(map(str, drawing.drawn_lags))
        raise UserError(f"--drawn_lags {words}: there are lags 0 to {max(known)} only")
    return lags


def plot_cross_dynamics(
    input_dir: Path,
    output_dir: Path,
    drawing: CrossDrawing,
    report: StageReport,
    states: States = "agent",
) -> list[Path]:
    """Draw all figures and a contact sheet; returns the PNGs.

    Those of other components than the agent's go to a folder of their own in `output_dir`.

    Raises:
        UserError: no result file, a foreign one, none of the lags to draw, or an output folder that
            cannot be written.
    """
    if states != "agent":
        output_dir = output_dir / states
    folder = require_writable_folder(output_dir, "--output_dir")
    with (
        read_results(input_dir / cross_name(states)) as results,
        figure_text(title_size=8),
    ):
        return save_figures(_figures(results, drawing), folder, drawing.dpi, report, columns=2)


def _figures(results: xr.Dataset, drawing: CrossDrawing) -> Iterator[tuple[str, Figure]]:
    names = results["group"].values.tolist()
    order = np.argsort(-results["num_episodes"].values, kind="stable")
    lags = lags_to_draw(drawing, results["lag"].values.tolist())
    left_out = sorted(names[index] for index in order[drawing.max_drawn_groups :])
    for index in order[: drawing.max_drawn_groups]:
        name = names[index]
        figure = draw_group(results, name, lags, drawing.seriate)
        if name == ALL and left_out:
            told = (
                f"no figure for behaviour {', '.join(left_out)}, of fewer episodes "
                f"(--max_drawn_groups {drawing.max_drawn_groups})"
            )
            figure.supxlabel(_within(figure, told))
        yield f"behaviour_{name}", figure
    if "causation" in results:
        yield "causation_by_step", draw_steps(results)
        yield "causation_of_extremes", draw_extremes(results)


def draw_group(results: xr.Dataset, group: str, lags: list[int], is_seriated: bool) -> Figure:
    """Correlation and mean Jacobians of one group, one column per lag.

    A mark stands on an entry that is significant after control of false discoveries: a ring under
    the pairing null, a dot under the time-shift null as well; a dot on a mean that is not zero. At
    lag 0, where the matrix is symmetric, only entries above the diagonal are tested.
    """
    variants = list(VARIANTS) if "causation" in results else []
    rows = 1 + len(variants)
    figure = Figure(figsize=(2.35 * len(lags) + 1.0, 2.3 * rows + 0.9), layout="constrained")
    axes = figure.subplots(rows, len(lags), squeeze=False)
    chosen = results.sel(group=group)
    order = _order(chosen, is_seriated)
    labels = results.get("component_label", results["source"]).values.astype(str).tolist()
    for column, lag in enumerate(lags):
        at_lag = chosen.sel(lag=lag)
        draw_matrix(axes[0, column], at_lag["correlation"].values, 1.0, order, labels)
        if not is_seriated:
            _part(axes[0, column], labels)
        q = at_lag["correlation_q"]
        is_related = q.sel(null="pairing").values < SIGNIFICANT
        is_lagged = is_related & (q.sel(null="time_shift").values < SIGNIFICANT)
        mark(axes[0, column], is_related & ~is_lagged, order, is_filled=False)
        mark(axes[0, column], is_lagged, order)
        axes[0, column].set_title(f"lag {lag}: correlation\n{int(at_lag['num_pairs']):,} pairs")
    figure.colorbar(axes[0, -1].images[0], ax=axes[0, -1], pad=0.02, label="correlation")
    for row, variant in enumerate(variants, start=1):
        means = chosen["causation"].sel(environment_gradient=variant, lag=lags).values
        limit = colour_limit(means[[lag > 0 for lag in lags]])
        for column, lag in enumerate(lags):
            axis = axes[row, column]
            q_mean = chosen["causation_q"].sel(environment_gradient=variant, lag=lag).values
            draw_matrix(axis, means[column], limit, order, labels)
            mark(axis, q_mean < SIGNIFICANT, order)
            axis.set_title(f"lag {lag}: {VARIANTS[variant]}")
        figure.colorbar(
            axes[row, -1].images[0], ax=axes[row, -1], pad=0.02, extend=bar_ends(means, limit),
            label=JACOBIAN_UNIT,
        )  # fmt: skip
    for axis in axes[:, 0]:
        axis.set_ylabel("component at t")
    for axis in axes[-1]:
        axis.set_xlabel("component at t + lag")
    told = _title(chosen, group, bool(variants), 0 in lags)
    title = "\n".join(_within(figure, line) for line in told)
    figure.suptitle(title)
    # Two lines have their room already.
    figure.set_figheight(figure.get_figheight() + TITLE_LINE * (title.count("\n") - 1))
    return figure


def _within(figure: Figure, words: str) -> str:
    """As many lines as a narrow figure needs."""
    return textwrap.fill(words, int(TITLE_LETTERS_PER_INCH * figure.get_figwidth()))


def _title(
    chosen: xr.Dataset, group: str, has_jacobians: bool, has_lag_zero: bool
) -> tuple[str, str]:
    """How many there are of what is drawn, and what the marks mean."""
    counts = (
        f"{int(chosen['num_episodes'])} episodes from {int(chosen['num_units'])} independent units"
    )
    marks = f"ring: q < {SIGNIFICANT} against other pairings; dot: against time shifts as well"
    if has_jacobians:
        counts += (
            f"; Jacobians of {int(chosen['num_jacobians'])} episodes "
            f"from {int(chosen['num_jacobian_units'])} units"
        )
        marks += ", or mean Jacobian not zero"
    if has_lag_zero:
        marks += "; at lag 0 above the diagonal only"
    who = "all episodes" if group == ALL else f"behaviour {group}"
    return f"{who}{COMPONENTS[chosen.attrs.get('states', 'agent')]} ({counts})", marks


def _order(chosen: xr.Dataset, is_seriated: bool) -> NDArray[np.int64]:
    size = chosen.sizes["source"]
    return chosen["component_order"].values if is_seriated else np.arange(size)


def colour_limit(values: NDArray[np.floating]) -> float:
    """Colour limit that one extreme entry does not decide."""
    known = np.abs(values[np.isfinite(values)])
    return max(float(np.quantile(known, 0.99)), 1e-6) if known.size else 1.0


def bar_ends(values: NDArray[np.floating], limit: float) -> Literal["both", "neither"]:
    """Whether the colour bar has to say that entries lie beyond its ends."""
    return "both" if np.nanmax(np.abs(values), initial=0.0) > limit else "neither"


def draw_matrix(
    axis: Axes,
    values: NDArray[np.floating],
    limit: float,
    order: NDArray[np.integer],
    labels: Sequence[str] | None = None,
) -> mpl.image.AxesImage:  # pyright: ignore[reportAttributeAccessIssue]
    """Heat map with components in `order`, symmetric colours; grey where undefined.

    Components are called by their numbers, unless they have `labels`.
    """
    axis.set_facecolor("0.85")
    image = axis.imshow(values[np.ix_(order, order)], cmap=COLOUR_MAP, vmin=-limit, vmax=limit)
    shown = np.arange(0, len(order), max(1, len(order) // 8))
    names = [str(i) if labels is None else labels[int(i)] for i in order[shown]]
    axis.set_xticks(shown, names)
    axis.set_yticks(shown, names)
    return image


def _part(axis: Axes, labels: Sequence[str]) -> None:
    """Lines between the components of the agent and those of the environment."""
    letters = "".join(label[0] for label in labels)
    if set(letters) == set("ae"):
        border = letters.index("e") - 0.5
        axis.axhline(border, color="black", linewidth=0.8)
        axis.axvline(border, color="black", linewidth=0.8)


def mark(
    axis: Axes, chosen: NDArray[np.bool_], order: NDArray[np.integer], is_filled: bool = True
) -> None:
    """A dot or a ring on every chosen entry, black in white, so that it is seen on any colour."""
    row, column = np.nonzero(chosen[np.ix_(order, order)])
    if is_filled:
        axis.scatter(column, row, s=7, c="black", edgecolors="white", linewidths=0.6)
        return
    for colour, width in (("white", 1.4), ("black", 0.6)):
        axis.scatter(column, row, s=11, facecolors="none", edgecolors=colour, linewidths=width)


def draw_steps(results: xr.Dataset) -> Figure:
    """Size of the mean Jacobian for every pair of steps."""
    chosen = results.sel(group="all")
    means = chosen["causation_by_step"]
    num_steps = means.sizes["source_step"]
    figure = Figure(figsize=(8.4, 3.8), layout="constrained")
    panels = figure.subplots(1, len(VARIANTS))
    sizes = np.sqrt(np.square(means.values).mean(axis=(-2, -1)))
    is_later = np.triu(np.ones((num_steps, num_steps), np.bool_), 1)
    limit = np.nanmax(np.where(is_later, sizes, np.nan))
    for panel, (variant, label) in zip(panels, VARIANTS.items(), strict=True):
        index = means["environment_gradient"].values.tolist().index(variant)
        upper = np.where(is_later, sizes[index], np.nan)
        image = panel.imshow(upper, cmap="viridis", vmin=0, vmax=limit)
        panel.set(xlabel="target step", ylabel="source step", title=label)
        figure.colorbar(image, ax=panel, pad=0.02, label=JACOBIAN_UNIT)
    figure.suptitle(
        "Root mean square of the mean Jacobian between all components, by pair of steps "
        f"(n = {int(chosen['num_jacobians'])} samples)"
    )
    return figure


def draw_extremes(results: xr.Dataset) -> Figure:
    """What a component does one step later where it is lowest, and where it is highest."""
    size, count = results.sizes["component"], results.sizes["rank"]
    lag = 1 if 1 in results["lag"].values else 0
    own = np.arange(size)
    figure = Figure(figsize=(11.5, 4.0), layout="constrained")
    axes = figure.subplots(1, 3)
    total = results.sizes["jacobian_sample"]
    chosen = results["extrema_causation"].sel(environment_gradient="passed", lag=lag)
    low, high = (chosen.sel(extreme=end).values[own, own] for end in ("low", "high"))
    limit = colour_limit(np.concatenate([low, high])[~np.isclose(np.concatenate([low, high]), 1.0)])
    panels = {"lowest": low, "highest": high, "highest − lowest": high - low}
    for axis, (title, values) in zip(axes, panels.items(), strict=True):
        draw_matrix(axis, values, limit, own)
        axis.set(title=f"component is {title}", xlabel="component at t + lag")
    axes[0].set_ylabel("component that is extreme at t")
    shown = np.stack(list(panels.values()))
    figure.colorbar(
        axes[-1].images[0], ax=axes, pad=0.02, extend=bar_ends(shown, limit), label=JACOBIAN_UNIT
    )
    few = "; so few that the difference shows their spread" if count < 10 else ""
    figure.suptitle(
        f"Mean Jacobian at lag {lag} of the {count} most extreme of {total} samples{few}"
    )
    return figure
