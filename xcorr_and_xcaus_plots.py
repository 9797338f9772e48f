"""Cross-correlations and cross-causations of components, per behaviour and lag.

Reads rollouts, behaviour clusters and Jacobians; writes `xcorr_and_xcaus.nc` and draws it. Of the
environment's components, alone or with the agent's, it writes `xcorr_environment.nc` or
`xcorr_both.nc`, which hold correlations only.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from analysis.cross_dynamics import CrossInputs, CrossSettings, compute_cross_dynamics, make_plan
from analysis.cross_figures import (
    CrossDrawing,
    check_drawing,
    lags_to_draw,
    plot_cross_dynamics,
)
from experiment.command_line import parse_command_line
from experiment.errors import run_entry_point
from experiment.report import stage_report


@dataclass(frozen=True)
class CrossCommand:
    """Flags of `xcorr_and_xcaus_plots.py`."""

    interpreting_params_name: str = "defaults"
    """Preset in hyperparams/dynamics.yml that the other values are taken from."""
    inputs: Annotated[CrossInputs, tyro.conf.arg(name="")] = field(default_factory=CrossInputs)
    settings: Annotated[CrossSettings, tyro.conf.arg(name="")] = field(
        default_factory=CrossSettings
    )
    drawing: Annotated[CrossDrawing, tyro.conf.arg(name="")] = field(default_factory=CrossDrawing)
    output_dir: Path = Path("analysis/xcorr_and_xcaus_plots")
    """Folder for xcorr_and_xcaus.nc and the figures, each as PNG and PDF; with other STATES than
    agent for xcorr_STATES.nc and the figures' folder STATES."""
    only_draw: bool = False
    """Draw the file that is in OUTPUT_DIR, and compute nothing."""
    report: Path | None = None
    """JSON file for seconds, outputs and metrics."""


def main() -> None:
    """Compute, then draw."""
    config = parse_command_line(
        CrossCommand,
        "Correlate the components of the agent's hidden state (or those of the environment's, or "
        "both) with each other, steps apart, in every behaviour, beside three nulls; average the "
        "Jacobians of the agent's in the same way; draw both.",
        preset_flag="interpreting_params_name",
        preset_file="dynamics.yml",
        preset_section="cross",
    )
    check_drawing(config.drawing)
    with stage_report("xcorr_and_xcaus", config.report) as report:
        if not config.only_draw:
            plan = make_plan(config.inputs, config.settings)
            lags_to_draw(config.drawing, plan.lags)
            compute_cross_dynamics(plan, config, config.output_dir, report)
        states = config.settings.states
        plot_cross_dynamics(config.output_dir, config.output_dir, config.drawing, report, states)


if __name__ == "__main__":
    run_entry_point(main)
