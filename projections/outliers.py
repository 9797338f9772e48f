"""Which hidden states are ordinary enough to fit a projection on."""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.neighbors import NearestNeighbors

from experiment.errors import UserError

_ROWS_PER_QUERY = 8192


def inlier_mask(
    states: ArrayLike,
    num_neighbours: int = 5,
    num_deviations: float = 2.0,
    max_references: int = 20_000,
    seed: int = 0,
) -> NDArray[np.bool_]:
    """Find the states that do not lie unusually far from their neighbours.

    A state is kept when the median distance to its nearest neighbours, in standardised units, is
    at most `num_deviations` standard deviations above the mean over all states.

    Args:
        states: (N, H)
        num_neighbours: how many nearest neighbours the median is taken over.
        num_deviations: how far above the mean the limit lies.
        max_references: with more states than this, neighbours are looked for among a random
            sample of this size, so that the cost grows linearly with N.
        seed: picks that sample.

    Returns:
        (N,) true for inliers.

    Raises:
        UserError: there are not more states than neighbours.
    """
    distances = median_neighbour_distances(states, num_neighbours, max_references, seed)
    return distances <= distances.mean() + num_deviations * distances.std()


def median_neighbour_distances(
    states: ArrayLike, num_neighbours: int = 5, max_references: int = 20_000, seed: int = 0
) -> NDArray[np.float64]:
    """(N,) median distance of each of (N, H) states to its nearest neighbours, standardised."""
    standardised = _standardise(np.asarray(states, np.float64))
    num_states = len(standardised)
    if num_states <= num_neighbours:
        raise UserError(
            f"{num_states} hidden states are too few: finding outliers by {num_neighbours} nearest "
            f"neighbours needs at least {num_neighbours + 1}"
        )
    references = _choose_references(num_states, max_references, seed)
    is_reference = np.zeros(num_states, np.bool_)
    is_reference[references] = True
    # Brute force beats trees in 64 dimensions.
    index = NearestNeighbors(n_neighbors=num_neighbours + 1, algorithm="brute")
    index.fit(standardised[references])
    medians = np.empty(num_states)
    for start in range(0, num_states, _ROWS_PER_QUERY):
        rows = slice(start, start + _ROWS_PER_QUERY)
        nearest = index.kneighbors(standardised[rows])[0]
        # A reference finds itself first, at distance zero.
        others = np.where(is_reference[rows, None], nearest[:, 1:], nearest[:, :-1])
        medians[rows] = np.median(others, axis=1)
    return medians


def _choose_references(num_states: int, max_references: int, seed: int) -> NDArray[np.int64]:
    if num_states <= max_references:
        return np.arange(num_states)
    return np.random.default_rng(seed).choice(num_states, max_references, replace=False)


def _standardise(states: NDArray[np.float64]) -> NDArray[np.float64]:
    deviation = states.std(axis=0)
    return (states - states.mean(axis=0)) / np.where(deviation > 0, deviation, 1.0)
