"""Optax optimizers under Keras's names, with Keras's defaults, and a rate that can change without recompiling."""

import difflib
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import optax

_MAKERS: dict[str, tuple[Callable[..., optax.GradientTransformation], float]] = {
    "rmsprop": (lambda learning_rate: optax.rmsprop(learning_rate, decay=0.9, eps=1e-7), 1e-3),
    "adam": (lambda learning_rate: optax.adam(learning_rate, eps=1e-7), 1e-3),
    "adamw": (lambda learning_rate: optax.adamw(learning_rate, eps=1e-7, weight_decay=4e-3), 1e-3),
    "sgd": (lambda learning_rate: optax.sgd(learning_rate), 1e-2),
}
OPTIMIZERS = tuple(_MAKERS)


def make_optimizer(name: str = "rmsprop", learning_rate: float | None = None) -> optax.GradientTransformationExtraArgs:
    """An optimizer whose learning rate is part of its state, so that rates share one compiled program.

    Args:
        name: one of `OPTIMIZERS`; hyperparameters default to those of `keras.optimizers`.
        learning_rate: Keras's default where it is not given.

    Example:
        >>> state = make_optimizer("adam", 1e-4).init({"w": jnp.zeros(3)})
        >>> round(float(state.hyperparams["learning_rate"]), 6)
        0.0001
    """
    if name not in _MAKERS:
        near = difflib.get_close_matches(name, OPTIMIZERS, 1, 0)[0]
        raise ValueError(f"no optimizer {name!r}; did you mean {near!r}? There are {', '.join(OPTIMIZERS)}")
    maker, default = _MAKERS[name]
    rate = default if learning_rate is None else learning_rate
    if not rate > 0:
        raise ValueError(f"a learning rate must be positive, not {rate}")
    return optax.inject_hyperparams(maker)(learning_rate=rate)


def with_rate(opt_state: Any, learning_rate: float) -> Any:
    """The optimizer state with another learning rate.

    Raises:
        ValueError: if the rate is not positive, or is no part of the state.
    """
    if not learning_rate > 0:
        raise ValueError(f"a learning rate must be positive, not {learning_rate}")
    hyperparams = dict(getattr(opt_state, "hyperparams", {}))
    if "learning_rate" not in hyperparams:
        raise ValueError("this optimizer has no learning rate to set; wrap it in optax.inject_hyperparams")
    hyperparams["learning_rate"] = jnp.asarray(learning_rate, jnp.float32)
    return opt_state._replace(hyperparams=hyperparams)
