"""Draw what probe_analysis_precompute.py found, from its result file alone."""

from analysis.probe_figures import ProbePlottingConfig, plot_probes
from experiment.command_line import parse_command_line
from experiment.errors import run_entry_point
from experiment.report import stage_report


def main() -> None:
    """Draw the figures."""
    config = parse_command_line(
        ProbePlottingConfig,
        "Draw what representations encode: scores of every variable beside controls, components "
        "by variables, probes of real decisions read on simulated ones, the simulator's states.",
        preset_flag="interpreting_params_name",
        preset_file="probe_analysis.yml",
        preset_section="plotting",
    )
    with stage_report("probe_figures", config.report) as report:
        plot_probes(config, report)


if __name__ == "__main__":
    run_entry_point(main)
