"""Fills an array of a file under construction, with its chunks compressed side by side."""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future
from itertools import count
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

BLOSC_CODEC = "lz4hc"
BLOSC_LEVEL = 3
"""Decides how small the file is and how fast it is written; reading costs the same with each."""
_CHUNKS_PER_TASK = 4
"""Of frames about 0.4 MB, which take 1.6 ms: threads hand over work that much less often."""


class ChunkWriter:
    """Appends rows to an array whose chunks hold whole rows.

    HDF5 compresses one chunk after the other, under a lock. Here it is handed finished ones, which
    are what its own Blosc filter would have made.

    Args:
        array: empty, resizable along its rows, created with the Blosc filter of `BLOSC_CODEC` and
            `BLOSC_LEVEL`.
        shuffles: whether that filter groups the bytes of equal weight.
        executor: threads that compress.
    """

    def __init__(self, array: h5py.Dataset, shuffles: bool, executor: Executor) -> None:
        # Here, since whoever only reads datasets, the panel above all, starts sooner without it.
        from numcodecs import Blosc

        self._array = array
        shuffle = Blosc.SHUFFLE if shuffles else Blosc.NOSHUFFLE
        self._codec = Blosc(BLOSC_CODEC, BLOSC_LEVEL, shuffle)
        self._executor = executor
        self._rows_per_chunk = int(np.asarray(array.chunks)[0])
        self._num_stored_rows = 0
        self._compressing: list[Future[list[bytes]]] = []
        self._dtype: np.dtype[Any] = array.dtype
        self._rest = np.empty((0, *array.shape[1:]), self._dtype)

    def append(self, pieces: Iterable[NDArray[Any]]) -> None:
        """Add the rows of the pieces, (n, ...) each, in their order.

        Returns before they are compressed, so that the pieces must not be changed any more. What
        does not fill a chunk waits for the next call.

        Raises:
            MemoryError: or what else a compressing thread ran into with rows of an earlier call;
                the array is then of no use any more.
        """
        before, self._compressing = self._compressing, []
        # In this order, so that no thread waits for work while what is ready is stored.
        self._compress(list(self._whole_chunks(pieces)))
        self._store(before)

    def _whole_chunks(self, pieces: Iterable[NDArray[Any]]) -> Iterator[NDArray[Any]]:
        for piece in pieces:
            num_missing = self._rows_per_chunk - len(self._rest)
            # Rows are copied only where a chunk begins in one piece and ends in another.
            if len(self._rest):
                self._rest = np.concatenate([self._rest, piece[:num_missing]])
                if len(self._rest) < self._rows_per_chunk:
                    continue
                yield self._rest
                rows = piece[num_missing:]
            else:
                rows = piece
            num_whole = len(rows) // self._rows_per_chunk
            for index in range(num_whole):
                yield rows[index * self._rows_per_chunk : (index + 1) * self._rows_per_chunk]
            self._rest = rows[num_whole * self._rows_per_chunk :].copy()

    def finish(self) -> None:
        """Write what waits; nothing may be added afterwards. Raises as `append` does."""
        num_rows = len(self._rest)
        if num_rows:
            padding = [(0, self._rows_per_chunk - num_rows)] + [(0, 0)] * (self._rest.ndim - 1)
            self._compress([np.pad(self._rest, padding)])
        self._store(self._compressing)
        if num_rows:
            self._array.resize(self._num_stored_rows - self._rows_per_chunk + num_rows, axis=0)

    def _compress(self, chunks: Sequence[NDArray[Any]]) -> None:
        for start in range(0, len(chunks), _CHUNKS_PER_TASK):
            task = self._executor.submit(self._encode_all, chunks[start : start + _CHUNKS_PER_TASK])
            self._compressing.append(task)

    def _encode_all(self, chunks: Sequence[NDArray[Any]]) -> list[bytes]:
        return [self._encode(chunk) for chunk in chunks]

    def _encode(self, chunk: NDArray[Any]) -> bytes:
        # In the file's byte order, whatever the rows came in.
        return self._codec.encode(np.ascontiguousarray(chunk, self._dtype))

    def _store(self, tasks: Iterable[Future[list[bytes]]]) -> None:
        """Wait for the chunks of earlier tasks and put them behind those that are stored."""
        for task in tasks:
            chunks, first_row = task.result(), self._num_stored_rows
            self._num_stored_rows += len(chunks) * self._rows_per_chunk
            self._array.resize(self._num_stored_rows, axis=0)
            for row, chunk in zip(count(first_row, self._rows_per_chunk), chunks, strict=False):
                self._array.id.write_direct_chunk((row, *(0,) * (self._array.ndim - 1)), chunk)
