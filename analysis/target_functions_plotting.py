"""Draw what target_functions_precompute.py found, from its result file alone."""

from analysis.target_figures import TargetPlottingConfig, plot_target_functions
from experiment.command_line import parse_flags
from experiment.errors import run_entry_point
from experiment.report import stage_report


def main() -> None:
    """Draw the figure."""
    config = parse_flags(
        TargetPlottingConfig,
        "Draw how far latents could be driven for each target function, beside the best of as "
        "many random latents.",
    )
    with stage_report("target_functions_figures", config.report) as report:
        plot_target_functions(config, report)


if __name__ == "__main__":
    run_entry_point(main)
