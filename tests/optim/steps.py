"""Parameters, gradients and steps that the tests of optimizers share."""

from functools import lru_cache
from typing import Any

import jax
import numpy as np
import optax
from operations import QUICK

SHAPES = {
    "backbone/conv/kernel": (3, 3, 2, 4), "backbone/dw/kernel": (3, 3, 1, 4), "backbone/bn/scale": (4,),
    "head/dense/kernel": (4, 3), "head/dense/bias": (3,),
}  # fmt: skip


def draw(step: int, shapes: dict[str, tuple[int, ...]] = SHAPES) -> dict[str, np.ndarray]:
    """Numbers for every path: the same for the same step, whatever the other paths are; larger in later steps."""
    return {
        path: (1 + step % 5) * np.random.default_rng([step, len(path)]).normal(size=shape).astype(np.float32)
        for path, shape in shapes.items()
    }


@lru_cache(None)
def _compiled(optimizer: Any) -> Any:
    def step(params: Any, state: Any, gradient: Any) -> tuple[Any, Any]:
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    return jax.jit(step, compiler_options=QUICK)


def run(optimizer: Any, params: Any, first: int, last: int, state: Any = None, gradient: Any = None) -> tuple[Any, Any]:
    """(parameters, state) after steps `first` to `last`, with drawn gradients or the same one in each."""

    step = _compiled(optimizer)
    state = optimizer.init(params) if state is None else state
    for k in range(first, last):
        params, state = step(params, state, gradient or draw(k, {p: x.shape for p, x in params.items()}))
    return params, state
