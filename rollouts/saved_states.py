"""Saved states of the environment as two arrays of an episode: their bytes, and where each lies."""

import zlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

ROW, NUM_BYTES, CHECKSUM = range(3)
"""Columns of `Rollout.saved_state_table`."""


@dataclass(frozen=True, eq=False)
class PackedStates:
    """N states of one episode, named as the fields of a rollout are."""

    saved_state_table: NDArray[np.int64]
    """(N, 3) row whose frame was shown, number of bytes, CRC-32 of them."""
    saved_states: NDArray[np.uint8]
    """(sum of the numbers of bytes,) one state after the other."""


def pack_states(states: Iterable[bytes], every: int) -> PackedStates:
    """Pack the states saved at the rows `every`, 2 · `every`, ... of an episode."""
    states = list(states)
    table = [
        (every * number, len(state), zlib.crc32(state)) for number, state in enumerate(states, 1)
    ]
    return PackedStates(
        np.array(table, np.int64).reshape(-1, 3), np.frombuffer(b"".join(states), np.uint8)
    )


def saved_rows(num_rows: int, every: int) -> range:
    """Rows of an episode of `num_rows` rows whose states are saved."""
    return range(every, num_rows, every)


def find_problem(
    table: NDArray[np.int64], states: NDArray[np.uint8], num_rows: int, every: int
) -> str | None:
    """Why the arrays are not the packed states of an episode of `num_rows` rows; None if they are.

    The states themselves are not looked at.
    """
    if table[:, ROW].tolist() != list(saved_rows(num_rows, every)):
        return f"found rows {table[:, ROW].tolist()}, expected every {every}th of {num_rows}"
    if table[:, NUM_BYTES].min(initial=0) < 0 or table[:, NUM_BYTES].sum() != len(states):
        return f"tells of {table[:, NUM_BYTES].sum()} bytes, saved_states has {len(states)}"
    return None


def is_intact(state: bytes, entry: NDArray[np.int64]) -> bool:
    """Whether a state is the one that its row of the table tells of."""
    return len(state) == entry[NUM_BYTES] and zlib.crc32(state) == entry[CHECKSUM]
