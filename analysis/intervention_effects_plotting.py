"""Draw what intervention_effects_precompute.py found, from its result file alone."""

from analysis.effect_figures import EffectPlottingConfig, plot_effects
from experiment.command_line import parse_flags
from experiment.errors import run_entry_point
from experiment.report import stage_report


def main() -> None:
    """Draw the page."""
    config = parse_flags(
        EffectPlottingConfig,
        "Draw what an intervention does as a verdict: what was predicted, what is observed in "
        "simulation and in reality, and what random directions do as well.",
    )
    with stage_report("intervention_effects_figures", config.report) as report:
        plot_effects(config, report)


if __name__ == "__main__":
    run_entry_point(main)
