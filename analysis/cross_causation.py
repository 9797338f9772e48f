"""Averages of effects over samples: what moves what, how long after, and how certain that is.

Matrices are indexed [source component at t, target component at t + k], as correlations are. The
unit of every interval and test is the sample: a sample's Jacobians are first averaged over its own
steps (`analysis.jacobian_means`).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import leaves_list, linkage, optimal_leaf_ordering
from scipy.spatial.distance import squareform
from scipy.stats import t as student_t

MIN_SAMPLES = 3
"""Fewer samples have neither intervals nor p-values."""


@dataclass(frozen=True, eq=False)
class Effects:
    """Mean over samples with its error."""

    mean: NDArray[np.float64]
    """(...); NaN without a sample."""
    interval: NDArray[np.float64]
    """(2, ...) bounds of the 95% interval of Student's t."""
    p_value: NDArray[np.float64]
    """(...) of a mean of zero, two-sided."""
    positive_share: NDArray[np.float64]
    """(...) share of samples above zero."""


def summarise_effects(values: NDArray[np.floating]) -> Effects:
    """Mean over samples, its Student interval and p-value.

    Args:
        values: (N, ...); NaN for a sample that has none.
    """
    known = np.isfinite(values)
    count = known.sum(axis=0).astype(float)
    divisor = np.where(count > 0, count, np.nan)
    filled = np.where(known, values, 0.0)
    mean = filled.sum(axis=0) / divisor
    squares = np.where(known, np.square(values - mean), 0.0).sum(axis=0)
    freedom = np.where(count >= MIN_SAMPLES, count - 1, np.nan)
    error = np.sqrt(squares / freedom / divisor)
    reach = student_t.ppf(0.975, freedom) * error
    # What rounding leaves of a constant is no variance, and no test of it.
    statistic = np.divide(
        mean, error, out=np.full(mean.shape, np.nan), where=error > 1e-12 * (1 + np.abs(mean))
    )
    return Effects(
        mean=mean,
        interval=np.stack([mean - reach, mean + reach]),
        p_value=np.asarray(2 * student_t.sf(np.abs(statistic), freedom), np.float64),
        positive_share=(filled > 0).sum(axis=0) / divisor,
    )


@dataclass(frozen=True, eq=False)
class Extremes:
    """Samples at either end of a coordinate."""

    low: NDArray[np.int64]
    high: NDArray[np.int64]


def extreme_samples(coordinate: NDArray[np.floating], share: float) -> Extremes:
    """The lowest and the highest samples, as many of each.

    Args:
        coordinate: (N,)
        share: of the samples at either end: at least one sample, and at most half of them, so that
            none is at both ends. Ties are broken by position.
    """
    num = len(coordinate)
    count = min(max(1, int(share * num)), num // 2)
    order = np.argsort(coordinate, kind="stable")
    return Extremes(low=order[:count], high=order[num - count :])


def seriate(correlation: NDArray[np.floating]) -> NDArray[np.int64]:
    """(D, D) correlation at lag 0 → (D,) order in which related components are neighbours.

    Average linkage of the distances 1 − |r|, leaves in optimal order (Bar-Joseph, Gifford and
    Jaakkola, 2001).
    """
    size = len(correlation)
    if size < 3:
        return np.arange(size)
    distance = 1.0 - np.abs(np.nan_to_num(correlation))
    distance = np.clip((distance + distance.T) / 2, 0.0, None)
    np.fill_diagonal(distance, 0.0)
    condensed = squareform(distance, checks=False)
    tree = optimal_leaf_ordering(linkage(condensed, "average"), condensed)
    return leaves_list(tree).astype(np.int64)
