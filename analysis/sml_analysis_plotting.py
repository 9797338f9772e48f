"""Draw what sml_analysis_precompute.py found, from its result file alone."""

from dataclasses import dataclass
from pathlib import Path

from analysis.results import SML_ANALYSIS_NAME
from analysis.vector_figures import VectorPlottingConfig, plot_vectors
from experiment.command_line import parse_flags
from experiment.errors import run_entry_point
from experiment.report import stage_report


@dataclass(frozen=True)
class LoopPlottingConfig(VectorPlottingConfig):
    """Flags of `sml_analysis_plotting.py`."""

    input_dir: Path = Path("analysis/sml_analysis_precomp")
    """Folder of sml_analysis.nc."""
    output_dir: Path = Path("analysis/sml_plots")
    """Folder for the figures, each as PNG and PDF, and a contact sheet."""


def main() -> None:
    """Draw the figures."""
    config = parse_flags(LoopPlottingConfig, "Draw the analysis of the sensorimotor loop's states.")
    with stage_report("sml_analysis_figures", config.report) as report:
        plot_vectors(
            config, SML_ANALYSIS_NAME, "States of the loop of agent and environment", report
        )


if __name__ == "__main__":
    run_entry_point(main)
