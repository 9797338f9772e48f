"""How the C library hands out memory to computations on the CPU."""

import ctypes

_M_TRIM_THRESHOLD = -1
_M_TOP_PAD = -2
_M_MMAP_MAX = -4
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8
_RETURNED_BYTES = 2**20
_MAX_ARENAS = 2
_LARGEST_INT = 2**31 - 1
_HEAP_BYTES = 2**26
"""Size of the heaps that glibc gives to threads, where a pointer takes eight bytes."""


def keep_freed_memory() -> bool:
    """Let the process keep the memory that it frees, to use it again.

    By default glibc returns buffers of 32 MiB and more to the system as soon as they are freed, and
    so it does with the free end of its heap. A network's activations are such buffers, and mapping
    them anew took up to 40% of a forward and backward pass over many frames at once
    (docs/performance.md). The heap of a thread is of limited size: what spills over lies in a
    second one, which would come and go with every pass if no more than a little might lie idle. The
    memory goes back when the process ends. Other C libraries are left as they are.

    Returns:
        Whether the C library has such settings.
    """
    return _set_options({_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: _LARGEST_INT, _M_TOP_PAD: _HEAP_BYTES})


def return_freed_memory() -> bool:
    """Let the process give buffers of 1 MiB and more back as soon as they are freed.

    A server with many threads would else keep what each of them needed at its busiest: glibc gives
    threads heaps of their own and, by default, learns to keep ever larger buffers in them.

    Returns:
        Whether the C library has such settings.
    """
    return _set_options({_M_MMAP_THRESHOLD: _RETURNED_BYTES, _M_ARENA_MAX: _MAX_ARENAS})


def _set_options(options: dict[int, int]) -> bool:
    try:
        # Of the program itself: to search for the library by name starts another program.
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, TypeError, AttributeError):
        return False
    return all(bool(mallopt(name, value)) for name, value in options.items())
