"""Episodes side by side: (N, T, ...) arrays, zero after the end of an episode."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analysis.rollout_rows import RolloutRows
from projections.hidden import HiddenProjection

ROWS_PER_CHUNK = 65_536


@dataclass(frozen=True, eq=False)
class CoordinateStack:
    """Component coordinates of N episodes, T being the longest."""

    values: NDArray[np.float32]
    """(N, T, D); zero after the end."""
    length: NDArray[np.int64]
    """(N,) rows until the episode ends, that one included."""
    episode_id: NDArray[np.int64]
    """(N,)"""
    unit: NDArray[np.int64]
    """(N,) episodes of one unit depend on each other (`rollouts.independent_units`)."""

    @property
    def is_valid(self) -> NDArray[np.bool_]:
        """(N, T) whether the row is in the episode."""
        return np.arange(self.values.shape[1]) < self.length[:, None]


def stack_rows(rows: RolloutRows, values: NDArray) -> NDArray:
    """(num_rows, ...) values of all rows → (num_episodes, longest, ...), zero-padded."""
    shape = (rows.num_episodes, int(rows.episode_lengths.max()), *values.shape[1:])
    stacked = np.zeros(shape, values.dtype)
    stacked[rows.episode_index, rows.step] = values
    return stacked


def lengths_until_done(rows: RolloutRows, heed_ends: bool = True) -> NDArray[np.int64]:
    """(num_episodes,) rows until the first at which the episode ends, that one included.

    A simulated rollout goes on to the length that was asked for, though its episode is predicted
    to have ended; what comes after is no behaviour. Unless `heed_ends`, it counts all the same.
    """
    if not heed_ends:
        return rows.episode_lengths
    done = stack_rows(rows, rows.read("done", 0, rows.num_rows))
    return np.where(done.any(axis=1), done.argmax(axis=1) + 1, rows.episode_lengths)


def is_before_end(rows: RolloutRows) -> NDArray[np.bool_]:
    """(num_rows,) whether the episode has not ended before the row."""
    return rows.step < lengths_until_done(rows)[rows.episode_index]


def stack_coordinates(
    rows: RolloutRows, projection: HiddenProjection, heed_ends: bool = True
) -> CoordinateStack:
    """Component coordinates of the hidden states of all episodes, up to their ends."""
    parts = [
        np.asarray(projection.transform(rows.read_hidden(chunk.start, chunk.stop)), np.float32)
        for chunk in rows.chunks(ROWS_PER_CHUNK)
    ]
    length = lengths_until_done(rows, heed_ends)
    values = stack_rows(rows, np.concatenate(parts))
    values[np.arange(values.shape[1]) >= length[:, None]] = 0.0
    return CoordinateStack(values, length, rows.episode_ids, rows.units)
