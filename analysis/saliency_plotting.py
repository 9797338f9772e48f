"""Draw what saliency_experiments.py found on many samples, from its result files alone."""

from analysis.attribution_figures import AttributionPlottingConfig, plot_attributions
from experiment.command_line import parse_flags
from experiment.errors import UserError, run_entry_point
from experiment.report import stage_report


def main() -> None:
    """Draw the figures."""
    config = parse_flags(
        AttributionPlottingConfig,
        "Sum up saliency of many samples: how much of the gradients came by which path, whether "
        "gradients, gradients times input and integrated gradients agree, and how far the latter "
        "converged.",
    )
    if config.paths is None and config.integrated is None:
        raise UserError("name a folder of saliency by --paths, by --integrated, or by both")
    with stage_report("attribution_figures", config.report) as report:
        plot_attributions(config, report)


if __name__ == "__main__":
    run_entry_point(main)
