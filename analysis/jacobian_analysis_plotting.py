"""Draw what jacobian_analysis_precompute.py found, from its result file alone."""

from analysis.jacobian_figures import JacobianPlottingConfig, plot_jacobians
from experiment.command_line import parse_command_line
from experiment.errors import run_entry_point
from experiment.report import stage_report


def main() -> None:
    """Draw the figures."""
    config = parse_command_line(
        JacobianPlottingConfig,
        "Draw the Jacobians between components: how they fade with the lag, how well they predict "
        "finite pushes, and the clusters of samples by their one-step Jacobian.",
        preset_flag="interpreting_params_name",
        preset_file="dynamics.yml",
        preset_section="jacobian_plotting",
    )
    with stage_report("jacobian_figures", config.report) as report:
        plot_jacobians(config, report)


if __name__ == "__main__":
    run_entry_point(main)
