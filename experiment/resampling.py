"""Bootstrap over whole levels: what is resampled are independent units, never steps."""

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student_t

INTERVAL_PERCENTILES = (2.5, 97.5)
"""Ends of the 95% intervals."""


def resample_weights(num_units: int, num_resamples: int, seed: int) -> NDArray[np.float64]:
    """(num_resamples, num_units) how often each unit is drawn, with replacement."""
    generator = np.random.default_rng(seed)
    share = np.full(num_units, 1 / num_units)
    return generator.multinomial(num_units, share, size=num_resamples).astype(np.float64)


def bootstrap_p_values(
    estimate: NDArray[np.floating], deviation: NDArray[np.floating], num_units: int
) -> NDArray[np.float64]:
    """(...) two-sided p-values of estimates being zero.

    Student's t of the estimate over its deviation among resamples, with as many degrees of freedom
    as there are units, less one: with few units a normal distribution would promise too much. What
    is zero in every resample has p = 1; a single unit tells nothing, NaN.

    Args:
        estimate: (...)
        deviation: (...) standard deviation of the estimate among resamples of the units.
        num_units: how many there are.
    """
    if num_units < 2:
        return np.full(np.shape(estimate), np.nan)
    is_zero = np.isclose(deviation, 0.0) & np.isclose(estimate, 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        statistic = np.abs(estimate / deviation)
    return np.where(is_zero, 1.0, 2 * student_t.sf(statistic, num_units - 1))
