"""What a program is spread over: devices, which the caller knows, and a CPU's threads."""

import os
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar

_SPREAD: ContextVar[bool] = ContextVar("spread", default=False)


@contextmanager
def spread_over_devices() -> Generator[None]:
    """In this block, what is traced will run with its batch spread over several devices.

    Sums on CPU then go over the batch at once: image after image, as one device does faster, each would have to be sent
    around (and devices that are threads of one CPU may wait for each other for ever).
    """
    token = _SPREAD.set(True)
    try:
        yield
    finally:
        _SPREAD.reset(token)


def is_spread() -> bool:
    """Whether this is such a block."""
    return _SPREAD.get()


def cpu_threads() -> int:
    """How many threads XLA's CPU client computes with: the cores that this process may use, or what `NPROC` says."""
    given = os.environ.get("NPROC", "")
    if given.isdecimal() and int(given):
        return int(given)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
