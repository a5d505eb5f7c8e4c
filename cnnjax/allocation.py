"""Freed memory stays with the process, so that a step on CPU does not ask the kernel for its memory anew each time."""

import ctypes
import os

# Of glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
_MOST = (1 << 31) - 1  # the largest number that malloc takes
_NEVER = -1  # switches trimming off
_OF_THE_USER = ("GLIBC_TUNABLES", "MALLOC_ARENA_MAX", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")


def keep_freed_memory() -> bool:
    """Let glibc's malloc keep blocks of up to 2 GiB that are freed, and all that is free at the heap's end.

    XLA's CPU backend allocates the temporary memory of a program (half a GiB for a step of MobileNet with 16 pictures)
    each time it runs. By default glibc gets blocks of that size from the kernel and gives them back, and each of their
    pages is then zeroed at its first use: 136,000 page faults a step, a third of its time. No limit at the heap's end:
    where what lay beyond 2 GiB was given back, an epoch of MobileNet 0.75 in batches of 32 took an eighth longer. One
    arena, since the heaps of the others end at 64 MiB. `import cnnjax` calls this; it helps in full where no thread of
    NumPy's or JAX's has begun before, each with an arena of its own: import cnnjax first.

    Settings of the user's own (`MALLOC_ARENA_MAX` and the like in the environment) stay as they are.

    Returns:
        Whether malloc is glibc's and took the settings.
    """
    if any(name in os.environ for name in _OF_THE_USER):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library, or another system
        return False
    settings = {_MMAP_THRESHOLD: _MOST, _TRIM_THRESHOLD: _NEVER, _ARENA_MAX: 1}
    return sum(mallopt(name, value) for name, value in settings.items()) == len(settings)
