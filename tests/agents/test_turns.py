import threading
import time
from collections.abc import Iterator
from queue import SimpleQueue
from typing import Any

import pytest
import torch

from agents import turns
from agents.turns import MAX_AHEAD, alternate, deal, played_ahead


def test_items_are_dealt_by_position_however_fast_a_hand_plays() -> None:
    first, second, third = deal(range(8), 3)
    assert list(second) == [1, 4, 7]
    assert next(third) == 2
    assert list(first) == [0, 3, 6]
    assert list(third) == [5]


def test_items_are_taken_only_when_a_hand_needs_one() -> None:
    taken = []
    first, second = deal((taken.append(item) or item for item in range(9)), 2)
    assert next(second) == 1
    assert next(first) == 0
    assert taken == [0, 1]


def test_hands_in_threads_get_each_item_once() -> None:
    def slowly() -> Iterator[int]:
        for item in range(200):
            time.sleep(1e-5)
            yield item

    hands, got = deal(slowly(), 4), [[] for _ in range(4)]
    threads = [
        threading.Thread(target=lambda i=i: got[i].extend(hands[i])) for i in range(len(hands))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == [list(range(i, 200, 4)) for i in range(4)]


def test_iterators_alternate_until_all_have_ended() -> None:
    assert list(alternate([iter("abcd"), iter(""), iter("xy")])) == list("axbycd")


def test_playing_ahead_changes_neither_items_nor_order() -> None:
    caller, players = threading.get_ident(), set()

    def items(start: int) -> Iterator[int]:
        for item in range(start, start + 3 * MAX_AHEAD):
            players.add(threading.get_ident())
            yield item

    with played_ahead([items(0), items(1000), items(2000)], 2, 1) as ahead:
        found = list(alternate(ahead))
    assert found == [start + item for item in range(3 * MAX_AHEAD) for start in (0, 1000, 2000)]
    assert 1 <= len(players) <= 2
    assert caller not in players


def test_each_player_computes_with_the_threads_that_it_is_given() -> None:
    def numbers_of_threads() -> Iterator[int]:
        for _ in range(4):
            yield torch.get_num_threads()

    threads_before = torch.get_num_threads()
    try:
        with played_ahead([numbers_of_threads(), numbers_of_threads()], 2, 3) as ahead:
            assert list(alternate(ahead)) == [3] * 8
    finally:
        torch.set_num_threads(threads_before)


def test_a_hand_is_played_by_one_thread_at_a_time() -> None:
    is_playing = threading.Lock()

    def items() -> Iterator[int]:
        for item in range(50):
            assert is_playing.acquire(blocking=False)
            time.sleep(1e-4)
            is_playing.release()
            yield item

    with played_ahead([items()], 3, 1) as (ahead,):
        assert list(ahead) == list(range(50))


def test_an_item_that_is_handed_over_late_is_not_overtaken(monkeypatch) -> None:
    class SlowQueue(SimpleQueue):
        def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
            if item.exception() is None and item.result() % 3 == 0:
                time.sleep(2e-3)
            super().put(item, block, timeout)

    monkeypatch.setattr(turns, "SimpleQueue", SlowQueue)
    with played_ahead([iter(range(20))], 2, 1) as (ahead,):
        assert [next(ahead) for _ in range(20)] == list(range(20))


def test_a_slow_player_holds_up_no_hand() -> None:
    is_slow, was_slow, num_played = threading.Event(), threading.Event(), [0, 0, 0]

    def items(hand: int) -> Iterator[int]:
        while True:
            if hand == 0 and num_played[hand] == 2:
                was_slow.set()
                is_slow.wait(10)
            num_played[hand] += 1
            yield hand

    with played_ahead([items(hand) for hand in range(3)], 2, 1) as ahead:
        assert was_slow.wait(10)
        others = [next(ahead[hand]) for _ in range(MAX_AHEAD) for hand in (1, 2)]
        assert others == [1, 2] * MAX_AHEAD
        assert num_played[0] == 2
        is_slow.set()


def test_who_plays_pauses_while_enough_is_waiting() -> None:
    made = []

    def endless() -> Iterator[int]:
        while True:
            made.append(len(made))
            yield len(made)

    with played_ahead([endless()], 1, 1) as (ahead,):
        deadline = time.monotonic() + 10
        while len(made) < MAX_AHEAD and time.monotonic() < deadline:
            time.sleep(1e-3)
        time.sleep(0.02)
        assert len(made) == MAX_AHEAD
        assert [next(ahead) for _ in range(2 * MAX_AHEAD)] == list(range(1, 2 * MAX_AHEAD + 1))


def test_an_error_reaches_whoever_takes_the_items_and_nothing_runs_on() -> None:
    made = []

    def items() -> Iterator[int]:
        made.append(0)
        yield 0
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"), played_ahead([items()], 1, 1) as (ahead,):
        list(ahead)
    assert made == [0]


def test_a_hand_that_has_ended_is_not_asked_again() -> None:
    num_asked = 0

    class Ending:
        def __iter__(self) -> Iterator[int]:
            return self

        def __next__(self) -> int:
            nonlocal num_asked
            num_asked += 1
            raise StopIteration

    with played_ahead([Ending()], 1, 1) as (ahead,):
        assert list(ahead) == []
    assert num_asked == 1


def test_leaving_awaits_what_is_being_made_and_begins_nothing_else() -> None:
    is_begun, is_left, begun, made = threading.Event(), threading.Event(), [], []

    def items(hand: int) -> Iterator[int]:
        begun.append(hand)
        is_begun.set()
        is_left.wait(10)
        made.append(hand)
        yield hand

    with played_ahead([items(0), items(1)], 1, 1):
        assert is_begun.wait(10)
        threading.Timer(0.05, is_left.set).start()
    assert begun == made == [0]


def test_a_thread_that_cannot_be_started_leaves_none_behind(monkeypatch) -> None:
    start = threading.Thread.start

    def start_one(thread: threading.Thread) -> None:
        if thread.name == "player_1":
            raise RuntimeError("no more threads")
        start(thread)

    def slowly() -> Iterator[int]:
        for item in range(1000):
            time.sleep(0.01)
            yield item

    monkeypatch.setattr(threading.Thread, "start", start_one)
    with (
        pytest.raises(RuntimeError, match="no more threads"),
        played_ahead([slowly(), slowly()], 2, 1),
    ):
        pass
    assert not any(thread.name.startswith("player") for thread in threading.enumerate())


def test_leaving_stops_the_threads_soon() -> None:
    made = []

    def endless() -> Iterator[int]:
        while True:
            made.append(len(made))
            yield len(made)

    threads_before = torch.get_num_threads()
    with played_ahead([endless(), endless()], 2, threads_before) as ahead:
        next(ahead[0])
    num_made = len(made)
    assert num_made <= 2 * MAX_AHEAD + 2
    time.sleep(0.05)
    assert len(made) == num_made
