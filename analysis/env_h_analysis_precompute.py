"""Components, clusters and layout of the simulated environment's state."""

from dataclasses import dataclass
from pathlib import Path

from analysis.results import ENV_H_ANALYSIS_NAME
from analysis.vector_analysis import (
    VectorAnalysisConfig,
    analyse_vectors,
    check_settings,
    environment_states,
    open_samples,
    write_vector_analysis,
)
from experiment.command_line import parse_command_line
from experiment.errors import run_entry_point
from experiment.report import StageReport, stage_report


@dataclass(frozen=True)
class EnvironmentStateConfig(VectorAnalysisConfig):
    """Flags of `env_h_analysis_precompute.py`."""

    output_dir: Path = Path("analysis/env_analysis_precomp")
    """Folder for env_h_analysis.nc."""


def precompute(config: EnvironmentStateConfig, report: StageReport) -> Path:
    """Analyse the deterministic state of every step; returns the result file."""
    check_settings(config)
    rows = open_samples(config.generated_data_dir, config.num_samples, "--generated_data_dir")
    results = analyse_vectors([environment_states(rows)], config)
    return write_vector_analysis(results, {"informed": rows}, ENV_H_ANALYSIS_NAME, config, report)


def main() -> None:
    """Run the command."""
    config = parse_command_line(
        EnvironmentStateConfig,
        "Fit principal components, clusters and a two-dimensional embedding to the states of the "
        "simulated environment, one for each step of each sample.",
        preset_flag="interpreting_params_name",
        preset_file="vector_analysis.yml",
        preset_section="env_h",
    )
    with stage_report("env_h_analysis", config.report) as report:
        precompute(config, report)


if __name__ == "__main__":
    run_entry_point(main)
