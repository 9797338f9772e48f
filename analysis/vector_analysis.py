"""Components, clusters and layout of vectors that simulated samples carry.

The same analysis for three kinds of vector: the environment's state at each step, the latent of
each sample, and the state of the whole loop of agent and environment at each step. All is fitted on
the first table of vectors and applied to the others, so that they share axes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
import xarray as xr
from numpy.typing import NDArray
from scipy.special import log_softmax

from analysis.clustering import Clustering, ClusterStability
from analysis.embedding import Embedder, EmbeddingQuality
from analysis.episode_stacks import is_before_end
from analysis.hidden_states import (
    CUMULATIVE_SHARE,
    ClusterSettings,
    EmbeddingSettings,
    choose_rows,
    cluster_features,
    components_for_share,
    embed_rows,
    policy_entropy,
    quality_attributes,
    quality_of,
    stability_attributes,
    stability_of,
)
from analysis.results import write_results
from analysis.rollout_rows import RolloutRows, select_episodes
from analysis.sample_source import open_simulated_rollouts
from experiment.counts import at_most_available
from experiment.errors import UserError, require_at_least
from experiment.files import require_writable_folder
from experiment.provenance import collect_provenance
from experiment.report import StageReport
from projections.hidden import HiddenProjection


@dataclass(frozen=True)
class VectorAnalysisConfig:
    """Settings that the three analyses share."""

    interpreting_params_name: str = "defaults"
    """Preset in hyperparams/vector_analysis.yml that the other values are taken from."""
    generated_data_dir: Path = Path("generative/rec_gen_mod_data/informed_init")
    """Dataset of simulated rollouts, made by record_gen_samples.py."""
    output_dir: Path = Path("analysis/vector_analysis")
    """Folder for the result file."""
    num_samples: int = 6000
    """Samples to analyse."""
    num_pca: int = 128
    """Principal components to keep; those that exist, when there are fewer."""
    max_fit_rows: int = 50_000
    """Components are fitted on at most so many vectors, drawn at random from all."""
    clusters: Annotated[ClusterSettings, tyro.conf.arg(name="")] = field(
        default_factory=ClusterSettings
    )
    layout: Annotated[EmbeddingSettings, tyro.conf.arg(name="")] = field(
        default_factory=EmbeddingSettings
    )
    seed: int = 0
    """Seed of every random choice."""
    report: Path | None = None
    """JSON file for seconds, outputs and metrics."""


@dataclass(frozen=True, eq=False)
class VectorTable:
    """N vectors and what is known of each."""

    vectors: NDArray[np.float32]
    """(N, F)"""
    unit: NDArray[np.int64]
    """(N,) equal for vectors that depend on each other (`rollouts.independent_units`)."""
    variables: dict[str, NDArray]
    """(N,) by name."""


def check_settings(config: VectorAnalysisConfig) -> None:
    """Raise `UserError` for numbers that make no sense, or a folder that cannot be written."""
    require_at_least(config, "num_samples", "num_pca")
    require_at_least(config, "max_fit_rows", least=10)
    require_at_least(config.clusters, "num_clusters", "num_cluster_neighbours")
    require_at_least(config.clusters, "num_stability_repeats", least=0)
    require_at_least(config.clusters, "max_cluster_rows", least=10)
    require_at_least(config.layout, "embedding_neighbours")
    require_at_least(config.layout, "num_quality_rows", least=0)
    require_at_least(config.layout, "max_embedding_rows", least=10)
    require_writable_folder(config.output_dir, "--output_dir")


def open_samples(folder: Path, wanted: int, flag: str) -> RolloutRows:
    """The first `wanted` samples of a dataset of simulated rollouts.

    Raises:
        UserError: no samples, or real rollouts.
    """
    dataset = open_simulated_rollouts(folder, flag)
    return select_episodes(dataset, wanted, f"{flag} {folder}", "--num_samples")


def environment_states(rows: RolloutRows) -> VectorTable:
    """The deterministic part of the environment's state at each step."""
    unit = rows.units[rows.episode_index]
    return VectorTable(rows.read("env_deter", 0, rows.num_rows), unit, step_variables(rows))


def loop_states(rows: RolloutRows, with_change: bool = False) -> VectorTable:
    """Environment state, agent's hidden state, log-probabilities and latent, side by side.

    Args:
        rows: simulated rollouts.
        with_change: append the change since the step before; 0 at a sample's first step.
    """
    latent = rows.dataset.read_episode_field("latent")[: rows.num_episodes]
    parts = [
        rows.read("env_deter", 0, rows.num_rows),
        rows.read_hidden(0, rows.num_rows),
        log_softmax(rows.read("action_logits", 0, rows.num_rows), axis=-1),
        latent[rows.episode_index],
    ]
    vectors = np.concatenate(parts, axis=1).astype(np.float32)
    if with_change:
        change = np.diff(vectors, axis=0, prepend=vectors[:1])
        change[rows.step == 0] = 0
        vectors = np.concatenate([vectors, change], axis=1)
    return VectorTable(vectors, rows.units[rows.episode_index], step_variables(rows))


def latents(rows: RolloutRows) -> VectorTable:
    """The latent of each sample; its return and mean value are those up to the predicted end."""
    starts = np.cumsum(rows.episode_lengths) - rows.episode_lengths
    value, reward, done = (
        rows.read(name, 0, rows.num_rows) for name in ("value", "reward", "done")
    )
    counts = is_before_end(rows)
    return VectorTable(
        rows.dataset.read_episode_field("latent")[: rows.num_episodes],
        rows.units,
        {
            "sample_id": rows.episode_ids,
            "mean_value": np.add.reduceat(np.where(counts, value, 0), starts)
            / np.add.reduceat(counts, starts, dtype=np.int64),
            "sample_return": np.add.reduceat(np.where(counts, reward, 0), starts),
            "ever_done": np.logical_or.reduceat(done, starts).astype(np.int8),
        },
    )


def step_variables(rows: RolloutRows) -> dict[str, NDArray]:
    """(num_rows,) what is known of each step; a sample's largest reward is before its end."""
    starts = np.cumsum(rows.episode_lengths) - rows.episode_lengths
    logits, value, reward, done = (
        rows.read(name, 0, rows.num_rows) for name in ("action_logits", "value", "reward", "done")
    )
    return {
        "sample_id": rows.episode_ids[rows.episode_index],
        "step": rows.step,
        "entropy": policy_entropy(logits),
        "greedy_action": logits.argmax(axis=-1).astype(np.int16),
        "value": value,
        "reward": reward,
        "done": done.astype(np.int8),
        "ever_done": np.logical_or.reduceat(done, starts)[rows.episode_index].astype(np.int8),
        "largest_reward": np.maximum.reduceat(
            np.where(is_before_end(rows), reward, -np.inf), starts
        )[rows.episode_index],
    }


def analyse_vectors(tables: Sequence[VectorTable], config: VectorAnalysisConfig) -> xr.Dataset:
    """Fit on the first table, apply to all; rows of the result are those of the tables in turn.

    Raises:
        UserError: fewer than ten vectors to fit on, or all the same.
    """
    first = tables[0]
    if len(first.vectors) < 10:
        raise UserError(f"{len(first.vectors)} vectors: at least 10 are needed")
    rng = np.random.default_rng(config.seed)
    fitted = first.vectors[choose_rows(rng, np.arange(len(first.vectors)), config.max_fit_rows)]
    # Of this projection only the principal components are used, all of which it keeps.
    projection = HiddenProjection("pca", 1).fit(fitted)
    ratio = projection.explained_variance_ratio_
    num_pca = at_most_available(config.num_pca, len(ratio), "--num_pca")
    num_95 = components_for_share(ratio, CUMULATIVE_SHARE)
    scores = [
        np.asarray(projection.principal_components(table.vectors)[:, :num_pca], np.float32)
        for table in tables
    ]
    # Slices end with the components that are kept.
    maps = _fit_maps(scores[0][:, :num_95], first.unit, config, rng)
    pca = np.concatenate(scores)
    features = pca[:, :num_95]
    source = np.repeat(np.arange(len(tables)), [len(table.vectors) for table in tables])
    variables: dict[str, Any] = {
        name: ("row", np.concatenate([table.variables[name] for table in tables]))
        for name in first.variables
    }
    variables |= {
        "source": ("row", source.astype(np.int8)),
        "pca": (("row", "pca_component"), pca),
        "cluster": ("row", maps.clustering.assign(features).astype(np.int16)),
        "explained_variance_ratio": ("pca_component", ratio[:num_pca]),
    }
    if maps.embedder is not None:
        variables["embedding"] = (("row", "axis"), maps.embedder.transform(features))
    return xr.Dataset(variables, attrs={"num_components_95": num_95, **maps.attributes})


@dataclass(frozen=True, eq=False)
class VectorMaps:
    """Clusters and layout of vectors, and how far to believe them."""

    clustering: Clustering
    stability: ClusterStability | None
    embedder: Embedder | None
    quality: EmbeddingQuality | None

    @property
    def attributes(self) -> dict[str, float]:
        """As the result file keeps them."""
        return {
            "num_clusters": self.clustering.num_clusters,
            "cluster_noise_share": self.clustering.noise_share,
            **stability_attributes(self.stability),
            **quality_attributes(self.quality),
        }


def _fit_maps(
    features: NDArray[np.float32],
    unit: NDArray[np.int64],
    config: VectorAnalysisConfig,
    rng: np.random.Generator,
) -> VectorMaps:
    """Cluster and lay out (N, F) features of (N,) units."""
    clustered = choose_rows(rng, np.arange(len(features)), config.clusters.max_cluster_rows)
    embedder = embed_rows(features, config.layout, rng, config.seed)
    return VectorMaps(
        clustering=cluster_features(features[clustered], config.clusters),
        stability=stability_of(features[clustered], unit[clustered], config.clusters, config.seed),
        embedder=embedder,
        quality=quality_of(embedder, features, config.layout, config.seed),
    )


def write_vector_analysis(
    results: xr.Dataset,
    tables: Mapping[str, RolloutRows],
    name: str,
    config: VectorAnalysisConfig,
    report: StageReport,
) -> Path:
    """Write a result with names and provenance; returns its path.

    Args:
        results: what `analyse_vectors` found.
        tables: the rollouts that it was found in, by what they are, in one word.
        name: of the result file in the output folder.
        config: its settings.
        report: takes output and metrics.
    """
    metadata = next(iter(tables.values())).dataset.metadata
    hashes = {source: table.dataset.hash for source, table in tables.items()}
    provenance = collect_provenance(config, config.seed, {"agent": metadata.agent_hash, **hashes})
    actions = " ".join(metadata.environment.action_names)
    labelled = results.assign_attrs(action_names=actions, sources=" ".join(tables))
    path = config.output_dir / name
    write_results(path, labelled, provenance)
    report.outputs.append(str(path))
    report.metrics |= {
        "rows": results.sizes["row"],
        **{name: value for name, value in results.attrs.items() if isinstance(value, (int, float))},
    }
    return path
