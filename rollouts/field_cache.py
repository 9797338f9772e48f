"""Small step fields of whole shards, kept in memory within a budget."""

from bisect import bisect_right
from threading import Lock
from typing import Any

from numpy.typing import NDArray

from rollouts.store import RolloutDataset

DEFAULT_CACHE_BYTES = 2**30
"""Holds hidden state, action, reward and `done` of 4 million rows of a 64-dimensional agent."""


class FieldCache:
    """Rows of step fields, from memory where the budget allows.

    A window of a small field takes HDF5 as long as one of frames, though it has a fiftieth of the
    bytes. So the field of a shard is read whole at the first access and kept. Nothing is ever
    evicted: windows are drawn from all shards alike, so that a dataset beyond the budget would
    evict every shard before its next use. What does not fit is read from its shard.

    Safe to use from several threads; a pickled cache starts empty.

    Args:
        dataset: whose rows.
        budget_bytes: memory that the cached arrays may take.
    """

    def __init__(self, dataset: RolloutDataset, budget_bytes: int = DEFAULT_CACHE_BYTES):
        self.cached_bytes = 0
        self._dataset = dataset
        self._budget_bytes = budget_bytes
        self._arrays: dict[tuple[str, int], NDArray[Any] | None] = {}
        self._lock = Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return (FieldCache, (self._dataset, self._budget_bytes))

    def read_rows(self, name: str, start: int, out: NDArray[Any]) -> None:
        """Fill `out`, contiguous and of the field's dtype, with rows of one shard from `start` on.

        Args:
            name: of the step field.
            start: row of the dataset.
            out: (count, *row_shape); an episode's rows always lie in one shard.
        """
        starts = self._dataset.shard_starts
        shard = bisect_right(starts, start) - 1
        array = self._array_of(name, shard)
        if array is None:
            self._dataset.read_rows(name, start, out)
        else:
            first = start - starts[shard]
            out[:] = array[first : first + len(out)]

    def _array_of(self, name: str, shard: int) -> NDArray[Any] | None:
        """The field of the shard, None where it does not fit."""
        key = (name, shard)
        if key in self._arrays:
            return self._arrays[key]
        with self._lock:
            if key not in self._arrays:
                self._arrays[key] = self._load(name, shard)
            return self._arrays[key]

    def _load(self, name: str, shard: int) -> NDArray[Any] | None:
        start, stop = self._dataset.shard_starts[shard : shard + 2]
        spec = self._dataset.step_field(name)
        num_bytes = (stop - start) * spec.row_bytes
        if self.cached_bytes + num_bytes > self._budget_bytes:
            return None
        self.cached_bytes += num_bytes
        return self._dataset.read_field(name, start, stop)
