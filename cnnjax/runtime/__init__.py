"""The machine: devices, precision, memory, preemption, compiled programs, progress."""

from collections.abc import Callable
from typing import Any

Progress = Callable[[int, int], None]
"""Called with (done, all) while something long runs."""
Tree = Any
"""A tree of arrays as JAX has them: one alone, or tuples, lists and dictionaries of trees."""
