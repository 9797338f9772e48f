"""Two-dimensional embeddings: fitted on real hidden states, applied to any."""

import warnings
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.manifold import trustworthiness
from sklearn.neighbors import NearestNeighbors

EmbeddingMethod = Literal["umap", "tsne", "pca", "none"]
"""`umap`; `tsne`, by openTSNE; `pca`, the first two principal components."""

ROWS_PER_QUERY = 8192
ROWS_JUDGED = 2000
"""Rows that a layout is judged by, at most."""
FEWEST_JUDGED = 5
"""Fewer rows have no neighbourhoods that a layout could keep."""


class Embedder(Protocol):
    """A fitted embedding."""

    def transform(self, features: NDArray[np.floating]) -> NDArray[np.float32]:
        """(M, F) → (M, 2); a row that was fitted on keeps its place."""
        ...


class PcaEmbedder:
    """The first two columns of features that are principal components already."""

    def transform(self, features: NDArray[np.floating]) -> NDArray[np.float32]:
        """(M, F) → (M, 2); a missing second component is zero."""
        missing = max(0, 2 - features.shape[1])
        return np.pad(features[:, :2], ((0, 0), (0, missing))).astype(np.float32)


class NeighbourPlacement:
    """Places rows among fitted ones at the weighted mean of their nearest neighbours' places.

    Weights are inverse distances, so a fitted row keeps its own place. t-SNE has no map for new
    rows; that of UMAP moves fitted rows, and puts a row elsewhere when other rows come with it.
    This stand-in keeps old and new rows on the same axes, whatever is placed together, and never
    puts a row outside the fitted cloud.
    """

    def __init__(
        self,
        features: NDArray[np.floating],
        places: NDArray[np.floating],
        num_neighbours: int = 5,
    ) -> None:
        self._places = places
        self._index = NearestNeighbors(
            n_neighbors=min(num_neighbours, len(features)), algorithm="brute"
        ).fit(features)

    def transform(self, features: NDArray[np.floating]) -> NDArray[np.float32]:
        """(M, F) → (M, 2)"""
        placed = np.empty((len(features), 2), np.float32)
        for start in range(0, len(features), ROWS_PER_QUERY):
            rows = slice(start, start + ROWS_PER_QUERY)
            distances, neighbours = self._index.kneighbors(features[rows])
            weights = 1.0 / np.maximum(distances, 1e-6 * (1.0 + distances.max()))
            # Rounding gives the distance of a row to itself as a little more than zero.
            exact = distances[:, :1] <= 1e-4 * np.maximum(distances[:, -1:], 1e-12)
            weights = np.where(exact, np.eye(weights.shape[1])[0], weights)
            weights /= weights.sum(axis=1, keepdims=True)
            placed[rows] = np.einsum("nk,nkd->nd", weights, self._places[neighbours])
        return placed


def fit_embedding(
    method: EmbeddingMethod, features: NDArray[np.floating], num_neighbours: int, seed: int
) -> Embedder | None:
    """Fit a two-dimensional embedding; None for `none`.

    Args:
        method: which one.
        features: (N, F) principal components.
        num_neighbours: neighbourhood size of UMAP; t-SNE's perplexity is twice this.
        seed: makes it repeatable.
    """
    if method == "none":
        return None
    if method == "pca":
        return PcaEmbedder()
    find_places = _umap if method == "umap" else _tsne
    return NeighbourPlacement(features, find_places(features, num_neighbours, seed))


def _umap(features: NDArray[np.floating], num_neighbours: int, seed: int) -> NDArray[np.float32]:
    """UMAP (McInnes, Healy and Melville, 2018); a seed makes it deterministic, on one thread."""
    # umap compiles for seconds on import, so only those who use it pay.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Tensorflow not installed")
        from umap import UMAP

    num_neighbours = min(num_neighbours, len(features) - 1)
    umap = UMAP(n_neighbors=num_neighbours, random_state=seed, n_jobs=1)
    return np.asarray(umap.fit_transform(features), np.float32)


def _tsne(features: NDArray[np.floating], num_neighbours: int, seed: int) -> NDArray[np.float32]:
    """t-SNE (van der Maaten and Hinton, 2008) by openTSNE, from the first two components on.

    Neighbours are exact, so that the result does not depend on the number of threads, as that of
    openTSNE's approximate search would.
    """
    from openTSNE import TSNE
    from openTSNE.affinity import PerplexityBasedNN
    from openTSNE.initialization import pca
    from openTSNE.nearest_neighbors import PrecomputedNeighbors

    perplexity = max(1, min(2 * num_neighbours, (len(features) - 1) // 3))
    num_threads = torch.get_num_threads()
    distances, neighbours = _nearest(features, min(3 * perplexity, len(features) - 1))
    affinities = PerplexityBasedNN(
        knn_index=PrecomputedNeighbors(neighbours, distances),
        perplexity=perplexity,
        n_jobs=num_threads,
    )
    start = pca(features.astype(np.float64), random_state=seed)
    tsne = TSNE(perplexity=perplexity, n_jobs=num_threads, random_state=seed, verbose=False)
    return np.asarray(tsne.fit(affinities=affinities, initialization=start), np.float32)


def _nearest(
    features: NDArray[np.floating], num_neighbours: int
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """(N, num_neighbours) distances and rows of the nearest others, by ascending distance."""
    index = NearestNeighbors(n_neighbors=num_neighbours, algorithm="brute").fit(features)
    # Without rows to look up, a row is no neighbour of its own.
    distances, neighbours = index.kneighbors()
    return distances.astype(np.float64), neighbours


@dataclass(frozen=True)
class EmbeddingQuality:
    """Trustworthiness (Venna and Kaski, 2001): 1 where neighbours in the embedding are neighbours
    in the features, about 0.5 where they are random."""

    trustworthiness: float
    of_pca: float
    """That of the first two principal components, which cost nothing."""
    of_shuffled: float
    """That of the same places given to other rows: the control."""

    def attributes(self) -> dict[str, float]:
        """As result files keep them."""
        return {
            "embedding_trustworthiness": self.trustworthiness,
            "embedding_trustworthiness_of_pca": self.of_pca,
            "embedding_trustworthiness_of_shuffled": self.of_shuffled,
        }


def measure_quality(
    features: NDArray[np.floating],
    places: NDArray[np.floating],
    num_neighbours: int,
    seed: int,
) -> EmbeddingQuality:
    """Measure how far the neighbourhoods of an embedding can be trusted.

    Args:
        features: (N, F) principal components.
        places: (N, 2) of the same rows.
        num_neighbours: size of the neighbourhoods; at most what N allows.
        seed: shuffles the control.
    """
    num_neighbours = max(1, min(num_neighbours, (len(features) - 1) // 2))
    shuffled = np.random.default_rng(seed).permutation(places)
    layouts = (places, PcaEmbedder().transform(features), shuffled)
    found = [trustworthiness(features, place, n_neighbors=num_neighbours) for place in layouts]
    return EmbeddingQuality(*map(float, found))


def judge_layout(
    features: NDArray[np.floating],
    places: NDArray[np.floating],
    num_neighbours: int,
    seed: int,
) -> dict[str, float]:
    """How far a layout of (N, F) features at (N, 2) places can be trusted, for a result file.

    At most `ROWS_JUDGED` rows, drawn at random, are looked at; of fewer than `FEWEST_JUDGED`
    nothing is said.
    """
    if len(features) < FEWEST_JUDGED:
        return {}
    rows = np.sort(np.random.default_rng(seed).permutation(len(features))[:ROWS_JUDGED])
    return measure_quality(features[rows], places[rows], num_neighbours, seed).attributes()
