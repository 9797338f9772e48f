"""Draw what env_h_analysis_precompute.py found, from its result file alone."""

from dataclasses import dataclass
from pathlib import Path

from analysis.results import ENV_H_ANALYSIS_NAME
from analysis.vector_figures import VectorPlottingConfig, plot_vectors
from experiment.command_line import parse_flags
from experiment.errors import run_entry_point
from experiment.report import stage_report


@dataclass(frozen=True)
class EnvironmentStatePlottingConfig(VectorPlottingConfig):
    """Flags of `env_h_analysis_plotting.py`."""

    input_dir: Path = Path("analysis/env_analysis_precomp")
    """Folder of env_h_analysis.nc."""
    output_dir: Path = Path("analysis/env_plots")
    """Folder for the figures, each as PNG and PDF, and a contact sheet."""


def main() -> None:
    """Draw the figures."""
    config = parse_flags(
        EnvironmentStatePlottingConfig, "Draw the analysis of the simulated environment's states."
    )
    with stage_report("env_h_analysis_figures", config.report) as report:
        plot_vectors(config, ENV_H_ANALYSIS_NAME, "States of the simulated environment", report)


if __name__ == "__main__":
    run_entry_point(main)
