"""Jacobians of single samples averaged over steps, or over samples for each pair of steps.

Matrices are indexed [source component at t, target component at t + k], as correlations are.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def lag_means(
    jacobian: NDArray[np.floating], length: NDArray[np.integer], lags: Sequence[int]
) -> NDArray[np.float64]:
    """Each sample's Jacobians averaged over the steps t of which t + lag is in its episode.

    Args:
        jacobian: (N, K, D, K, D), [sample, target step, target, source step, source].
        length: (N,) steps until the episode ends.
        lags: a lag of K or more has no pair of steps.

    Returns:
        (N, L, D, D), [sample, lag, source, target]; NaN where no step is left.
    """
    num_samples, num_steps, size = jacobian.shape[:3]
    found = np.full((num_samples, len(lags), size, size), np.nan)
    for index, lag in enumerate(lags):
        source = np.arange(max(num_steps - lag, 0))
        if not len(source):
            continue
        # Indexing with two arrays puts the pair of steps first: (pair, N, target, source).
        pairs = jacobian[:, source + lag, :, source].transpose(1, 0, 3, 2)
        valid = source + lag < length[:, None]
        counts = valid.sum(axis=1)
        total = np.einsum("np,npij->nij", valid.astype(float), pairs)
        some = counts > 0
        found[some, index] = total[some] / counts[some, None, None]
    return found


def step_means(jacobian: NDArray[np.floating], length: NDArray[np.integer]) -> NDArray[np.float64]:
    """(N, K, D, K, D) → (K, K, D, D), [source step, target step, source, target].

    The mean over the samples whose episode reaches the target step; NaN without one.
    """
    num_steps = jacobian.shape[1]
    reaches = np.arange(num_steps) < length[:, None]
    counts = reaches.sum(axis=0).astype(float)
    total = np.einsum("nt,ntjsi->stij", reaches.astype(float), jacobian)
    counts[counts == 0] = np.nan
    return total / counts[None, :, None, None]
