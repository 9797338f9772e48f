"""Draw what sample_trust_precompute.py found, from its result file alone."""

from analysis.trust_figures import TrustPlottingConfig, plot_trust
from experiment.command_line import parse_flags
from experiment.errors import run_entry_point
from experiment.report import stage_report


def main() -> None:
    """Draw the figure."""
    config = parse_flags(
        TrustPlottingConfig,
        "Draw simulated samples against the real environment: the trust in them, and every score "
        "over the horizon beside its baselines.",
    )
    with stage_report("trust_figures", config.report) as report:
        plot_trust(config, report)


if __name__ == "__main__":
    run_entry_point(main)
