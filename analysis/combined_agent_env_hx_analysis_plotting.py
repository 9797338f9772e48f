"""Draw what combined_agent_env_hx_analysis_precompute.py found, from its result file alone."""

from analysis.behaviour_figures import BehaviourPlottingConfig, plot_behaviour
from experiment.command_line import parse_command_line
from experiment.errors import run_entry_point
from experiment.report import stage_report


def main() -> None:
    """Draw the figures."""
    config = parse_command_line(
        BehaviourPlottingConfig,
        "Draw the clusters of the joint dynamics of agent and environment: where they lie, their "
        "sizes, what the agent does in them, and the samples nearest to their centres.",
        preset_flag="interpreting_params_name",
        preset_file="dynamics.yml",
        preset_section="behaviour_plotting",
    )
    with stage_report("behaviour_figures", config.report) as report:
        plot_behaviour(config, report)


if __name__ == "__main__":
    run_entry_point(main)
