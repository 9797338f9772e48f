"""Intervals from resampling whole levels, since what is measured on one level is alike."""

from dataclasses import dataclass

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


@dataclass(frozen=True, eq=False)
class ResampledMeans:
    """Means over windows, and what resamples of levels make of them."""

    mean: NDArray[np.float64]
    """(num_scores, num_methods, K); NaN for a row that no window has."""
    resampled: NDArray[np.float64]
    """(R, num_scores, num_methods, K)"""

    def differences(self, references: list[int]) -> "ResampledMeans":
        """(num_scores, num_methods, num_references, K) less the mean of each reference method."""
        return ResampledMeans(
            self.mean[:, :, None] - self.mean[:, None, references],
            self.resampled[:, :, :, None] - self.resampled[:, :, None, references],
        )

    @property
    def interval(self) -> NDArray[np.float64]:
        """(2, ...) bounds of the 95% interval."""
        return percentile_interval(self.resampled)


def average_windows(scores: NDArray[np.float64], bootstrap: LevelBootstrap) -> ResampledMeans:
    """(num_scores, num_methods, W, K) scores, NaN where a window has no such row → their means."""
    counts = bootstrap.sum_by_level(np.isfinite(scores[0, 0]))
    sums = bootstrap.sum_by_level(np.nan_to_num(np.moveaxis(scores, 2, 0)))
    # A row that no window, or no window of a resample, has is without a mean: NaN.
    with np.errstate(invalid="ignore"):
        mean = sums.sum(axis=0) / counts.sum(axis=0)
        resampled = bootstrap.resample(sums) / bootstrap.resample(counts)[:, None, None]
    return ResampledMeans(mean, resampled)
