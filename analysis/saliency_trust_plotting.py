"""Draw what saliency_trust_precompute.py found, from its result file alone."""

from analysis.saliency_trust_figures import SaliencyTrustPlottingConfig, plot_saliency_trust
from experiment.command_line import parse_flags
from experiment.errors import run_entry_point
from experiment.report import stage_report


def main() -> None:
    """Draw the figures."""
    config = parse_flags(
        SaliencyTrustPlottingConfig,
        "Draw how far saliency can be believed: gradients against finite changes by size of the "
        "step, stability under noise, and deletion and insertion on real frames.",
    )
    with stage_report("saliency_trust_figures", config.report) as report:
        plot_saliency_trust(config, report)


if __name__ == "__main__":
    run_entry_point(main)
