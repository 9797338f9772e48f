"""Measure and draw how a simulator's predictions age: its errors over simulated time."""

from dataclasses import dataclass
from pathlib import Path

from analysis.fidelity_figures import FidelityPlottingConfig, plot_fidelity
from analysis.simulator_fidelity_precompute import FidelityCommand, precompute
from experiment.command_line import parse_command_line
from experiment.errors import run_entry_point
from experiment.report import stage_report

DESCRIPTION = """Measure how a simulator's predictions age over simulated time, and draw it.

The same as analysis/simulator_fidelity_precompute.py and then _plotting.py, in one command: errors
at each horizon on held-out levels, under recorded actions, beside baselines and an upper bound.
Writes OUTPUT_DIR/simulator_fidelity.nc and the figures beside it."""


@dataclass(frozen=True)
class LossOverTimeConfig(FidelityCommand):
    """Flags of `loss_over_time_experiment.py`."""

    output_dir: Path = Path("analysis/loss_over_time")
    """Folder for the result and its figures."""
    dpi: int = 130
    """Resolution of PNGs."""


def main() -> None:
    """Parse the command line, measure, draw."""
    config = parse_command_line(
        LossOverTimeConfig, DESCRIPTION, "interpreting_params_name", "simulator.yml", "measurement"
    )
    folder = config.output_dir
    with stage_report("loss_over_time", config.report) as report:
        precompute(config, report)
        plot_fidelity(
            FidelityPlottingConfig(input_dir=folder, output_dir=folder, dpi=config.dpi), report
        )


if __name__ == "__main__":
    run_entry_point(main)
