"""The decisions of many episodes as one long table of rows, read in bounded pieces."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from experiment.errors import UserError
from rollouts.independent_units import independent_units
from rollouts.store import RolloutDataset


@dataclass(frozen=True)
class RolloutRows:
    """The rows of a dataset's first episodes, in the order of the store."""

    dataset: RolloutDataset
    num_episodes: int

    @cached_property
    def episode_lengths(self) -> NDArray[np.int64]:
        """(num_episodes,) decisions in each episode."""
        return self.dataset.episodes["length"].to_numpy(np.int64)[: self.num_episodes]

    @cached_property
    def episode_ids(self) -> NDArray[np.int64]:
        """(num_episodes,)"""
        return self.dataset.episodes["episode_id"].to_numpy(np.int64)[: self.num_episodes]

    @cached_property
    def units(self) -> NDArray[np.int64]:
        """(num_episodes,) which episodes depend on each other (`independent_units`)."""
        return independent_units(self.dataset)[: self.num_episodes]

    @cached_property
    def num_rows(self) -> int:
        """Decisions in all these episodes."""
        return int(self.episode_lengths.sum())

    @cached_property
    def episode_index(self) -> NDArray[np.int64]:
        """(num_rows,) which episode each row belongs to."""
        return np.repeat(np.arange(self.num_episodes), self.episode_lengths)

    @cached_property
    def step(self) -> NDArray[np.int64]:
        """(num_rows,) row within the episode."""
        starts = np.cumsum(self.episode_lengths) - self.episode_lengths
        return np.arange(self.num_rows) - np.repeat(starts, self.episode_lengths)

    def read(self, field: str, start: int, stop: int) -> NDArray:
        """(stop − start, ...) values of a per-step field."""
        return self.dataset.read_field(field, start, stop)

    def read_hidden(self, start: int, stop: int) -> NDArray[np.float32]:
        """(stop − start, H) the part of the agent's state that analyses look at."""
        first, last = self.dataset.metadata.hidden_slice
        return self.read("agent_hidden", start, stop)[:, first:last]

    def chunks(self, rows_per_chunk: int) -> Iterator[slice]:
        """Consecutive slices that cover all rows."""
        for start in range(0, self.num_rows, rows_per_chunk):
            yield slice(start, min(start + rows_per_chunk, self.num_rows))

    def read_hidden_rows(self, rows: NDArray[np.int64], rows_per_chunk: int) -> NDArray[np.float32]:
        """(len(rows), H) hidden states of ascending `rows`, never holding more than a chunk."""
        parts = []
        for chunk in self.chunks(rows_per_chunk):
            low, high = np.searchsorted(rows, [chunk.start, chunk.stop])
            if low < high:
                hidden = self.read_hidden(chunk.start, chunk.stop)
                parts.append(hidden[rows[low:high] - chunk.start])
        return np.concatenate(parts)


def select_episodes(dataset: RolloutDataset, wanted: int, source: str, flag: str) -> RolloutRows:
    """The first `wanted` episodes; with fewer in the dataset, all of them, and a line saying so.

    Args:
        dataset: where the episodes are.
        wanted: how many to take.
        source: what they are, for messages.
        flag: the flag that asked for them.

    Raises:
        UserError: the dataset has no episodes.
    """
    if dataset.num_episodes == 0:
        raise UserError(f"{source}: the dataset has no episodes")
    if dataset.num_episodes < wanted:
        print(f"{flag} {wanted}: {source} has {dataset.num_episodes}, all of them are used")
    return RolloutRows(dataset, min(wanted, dataset.num_episodes))
