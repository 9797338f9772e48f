"""Draw what bottleneck_vec_analysis_precompute.py found, from its result file alone."""

from dataclasses import dataclass
from pathlib import Path

from analysis.results import BOTTLENECK_ANALYSIS_NAME
from analysis.vector_figures import VectorPlottingConfig, plot_vectors
from experiment.command_line import parse_flags
from experiment.errors import run_entry_point
from experiment.report import stage_report


@dataclass(frozen=True)
class BottleneckPlottingConfig(VectorPlottingConfig):
    """Flags of `bottleneck_vec_analysis_plotting.py`."""

    input_dir: Path = Path("analysis/bottleneck_vec_analysis_precomp")
    """Folder of bottleneck_vec_analysis.nc."""
    output_dir: Path = Path("analysis/bottleneck_vec_plots")
    """Folder for the figures, each as PNG and PDF, and a contact sheet."""


def main() -> None:
    """Draw the figures."""
    config = parse_flags(BottleneckPlottingConfig, "Draw the analysis of bottleneck vectors.")
    with stage_report("bottleneck_vec_analysis_figures", config.report) as report:
        plot_vectors(config, BOTTLENECK_ANALYSIS_NAME, "Bottleneck vectors", report)


if __name__ == "__main__":
    run_entry_point(main)
