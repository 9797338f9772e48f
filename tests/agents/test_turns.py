import threading
import time
from collections.abc import Iterator

import pytest
import torch

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

    def items() -> Iterator[int]:
        for item in range(3 * MAX_AHEAD):
            players.add(threading.get_ident())
            yield item

    with played_ahead(items(), 1) as ahead:
        assert list(ahead) == list(range(3 * MAX_AHEAD))
    assert len(players) == 1
    assert caller not in players


def test_an_error_reaches_whoever_takes_the_items_and_nothing_runs_on() -> None:
    made = []

    def items() -> Iterator[int]:
        made.append(0)
        yield 0
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"), played_ahead(items(), 1) as ahead:
        list(ahead)
    assert made == [0]


def test_leaving_stops_the_thread_soon() -> None:
    made = []

    def endless() -> Iterator[int]:
        while True:
            made.append(len(made))
            yield len(made)

    threads_before = torch.get_num_threads()
    with played_ahead(endless(), threads_before) as ahead:
        assert next(ahead) == 1
    num_made = len(made)
    assert num_made <= MAX_AHEAD + 2
    time.sleep(0.05)
    assert len(made) == num_made
