"""How good predictions are, with intervals from resampling whole levels."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from experiment.resampling import INTERVAL_PERCENTILES, resample_weights


@dataclass(frozen=True, eq=False)
class Score:
    """A figure and its 95% interval; NaN where it does not exist."""

    mean: NDArray[np.float64]
    """(...)"""
    interval: NDArray[np.float64]
    """(2, ...) lower and upper end."""


class LevelScorer:
    """Judges predictions of the same rows, always with the same resamples of their levels.

    The score is R² = 1 − Σ(y − ŷ)² / Σ(y − mean y)² over all rows; of probabilities of a yes-or-no
    variable it is the Brier skill score. Intervals hold for the fitted probes: these are not
    fitted anew for each resample.
    """

    def __init__(
        self,
        truth: NDArray[np.float64],
        level: NDArray[np.int64],
        num_resamples: int,
        seed: int,
    ) -> None:
        """Take (N, V) true values, NaN where unknown, and the (N,) levels of their rows."""
        # Sums of squares lose fewer digits when the numbers are centred.
        self._truth = truth - _mean_of_known(truth)
        self._offset = _mean_of_known(truth)
        self._order = np.argsort(level, kind="stable")
        self._starts = np.unique(level[self._order], return_index=True)[1]
        self._num_levels = len(self._starts)
        self._weights = resample_weights(self._num_levels, num_resamples, seed)

    @property
    def num_levels(self) -> NDArray[np.int64]:
        """(V,) levels in which each variable is known."""
        return (self._by_level(np.isfinite(self._truth)) > 0).sum(axis=0)

    def resampled(self, prediction: NDArray[np.float64]) -> NDArray[np.float64]:
        """(1 + num_resamples, V) R² of (N, V) predictions: of all levels first, then of resamples.

        Rows without a prediction do not count.
        """
        known = np.isfinite(self._truth) & np.isfinite(prediction)
        truth = np.where(known, self._truth, 0.0)
        error = np.where(known, self._truth - (prediction - self._offset), 0.0)
        weights = np.vstack([np.ones(self._num_levels), self._weights])
        count, total, square, squared_error = (
            weights @ self._by_level(values) for values in (known, truth, truth**2, error**2)
        )
        with np.errstate(invalid="ignore", divide="ignore"):
            variation = square - total**2 / count
            score = 1 - squared_error / variation
        # Where a variable never varies there is nothing to explain.
        return np.where(variation > 1e-9 * np.maximum(square, 1e-300), score, np.nan)

    def score(self, prediction: NDArray[np.float64]) -> Score:
        """(V,) R² of (N, V) predictions."""
        return summarise(self.resampled(prediction))

    def _by_level(self, values: NDArray) -> NDArray[np.float64]:
        return np.add.reduceat(values[self._order], self._starts, axis=0, dtype=np.float64)


def summarise(resampled: NDArray[np.float64]) -> Score:
    """(1 + num_resamples, ...) figures, that of all levels first."""
    interval = np.full((2, *resampled.shape[1:]), np.nan)
    exists = np.isfinite(resampled[0])
    interval[:, exists] = np.nanpercentile(resampled[1:, exists], INTERVAL_PERCENTILES, axis=0)
    return Score(resampled[0], interval)


def _mean_of_known(values: NDArray[np.float64]) -> NDArray[np.float64]:
    known = np.isfinite(values)
    return np.nansum(values, axis=0) / np.maximum(known.sum(axis=0), 1)
