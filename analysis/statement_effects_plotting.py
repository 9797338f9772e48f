"""Draw what statement_effects_precompute.py found, from its result files alone."""

from analysis.statement_figures import StatementPlottingConfig, plot_statements
from experiment.command_line import parse_flags
from experiment.errors import run_entry_point
from experiment.report import stage_report


def main() -> None:
    """Draw the figures."""
    config = parse_flags(
        StatementPlottingConfig,
        "Draw how components answer pushes in simulation and in reality, beside what the "
        "statements say, and what swaps and collapses of the best statements do.",
    )
    with stage_report("statement_figures", config.report) as report:
        plot_statements(config, report)


if __name__ == "__main__":
    run_entry_point(main)
