"""What becomes of a process whose parent ends."""

import ctypes
import signal
import sys

_PR_SET_PDEATHSIG = 1
"""Linux: which signal a process gets when its parent ends."""


def signal_at_end_of_parent(number: signal.Signals) -> None:
    """Have this process sent a signal when the one that started it ends, however it does.

    On Linux; elsewhere nothing happens.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)
