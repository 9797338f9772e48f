"""Figures of the analyses of vectors that samples carry, drawn from their result files alone."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.figure import Figure

from analysis.figure_style import figure_text, save_figures, tell_stability, tell_trustworthiness
from analysis.hidden_figures import (
    PlotTable,
    Trajectory,
    Variable,
    colour_limits,
    draw_clusters,
    draw_coloured,
    draw_explained_variance,
    draw_trajectories,
)
from analysis.results import read_results
from experiment.errors import require_at_least
from experiment.files import require_writable_folder
from experiment.report import StageReport

VARIABLES = (
    Variable("value", "value"),
    Variable("mean_value", "mean value"),
    Variable("entropy", "policy entropy (nats)", "cividis"),
    Variable("reward", "predicted reward", "plasma"),
    Variable("largest_reward", "largest predicted reward", "plasma"),
    Variable("sample_return", "predicted return", "plasma"),
    Variable("step", "step in sample", "magma"),
    Variable("cluster", "cluster", is_categorical=True),
    Variable("cluster_dynamics", "cluster, changes included", is_categorical=True),
    Variable("greedy_action", "most probable action", is_categorical=True),
    Variable("done", "predicted end here", is_categorical=True),
    Variable("ever_done", "predicted end in this sample", is_categorical=True),
    Variable("source", "what the sample began with", is_categorical=True),
)
"""Those that a result file has are drawn."""


@dataclass(frozen=True)
class VectorPlottingConfig:
    """What the three plotting commands share."""

    interpreting_params_name: str = "defaults"
    """Preset of the computation; figures need none."""
    input_dir: Path = Path("analysis/vector_analysis")
    """Folder of the result file."""
    output_dir: Path = Path("analysis/vector_plots")
    """Folder for the figures, each as PNG and PDF, and a contact sheet."""
    max_points: int = 50_000
    """At most so many vectors are drawn, chosen at random."""
    num_trajectories: int = 12
    """Samples drawn as arrows."""
    clusters_per_page: int = 16
    """Clusters highlighted per figure."""
    dpi: int = 130
    """Resolution of PNGs and of the scatters inside PDFs."""
    seed: int = 0
    """Chooses vectors and samples that are drawn."""
    report: Path | None = None
    """JSON file for seconds, outputs and metrics."""


def plot_vectors(
    config: VectorPlottingConfig, name: str, what: str, report: StageReport
) -> list[Path]:
    """Draw all figures and a contact sheet; returns the PNGs.

    Args:
        config: where from, where to.
        name: of the result file.
        what: the vectors, for titles.
        report: takes the folder.

    Raises:
        UserError: no result file, or a folder that cannot be written.
    """
    require_at_least(config, "max_points", "num_trajectories", "clusters_per_page", "dpi")
    with (
        read_results(config.input_dir / name) as results,
        figure_text(title_size=8),
    ):
        folder = require_writable_folder(config.output_dir, "--output_dir")
        figures = _figures(results.load(), config, what)
        return save_figures(figures, folder, config.dpi, report)


def _figures(
    results: xr.Dataset, config: VectorPlottingConfig, what: str
) -> Iterator[tuple[str, Figure]]:
    variables = [v for v in VARIABLES if v.name in results or v.name == "source"]
    if len(str(results.attrs["sources"]).split()) == 1:
        variables = [v for v in variables if v.name != "source"]
    table = read_vector_table(results, variables, config.max_points, config.seed)
    of_samples = np.unique([results["source"].values, results["sample_id"].values], axis=1)
    drawn = (
        f"{len(table.rows):,} of {results.sizes['row']:,} vectors of {of_samples.shape[1]:,} "
        "samples"
    )
    stability = tell_stability(results.attrs)
    yield "explained_variance", draw_explained_variance(results, what)
    for space in table.spaces:
        heading = "\n".join(filter(None, [f"{what}, {drawn}", stability]))
        yield f"{space}_variables", draw_coloured(table, space, variables, heading)
    best = "embedding" if "embedding" in table.spaces else "pca"
    if "step" in results:
        paths = read_sample_trajectories(results, best, config.num_trajectories, config.seed)
        yield (
            f"{best}_trajectories",
            draw_trajectories(
                table, best, paths, f"{what}: single samples over {drawn} in grey", "sample"
            ),
        )
    for start in range(0, table.num_clusters, config.clusters_per_page):
        clusters = range(start, min(start + config.clusters_per_page, table.num_clusters))
        known = [f"{what[0].lower()}{what[1:]}, {drawn}", stability]
        heading = "\n".join(filter(None, known))
        yield f"clusters_{start:03d}", draw_clusters(table, best, clusters, heading)


def read_vector_table(
    results: xr.Dataset, variables: Sequence[Variable], max_points: int, seed: int
) -> PlotTable:
    """Choose vectors to draw, in a random order, so that late ones do not hide early ones."""
    rng = np.random.default_rng(seed)
    rows = rng.permutation(results.sizes["row"])[:max_points]
    names = {"source", *(variable.name for variable in variables)}
    frame = pd.DataFrame({name: results[name].values[rows] for name in sorted(names)})
    spaces = {
        space: results[space].values[rows] for space in ("pca", "embedding") if space in results
    }
    return PlotTable(
        frame,
        spaces,
        tuple(str(results.attrs["action_names"]).split()),
        int(results.attrs["num_clusters"]),
        0,
        colour_limits(frame, variables),
        int(results.attrs.get("dynamics_num_clusters", 0)),
        ("window", "random"),
        layout_trust=tell_trustworthiness(results.attrs),
    )


def read_sample_trajectories(
    results: xr.Dataset, space: str, wanted: int, seed: int
) -> list[Trajectory]:
    """Ways of randomly chosen samples through a space."""
    sample = results["sample_id"].values
    chosen = np.random.default_rng(seed).permutation(np.unique(sample))[:wanted]
    return [
        Trajectory(int(sample_id), results[space].values[sample == sample_id, :2])
        for sample_id in chosen
    ]
