"""A window in which one sees an agent play, where there is a display."""

import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from experiment.errors import UserError

SIZE_INCHES = (12.0, 6.0)


class LiveWindow:
    """Shows frames at the pace asked for; `is_open` tells whether the user has closed it."""

    def __init__(self, title: str, fps: float) -> None:
        """Open the window.

        Raises:
            UserError: matplotlib finds no display, or no toolkit to draw on it.
        """
        self._pyplot = _interactive_pyplot()
        self._seconds_per_frame = 1 / fps
        self._due = time.monotonic()
        self._figure = self._pyplot.figure(title, figsize=SIZE_INCHES, frameon=False)
        axes = self._figure.add_axes((0.0, 0.0, 1.0, 1.0))
        axes.set_axis_off()
        self._axes, self._picture = axes, None
        self._figure.show()

    @property
    def is_open(self) -> bool:
        """Whether the window is still there."""
        return self._pyplot.fignum_exists(self._figure.number)

    def show(self, frame: NDArray[np.uint8]) -> None:
        """Show a (H, W, 3) frame, after waiting until it is due."""
        if self._picture is None or self._picture.get_array().shape != frame.shape:
            self._axes.clear()
            self._axes.set_axis_off()
            self._picture = self._axes.imshow(frame)
        else:
            self._picture.set_data(frame)
        self._figure.canvas.draw_idle()
        self._figure.canvas.flush_events()
        self._wait()

    def close(self) -> None:
        """Close the window, if the user has not."""
        self._pyplot.close(self._figure)

    def _wait(self) -> None:
        """Let frames follow each other at the pace; one that came late does not hurry the next."""
        self._due = max(self._due + self._seconds_per_frame, time.monotonic())
        while self.is_open and (remaining := self._due - time.monotonic()) > 0:
            self._figure.canvas.start_event_loop(min(remaining, 0.05))


def _interactive_pyplot() -> Any:
    import matplotlib
    from matplotlib import pyplot
    from matplotlib.backends.registry import BackendFilter, backend_registry

    backend = matplotlib.get_backend()
    if backend.lower() not in backend_registry.list_builtin(BackendFilter.INTERACTIVE):
        raise UserError(
            f"--view: no window can be opened here (matplotlib found no display and toolkit, and "
            f"draws with {backend}); leave --view out and look at the videos"
        )
    return pyplot
