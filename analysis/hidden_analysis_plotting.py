"""Draw what hidden_analysis_precompute.py found, from its result file alone."""

from analysis.hidden_figures import PlottingConfig, plot_hidden_analysis
from experiment.command_line import parse_command_line
from experiment.errors import run_entry_point
from experiment.report import stage_report


def main() -> None:
    """Draw the figures."""
    config = parse_command_line(
        PlottingConfig,
        "Draw the hidden-state analysis: components and embedding coloured by what the agent saw "
        "and did, episodes as arrows, every cluster, real and simulated states on the same axes.",
        preset_flag="interpreting_params_name",
        preset_file="hidden_analysis.yml",
        preset_section="plotting",
    )
    with stage_report("figures", config.report) as report:
        plot_hidden_analysis(config, report)


if __name__ == "__main__":
    run_entry_point(main)
