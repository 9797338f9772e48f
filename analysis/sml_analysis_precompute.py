"""Components, clusters and layout of the whole sensorimotor loop of agent and environment."""

from dataclasses import dataclass, replace
from pathlib import Path

from analysis.results import SML_ANALYSIS_NAME
from analysis.vector_analysis import (
    VectorAnalysisConfig,
    analyse_vectors,
    check_settings,
    loop_states,
    open_samples,
    write_vector_analysis,
)
from experiment.command_line import parse_command_line
from experiment.errors import run_entry_point
from experiment.report import StageReport, stage_report


@dataclass(frozen=True)
class LoopConfig(VectorAnalysisConfig):
    """Flags of `sml_analysis_precompute.py`."""

    output_dir: Path = Path("analysis/sml_analysis_precomp")
    """Folder for sml_analysis.nc."""


def precompute(config: LoopConfig, report: StageReport) -> Path:
    """Analyse the loop's states, and cluster them once more with their changes."""
    check_settings(config)
    rows = open_samples(config.generated_data_dir, config.num_samples, "--generated_data_dir")
    results = analyse_vectors([loop_states(rows)], config)
    no_layout = replace(config, layout=replace(config.layout, embedding="none"))
    with_change = analyse_vectors([loop_states(rows, with_change=True)], no_layout)
    results = results.assign(cluster_dynamics=with_change["cluster"]).assign_attrs(
        {
            f"dynamics_{name}": value
            for name, value in with_change.attrs.items()
            if name.startswith(("num_clusters", "cluster_"))
        }
    )
    return write_vector_analysis(results, {"informed": rows}, SML_ANALYSIS_NAME, config, report)


def main() -> None:
    """Run the command."""
    config = parse_command_line(
        LoopConfig,
        "Fit principal components, clusters and a two-dimensional embedding to the states of "
        "environment and agent, action log-probabilities and latent together; cluster them with "
        "their changes from step to step too.",
        preset_flag="interpreting_params_name",
        preset_file="vector_analysis.yml",
        preset_section="sml",
    )
    with stage_report("sml_analysis", config.report) as report:
        precompute(config, report)


if __name__ == "__main__":
    run_entry_point(main)
