"""Machines are taken away: a first SIGTERM or SIGINT asks the run to save and end, a second one ends it at once."""

import os
import signal
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager

EXIT_CODE, UNSAVED = 75, 74
"""Of a run that was asked to end, and saved (EX_TEMPFAIL of sysexits.h), or could not save (EX_IOERR): start the same
command again; the second goes on from an older checkpoint."""

SIGNALS = (signal.SIGTERM, signal.SIGINT)

_asked = threading.Event()
_alone = True


class Preempted(SystemExit):
    """The run was asked to end: a script that lets this pass ends with `EXIT_CODE`. No `except Exception` keeps it.

    Args:
        saved: whether what was done is saved; otherwise the code is `UNSAVED`.
    """

    def __init__(self, saved: bool = True) -> None:
        super().__init__(EXIT_CODE if saved else UNSAVED)


def requested() -> bool:
    """Whether a signal has come since `watching` began."""
    return _asked.is_set()


def check() -> None:
    """Ends what is running if a signal has come; called between steps, where nothing is half done.

    Of several hosts none ends by itself, since the others would wait for it: they agree, by `requested`.

    Raises:
        Preempted: one has.

    >>> check()
    """
    if _alone and requested():
        raise Preempted


@contextmanager
def watching(hosts: int = 1) -> Generator[None]:
    """In this block signals ask the run to end, instead of ending it: `requested` and `check` tell.

    A thread hears of them at once, also while the main thread compiles or waits for the device, where no Python
    handler would run. With several hosts `check` waits until they agree. Elsewhere than in the main thread, which alone
    may take signals, the block changes nothing.

    >>> with watching():
    ...     requested()
    False
    """
    global _alone
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    _asked.clear()
    _alone = hosts == 1
    before = {number: signal.signal(number, _noted) for number in SIGNALS}
    woken = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    listener = threading.Thread(target=_listen, args=(reading,), daemon=True, name="cnnjax-signals")
    listener.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(woken)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(writing)
        listener.join()
        os.close(reading)
        _asked.clear()
        _alone = True


def _noted(number: int, frame: object) -> None:
    # What is to be done is done by the listener; with a handler of Python's own the signal does not end the process.
    pass


def _listen(reading: int) -> None:
    while heard := os.read(reading, 1):
        name = signal.Signals(heard[0]).name
        if heard[0] not in SIGNALS:
            continue
        if _asked.is_set():
            _say(f"{name} again: ending at once, unsaved since the last checkpoint")
            os._exit(128 + heard[0])
        _asked.set()
        _say(f"{name}: saving after this step, then ending; once more ends at once")


def _say(text: str) -> None:
    # Not through Python's buffers: the main thread may hold their lock.
    os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, f"cnnjax: {text}\n".encode())
