"""Which component goes with which variable, beyond what both owe to time.

The partial correlation of two variables given others is that of their residuals after linear
regression on those others: the correlation in the conditional covariance, a Schur complement
(Whittaker, "Graphical Models in Applied Multivariate Statistics", 1990, section 5.4). Whole levels
are resampled for intervals and tests, and the false-discovery rate over the whole table is
controlled (Benjamini and Hochberg, 1995).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analysis.false_discovery import false_discovery_q
from analysis.probe_scores import summarise
from experiment.resampling import bootstrap_p_values, resample_weights

_NOISE_VARIANCE = 1e-9


@dataclass(frozen=True, eq=False)
class CorrelationTable:
    """K components by V variables; NaN where a variable is known in too few levels."""

    plain: NDArray[np.float64]
    """(K, V) correlation."""
    partial: NDArray[np.float64]
    """(K, V) partial correlation given the covariates."""
    interval: NDArray[np.float64]
    """(2, K, V) 95% interval of the partial correlation."""
    p_value: NDArray[np.float64]
    """(K, V) of no partial correlation, two-sided."""
    q_value: NDArray[np.float64]
    """(K, V) smallest false-discovery rate at which the entry counts as found."""


def correlate(
    components: NDArray[np.floating],
    variables: NDArray[np.floating],
    covariates: NDArray[np.floating],
    level: NDArray[np.int64],
    min_levels: int,
    num_resamples: int,
    seed: int,
) -> CorrelationTable:
    """Correlate every component with every variable.

    The test takes Fisher's z = artanh(r) over its standard deviation among resamples as Student's
    t with as many degrees of freedom as there are levels, less one.

    Args:
        components: (N, K)
        variables: (N, V) NaN where unknown: those rows are left out.
        covariates: (N, C) what is held fixed. One that is the variable itself is left out for it.
        level: (N,)
        min_levels: a variable known in fewer is not tested.
        num_resamples: of the levels.
        seed: draws them.
    """
    size = (components.shape[1], variables.shape[1])
    plain, partial, p_value = (np.full(size, np.nan) for _ in range(3))
    interval = np.full((2, *size), np.nan)
    for column, variable in enumerate(variables.T):
        known = np.isfinite(variable)
        _, number = np.unique(level[known], return_inverse=True)
        if not known.any() or number.max() + 1 < min_levels or np.ptp(variable[known]) == 0:
            continue
        kept = [c for c in covariates.T if not np.array_equal(c[known], variable[known])]
        data = np.column_stack([*(c[known] for c in kept), variable[known], components[known]])
        weights = resample_weights(int(number.max()) + 1, num_resamples, seed)
        correlations = _resampled_correlations(data, number, weights)
        plain[:, column] = correlations[0, len(kept), len(kept) + 1 :]
        resampled = partial_correlations(correlations, len(kept))[:, 0, 1:]
        summary = summarise(resampled)
        partial[:, column], interval[:, :, column] = summary.mean, summary.interval
        p_value[:, column] = _p_values(resampled, len(weights[0]))
    return CorrelationTable(plain, partial, interval, p_value, false_discovery_q(p_value))


def partial_correlations(correlations: NDArray[np.float64], num_given: int) -> NDArray[np.float64]:
    """Correlations of the last variables given the first `num_given`.

    Args:
        correlations: (..., D, D) symmetric.
        num_given: C, how many variables are held fixed.

    Returns:
        (..., D − C, D − C); zero for a variable that the given ones determine.
    """
    given, rest = slice(num_given), slice(num_given, None)
    # What never varies has no inverse; this little noise gives it one.
    noise = _NOISE_VARIANCE * np.eye(num_given)
    inverse = np.linalg.inv(correlations[..., given, given] + noise)
    explained = correlations[..., rest, given] @ inverse @ correlations[..., given, rest]
    return _to_correlations(correlations[..., rest, rest] - explained)


def _resampled_correlations(
    data: NDArray[np.float64], number: NDArray[np.int64], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """(1 + num_resamples, D, D): of all levels first, then of resamples."""
    data = (data - data.mean(axis=0)) / np.maximum(data.std(axis=0), 1e-12)
    num_levels = weights.shape[1]
    order = np.argsort(number, kind="stable")
    starts = np.searchsorted(number[order], np.arange(num_levels))
    parts = np.split(data[order], starts[1:])
    products = np.stack([part.T @ part for part in parts])
    sums = np.stack([part.sum(axis=0) for part in parts])
    counts = np.array([len(part) for part in parts], np.float64)
    weights = np.vstack([np.ones(num_levels), weights])
    count = weights @ counts
    mean = weights @ sums / count[:, None]
    second = np.tensordot(weights, products, 1) / count[:, None, None]
    covariance = second - mean[:, :, None] * mean[:, None, :]
    return _to_correlations(covariance)


def _to_correlations(covariance: NDArray[np.float64]) -> NDArray[np.float64]:
    """(..., D, D); what does not vary is correlated with nothing."""
    variance = np.diagonal(covariance, axis1=-2, axis2=-1)
    varies = variance > 10 * _NOISE_VARIANCE
    scale = np.where(varies, 1 / np.sqrt(np.where(varies, variance, 1.0)), 0.0)
    return scale[..., :, None] * covariance * scale[..., None, :]


def _p_values(resampled: NDArray[np.float64], num_levels: int) -> NDArray[np.float64]:
    fisher_z = np.arctanh(np.clip(resampled, -1 + 1e-12, 1 - 1e-12))
    return bootstrap_p_values(fisher_z[0], fisher_z[1:].std(axis=0), num_levels)
