"""Draw what simulator_fidelity_precompute.py found, from its result file alone."""

from analysis.fidelity_figures import FidelityPlottingConfig, plot_fidelity
from experiment.command_line import parse_command_line
from experiment.errors import run_entry_point
from experiment.report import stage_report


def main() -> None:
    """Draw the figures."""
    config = parse_command_line(
        FidelityPlottingConfig,
        "Draw the simulator's fidelity over the horizon: every score of every prediction with its "
        "interval, and the simulator's difference from the strongest baseline.",
        preset_flag="interpreting_params_name",
        preset_file="simulator.yml",
        preset_section="fidelity_plotting",
    )
    with stage_report("fidelity_figures", config.report) as report:
        plot_fidelity(config, report)


if __name__ == "__main__":
    run_entry_point(main)
