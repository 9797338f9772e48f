"""Work that is dealt out to threads, and whose results come in an order that no thread decides."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count
from queue import SimpleQueue
from threading import Lock
from typing import Generic, TypeVar

import torch

T = TypeVar("T")

MAX_AHEAD = 32
"""Results of a hand that may wait, so that whoever makes them rarely waits for their taker."""


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
def played_ahead(
    hands: Sequence[Iterator[T]], num_players: int, num_threads: int
) -> Iterator[list[Iterator[T]]]:
    """Make the items of all hands in threads, up to `MAX_AHEAD` of a hand before they are taken.

    A player who has made an item takes up the hand that has waited longest. So the hands keep pace
    with each other however unequal the players are, if there are more hands than players.

    Args:
        hands: what makes the items; each is played by one thread at a time.
        num_players: threads.
        num_threads: PyTorch's own threads for each of them.

    Yields:
        The items of each hand, in their order; taking one raises what making it raised. On leaving,
        items that are being made are awaited and no other is begun.
    """
    players = ThreadPoolExecutor(num_players, "player", torch.set_num_threads, (num_threads,))
    played = [_PlayedHand(hand, players) for hand in hands]
    try:
        # Here, since a thread that cannot be started leaves others behind, which play already.
        for hand in played:
            hand.begin()
        yield [hand.take() for hand in played]
    finally:
        for hand in played:
            hand.stop()
        players.shutdown(cancel_futures=True)


class _PlayedHand(Generic[T]):
    """The items of one hand, made by whichever player is free."""

    def __init__(self, items: Iterator[T], players: Executor) -> None:
        self._items = items
        self._players = players
        self._made: SimpleQueue[Future[T]] = SimpleQueue()
        self._lock = Lock()
        self._num_waiting = 0
        self._is_being_played = self._is_over = False

    def begin(self) -> None:
        with self._lock:
            self._go_on()

    def take(self) -> Iterator[T]:
        while True:
            item = self._made.get()
            if isinstance(item.exception(), StopIteration):
                return
            yield item.result()
            with self._lock:
                self._num_waiting -= 1
                self._go_on()

    def stop(self) -> None:
        with self._lock:
            self._is_over = True

    def _go_on(self) -> None:
        if not (self._is_over or self._is_being_played or self._num_waiting == MAX_AHEAD):
            self._is_being_played = True
            self._players.submit(self._play)

    def _play(self) -> None:
        item: Future[T] = Future()
        try:
            item.set_result(next(self._items))
        except BaseException as error:
            # The end as well.
            item.set_exception(error)
        with self._lock:
            self._made.put(item)
            self._num_waiting += 1
            self._is_being_played = False
            self._is_over |= item.exception() is not None
            self._go_on()
