"""Whether gradients say what the dynamics do, and which causal statements are best supported.

Reads `xcorr_and_xcaus.nc` and `jacobians.nc`; writes `consistency.nc`, `causal_statements.csv` and
figures to `--output_dir`.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from analysis.consistency_analysis import (
    ConsistencyInputs,
    ConsistencySettings,
    analyse_consistency,
    make_plan,
)
from analysis.consistency_figures import ConsistencyDrawing, plot_consistency
from experiment.command_line import parse_command_line
from experiment.errors import require_at_least, run_entry_point
from experiment.report import stage_report


@dataclass(frozen=True)
class ConsistencyCommand:
    """Flags of `dynamics_grads_consistency_plots.py`."""

    interpreting_params_name: str = "defaults"
    """Preset in hyperparams/dynamics.yml that the other values are taken from."""
    inputs: Annotated[ConsistencyInputs, tyro.conf.arg(name="")] = field(
        default_factory=ConsistencyInputs
    )
    settings: Annotated[ConsistencySettings, tyro.conf.arg(name="")] = field(
        default_factory=ConsistencySettings
    )
    drawing: Annotated[ConsistencyDrawing, tyro.conf.arg(name="")] = field(
        default_factory=ConsistencyDrawing
    )
    output_dir: Path = Path("analysis/dynamics_grads_consistency_plots")
    """Folder for consistency.nc, causal_statements.csv and the figures, as PNG and PDF."""
    report: Path | None = None
    """JSON file for seconds, outputs and metrics."""


def main() -> None:
    """Compare, rank, draw."""
    config = parse_command_line(
        ConsistencyCommand,
        "Compare mean Jacobians with cross-correlations, in sign and size, per behaviour and lag, "
        "beside two nulls, and rank the statements that one component drives another by all "
        "evidence for and against them.",
        preset_flag="interpreting_params_name",
        preset_file="dynamics.yml",
        preset_section="consistency",
    )
    require_at_least(config.drawing, "num_drawn_statements", "max_drawn_groups", "dpi")
    with stage_report("consistency", config.report) as report:
        plan = make_plan(config.inputs, config.settings)
        analyse_consistency(plan, config, config.output_dir, report)
        plot_consistency(config.output_dir, config.output_dir, config.drawing, report)


if __name__ == "__main__":
    run_entry_point(main)
