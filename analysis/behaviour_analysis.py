"""Computes clusters of the joint dynamics of agent and environment and keeps them."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
import xarray as xr
from numpy.typing import NDArray

from analysis.behaviour_clusters import (
    NO_CLUSTER,
    Agreement,
    JointFeatures,
    JointStates,
    RowOrigin,
    compress,
    environment_components,
    find_exemplars,
    joint_features,
    label_purity,
    label_samples,
    measure_agreement,
)
from analysis.clustering import Clustering, fit_clusters
from analysis.embedding import EmbeddingMethod, fit_embedding, judge_layout
from analysis.episode_stacks import lengths_until_done, stack_rows
from analysis.results import BEHAVIOUR_NAME, write_results
from analysis.rollout_rows import RolloutRows, select_episodes
from analysis.sample_source import open_simulated_rollouts
from experiment.counts import at_most_available
from experiment.errors import UserError, require_at_least
from experiment.files import require_writable_folder
from experiment.provenance import collect_provenance
from experiment.report import StageReport


@dataclass(frozen=True)
class BehaviourFeatures:
    """How a step is described."""

    num_env_components: int = 16
    """Leading principal components of the environment's deterministic state."""
    feature_lags: tuple[int, ...] = (2, 4, 6)
    """Steps ahead of which the changes of both states belong to the description."""
    num_pca: int = 64
    """Principal components of the whole description that are clustered."""


@dataclass(frozen=True)
class BehaviourGroups:
    """How steps and samples are grouped."""

    num_clusters: int = 32
    """Ward clusters."""
    num_cluster_neighbours: int = 32
    """Neighbours of each step in the graph that restricts merges; independent of the number of
    clusters."""
    max_cluster_rows: int = 20_000
    """Steps that are clustered, those of whole samples drawn at random; the others join the cluster
    of the nearest of these."""
    label_steps: int = 5
    """First steps of a sample among whose clusters the commonest is its behaviour."""
    num_stability_repeats: int = 10
    """How often random halves of the source episodes are clustered anew to measure stability; 0 for
    not."""


@dataclass(frozen=True)
class BehaviourConfig:
    """Flags of `combined_agent_env_hx_analysis_precompute.py`."""

    interpreting_params_name: str = "defaults"
    """Preset in hyperparams/dynamics.yml that the other values are taken from."""
    generated_data_dir: Path = Path("generative/rec_gen_mod_data/informed_init")
    """Simulated rollouts, made by record_gen_samples.py."""
    output_dir: Path = Path("analysis/combined_agent_env_hx_analysis_precomp")
    """Folder for behaviour_clusters.nc."""
    num_samples: int = 4000
    """Samples to cluster."""
    features: Annotated[BehaviourFeatures, tyro.conf.arg(name="")] = field(
        default_factory=BehaviourFeatures
    )
    groups: Annotated[BehaviourGroups, tyro.conf.arg(name="")] = field(
        default_factory=BehaviourGroups
    )
    heed_ends: bool = True
    """Whether steps after the predicted end of a sample are left out; not to heed ends is for
    simulators that predict them badly."""
    num_exemplars: int = 4
    """Samples nearest to the centre of each cluster whose frames are kept."""
    embedding: EmbeddingMethod = "tsne"
    """How steps are laid out in two dimensions."""
    embedding_neighbours: int = 15
    """Neighbourhood size of the layout; t-SNE's perplexity is twice this."""
    seed: int = 0
    """Seed of every random choice."""
    report: Path | None = None
    """JSON file for seconds, outputs and metrics."""


@dataclass(frozen=True, eq=False)
class Behaviours:
    """What was found."""

    features: JointFeatures
    points: NDArray[np.float32]
    """(M, C) rows in the space that was clustered."""
    row_cluster: NDArray[np.int32]
    """(M,)"""
    sample_cluster: NDArray[np.int32]
    """(N,)"""
    purity: NDArray[np.float32]
    """(N,)"""
    num_clusters: int
    agreement: Agreement | None
    exemplars: NDArray[np.int64]
    """(num_clusters, num_exemplars) positions of samples; −1 where there is none."""


def analyse_behaviour(config: BehaviourConfig, report: StageReport) -> Path:
    """Cluster steps and samples, write behaviour_clusters.nc; returns its path.

    Raises:
        UserError: no simulated rollouts, senseless numbers, samples too short for the lags, or
            an output folder that cannot be written.
    """
    _check_numbers(config)
    dataset = open_simulated_rollouts(config.generated_data_dir)
    folder = require_writable_folder(config.output_dir, "--output_dir")
    source = f"--generated_data_dir {config.generated_data_dir}"
    rows = select_episodes(dataset, config.num_samples, source, "--num_samples")
    states = _read_states(rows, config)
    found = _find_behaviours(states, rows.units, config)
    inputs = {"agent": dataset.metadata.agent_hash, "generated_dataset": dataset.hash}
    path = folder / BEHAVIOUR_NAME
    results = _to_dataset(found, rows, states, config)
    write_results(path, results, collect_provenance(config, config.seed, inputs))
    report.outputs.append(str(path))
    report.metrics |= _metrics(found)
    return path


def _check_numbers(config: BehaviourConfig) -> None:
    require_at_least(config, "num_samples", "num_exemplars", "embedding_neighbours")
    require_at_least(config.features, "num_env_components", "num_pca")
    require_at_least(config.groups, "num_clusters", "num_cluster_neighbours", "label_steps")
    require_at_least(config.groups, "max_cluster_rows", least=10)
    require_at_least(config.groups, "num_stability_repeats", least=0)
    lags = config.features.feature_lags
    if any(lag < 1 for lag in lags) or len(set(lags)) < len(lags):
        words = " ".join(map(str, lags))
        raise UserError(f"--feature_lags {words}: expected different steps of at least 1")


def _read_states(rows: RolloutRows, config: BehaviourConfig) -> JointStates:
    length = lengths_until_done(rows, config.heed_ends)
    last_lag = max(config.features.feature_lags, default=0)
    # Neighbourhoods and variances need a few rows.
    if np.maximum(length - last_lag, 0).sum() < 10:
        raise UserError(
            f"--feature_lags: {last_lag} steps ahead leave too few steps of samples of "
            f"{length.max()} steps at most"
        )
    deter = stack_rows(rows, rows.read("env_deter", 0, rows.num_rows))
    num_env_components = at_most_available(
        config.features.num_env_components,
        min(deter.shape[-1], int(length.sum())),
        "--num_env_components",
    )
    return JointStates(
        agent_hidden=stack_rows(rows, rows.read_hidden(0, rows.num_rows)),
        env_components=environment_components(deter, length, num_env_components, config.seed),
        length=length,
    )


def _find_behaviours(
    states: JointStates, units: NDArray[np.int64], config: BehaviourConfig
) -> Behaviours:
    """`units` (N,) tell which samples depend on each other."""
    groups, num_samples = config.groups, len(states.length)
    features = joint_features(states, config.features.feature_lags)
    num_pca = at_most_available(config.features.num_pca, min(features.values.shape), "--num_pca")
    points = compress(features.values, num_pca, config.seed)
    chosen = _rows_of_some_samples(features, groups.max_cluster_rows, config.seed)
    clustering = _cluster(points[chosen], groups)
    origin = RowOrigin(features.sample[chosen], units[features.sample[chosen]])
    row_cluster = clustering.assign(points)
    sample_cluster = label_samples(row_cluster, features, num_samples, groups.label_steps)
    return Behaviours(
        features=features,
        points=points,
        row_cluster=row_cluster,
        sample_cluster=sample_cluster,
        purity=label_purity(row_cluster, features, sample_cluster, groups.label_steps),
        num_clusters=clustering.num_clusters,
        agreement=_agreement(clustering, origin, config),
        exemplars=find_exemplars(
            points, features, sample_cluster, clustering.num_clusters, config.num_exemplars
        ),
    )


def _rows_of_some_samples(features: JointFeatures, max_rows: int, seed: int) -> NDArray[np.int64]:
    """Rows of as many whole samples, in a random order of samples, as fit."""
    samples, counts = np.unique(features.sample, return_counts=True)
    order = np.random.default_rng(seed).permutation(len(samples))
    fitting = max(1, int(np.sum(np.cumsum(counts[order]) <= max_rows)))
    return np.flatnonzero(np.isin(features.sample, samples[order[:fitting]]))


def _cluster(points: NDArray[np.float32], groups: BehaviourGroups) -> Clustering:
    num_clusters = at_most_available(groups.num_clusters, len(points), "--num_clusters")
    return fit_clusters(points, num_clusters, groups.num_cluster_neighbours)


def _agreement(
    clustering: Clustering, origin: RowOrigin, config: BehaviourConfig
) -> Agreement | None:
    groups = config.groups
    if groups.num_stability_repeats == 0:
        return None
    return measure_agreement(
        clustering,
        origin,
        groups.num_cluster_neighbours,
        groups.num_stability_repeats,
        config.seed,
    )


def _to_dataset(
    found: Behaviours, rows: RolloutRows, states: JointStates, config: BehaviourConfig
) -> xr.Dataset:
    features, shape = found.features, states.agent_hidden.shape[:2]
    cluster = np.full(shape, NO_CLUSTER, np.int16)
    cluster[features.sample, features.step] = found.row_cluster
    action = stack_rows(rows, rows.read("action", 0, rows.num_rows)).astype(np.int16)
    names = rows.dataset.metadata.environment.action_names
    variables: dict[str, Any] = {
        "cluster": _labelled(("sample", "step"), cluster, "cluster of the step, −1 for none"),
        "sample_cluster": _labelled(
            "sample", found.sample_cluster, "behaviour of the sample, −1 for none"
        ),
        "purity": _labelled("sample", found.purity, "share of its first steps in its behaviour"),
        "length": _labelled("sample", states.length, "steps until the episode ends"),
        "action": _labelled(("sample", "step"), action, "action taken"),
        "action_share": _labelled(
            ("behaviour", "action_index"),
            _action_shares(cluster, action, found.num_clusters, len(names)),
            "share of the cluster's steps with this action",
        ),
        "exemplar": _labelled(
            ("behaviour", "exemplar"),
            np.where(found.exemplars >= 0, rows.episode_ids[found.exemplars], -1),
            "id of a sample near the centre of the behaviour, −1 for none",
        ),
        "exemplar_frame": _labelled(
            ("behaviour", "exemplar", "step", "height", "width", "channel"),
            _exemplar_frames(found.exemplars, rows),
            "frames of that sample",
        ),
    }
    attributes = _attributes(found, names, config)
    neighbours, seed = config.embedding_neighbours, config.seed
    embedder = fit_embedding(config.embedding, found.points, neighbours, seed)
    if embedder is not None:
        places = embedder.transform(found.points)
        attributes |= judge_layout(found.points, places, neighbours, seed)
        embedding = np.full((*shape, 2), np.nan, np.float32)
        embedding[features.sample, features.step] = places
        variables["embedding"] = _labelled(
            ("sample", "step", "axis"), embedding, "two-dimensional embedding of the step"
        )
    coordinates = {"sample": rows.episode_ids, "behaviour": np.arange(found.num_clusters)}
    return xr.Dataset(variables, coordinates, attributes)


def _labelled(
    dims: str | tuple[str, ...], values: NDArray, description: str
) -> tuple[str | tuple[str, ...], NDArray, dict[str, str]]:
    return dims, values, {"long_name": description}


def _attributes(
    found: Behaviours, action_names: tuple[str, ...], config: BehaviourConfig
) -> dict[str, Any]:
    return {
        "num_clusters": found.num_clusters,
        "feature_lags": " ".join(map(str, config.features.feature_lags)),
        "label_steps": config.groups.label_steps,
        "action_names": " ".join(action_names),
        **(found.agreement.attributes() if found.agreement else {}),
    }


def _action_shares(
    cluster: NDArray[np.int16], action: NDArray[np.int16], num_clusters: int, num_actions: int
) -> NDArray[np.float32]:
    """(num_clusters, num_actions)"""
    described = cluster != NO_CLUSTER
    counts = np.zeros((num_clusters, num_actions))
    np.add.at(counts, (cluster[described], action[described]), 1)
    return (counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)).astype(np.float32)


def _exemplar_frames(exemplars: NDArray[np.int64], rows: RolloutRows) -> NDArray[np.uint8]:
    """(num_clusters, num_exemplars, T, H, W, C), black where there is none."""
    height, width, channels = rows.dataset.metadata.environment.obs_shape
    num_steps = int(rows.episode_lengths.max())
    frames = np.zeros((*exemplars.shape, num_steps, height, width, channels), np.uint8)
    for place in zip(*np.nonzero(exemplars >= 0), strict=True):
        obs = rows.dataset.read_episode(int(exemplars[place])).obs
        frames[place][: len(obs)] = obs
    return frames


def _metrics(found: Behaviours) -> dict[str, Any]:
    return {
        "samples": len(found.sample_cluster),
        "steps": len(found.row_cluster),
        "clusters": found.num_clusters,
        "samples_without_behaviour": int(np.sum(found.sample_cluster == NO_CLUSTER)),
        "mean_purity": round(float(np.nanmean(found.purity)), 4),
        **(found.agreement.attributes() if found.agreement else {}),
    }
