"""Clusters of hidden states, and how stable they are."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import HDBSCAN, AgglomerativeClustering
from sklearn.metrics import adjusted_rand_score
from sklearn.neighbors import NearestNeighbors, kneighbors_graph

ClusteringMethod = Literal["ward", "hdbscan"]
"""`ward` finds as many clusters as asked for; `hdbscan` as many dense regions as there are."""
ROWS_PER_QUERY = 8192


@dataclass(frozen=True, eq=False)
class Clustering:
    """Clusters of some rows; every other row takes the label of its nearest such row."""

    features: NDArray[np.float32]
    """(N, F) the rows that were clustered."""
    labels: NDArray[np.int32]
    """(N,) cluster of each, 0 being the largest."""
    noise_share: float = 0.0
    """Share of the rows given that belonged to no cluster; they are not among the N."""

    @property
    def num_clusters(self) -> int:
        """How many clusters there are."""
        return int(self.labels.max()) + 1

    def assign(self, features: NDArray[np.floating]) -> NDArray[np.int32]:
        """(M, F) → (M,) clusters; a row that was clustered keeps its own."""
        nearest = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(self.features)
        labels = np.empty(len(features), np.int32)
        for start in range(0, len(features), ROWS_PER_QUERY):
            rows = slice(start, start + ROWS_PER_QUERY)
            indices = nearest.kneighbors(features[rows], return_distance=False)
            labels[rows] = self.labels[indices[:, 0]]
        return labels


@dataclass(frozen=True)
class ClusterStability:
    """Agreement of clusterings of random parts of the rows with the clustering of all."""

    adjusted_rand: float
    """Mean adjusted Rand index; 1 for identical clusters, 0 by chance or for a single cluster."""
    adjusted_rand_deviation: float
    """Standard deviation over the repetitions."""
    control: float
    """The same mean for normal data without clusters, of the same size, and of the same covariance
    between episodes and within them."""


def fit_clusters(
    features: NDArray[np.floating], num_clusters: int, num_neighbours: int
) -> Clustering:
    """Cluster rows by Ward's criterion, merging only neighbours (Ward, 1963).

    Args:
        features: (N, F)
        num_clusters: how many clusters; at most N.
        num_neighbours: k of the neighbour graph that restricts merges; independent of
            `num_clusters`, at most N − 1.
    """
    features = np.ascontiguousarray(features, np.float32)
    num_clusters = min(num_clusters, len(features))
    graph = kneighbors_graph(features, min(num_neighbours, len(features) - 1))
    ward = AgglomerativeClustering(num_clusters, connectivity=graph, linkage="ward")
    with warnings.catch_warnings():
        # A graph in several pieces is completed by its shortest links, as it should be.
        warnings.filterwarnings("ignore", message="the number of connected components")
        found = ward.fit_predict(features)
    return Clustering(features, _by_size(found))


def fit_dense_clusters(features: NDArray[np.floating], min_rows: int) -> Clustering:
    """Find dense regions by HDBSCAN (Campello, Moulavi and Sander, 2013).

    Rows between the regions are left out, and so counted to the nearest of them by `assign`. Where
    there is no dense region, all rows are one cluster.

    Args:
        features: (N, F)
        min_rows: fewer rows than this make no cluster.
    """
    features = np.ascontiguousarray(features, np.float32)
    min_rows = min(max(2, min_rows), len(features))
    hdbscan = HDBSCAN(
        min_cluster_size=min_rows,
        copy=True,  # type: ignore[arg-type] (the stub takes it for a string)
    )
    found = hdbscan.fit_predict(features)
    clustered = found >= 0
    if not clustered.any():
        return Clustering(features, np.zeros(len(features), np.int32), noise_share=1.0)
    labels = _by_size(found[clustered])
    return Clustering(features[clustered], labels, float(1 - clustered.mean()))


def measure_stability(
    features: NDArray[np.floating],
    unit: NDArray[np.int64],
    fit: Callable[[NDArray[np.floating]], Clustering],
    num_repeats: int,
    seed: int,
    share: float = 0.5,
) -> ClusterStability:
    """Cluster random parts of the episodes anew and compare with the clustering of all.

    Rows of an episode are alike, so a part is one of episodes: a random part of the rows would
    hold a neighbour of nearly every row, and any clustering would look stable. Rows of the control
    are as much alike within an episode.

    Args:
        features: (N, F)
        unit: (N,) what each row belongs to, an episode or all that depend on each other.
        fit: finds clusters.
        num_repeats: how many random parts.
        seed: picks the parts and draws the control.
        share: of the episodes that make a part.
    """
    rng = np.random.default_rng(seed)
    units = np.unique(unit)
    size = max(1, round(share * len(units)))
    scores, control_scores = (
        _agreements(rows, unit, fit, [rng.permutation(units)[:size] for _ in range(num_repeats)])
        for rows in (features, draw_unclustered(features, unit, rng))
    )
    return ClusterStability(
        float(np.mean(scores)), float(np.std(scores)), float(np.mean(control_scores))
    )


def draw_unclustered(
    features: NDArray[np.floating], unit: NDArray[np.int64], rng: np.random.Generator
) -> NDArray[np.float32]:
    """(N, F) normal rows in units like those of `features`, but in no clusters.

    A row is the sum of what its unit shares and of what is its own, both normal, with the
    covariances of the units' means, each counted once for every row, and of the rows around them.
    """
    _, number, size = np.unique(unit, return_inverse=True, return_counts=True)
    sums = np.zeros((len(size), features.shape[1]))
    np.add.at(sums, number, features)
    shared = (sums / size[:, None])[number]
    centre = features.mean(axis=0)
    between = np.atleast_2d(np.cov((shared - centre).T, bias=True))
    within = np.atleast_2d(np.cov((features - shared).T, bias=True))
    zero = np.zeros(len(centre))
    drawn = rng.multivariate_normal(zero, between, len(size))[number]
    drawn += rng.multivariate_normal(zero, within, len(features))
    return (centre + drawn).astype(np.float32)


def _agreements(
    features: NDArray[np.floating],
    unit: NDArray[np.int64],
    fit: Callable[[NDArray[np.floating]], Clustering],
    parts: list[NDArray[np.int64]],
) -> list[float]:
    whole = fit(features).assign(features)
    # One cluster agrees with one cluster whatever the data are.
    if whole.max() == 0:
        return [0.0] * len(parts)
    anew = (fit(features[np.isin(unit, part)]).assign(features) for part in parts)
    return [float(adjusted_rand_score(whole, labels)) for labels in anew]


def _by_size(labels: NDArray[np.integer]) -> NDArray[np.int32]:
    order = np.argsort(-np.bincount(labels), kind="stable")
    rank = np.empty(len(order), np.int32)
    rank[order] = np.arange(len(order), dtype=np.int32)
    return rank[labels]
