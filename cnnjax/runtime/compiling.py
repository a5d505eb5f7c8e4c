"""Seconds that went into compiling, so that they are told apart from those of running."""

import threading

import jax

_EVENTS = ("/jax/core/compile/jaxpr_to_mlir_module_duration", "/jax/core/compile/backend_compile_duration")
_lock = threading.Lock()
_total = 0.0


def compile_seconds() -> float:
    """Seconds this process has spent on lowering and compiling programs, or fetching them from the cache.

    Tracing, which is Python's own part of it, is not counted.

    >>> before = compile_seconds()
    >>> _ = jax.jit(lambda x: x * 3 + 1)(2.0)
    >>> compile_seconds() > before
    True
    """
    return _total


def _add(event: str, duration_secs: float, **_: object) -> None:
    global _total
    if event in _EVENTS:
        with _lock:
            _total += duration_secs


jax.monitoring.register_event_duration_secs_listener(_add)
