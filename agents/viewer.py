"""A window in which one sees an agent play, where there is a display."""

import time

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from experiment.errors import UserError

LONGEST_SLEEP = 0.02
"""Seconds after which the window answers the user again while it waits."""


class LiveWindow:
    """Shows frames at the pace asked for; `is_open` tells whether the user has closed it."""

    def __init__(self, title: str, fps: float) -> None:
        """Open the window.

        Raises:
            UserError: there is no display, or no Tk to draw on it.
        """
        try:
            import tkinter

            from PIL import ImageTk
        except ImportError as error:
            raise _no_window(error) from None
        try:
            self._root = tkinter.Tk()
        except tkinter.TclError as error:
            raise _no_window(error) from None
        self._root.title(title)
        self._root.resizable(False, False)
        self._root.protocol("WM_DELETE_WINDOW", self.close)
        self._label = tkinter.Label(self._root, borderwidth=0)
        self._label.pack()
        self._make_photo = ImageTk.PhotoImage
        self._photo: ImageTk.PhotoImage | None = None
        self._seconds_per_frame = 1 / fps
        self._due: float | None = None
        self.is_open = True

    def show(self, frame: NDArray[np.uint8]) -> None:
        """Show a (H, W, 3) frame and wait for as long as it is to be seen; not when closed."""
        if not self.is_open:
            return
        picture = Image.fromarray(frame)
        if self._photo is None or (self._photo.width(), self._photo.height()) != picture.size:
            self._photo = self._make_photo(picture, master=self._root)
            self._label.configure(image=self._photo)  # pyright: ignore[reportArgumentType]
        else:
            self._photo.paste(picture)
        self._wait()

    def close(self) -> None:
        """Close the window; once is enough."""
        if self.is_open:
            self.is_open = False
            self._photo = None
            self._root.destroy()

    def _wait(self) -> None:
        """Let frames follow each other at the pace; one that came late does not hurry the next."""
        if self._due is None:
            # The first frame is seen for as long as the others, whenever the window was opened.
            self._due = time.monotonic()
        self._root.update()
        self._due = max(self._due + self._seconds_per_frame, time.monotonic())
        while self.is_open and (remaining := self._due - time.monotonic()) > 0:
            time.sleep(min(remaining, LONGEST_SLEEP))
            self._root.update()


def _no_window(reason: Exception) -> UserError:
    return UserError(
        f"--view: no window can be opened here ({reason}); leave --view out and look at the videos"
    )
