"""Freed memory stays with the process, in huge pages, so that a step on CPU waits neither for the kernel nor for it."""

import ctypes
import mmap
import os
from pathlib import Path
from typing import Literal

OneDNN = Literal["auto", "always", "never"]

# Of glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
_MOST = (1 << 31) - 1  # the largest number that malloc takes
_NEVER = -1  # switches trimming off
_OF_THE_USER = ("GLIBC_TUNABLES", "MALLOC_ARENA_MAX", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")

_HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_OVERCOMMIT = Path("/proc/sys/vm/overcommit_memory")
_BLOCK, _SHARE, _MOST_BLOCKS = 1 << 30, 2, 64  # of the machine's memory, half is in huge pages, 64 GiB at most


def tune_cpu() -> bool:
    """Set this process up for training on CPU: freed memory stays with it, in huge pages.

    `import cnnjax` changes nothing in the process; the commands call this, and scripts may, first of all: it helps in
    full where no thread of NumPy's or JAX's has begun before.

    glibc's malloc then keeps blocks of up to 2 GiB that are freed, and all that is free at the heap's end. XLA's CPU
    backend allocates the temporary memory of a program (half a GiB for a step of MobileNet with 16 images) each time
    it runs. By default glibc gets blocks of that size from the kernel and gives them back, and each of their pages is
    then zeroed at its first use: 136,000 page faults a step, a third of its time. No limit at the heap's end: where
    what lay beyond 2 GiB was given back, an epoch of MobileNet 0.75 in batches of 32 took an eighth longer. One arena,
    since the heaps of the others, one a thread, end at 64 MiB.

    Settings of the user's own (`MALLOC_ARENA_MAX` and the like in the environment) stay as they are.

    Returns:
        Whether malloc is glibc's and took the settings.

    >>> import cnnjax  # before NumPy and JAX
    >>> tuned = cnnjax.tune_cpu()
    """
    if any(name in os.environ for name in _OF_THE_USER):
        return False
    try:
        libc = ctypes.CDLL(None)
        mallopt = libc.mallopt
    except (AttributeError, OSError, TypeError):  # another C library, or another system
        return False
    settings = {_MMAP_THRESHOLD: _MOST, _TRIM_THRESHOLD: _NEVER, _ARENA_MAX: 1}
    kept = sum(mallopt(name, value) for name, value in settings.items()) == len(settings)
    if kept and _huge_pages_on_request():
        _ask_for_huge_pages(libc)
    return kept


def _huge_pages_on_request() -> bool:
    """Whether the kernel gives huge pages to those who ask; not if memory that is only asked for counts as used."""
    try:
        return "[madvise]" in _HUGE_PAGES.read_text() and _OVERCOMMIT.read_text().strip() != "2"
    except OSError:
        return False


def _ask_for_huge_pages(libc: ctypes.CDLL) -> None:
    """Let the heap lie in pages of 2 MiB instead of 4 KiB: NumPy asks that for its large arrays, XLA does not.

    A step reads and writes hundreds of MiB, and looking up where small pages lie took a fifth of MobileNet's. The heap
    grows by address space alone, which is not memory until it is written to.
    """
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.restype, libc.free.argtypes = None, [ctypes.c_void_p]
    libc.madvise.restype, libc.madvise.argtypes = ctypes.c_int, [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    memory = os.sysconf("SC_PHYS_PAGES") * mmap.PAGESIZE
    blocks = []
    for _ in range(min(memory // _SHARE // _BLOCK, _MOST_BLOCKS)):
        block = libc.malloc(_BLOCK)
        if not block:
            break
        blocks.append(block)
    for block in blocks:
        start = -(-block // mmap.PAGESIZE) * mmap.PAGESIZE
        libc.madvise(start, _BLOCK - mmap.PAGESIZE, mmap.MADV_HUGEPAGE)
    for block in reversed(blocks):
        libc.free(block)
