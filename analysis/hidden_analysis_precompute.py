"""Fit components, clusters and an embedding to the agent's hidden states.

Reads rollouts from `--data_dir` and, if there are any, simulated ones from
`--generated_data_dir`; writes `hidden_analysis.nc` and the fitted projection to `--output_dir`.
"""

from analysis.hidden_states import HiddenAnalysisConfig, analyse_hidden_states
from experiment.command_line import parse_command_line
from experiment.errors import run_entry_point
from experiment.report import stage_report


def main() -> None:
    """Run the command."""
    config = parse_command_line(
        HiddenAnalysisConfig,
        "Fit principal and independent components, clusters and a two-dimensional embedding to "
        "the hidden states of real rollouts, and apply them to real and simulated ones.",
        preset_flag="interpreting_params_name",
        preset_file="hidden_analysis.yml",
        preset_section="precompute",
    )
    with stage_report("hidden_analysis", config.report) as report:
        analyse_hidden_states(config, report)


if __name__ == "__main__":
    run_entry_point(main)
