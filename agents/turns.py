"""Work that is dealt out to threads, and whose results come in an order that no thread decides."""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count
from threading import Lock
from typing import TypeVar

import torch

T = TypeVar("T")

MAX_AHEAD = 32
"""Results that may wait, so that threads of unequal speed rarely wait for each other."""


def deal(items: Iterable[T], num_hands: int) -> list[Iterator[T]]:
    """Deal items out in turn: hand i gets those at positions i, i + num_hands, and so on.

    Items are taken when a hand needs one. Hands may be played by different threads.
    """
    remaining, positions, lock = iter(items), count(), Lock()
    dealt: list[deque[T]] = [deque() for _ in range(num_hands)]

    def hand(index: int) -> Iterator[T]:
        while True:
            with lock:
                while not dealt[index]:
                    try:
                        item = next(remaining)
                    except StopIteration:
                        return
                    dealt[next(positions) % num_hands].append(item)
                item = dealt[index].popleft()
            yield item

    return [hand(index) for index in range(num_hands)]


def alternate(iterators: Iterable[Iterator[T]]) -> Iterator[T]:
    """One item of each iterator in turn, until all have ended."""
    remaining = deque(iterators)
    while remaining:
        iterator = remaining.popleft()
        try:
            item = next(iterator)
        except StopIteration:
            continue
        remaining.append(iterator)
        yield item


@contextmanager
def played_ahead(items: Iterator[T], num_threads: int) -> Iterator[Iterator[T]]:
    """Make the items in a thread, up to `MAX_AHEAD` before they are taken.

    PyTorch uses `num_threads` of its own threads there. On leaving, the item that is being made
    is awaited and no other is begun.
    """
    with ThreadPoolExecutor(1, "player", torch.set_num_threads, (num_threads,)) as thread:
        waiting = deque(thread.submit(next, items, None) for _ in range(MAX_AHEAD))

        def take() -> Iterator[T]:
            while (item := waiting.popleft().result()) is not None:
                waiting.append(thread.submit(next, items, None))
                yield item

        try:
            yield take()
        finally:
            thread.shutdown(cancel_futures=True)
