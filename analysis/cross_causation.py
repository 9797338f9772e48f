"""Averages of effects over samples: what moves what, how long after, and how certain that is.

Matrices are indexed [source component at t, target component at t + k], as correlations are. The
unit of every interval and test is the source episode, which all samples from its windows belong to;
a sample's Jacobians are first averaged over its own steps (`analysis.jacobian_means`).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import leaves_list, linkage, optimal_leaf_ordering
from scipy.spatial.distance import squareform
from scipy.stats import t as student_t

MIN_UNITS = 3
"""Fewer independent units have neither intervals nor p-values."""


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


def summarise_effects(values: NDArray[np.floating], unit: NDArray[np.integer]) -> Effects:
    """Mean over samples, its Student interval and p-value.

    The error is that of a mean of clusters (Liang and Zeger, "Longitudinal data analysis using
    generalized linear models", 1986): with G units of deviations e_u, each the sum of its samples'
    deviations from the mean, it is √(G / (G − 1) Σ e_u²) / N, with G − 1 degrees of freedom. Where
    every sample is a unit of its own this is Student's.

    Args:
        values: (N, ...); NaN for a sample that has none.
        unit: (N,) samples of one unit depend on each other.
    """
    _, number = np.unique(unit, return_inverse=True)
    known = np.isfinite(values)
    count = known.sum(axis=0).astype(float)
    divisor = np.where(count > 0, count, np.nan)
    filled = np.where(known, values, 0.0)
    mean = filled.sum(axis=0) / divisor
    deviations = _sum_by_unit(np.where(known, values - mean, 0.0), number)
    num_units = (_sum_by_unit(known, number) > 0).sum(axis=0).astype(float)
    freedom = np.where(num_units >= MIN_UNITS, num_units - 1, np.nan)
    error = np.sqrt(num_units / freedom * np.square(deviations).sum(axis=0)) / divisor
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


def _sum_by_unit(values: NDArray, number: NDArray[np.integer]) -> NDArray[np.float64]:
    """(N, ...) and (N,) numbers of their units → (G, ...)"""
    sums = np.zeros((int(number.max(initial=-1)) + 1, *values.shape[1:]))
    np.add.at(sums, number, values)
    return sums


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
