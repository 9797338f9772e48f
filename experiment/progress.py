"""How far a long stage has come: a bar on a terminal, a plain line now and then elsewhere."""

import sys
import time

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 15.0


class Progress:
    """Counts units of work; used as a context manager.

    Args:
        total: units that there are in all.
        unit: what is counted, in the singular.
        done: units done by earlier processes.
    """

    def __init__(self, total: int, unit: str, done: int = 0) -> None:
        self._total, self._unit, self._done = total, unit, done
        self._bar = tqdm(total=total, initial=done, unit=unit, disable=not sys.stderr.isatty())
        self._done_before = done
        self._start = self._last_line = time.monotonic()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.close()

    def advance(self, shown: str) -> None:
        """One unit is done; `shown` tells what else is worth knowing."""
        self._done += 1
        self._bar.set_postfix_str(shown, refresh=False)
        self._bar.update()
        now = time.monotonic()
        if self._bar.disable and now - self._last_line > SECONDS_BETWEEN_LINES:
            self._last_line = now
            left = f"{self._minutes_left(now):.0f} min left"
            print(f"{self._unit} {self._done} of {self._total}, {left}, {shown}", flush=True)

    def _minutes_left(self, now: float) -> float:
        seconds_each = (now - self._start) / (self._done - self._done_before)
        return seconds_each * (self._total - self._done) / 60
