"""Test causal statements by pushes, swaps and collapses in simulation and in reality.

Reads `consistency.nc` and `xcorr_and_xcaus.nc`; writes `statement_effects.nc` and a folder for each
intervention to `--output_dir`.
"""

from analysis.statement_effects import StatementEffectsConfig, make_plan, measure_statements
from experiment.command_line import parse_command_line
from experiment.errors import run_entry_point
from experiment.report import stage_report


def main() -> None:
    """Run the command."""
    config = parse_command_line(
        StatementEffectsConfig,
        "Push components of the agent's hidden state, in the simulator and in the real "
        "environment, and tell which statements that one component drives another come true; swap "
        "and collapse the components of the best statements.",
        preset_flag="interpreting_params_name",
        preset_file="statement_effects.yml",
    )
    with stage_report("statement_effects", config.report) as report:
        measure_statements(make_plan(config), report)
        for name, value in report.metrics.items():
            print(f"{name:<24s} {value}")


if __name__ == "__main__":
    run_entry_point(main)
