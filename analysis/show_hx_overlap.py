"""Draw real and simulated hidden states over each other, and measure how far they are alike."""

from dataclasses import dataclass
from pathlib import Path

from analysis.figure_style import draw_pictures, figure_text, write_contact_sheet
from analysis.results import HIDDEN_ANALYSIS_NAME, OVERLAP_NAME, read_results, write_results
from analysis.state_overlap import (
    NUM_FIGURES,
    draw_overlap,
    overlap_dataset,
    read_states,
    tell_apart,
    tell_halves_apart,
)
from experiment.command_line import parse_command_line
from experiment.errors import require_at_least, run_entry_point
from experiment.files import hash_file, require_writable_folder
from experiment.provenance import collect_provenance
from experiment.report import StageReport, stage_report

DESCRIPTION = """Draw principal components of real (blue) and simulated (red) hidden states, each
against the next: OUTPUT_DIR/agent_h_overlap_0 to 4 (.png, .pdf), and a contact sheet. A classifier
says how far the two are apart, beside the control of two halves of the real episodes; the numbers
go to OUTPUT_DIR/hx_overlap.nc. Reads the result of hidden_analysis_precompute.py."""


@dataclass(frozen=True)
class OverlapConfig:
    """Flags of `show_hx_overlap.py`."""

    interpreting_params_name: str = "defaults"
    """Preset in hyperparams/hidden_analysis.yml that the other values are taken from."""
    input_dir: Path = Path("analysis/hx_analysis_precomp")
    """Folder of hidden_analysis.nc."""
    output_dir: Path = Path("analysis/hx_plots")
    """Folder for figures and numbers."""
    max_points: int = 10_000
    """At most so many rows of each source, chosen at random."""
    num_resamples: int = 500
    """Bootstrap resamples of levels and source episodes, for the 95% intervals."""
    dpi: int = 130
    """Resolution of PNGs."""
    seed: int = 0
    """Chooses rows, folds, halves and resamples."""
    report: Path | None = None
    """JSON file for seconds, outputs and metrics."""


def show_overlap(config: OverlapConfig, report: StageReport) -> list[Path]:
    """Write the numbers and the figures; returns the PNGs.

    Raises:
        UserError: no result file, one without simulated rows, or an output folder that cannot be
            written.
    """
    require_at_least(config, "num_resamples", "dpi")
    require_at_least(config, "max_points", least=50)
    source = config.input_dir / HIDDEN_ANALYSIS_NAME
    with read_results(source, "hidden_analysis") as analysis:
        states = read_states(analysis, config.max_points, config.seed)
    folder = require_writable_folder(config.output_dir, "--output_dir")
    found = tell_apart(states, config.num_resamples, config.seed)
    control = tell_halves_apart(states, config.num_resamples, config.seed)
    path = folder / OVERLAP_NAME
    provenance = collect_provenance(config, config.seed, {"hidden_analysis": hash_file(source)})
    write_results(path, overlap_dataset(states, found, control), provenance)
    with read_results(path) as written, figure_text():
        results = written.load()
        count = min(NUM_FIGURES, results.sizes["pca_component"] - 1)
        figures = ((f"agent_h_overlap_{i}", draw_overlap(results, i)) for i in range(count))
        pictures = draw_pictures(folder, figures, config.dpi)
        # A name of its own: the folder may hold the contact sheet of the hidden states too.
        write_contact_sheet(pictures, folder, name="agent_h_overlap_contact_sheet")
    report.outputs += [str(path), str(folder)]
    report.metrics |= {"roc_area": found.area, "roc_area_of_halves": control.area}
    return pictures


def main() -> None:
    """Parse the command line, measure, draw."""
    config = parse_command_line(
        OverlapConfig,
        DESCRIPTION,
        "interpreting_params_name",
        "hidden_analysis.yml",
        "overlap",
    )
    with stage_report("hx_overlap", config.report) as report:
        show_overlap(config, report)


if __name__ == "__main__":
    run_entry_point(main)
