"""Figures of the consistency of gradients with dynamics, drawn from its result file alone."""

from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.causal_statements import EVIDENCE
from analysis.figure_style import behaviour_colour, figure_text, save_figures
from analysis.results import CONSISTENCY_NAME, read_results
from experiment.files import require_writable_folder
from experiment.report import StageReport

VARIANTS = {"passed": "with the environment", "cut": "environment cut"}
SIGNIFICANT = 0.05


@dataclass(frozen=True)
class ConsistencyDrawing:
    """What is drawn."""

    num_drawn_statements: int = 20
    """Best supported statements in the drawn table."""
    max_drawn_groups: int = 9
    """Groups whose agreement is drawn: all episodes, then the behaviours with the most."""
    dpi: int = 130
    """Resolution of PNGs."""


def plot_consistency(
    input_dir: Path, output_dir: Path, drawing: ConsistencyDrawing, report: StageReport
) -> list[Path]:
    """Draw agreement over the lags and the best statements; returns the PNGs.

    Raises:
        UserError: no result file, a foreign one, or an output folder that cannot be written.
    """
    folder = require_writable_folder(output_dir, "--output_dir")
    with (
        read_results(input_dir / CONSISTENCY_NAME) as results,
        figure_text(),
    ):
        figures = {
            "consistency": draw_agreement(results, drawing.max_drawn_groups),
            "causal_statements": draw_statements(results, drawing.num_drawn_statements),
        }
        return save_figures(figures.items(), folder, drawing.dpi, report)


def draw_agreement(results: xr.Dataset, max_groups: int) -> Figure:
    """One panel per measure, dynamics and variant: agreement over lags by group, and the null's.

    Args:
        results: the open result file.
        max_groups: lines in a panel; the title names the behaviours that are left out, and why.
    """
    groups = drawn_groups(results, max_groups)
    rows = list(product(results["dynamics"].values.tolist(), VARIANTS))
    measures = results["measure"].values.tolist()
    figure = Figure(figsize=(3.7 * len(measures), 2.3 * len(rows) + 0.9), layout="constrained")
    axes = figure.subplots(len(rows), len(measures), squeeze=False, sharex=True)
    for line, (dynamics, variant) in zip(axes, rows, strict=True):
        chosen = results.sel(environment_gradient=variant, dynamics=dynamics)
        for axis, measure in zip(line, measures, strict=True):
            _draw_measure(axis, chosen.sel(measure=measure, group=groups.drawn))
        line[0].set_ylabel(f"{dynamics},\n{VARIANTS[variant]}")
    for axis, measure in zip(axes[0], measures, strict=True):
        axis.set_title(str(results["measure_meaning"].sel(measure=measure).values))
    for axis in axes[-1]:
        axis.set_xlabel("lag")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    figure.suptitle(
        "Agreement of mean Jacobians between different components with their correlations and with "
        f"regressions;\nfilled: q < {SIGNIFICANT} under permuted components; dotted: mean of that "
        f"null{groups.words}"
    )
    return figure


@dataclass(frozen=True)
class DrawnGroups:
    """Groups that are drawn, the largest first, and a word on those that are not."""

    drawn: list[str]
    words: str


def drawn_groups(results: xr.Dataset, max_groups: int) -> DrawnGroups:
    """Choose the largest groups of those that have Jacobians."""
    order = np.argsort(-results["num_episodes"].values, kind="stable")
    names = results["group"].values[order].tolist()
    has_jacobians = dict(
        zip(results["group"].values.tolist(), results["num_jacobians"].values > 0, strict=True)
    )
    known = [name for name in names if has_jacobians[name]]
    reasons = {
        "no sample of theirs has Jacobians": [n for n in names if not has_jacobians[n]],
        f"the smallest; at most {max_groups} lines are drawn": known[max_groups:],
    }
    words = "".join(
        f"\nleft out: behaviour {', '.join(left_out)} ({reason})"
        for reason, left_out in reasons.items()
        if left_out
    )
    return DrawnGroups(known[:max_groups], words)


def _draw_measure(axis: Axes, chosen: xr.Dataset) -> None:
    lag = chosen["lag"].values
    for index in range(chosen.sizes["group"]):
        group = chosen.isel(group=index)
        name = str(group["group"].values)
        colour = "black" if name == "all" else behaviour_colour(int(name))
        label = ("all" if name == "all" else f"behaviour {name}") + (
            f" (n = {int(group['num_episodes'])}, Jacobians {int(group['num_jacobians'])})"
        )
        observed = group["agreement"].values
        axis.plot(lag, observed, "-", color=colour, lw=1.2)
        filled = group["agreement_q"].sel(null="components").values < SIGNIFICANT
        face = [colour if is_filled else "white" for is_filled in filled]
        axis.plot([], [], "-o", color=colour, ms=4, label=label)
        axis.scatter(lag, observed, s=18, facecolors=face, edgecolors=colour, zorder=3)
        null = group["agreement_null"].sel(null="components").values
        axis.plot(lag, null, ":", color=colour, lw=0.8)
    axis.spines[["top", "right"]].set_visible(False)


def draw_statements(results: xr.Dataset, num_statements: int) -> Figure:
    """The best supported statements as a table, with the evidence for and against each."""
    count = min(num_statements, results.sizes["statement"])
    figure = Figure(figsize=(8.6, 0.19 * count + 0.8), layout="constrained")
    axis = figure.subplots()
    axis.set_axis_off()
    signs = {1: "for", 0: "·", -1: "against"}
    rows = []
    for index in range(count):
        one = {
            str(name).removeprefix("statement_"): results[name].values[index]
            for name in results.variables
            if str(name).startswith("statement_")
        }
        statement = f"{one['source']} → {one['target']} after {one['lag']}, " + (
            "all" if one["behaviour"] == "all" else f"behaviour {one['behaviour']}"
        )
        rows.append(
            [
                str(one["rank"]),
                statement,
                f"{one['r']:.2f} [{one['r_lower']:.2f}, {one['r_upper']:.2f}]",
                f"{one['gradient_mean']:.3f} "
                f"[{one['gradient_lower']:.3f}, {one['gradient_upper']:.3f}]",
                f"{one['gradient_without_environment']:.3f}",
                *(signs[int(one[f"evidence_{name}"])] for name in EVIDENCE),
                str(one["score"]),
            ]
        )
    labels = ["", "statement", "r", "J", "J, cut", *EVIDENCE, "sum"]
    if rows:
        table = axis.table(rows, colLabels=labels, loc="upper center", cellLoc="left")
        table.auto_set_font_size(False)
        table.set_fontsize(7)
        table.auto_set_column_width(list(range(len(labels))))
        for cell in table.get_celld().values():
            cell.set_linewidth(0.3)
    total, rate = results.sizes["statement"], results.attrs["false_discovery_rate"]
    figure.suptitle(
        f"Candidate statements “component i drives j after k steps”: the best {count} of "
        f"{total:,} kept;\nr: correlation, J: Jacobian (s.d. of j per s.d. of i), both with 95% "
        f"intervals over source episodes; cut: without the environment;\nfrom “{EVIDENCE[0]}” on: "
        f"evidence, which counts at q < {rate}"
    )
    return figure
