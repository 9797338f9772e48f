"""How well the agent's hidden state is predicted in the coordinates of a projection."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from generative.level_bootstrap import LevelBootstrap, percentile_interval


@dataclass(frozen=True, eq=False)
class ComponentErrors:
    """Component coordinates of W windows, and how far M predictions are from them.

    NaN past the end of an episode.
    """

    squared_error: NDArray[np.float64]
    """(M, W, horizon + 1, num_components)"""
    truth: NDArray[np.float64]
    """(W, horizon + 1, num_components) of the hidden state on true frames."""

    @classmethod
    def join(cls, parts: "Sequence[ComponentErrors]") -> "ComponentErrors":
        """Those of several batches of windows."""
        return cls(
            np.concatenate([part.squared_error for part in parts], axis=1),
            np.concatenate([part.truth for part in parts]),
        )


@dataclass(frozen=True, eq=False)
class ComponentFit:
    """Coefficients of determination, R² = 1 − Σ (s − ŝ)² / Σ (s − s̄)², over windows.

    s̄ is the mean over the windows at the same horizon: a prediction of R² = 0 is as good as
    knowing that mean alone, one below 0 is worse.
    """

    r2: NDArray[np.float64]
    """(M, horizon + 1, num_components)"""
    r2_interval: NDArray[np.float64]
    """(2, M, horizon + 1, num_components)"""
    median_r2: NDArray[np.float64]
    """(M, horizon + 1) median over components: one that hardly varies on true frames has an R² far
    below zero as soon as predicted frames move it, and would decide a mean alone."""
    median_r2_interval: NDArray[np.float64]
    """(2, M, horizon + 1)"""

    def summary(self, methods: Sequence[str]) -> dict[str, Any]:
        """Plain numbers for a report; `methods` names the M predictions."""
        rows = np.round(self.median_r2, 4).tolist()
        return {"median_component_r2_by_horizon": dict(zip(methods, rows, strict=True))}

    def table(self, methods: Sequence[str]) -> list[str]:
        """The median over components, one line per prediction."""
        lines = ["component_r2: R² of the agent's hidden state, median over components"]
        for method, row in zip(methods, self.median_r2, strict=True):
            lines.append(f"{method:<20s}" + "".join(f"{value:<9.4f}" for value in row))
        return lines


def fit_components(errors: ComponentErrors, bootstrap: LevelBootstrap) -> ComponentFit:
    """R² of every component and horizon, with intervals from resampling levels."""
    is_valid = np.isfinite(errors.truth)
    truth = np.nan_to_num(errors.truth)
    squared_error = np.nan_to_num(np.moveaxis(errors.squared_error, 0, 1))
    sums = [bootstrap.sum_by_level(values) for values in (is_valid, truth, truth**2, squared_error)]
    r2 = _determination(*(total.sum(axis=0, keepdims=True) for total in sums))[0]
    resampled = _determination(*(bootstrap.resample(total) for total in sums))
    return ComponentFit(
        r2=r2,
        r2_interval=percentile_interval(resampled),
        median_r2=np.median(r2, axis=-1),
        median_r2_interval=percentile_interval(np.median(resampled, axis=-1)),
    )


def _determination(
    count: NDArray[np.float64],
    total: NDArray[np.float64],
    total_square: NDArray[np.float64],
    squared_error: NDArray[np.float64],
) -> NDArray[np.float64]:
    """R² from sums: (R, K, C) thrice and (R, M, K, C) → (R, M, K, C).

    NaN where the truth does not vary, which leaves nothing to explain.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        variation = total_square - total**2 / count
    # Rounding leaves some of a constant.
    variation[~(variation > 1e-12 * total_square)] = np.nan
    return 1 - squared_error / variation[:, None]
