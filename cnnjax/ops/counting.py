"""Which rows of a batch count: those that fill up an epoch's last batch have no part in the batch's statistics."""

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from inspect import signature
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

# Programs that were traced without a mask, or with another trace's, are not taken for those of this one.
_cached_by = jax.make_user_context(default_value=None)


class Batch:
    """A batch whose training program is traced.

    Attributes:
        size: how many rows it has.
        counts: bool[size], the rows that count; all of them if None.
        normalises: whether a layer took statistics over the batch.
        fault: why it cannot be told which numbers of a layer's input belong to which row.
    """

    def __init__(self, size: int, counts: jax.Array | None):
        self.size, self.counts = size, counts
        self.normalises = False
        self.fault: str | None = None


_BATCH: ContextVar[Batch | None] = ContextVar("batch", default=None)


@contextmanager
def batch_of(size: int, counts: jax.Array | None = None) -> Generator[Batch]:
    """In this block, layers made by `counting` leave rows out of their statistics that do not count.

    Args:
        size: how many rows the batch has that a model is called with.
        counts: bool[size], which of them count. If none does, all do: statistics of nothing would be no numbers.

    >>> norm = nnx.BatchNorm(1, momentum=0.0, rngs=nnx.Rngs(0))
    >>> norm.__class__ = counting(type(norm))
    >>> with batch_of(3, jnp.array([True, True, False])):
    ...     y = norm(jnp.array([[1.0], [3.0], [9.0]]))
    >>> norm.mean[...].tolist(), y[2].tolist()
    ([2.0], [0.0])
    """
    batch = Batch(size, None if counts is None else counts | ~counts.any())
    token = _BATCH.set(batch)
    try:
        if counts is None:
            yield batch
        else:
            with _cached_by(batch):
                yield batch
    finally:
        _BATCH.reset(token)


@cache
def counting(kind: type[nnx.BatchNorm]) -> type[nnx.BatchNorm]:
    """A kind of `nnx.BatchNorm` that goes by `batch_of`: rows that do not count get zeros, and give no gradient.

    Zeros, so that whatever their numbers become, nothing of it gets into the others' gradients.
    """
    if getattr(kind, "_counts_rows", False):
        return kind

    class Counting(kind):  # ty: ignore[unsupported-base]
        _counts_rows = True

        def __call__(self, x: jax.Array, *args: Any, **kwargs: Any) -> jax.Array:
            batch, given = _BATCH.get(), args[0] if args else kwargs.get("use_running_average")
            running = self.use_running_average if given is None else given
            # In the training program none but a frozen one has it set (`nnx.Module.train` unsets it).
            if self.use_running_average and not running:
                raise ValueError(
                    f"a frozen {kind.__name__} runs on its stored statistics, and the model calls it with "
                    "use_running_average=False: leave that argument out, or do not freeze the layer"
                )
            if batch is None or running:
                return super().__call__(x, *args, **kwargs)
            batch.normalises = True
            batch.fault = batch.fault or _fault(kind, x, batch.size)
            if batch.counts is None:
                return super().__call__(x, *args, **kwargs)
            if batch.fault is not None:
                raise ValueError(batch.fault)
            counts, own = batch.counts.reshape(-1, *[1] * (x.ndim - 1)), kwargs.pop("mask", None)
            y = super().__call__(x, *args, mask=counts if own is None else counts & own, **kwargs)
            return jnp.where(counts, y, 0)

    Counting.__name__, Counting.__qualname__ = kind.__name__, kind.__qualname__
    Counting.__module__, Counting.__doc__ = kind.__module__, kind.__doc__
    return Counting


def _fault(kind: type[nnx.BatchNorm], x: jax.Array, rows: int) -> str | None:
    known = signature(kind.__call__).parameters
    if "mask" not in known and not any(p.kind is p.VAR_KEYWORD for p in known.values()):
        return f"a {kind.__name__} of the model takes no mask"
    if x.ndim < 2 or x.shape[0] != rows:
        return f"of {rows} rows a {kind.__name__} of the model normalises an array {list(x.shape)}, not row by row"
    return None
