"""The machine: devices, precision, memory, preemption, compiled programs, progress."""

from collections.abc import Callable

Progress = Callable[[int, int], None]
"""Called with (done, all) while something long runs."""
