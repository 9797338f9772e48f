"""How far a long stage has come: a bar on a terminal, a plain line now and then elsewhere."""

import math
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")

SECONDS_BETWEEN_LINES = 15.0


class WaitingTime:
    """Measures which part of a loop's time goes by before its next item is there."""

    def __init__(self) -> None:
        self._waited = 0.0
        self._start = self._last_asked = time.perf_counter()
        self._waited_then = 0.0

    def over(self, items: Iterable[Item]) -> Iterator[Item]:
        """The items themselves; the time until each is there counts as waiting."""
        self._start = self._last_asked = time.perf_counter()
        iterator = iter(items)
        while True:
            asked = time.perf_counter()
            try:
                item = next(iterator)
            except StopIteration:
                return
            self._waited += time.perf_counter() - asked
            yield item

    @property
    def share(self) -> float:
        """Of the time since the loop began."""
        return self._waited / max(time.perf_counter() - self._start, 1e-9)

    def share_since_last_asked(self) -> float:
        """Of the time since the last call, the first time since the loop began."""
        now = time.perf_counter()
        share = (self._waited - self._waited_then) / max(now - self._last_asked, 1e-9)
        self._last_asked, self._waited_then = now, self._waited
        return share


class Progress:
    """Counts units of work; used as a context manager.

    Args:
        total: units that there are in all.
        unit: what is counted, in the singular.
        done: units done by earlier processes.
        seconds_left: after so many the work stops, even if units are left.
    """

    def __init__(
        self, total: int, unit: str, done: int = 0, seconds_left: float | None = None
    ) -> None:
        self._total, self._unit, self._done = total, unit, done
        self._seconds_left = math.inf if seconds_left is None else seconds_left
        self._bar = tqdm(
            total=total,
            initial=done,
            unit=unit,
            disable=not sys.stderr.isatty(),
            # The time that tqdm expects knows of the units alone.
            bar_format="{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}, {rate_fmt}{postfix}]",
        )
        self._done_before = done
        self._start = self._last_line = time.monotonic()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.close()

    def advance(self, shown: str = "", count: int = 1) -> None:
        """So many more units are done; `shown` tells what else is worth knowing."""
        if count == 0:
            return
        self._done += count
        now = time.monotonic()
        told = f"{self._minutes_left(now):.0f} min left" + (f", {shown}" if shown else "")
        self._bar.set_postfix_str(told, refresh=False)
        self._bar.update(count)
        if self._bar.disable and now - self._last_line > SECONDS_BETWEEN_LINES:
            self._last_line = now
            print(f"{self._unit} {self._done} of {self._total}, {told}", flush=True)

    def _minutes_left(self, now: float) -> float:
        elapsed = now - self._start
        for_units = elapsed / (self._done - self._done_before) * (self._total - self._done)
        return max(min(for_units, self._seconds_left - elapsed), 0.0) / 60
