"""Writes rollouts beside the computation that makes them."""

import time
from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor

from rollouts.store import RolloutWriter
from rollouts.types import Rollout

MAX_WAITING_ROWS = 4096
"""Rows that may wait to be written (50 MB of Procgen's frames) before whoever makes them waits."""


def write_in_background(
    writer: RolloutWriter, rollouts: Iterable[Rollout], seconds_between_seals: float
) -> int:
    """Write rollouts in a thread while the next ones are made, and seal a shard now and then.

    Compression and hashes release Python's lock, so that they take another core.

    Args:
        writer: where to; nobody else may use it until this returns.
        rollouts: made in the calling thread.
        seconds_between_seals: a shard is sealed before it is older than about this.

    Returns:
        The number of rows.

    Raises:
        UserError, SchemaError: as `RolloutWriter.write`, when the next rollout is made at the
            earliest; what was to be written after the failure is dropped.
    """
    num_rows, last_sealed = 0, time.monotonic()
    queue = _WriteQueue(writer)
    try:
        for rollout in rollouts:
            queue.write(rollout)
            num_rows += len(rollout)
            if time.monotonic() - last_sealed > seconds_between_seals:
                queue.seal()
                last_sealed = time.monotonic()
        queue.finish()
    finally:
        queue.close()
    return num_rows


class _WriteQueue:
    def __init__(self, writer: RolloutWriter) -> None:
        self._writer = writer
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="writer")
        self._waiting: deque[tuple[Future[None], int]] = deque()
        self._num_waiting_rows = 0

    def write(self, rollout: Rollout) -> None:
        """Hand a rollout over; raises what an earlier one ran into."""
        self._waiting.append((self._thread.submit(self._writer.write, rollout), len(rollout)))
        self._num_waiting_rows += len(rollout)
        while self._waiting and (
            self._waiting[0][0].done() or self._num_waiting_rows > MAX_WAITING_ROWS
        ):
            self._await_first()

    def seal(self) -> None:
        self._waiting.append((self._thread.submit(self._writer.seal), 0))

    def finish(self) -> None:
        """Wait until all is written."""
        while self._waiting:
            self._await_first()

    def close(self) -> None:
        """End the thread; what it has not begun is dropped."""
        self._thread.shutdown(cancel_futures=True)

    def _await_first(self) -> None:
        future, num_rows = self._waiting.popleft()
        self._num_waiting_rows -= num_rows
        future.result()
