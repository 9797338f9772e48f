"""What the agent's hidden states look like: components, clusters, embedding, real and simulated.

Everything is fitted on real rollouts and applied to simulated ones, so both share their axes.
"""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
import xarray as xr
from numpy.typing import NDArray
from scipy.special import log_softmax

from analysis.clustering import (
    Clustering,
    ClusteringMethod,
    ClusterStability,
    fit_clusters,
    fit_dense_clusters,
    measure_stability,
)
from analysis.embedding import (
    Embedder,
    EmbeddingMethod,
    EmbeddingQuality,
    fit_embedding,
    measure_quality,
)
from analysis.factor_count import FactorChoice, choose_factor_count
from analysis.game_columns import GameColumns, game_columns
from analysis.results import (
    HIDDEN_ANALYSIS_NAME,
    SOURCES,
    ResultStream,
    StreamedVariable,
    flag_attributes,
    streamed_results,
)
from analysis.rollout_rows import RolloutRows, select_episodes
from environments.coinrun_variables import SIGHT
from experiment.counts import at_most_available
from experiment.errors import UserError, require_at_least
from experiment.files import require_writable_folder
from experiment.progress import Progress
from experiment.provenance import Provenance, collect_provenance
from experiment.report import StageReport
from projections.hidden import HiddenProjection
from projections.outliers import inlier_mask
from rollouts.independent_units import independent_units
from rollouts.store import RolloutDataset

PROJECTION_NAME = "projection"
NMF_NAME = "projection_nmf"
FIT_ROLES = ("not_fitted_on", "inlier", "outlier")
CUMULATIVE_SHARE = 0.95


@dataclass(frozen=True)
class ProjectionSettings:
    """How components are fitted."""

    num_pca: int = 64
    """Principal components to keep; those that exist, when there are fewer."""
    num_ica: int = 16
    """Independent components, found among as many leading principal components."""
    ica_tol: float = 0.02
    """When ICA counts as converged."""
    ica_max_iter: int = 8000
    """Limit on the iterations of ICA."""
    num_nmf: int = 16
    """Factors of a non-negative factorisation of hidden state − minimum; 0 for none."""
    nmf_max_iter: int = 400
    """Limit on the iterations of that factorisation."""
    nmf_candidates: tuple[int, ...] = ()
    """Numbers of factors to choose from in place of NUM_NMF: the one that best predicts some
    hidden units from the others on other episodes."""
    max_nmf_rows: int = 5000
    """At most so many rows are used for that choice."""
    max_fit_rows: int = 200_000
    """Components are fitted on at most so many rows, drawn at random from all."""


@dataclass(frozen=True)
class ClusterSettings:
    """How rows are clustered."""

    clustering: ClusteringMethod = "ward"
    """Method: ward, into NUM_CLUSTERS; hdbscan, into the dense regions that there are."""
    num_clusters: int = 32
    """Ward clusters."""
    min_cluster_rows: int = 50
    """Fewer rows than this make no dense region of HDBSCAN."""
    num_cluster_neighbours: int = 32
    """Neighbours of each row in the graph that restricts merges; independent of the number of
    clusters."""
    max_cluster_rows: int = 20_000
    """At most so many rows are clustered; the others join the cluster of the nearest of these."""
    num_stability_repeats: int = 0
    """How often random halves of the levels, or source episodes, are clustered anew to measure
    stability; 0 for not."""


@dataclass(frozen=True)
class EmbeddingSettings:
    """How rows are laid out in two dimensions."""

    embedding: EmbeddingMethod = "umap"
    """Method; t-SNE suits some thousand rows, PCA costs nothing."""
    embedding_neighbours: int = 15
    """Neighbourhood size; t-SNE's perplexity is twice this."""
    max_embedding_rows: int = 50_000
    """At most so many real rows shape the embedding; the others are placed among them."""
    num_quality_rows: int = 2000
    """Rows on which the embedding's trustworthiness is measured; 0 for not."""


@dataclass(frozen=True)
class HiddenAnalysisConfig:
    """Settings of the hidden-state analysis."""

    interpreting_params_name: str = "defaults"
    """Preset in hyperparams/hidden_analysis.yml that the other values are taken from."""
    data_dir: Path = Path("data")
    """Dataset of real rollouts, made by record.py."""
    generated_data_dir: Path = Path("generative/rec_gen_mod_data/informed_init")
    """Dataset of simulated rollouts, made by record_gen_samples.py; where the default folder is
    absent, the analysis goes without."""
    generated: bool = True
    """Whether to include simulated rollouts."""
    output_dir: Path = Path("analysis/hx_analysis_precomp")
    """Folder for hidden_analysis.nc and the fitted projection."""
    num_episodes: int = 4000
    """Real episodes to analyse."""
    num_generated_samples: int = 200
    """Simulated samples to analyse."""
    max_distance: float = SIGHT
    """Game variables of things that are further than so many cells along x or y are left out of
    the file, as no frame shows them there."""
    projection: Annotated[ProjectionSettings, tyro.conf.arg(name="")] = field(
        default_factory=ProjectionSettings
    )
    clusters: Annotated[ClusterSettings, tyro.conf.arg(name="")] = field(
        default_factory=ClusterSettings
    )
    layout: Annotated[EmbeddingSettings, tyro.conf.arg(name="")] = field(
        default_factory=EmbeddingSettings
    )
    rows_per_chunk: int = 65_536
    """Rows held in memory at a time while reading."""
    seed: int = 0
    """Seed of every random choice: rows, ICA, NMF, embedding."""
    report: Path | None = None
    """JSON file for seconds, outputs and metrics."""


@dataclass(frozen=True, eq=False)
class HiddenMaps:
    """Everything that is fitted on real hidden states."""

    projection: HiddenProjection
    nmf: HiddenProjection | None
    num_pca: int
    """Principal components kept."""
    num_components_95: int
    """Principal components that hold 95 % of the total variance; clusters and embedding use
    them."""
    clustering: Clustering
    stability: ClusterStability | None
    embedder: Embedder | None
    quality: EmbeddingQuality | None
    """Of the embedding; None without one."""
    embedding_seconds: float
    """That fitting the embedding took."""
    factor_choice: FactorChoice | None
    """How the number of NMF factors was chosen; None where it was given."""
    fit_rows: NDArray[np.int64]
    """(N,) real rows that components were fitted on, ascending."""
    is_inlier: NDArray[np.bool_]
    """(N,) which of them are not outliers."""

    def features(self, hidden: NDArray[np.floating]) -> NDArray[np.float32]:
        """(M, H) hidden states → (M, num_components_95) principal components."""
        scores = self.projection.principal_components(hidden)
        return np.asarray(scores[:, : self.num_components_95], np.float32)


def analyse_hidden_states(config: HiddenAnalysisConfig, report: StageReport) -> Path:
    """Fit on real rollouts, apply to real and simulated ones, write the result file.

    Returns:
        The result file; the projection is saved beside it.

    Raises:
        UserError: a dataset is missing or empty, the two are of different agents, or the output
            folder cannot be written.
    """
    _check_numbers(config)
    require_writable_folder(config.output_dir, "--output_dir")
    tables = _open_tables(config)
    provenance = collect_provenance(config, config.seed, _input_hashes(tables))
    maps = fit_maps(tables[0], config)
    maps.projection.save(config.output_dir / PROJECTION_NAME, provenance)
    report.outputs += [str(config.output_dir / PROJECTION_NAME)]
    if maps.nmf is not None:
        maps.nmf.save(config.output_dir / NMF_NAME, provenance)
        report.outputs += [str(config.output_dir / NMF_NAME)]
    path = config.output_dir / HIDDEN_ANALYSIS_NAME
    game = game_columns(tables[0].dataset, config.max_distance)
    write_analysis(path, maps, tables, game, config.rows_per_chunk, provenance)
    report.outputs += [str(path)]
    report.metrics |= _metrics(maps, tables)
    return path


def _check_numbers(config: HiddenAnalysisConfig) -> None:
    require_at_least(config, "num_episodes", "num_generated_samples", "rows_per_chunk")
    require_at_least(config.projection, "num_pca", "num_ica", "ica_max_iter", "nmf_max_iter")
    require_at_least(config.projection, "num_nmf", least=0)
    for candidate in config.projection.nmf_candidates:
        if candidate < 1:
            raise UserError(f"--nmf_candidates {candidate}: must be at least 1")
    require_at_least(config.projection, "max_nmf_rows", least=10)
    require_at_least(config.clusters, "num_clusters", "num_cluster_neighbours")
    require_at_least(config.clusters, "min_cluster_rows", least=2)
    require_at_least(config.layout, "num_quality_rows", least=0)
    require_at_least(config.clusters, "num_stability_repeats", least=0)
    require_at_least(config.layout, "embedding_neighbours")
    # Neighbourhoods and variances need a few rows.
    require_at_least(config.projection, "max_fit_rows", least=10)
    require_at_least(config.clusters, "max_cluster_rows", least=10)
    require_at_least(config.layout, "max_embedding_rows", least=10)


def _open_tables(config: HiddenAnalysisConfig) -> list[RolloutRows]:
    real = RolloutDataset(config.data_dir)
    tables = [select_episodes(real, config.num_episodes, str(config.data_dir), "--num_episodes")]
    if not config.generated:
        return tables
    folder = config.generated_data_dir
    is_default = folder == HiddenAnalysisConfig.generated_data_dir
    if is_default and not folder.exists():
        print(f"no simulated rollouts in {folder}: only real ones are analysed")
        return tables
    simulated = RolloutDataset(folder)
    if simulated.metadata.agent_hash != real.metadata.agent_hash:
        raise UserError(
            f"--generated_data_dir {folder}: recorded with agent "
            f"{simulated.metadata.agent_hash[:12]}, but {config.data_dir} with agent "
            f"{real.metadata.agent_hash[:12]}"
        )
    wanted = config.num_generated_samples
    return [*tables, select_episodes(simulated, wanted, str(folder), "--num_generated_samples")]


def _input_hashes(tables: list[RolloutRows]) -> dict[str, str]:
    names = ("dataset", "generated_dataset")
    hashes = {name: table.dataset.hash for name, table in zip(names, tables, strict=False)}
    return {"agent": tables[0].dataset.metadata.agent_hash, **hashes}


def fit_maps(real: RolloutRows, config: HiddenAnalysisConfig) -> HiddenMaps:
    """Fit projection, clusters and embedding on rows of real rollouts."""
    settings = config.projection
    rng = np.random.default_rng(config.seed)
    fit_rows = choose_rows(rng, np.arange(real.num_rows), settings.max_fit_rows)
    hidden = real.read_hidden_rows(fit_rows, config.rows_per_chunk)
    is_inlier = inlier_mask(hidden, seed=config.seed)
    projection = HiddenProjection(
        "ica", settings.num_ica, settings.ica_max_iter, settings.ica_tol, config.seed
    ).fit(hidden, inliers=is_inlier)
    num_pca = at_most_available(settings.num_pca, len(projection.components_), "--num_pca")
    num_95 = components_for_share(projection.explained_variance_ratio_, CUMULATIVE_SHARE)
    features = np.asarray(projection.principal_components(hidden)[:, :num_95], np.float32)
    cluster_rows = choose_rows(rng, np.arange(len(features)), config.clusters.max_cluster_rows)
    unit = real.units[real.episode_index[fit_rows]]
    start = time.perf_counter()
    embedder = embed_rows(features, config.layout, rng, config.seed)
    embedding_seconds = time.perf_counter() - start
    factor_choice = _choose_factors(hidden, unit, is_inlier, config)
    return HiddenMaps(
        projection=projection,
        nmf=_fit_nmf(hidden, is_inlier, settings, factor_choice, config.seed),
        num_pca=num_pca,
        num_components_95=num_95,
        clustering=cluster_features(features[cluster_rows], config.clusters),
        stability=stability_of(
            features[cluster_rows], unit[cluster_rows], config.clusters, config.seed
        ),
        embedder=embedder,
        quality=quality_of(embedder, features, config.layout, config.seed),
        embedding_seconds=embedding_seconds,
        factor_choice=factor_choice,
        fit_rows=fit_rows,
        is_inlier=is_inlier,
    )


def components_for_share(explained_variance_ratio: NDArray[np.floating], share: float) -> int:
    """How many leading components hold at least `share` of the total variance.

    Args:
        explained_variance_ratio: (R,) share of each component, of the total variance.
        share: between 0 and 1; where all components together miss it by rounding, R.
    """
    cumulative = np.cumsum(explained_variance_ratio)
    return min(int(np.sum(cumulative < share)) + 1, len(cumulative))


def choose_rows(
    rng: np.random.Generator, rows: NDArray[np.int64], at_most: int
) -> NDArray[np.int64]:
    """At most so many of (N,) ascending rows, drawn at random and ascending."""
    if len(rows) <= at_most:
        return rows
    return np.sort(rng.choice(rows, at_most, replace=False))


def _choose_factors(
    hidden: NDArray[np.float32],
    unit: NDArray[np.int64],
    is_inlier: NDArray[np.bool_],
    config: HiddenAnalysisConfig,
) -> FactorChoice | None:
    settings = config.projection
    if not settings.nmf_candidates:
        return None
    rows = choose_rows(
        np.random.default_rng(config.seed), np.flatnonzero(is_inlier), settings.max_nmf_rows
    )
    return choose_factor_count(
        hidden[rows], unit[rows], settings.nmf_candidates, settings.nmf_max_iter, config.seed
    )


def _fit_nmf(
    hidden: NDArray[np.float32],
    is_inlier: NDArray[np.bool_],
    settings: ProjectionSettings,
    choice: FactorChoice | None,
    seed: int,
) -> HiddenProjection | None:
    num_factors = settings.num_nmf if choice is None else choice.best
    if num_factors == 0:
        return None
    nmf = HiddenProjection("nmf", num_factors, settings.nmf_max_iter, random_state=seed)
    return nmf.fit(hidden, inliers=is_inlier)


def cluster_features(features: NDArray[np.floating], settings: ClusterSettings) -> Clustering:
    """Cluster (N, F) features by the method and number of the settings."""
    if settings.clustering == "hdbscan":
        return fit_dense_clusters(features, settings.min_cluster_rows)
    num_clusters = at_most_available(settings.num_clusters, len(features), "--num_clusters")
    return fit_clusters(features, num_clusters, settings.num_cluster_neighbours)


def stability_of(
    features: NDArray[np.float32],
    unit: NDArray[np.int64],
    settings: ClusterSettings,
    seed: int,
) -> ClusterStability | None:
    """How stable clusters of (N, F) features are; None where the settings do not ask.

    Args:
        features: of the rows that are clustered.
        unit: (N,) of each (`rollouts.independent_units`); these are what is drawn, not rows.
        settings: of the clusters.
        seed: of the draws.
    """
    if settings.num_stability_repeats == 0:
        return None
    return measure_stability(
        features,
        unit,
        lambda rows: cluster_features(rows, settings),
        settings.num_stability_repeats,
        seed,
    )


def quality_of(
    embedder: Embedder | None,
    features: NDArray[np.float32],
    settings: EmbeddingSettings,
    seed: int,
) -> EmbeddingQuality | None:
    """How good the embedding of (N, F) features is; None where the settings do not ask."""
    if embedder is None or settings.num_quality_rows == 0:
        return None
    rows = choose_rows(
        np.random.default_rng(seed), np.arange(len(features)), settings.num_quality_rows
    )
    chosen = features[rows]
    return measure_quality(chosen, embedder.transform(chosen), settings.embedding_neighbours, seed)


def embed_rows(
    features: NDArray[np.float32],
    settings: EmbeddingSettings,
    rng: np.random.Generator,
    seed: int,
) -> Embedder | None:
    """Embed (N, F) features, or as many of them as the settings allow."""
    rows = choose_rows(rng, np.arange(len(features)), settings.max_embedding_rows)
    return fit_embedding(settings.embedding, features[rows], settings.embedding_neighbours, seed)


def write_analysis(
    path: Path,
    maps: HiddenMaps,
    tables: list[RolloutRows],
    game: GameColumns | None,
    rows_per_chunk: int,
    provenance: Provenance,
) -> None:
    """Write the result file, streaming the rows of `tables`: real ones first, then simulated.

    Args:
        path: the result file.
        maps: what was fitted.
        tables: rows of the real and, where there are any, of the simulated rollouts.
        game: the game's variables that the real ones record, if they do.
        rows_per_chunk: rows held in memory at a time.
        provenance: recorded in the file.
    """
    num_rows = sum(table.num_rows for table in tables)
    declared = _row_variables(maps, game, num_rows)
    progress = Progress(num_rows, "hidden state")
    dataset = _fitted_dataset(maps, tables)
    if game is not None:
        labels = {"game_variable": list(game.names), "game_unit": ("game_variable", [*game.units])}
        dataset = dataset.assign_coords(labels)
    with progress, streamed_results(path, dataset, declared, provenance) as stream:
        start = 0
        for source, table in enumerate(tables):
            units = independent_units(table.dataset, sources=tables[0].dataset)
            for chunk in table.chunks(rows_per_chunk):
                _write_chunk(stream, start + chunk.start, maps, table, source, chunk)
                stream.write("unit", start + chunk.start, units[table.episode_index[chunk]])
                if game is not None:
                    stream.write("game", start + chunk.start, game.read(table, chunk))
                progress.advance(count=chunk.stop - chunk.start)
            start += table.num_rows


def _write_chunk(
    stream: ResultStream,
    start: int,
    maps: HiddenMaps,
    table: RolloutRows,
    source: int,
    chunk: slice,
) -> None:
    hidden = table.read_hidden(chunk.start, chunk.stop)
    values = {
        **_what_happened(table, chunk),
        **_where_it_lies(maps, hidden),
        "source": np.full(len(hidden), source, np.int8),
        "fit_role": _fit_roles(maps, chunk) if source == 0 else np.zeros(len(hidden), np.int8),
    }
    for name, value in values.items():
        stream.write(name, start, value)


def _what_happened(table: RolloutRows, chunk: slice) -> dict[str, NDArray]:
    episode = table.episode_index[chunk]
    step, length = table.step[chunk], table.episode_lengths[episode]
    logits = table.read("action_logits", chunk.start, chunk.stop)
    return {
        "episode_index": episode.astype(np.int32),
        "episode_id": table.episode_ids[episode],
        "step": step.astype(np.int32),
        "episode_length": length.astype(np.int32),
        "fraction_through": (step / np.maximum(length - 1, 1)).astype(np.float32),
        "entropy": policy_entropy(logits),
        "greedy_action": logits.argmax(axis=-1).astype(np.int16),
        "action": table.read("action", chunk.start, chunk.stop).astype(np.int16),
        "value": table.read("value", chunk.start, chunk.stop),
        "reward": table.read("reward", chunk.start, chunk.stop),
        "done": table.read("done", chunk.start, chunk.stop).astype(np.int8),
    }


def policy_entropy(logits: NDArray[np.floating]) -> NDArray[np.float32]:
    """(..., num_actions) logits → (...) entropy in nats."""
    log_probs = log_softmax(np.asarray(logits, np.float64), axis=-1)
    return -np.sum(np.exp(log_probs) * log_probs, axis=-1).astype(np.float32)


def _where_it_lies(maps: HiddenMaps, hidden: NDArray[np.float32]) -> dict[str, NDArray]:
    features = maps.features(hidden)
    places = {
        "pca": maps.projection.principal_components(hidden)[:, : maps.num_pca],
        "ica": maps.projection.transform(hidden),
        "cluster": maps.clustering.assign(features).astype(np.int16),
    }
    if maps.nmf is not None:
        places["nmf"] = maps.nmf.transform(hidden)
    if maps.embedder is not None:
        places["embedding"] = maps.embedder.transform(features)
    return places


def _fit_roles(maps: HiddenMaps, chunk: slice) -> NDArray[np.int8]:
    roles = np.zeros(chunk.stop - chunk.start, np.int8)
    low, high = np.searchsorted(maps.fit_rows, [chunk.start, chunk.stop])
    roles[maps.fit_rows[low:high] - chunk.start] = np.where(maps.is_inlier[low:high], 1, 2)
    return roles


def _row_variables(
    maps: HiddenMaps, game: GameColumns | None, num_rows: int
) -> dict[str, StreamedVariable]:
    def per_row(dtype: type, description: str, **attributes: Any) -> StreamedVariable:
        attributes = {"long_name": description, **attributes}
        return StreamedVariable(("row",), (num_rows,), dtype, attributes)

    def coordinates(dim: str, size: int, description: str) -> StreamedVariable:
        attributes = {"long_name": description}
        return StreamedVariable(("row", dim), (num_rows, size), np.float32, attributes)

    variables = {
        "source": per_row(np.int8, "", **flag_attributes(SOURCES, "where the row is from")),
        "fit_role": per_row(np.int8, "", **flag_attributes(FIT_ROLES, "use in fitting")),
        "episode_index": per_row(np.int32, "position of the episode in its dataset"),
        "episode_id": per_row(np.int64, "id of the episode in its dataset"),
        "unit": per_row(np.int64, "equal for rows of episodes that depend on each other"),
        "step": per_row(np.int32, "row within the episode"),
        "episode_length": per_row(np.int32, "decisions in the episode"),
        "fraction_through": per_row(np.float32, "step / last step of the episode"),
        "value": per_row(np.float32, "value"),
        "entropy": per_row(np.float32, "entropy of the clean policy", units="nats"),
        "action": per_row(np.int16, "action taken"),
        "greedy_action": per_row(np.int16, "most probable action of the clean policy"),
        "reward": per_row(np.float32, "reward answering the action"),
        "done": per_row(np.int8, "whether the episode ended at this row"),
        "cluster": per_row(np.int16, "cluster, 0 the largest among the clustered rows"),
        "pca": coordinates("pca_component", maps.num_pca, "principal component score"),
        "ica": coordinates(
            "component", maps.projection.n_components_, "independent component activation"
        ),
    }
    if maps.nmf is not None:
        variables["nmf"] = coordinates("nmf_factor", maps.nmf.n_components_, "NMF coordinate")
    if game is not None:
        variables["game"] = coordinates(
            "game_variable", len(game.names), "the game's variable; NaN where it is not known"
        )
    if maps.embedder is not None:
        variables["embedding"] = coordinates("axis", 2, "two-dimensional embedding")
    return variables


def _fitted_dataset(maps: HiddenMaps, tables: list[RolloutRows]) -> xr.Dataset:
    ratio = maps.projection.explained_variance_ratio_[: maps.num_pca]
    dataset = xr.Dataset(
        {
            "explained_variance_ratio": (
                "pca_component",
                ratio,
                {"long_name": "share of the total standardised variance of the inliers"},
            ),
            "ica_direction": (
                ("hidden_unit", "component"),
                maps.projection.directions,
                {"long_name": "change of the hidden state per unit of each component"},
            ),
        },
        attrs={
            "num_components_95": maps.num_components_95,
            "num_clusters": maps.clustering.num_clusters,
            "projection_data_hash": maps.projection.data_hash,
            "action_names": " ".join(tables[0].dataset.metadata.environment.action_names),
        },
    )
    if maps.factor_choice is not None:
        dataset["nmf_validation_error"] = (
            "nmf_candidate",
            maps.factor_choice.error,
            {"long_name": "share of variance of held-out hidden units left unexplained"},
        )
        dataset = dataset.assign_coords(nmf_candidate=list(maps.factor_choice.candidates))
    return dataset.assign_attrs(_reliability(maps))


def stability_attributes(stability: ClusterStability | None) -> dict[str, float]:
    """As result files keep them; none without a measurement."""
    if stability is None:
        return {}
    return {
        "cluster_stability_adjusted_rand": stability.adjusted_rand,
        "cluster_stability_deviation": stability.adjusted_rand_deviation,
        "cluster_stability_control": stability.control,
    }


def quality_attributes(quality: EmbeddingQuality | None) -> dict[str, float]:
    """As result files keep them; none without a measurement."""
    return {} if quality is None else quality.attributes()


def _reliability(maps: HiddenMaps) -> dict[str, float]:
    return {
        "cluster_noise_share": maps.clustering.noise_share,
        **stability_attributes(maps.stability),
        **quality_attributes(maps.quality),
    }


def _metrics(maps: HiddenMaps, tables: list[RolloutRows]) -> dict[str, Any]:
    return {
        "real_episodes": tables[0].num_episodes,
        "real_rows": tables[0].num_rows,
        "simulated_rows": sum(table.num_rows for table in tables[1:]),
        "outlier_share": round(1.0 - float(maps.is_inlier.mean()), 4),
        "components_for_95_percent": maps.num_components_95,
        "independent_components": maps.projection.n_components_,
        "ica_converged": bool(maps.projection.converged_),
        "ica_iterations": int(maps.projection.n_iter_),
        "clusters": maps.clustering.num_clusters,
        **({} if maps.nmf is None else {"nmf_factors": maps.nmf.n_components_}),
        **_embedding_seconds(maps),
        **_reliability(maps),
    }


def _embedding_seconds(maps: HiddenMaps) -> dict[str, float]:
    return {} if maps.embedder is None else {"embedding_seconds": round(maps.embedding_seconds, 2)}
