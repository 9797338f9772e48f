"""Find what hidden states, components and the simulator's states tell of the game.

Reads rollouts from `--data_dir`, simulated ones from `--generated_data_dir` and the projection of
hidden_analysis_precompute.py; writes `probe_analysis.nc` to `--output_dir`.
"""

from analysis.probe_analysis import ProbeAnalysisConfig, analyse_by_probes
from experiment.command_line import parse_command_line
from experiment.errors import run_entry_point
from experiment.report import stage_report

DESCRIPTION = """Ask what a representation encodes: fit probes from it to the game's own variables
and judge them on levels that they were not fitted on, beside baselines (mean, shuffled levels,
pixels, an untrained agent); correlate every component with every variable, with intervals and
control of false discoveries; read the probes of real decisions on simulated ones; probe the
simulator's states."""


def main() -> None:
    """Run the command."""
    config = parse_command_line(
        ProbeAnalysisConfig,
        DESCRIPTION,
        preset_flag="interpreting_params_name",
        preset_file="probe_analysis.yml",
        preset_section="precompute",
    )
    with stage_report("probe_analysis", config.report) as report:
        analyse_by_probes(config, report)


if __name__ == "__main__":
    run_entry_point(main)
