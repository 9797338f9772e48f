"""Cluster the joint dynamics of agent and environment in simulated rollouts.

Reads the samples in `--generated_data_dir`; writes `behaviour_clusters.nc` to `--output_dir`.
"""

from analysis.behaviour_analysis import BehaviourConfig, analyse_behaviour
from experiment.command_line import parse_command_line
from experiment.errors import run_entry_point
from experiment.report import stage_report


def main() -> None:
    """Run the command."""
    config = parse_command_line(
        BehaviourConfig,
        "Cluster what agent and environment do together: every step of simulated rollouts is "
        "described by both states and by where they go next, steps are clustered, and a sample's "
        "behaviour is the commonest cluster of its first steps.",
        preset_flag="interpreting_params_name",
        preset_file="dynamics.yml",
        preset_section="behaviour",
    )
    with stage_report("behaviour_clusters", config.report) as report:
        analyse_behaviour(config, report)


if __name__ == "__main__":
    run_entry_point(main)
