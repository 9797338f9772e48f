"""Intervals from resampling whole levels, since what is measured on one level is alike."""

import numpy as np
from numpy.typing import NDArray

from experiment.resampling import INTERVAL_PERCENTILES, resample_weights


class LevelBootstrap:
    """Percentile bootstrap over levels (Efron and Tibshirani, 1993).

    Any figure that is a function of sums over windows is resampled by weighting the sums of each
    level with how often it was drawn.

    Args:
        level: (W,) level of each window.
        num_resamples: R.
        seed: of the draws.

    Attributes:
        group: (W,) index of each window's level.
        weights: (R, L) how often each of the L levels is drawn in each resample.
    """

    def __init__(self, level: NDArray[np.int64], num_resamples: int, seed: int) -> None:
        levels, self.group = np.unique(level, return_inverse=True)
        self.weights = resample_weights(len(levels), num_resamples, seed)

    @property
    def num_levels(self) -> int:
        """L."""
        return self.weights.shape[1]

    def sum_by_level(self, values: NDArray) -> NDArray[np.float64]:
        """(W, ...) → (L, ...)."""
        sums = np.zeros((self.num_levels, *values.shape[1:]))
        np.add.at(sums, self.group, values)
        return sums

    def resample(self, sums: NDArray[np.float64]) -> NDArray[np.float64]:
        """(L, ...) sums by level → (R, ...) sums of each resample."""
        return np.tensordot(self.weights, sums, axes=1)


def percentile_interval(resampled: NDArray[np.float64]) -> NDArray[np.float64]:
    """(R, ...) → (2, ...) bounds of the 95% interval; resamples without a value are left out."""
    bounds = np.full((2, *resampled.shape[1:]), np.nan)
    has_value = np.isfinite(resampled).any(axis=0)
    bounds[:, has_value] = np.nanpercentile(resampled[:, has_value], INTERVAL_PERCENTILES, axis=0)
    return bounds
