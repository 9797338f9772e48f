"""Ward clusters of hidden states, and how stable they are."""

import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import AgglomerativeClustering
from sklearn.metrics import adjusted_rand_score
from sklearn.neighbors import NearestNeighbors, kneighbors_graph

ROWS_PER_QUERY = 8192


@dataclass(frozen=True, eq=False)
class Clustering:
    """Ward clusters of some rows; every other row takes the label of its nearest such row."""

    features: NDArray[np.float32]
    """(N, F) the rows that were clustered."""
    labels: NDArray[np.int32]
    """(N,) cluster of each, 0 being the largest."""

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
    """Mean adjusted Rand index; 1 for identical clusters, 0 by chance."""
    adjusted_rand_deviation: float
    """Standard deviation over the repetitions."""
    control: float
    """The same mean for normal data of the same size and covariance, which has no clusters."""


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


def measure_stability(
    clustering: Clustering, num_neighbours: int, num_repeats: int, seed: int, share: float = 0.5
) -> ClusterStability:
    """Cluster random parts of the rows anew and compare with the given clustering.

    Args:
        clustering: what to test.
        num_neighbours: as for `fit_clusters`.
        num_repeats: how many random parts.
        seed: picks the parts and draws the control.
        share: size of a part.
    """
    rng = np.random.default_rng(seed)
    rows, mean = len(clustering.features), clustering.features.mean(axis=0)
    covariance = np.atleast_2d(np.cov(clustering.features.T))
    unclustered = rng.multivariate_normal(mean, covariance, rows)
    control = fit_clusters(unclustered, clustering.num_clusters, num_neighbours)
    scores, control_scores = (
        [_agreement_of_part(whole, num_neighbours, share, rng) for _ in range(num_repeats)]
        for whole in (clustering, control)
    )
    return ClusterStability(
        float(np.mean(scores)), float(np.std(scores)), float(np.mean(control_scores))
    )


def _agreement_of_part(
    whole: Clustering, num_neighbours: int, share: float, rng: np.random.Generator
) -> float:
    size = max(2, int(share * len(whole.features)))
    rows = rng.choice(len(whole.features), size, replace=False)
    part = fit_clusters(whole.features[rows], whole.num_clusters, num_neighbours)
    return float(adjusted_rand_score(whole.labels, part.assign(whole.features)))


def _by_size(labels: NDArray[np.integer]) -> NDArray[np.int32]:
    order = np.argsort(-np.bincount(labels), kind="stable")
    rank = np.empty(len(order), np.int32)
    rank[order] = np.arange(len(order), dtype=np.int32)
    return rank[labels]
