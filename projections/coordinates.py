"""Linear coordinates of hidden states: what an intervention reads and what it writes."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from experiment.files import hash_bytes


@dataclass(frozen=True, eq=False)
class CoordinateStatistics:
    """How coordinates are distributed over the states that a projection was fitted on."""

    mean: NDArray[np.float64]
    """(K,)"""
    deviation: NDArray[np.float64]
    """(K,) standard deviation; 0 for a coordinate that never varies."""


@dataclass(frozen=True, eq=False)
class LinearCoordinates:
    """Coordinates s = P (h − origin) and the way back, h = origin + M s + residual."""

    linear: NDArray[np.float64]
    """(K, H) P; P M = I."""
    directions: NDArray[np.float64]
    """(H, K) M = ∂h/∂s; column k is direction k in hidden space."""
    origin: NDArray[np.float64]
    """(H,) the state whose coordinates are all zero."""
    statistics: CoordinateStatistics | None = None
    """None where no projection tells them."""

    @property
    def num_directions(self) -> int:
        """K."""
        return len(self.linear)

    @property
    def hidden_dim(self) -> int:
        """H."""
        return len(self.origin)

    @property
    def hash(self) -> str:
        """SHA-256 over all numbers: equal only where the directions are the very same."""
        arrays = [self.linear, self.directions, self.origin]
        if self.statistics is not None:
            arrays += [self.statistics.mean, self.statistics.deviation]
        parts = [part for a in arrays for part in (str(a.shape).encode(), _little_endian(a))]
        return hash_bytes(*parts)


def coordinates_of_units(hidden_dim: int) -> LinearCoordinates:
    """The hidden units themselves: s = h."""
    units = np.eye(hidden_dim)
    return LinearCoordinates(units, units, np.zeros(hidden_dim))


def coordinates_along(directions: NDArray[np.float64]) -> LinearCoordinates:
    """Coordinates along the rows of (K, H), which are linearly independent: M = rowsᵀ, P = M⁺.

    They count multiples of a row, from the state of all zeros on.
    """
    columns = directions.T
    return LinearCoordinates(
        np.asarray(np.linalg.pinv(columns), np.float64), columns, np.zeros(len(columns))
    )


def _little_endian(array: NDArray[np.float64]) -> bytes:
    return np.ascontiguousarray(array, "<f8").tobytes()
