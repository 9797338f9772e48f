"""Components, clusters and layout of the latents that simulated samples begin with."""

from dataclasses import dataclass
from pathlib import Path

from analysis.results import BOTTLENECK_ANALYSIS_NAME
from analysis.vector_analysis import (
    VectorAnalysisConfig,
    analyse_vectors,
    check_settings,
    latents,
    open_samples,
    write_vector_analysis,
)
from experiment.command_line import parse_command_line
from experiment.errors import UserError, run_entry_point
from experiment.report import StageReport, stage_report


@dataclass(frozen=True)
class BottleneckConfig(VectorAnalysisConfig):
    """Flags of `bottleneck_vec_analysis_precompute.py`."""

    output_dir: Path = Path("analysis/bottleneck_vec_analysis_precomp")
    """Folder for bottleneck_vec_analysis.nc."""
    num_samples: int = 1000
    """Samples to analyse of each kind."""
    random_data_dir: Path = Path("generative/rec_gen_mod_data/rand_init")
    """Dataset of samples from random latents, made with --initialisation random; where the default
    folder is absent, the analysis goes without."""


def precompute(config: BottleneckConfig, report: StageReport) -> Path:
    """Fit on the latents of windows, place random ones among them; returns the result file."""
    check_settings(config)
    flags = {"informed": "--generated_data_dir", "random": "--random_data_dir"}
    folders = {"informed": config.generated_data_dir, "random": config.random_data_dir}
    is_default = config.random_data_dir == BottleneckConfig.random_data_dir
    if is_default and not config.random_data_dir.exists():
        print(f"no samples in {config.random_data_dir}: only latents of windows are analysed")
        del folders["random"]
    rows = {
        name: open_samples(folder, config.num_samples, flags[name])
        for name, folder in folders.items()
    }
    simulators = {
        name: table.dataset.metadata.provenance.get("inputs", {}).get("simulator")
        for name, table in rows.items()
    }
    if len(set(simulators.values())) > 1:
        raise UserError(
            f"--random_data_dir {config.random_data_dir}: samples of another simulator than "
            f"those in {config.generated_data_dir}"
        )
    results = analyse_vectors([latents(table) for table in rows.values()], config)
    return write_vector_analysis(results, rows, BOTTLENECK_ANALYSIS_NAME, config, report)


def main() -> None:
    """Run the command."""
    config = parse_command_line(
        BottleneckConfig,
        "Fit principal components, clusters and a two-dimensional embedding to the bottleneck "
        "vectors of windows, and place random ones on the same axes.",
        preset_flag="interpreting_params_name",
        preset_file="vector_analysis.yml",
        preset_section="bottleneck",
    )
    with stage_report("bottleneck_vec_analysis", config.report) as report:
        precompute(config, report)


if __name__ == "__main__":
    run_entry_point(main)
