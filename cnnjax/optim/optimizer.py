"""Optax optimizers under Keras's names, with Keras's defaults, and a rate that can change without recompiling."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from cnnjax.files.importing import called, imported, is_path, named
from cnnjax.optim.average import average
from cnnjax.optim.factors import Factors, path_of, scale_by_path
from cnnjax.optim.schedules import constant
from cnnjax.runtime.nearest import unknown


def _by_leaf(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """`inner` for each leaf alone, so that a leaf which starts to train late has its own step count.

    With one count for all, Adam's correction of young moments would be off for it: steps of up to 6.6 times
    the rate, on the very weights that gradual unfreezing means to spare.
    """

    def init(params: Any) -> Any:
        return jax.tree.map(inner.init, params)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        leaves, tree = jax.tree.flatten(updates)
        done = [inner.update(leaf, own) for leaf, own in zip(leaves, tree.flatten_up_to(state), strict=True)]
        return tree.unflatten([step for step, _ in done]), tree.unflatten([own for _, own in done])

    return optax.GradientTransformation(init, update)


def _scale_by_keras_adam(b1: float = 0.9, b2: float = 0.999, epsilon: float = 1e-7) -> optax.GradientTransformation:
    """Adam's direction as Keras computes it, in the state of `optax.scale_by_adam`.

    Keras adds epsilon to the root of the second moment as it is (Kingma & Ba 2015, the end of section 2), optax to that
    of the corrected one: epsilon then counts less by sqrt(1 - b2^t), 32 times less in the first step.
    """

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, optax.ScaleByAdamState]:
        count = optax.safe_increment(state.count)
        mu = jax.tree.map(lambda m, g: m + (g - m) * (1 - b1), state.mu, updates)
        nu = jax.tree.map(lambda v, g: v + (g * g - v) * (1 - b2), state.nu, updates)
        correction = jnp.sqrt(1 - jnp.float32(b2) ** count) / (1 - jnp.float32(b1) ** count)
        steps = jax.tree.map(lambda m, v: m * correction.astype(m.dtype) / (jnp.sqrt(v) + epsilon), mu, nu)
        return steps, optax.ScaleByAdamState(count=count, mu=mu, nu=nu)

    return optax.GradientTransformation(optax.scale_by_adam().init, update)


def _adam() -> optax.GradientTransformation:
    return _by_leaf(_scale_by_keras_adam())


Factory = Callable[..., optax.GradientTransformation]
"""A function of `learning_rate` that gives an optimizer, such as `optax.lion`."""
_Direction = Callable[[Any, tuple[float, Any]], Sequence[optax.GradientTransformation]]
_OWN_RATE = 1e-3

# name -> (direction, Keras's learning rate, Keras's weight decay of all leaves)
_MAKERS: dict[str, tuple[Callable[[], optax.GradientTransformation], float, float]] = {
    "rmsprop": (lambda: optax.scale_by_rms(decay=0.9, eps=1e-7), 1e-3, 0.0),
    "adam": (_adam, 1e-3, 0.0),
    "adamw": (_adam, 1e-3, 4e-3),
    "sgd": (optax.identity, 1e-2, 0.0),
}
OPTIMIZERS = tuple(_MAKERS)


def decays(path: str, leaf: Any) -> bool:
    """Whether weight decay acts on a leaf: it has two axes or more, and is no bias and no norm's factor or shift.

    So kernels decay, depthwise ones too; leaves with one axis, and leaves called `bias`, `scale`, `gamma` or
    `beta` whatever their shape (a norm over several axes), do not.

    >>> decays("conv_dw_1/kernel", jnp.zeros((3, 3, 1, 8))), decays("conv1_bn/scale", jnp.zeros(8))
    (True, False)
    """
    return leaf.ndim >= 2 and path.rpartition("/")[2] not in ("bias", "scale", "gamma", "beta")


def _every_leaf(tree: Any) -> Any:
    return jax.tree.map(lambda _: True, tree)


def _decaying_leaves(tree: Any) -> Any:
    return jax.tree_util.tree_map_with_path(lambda keys, leaf: decays(path_of(keys), leaf), tree)


def make_optimizer(
    name: str | Factory = "rmsprop",
    learning_rate: float | None = None,
    *,
    schedule: optax.Schedule | None = None,
    weight_decay: float | None = None,
    clip: float | None = None,
    accumulate: int = 1,
    ema: float | None = None,
    factors: Factors | None = None,
) -> optax.GradientTransformationExtraArgs:
    """An optimizer whose learning rate is part of its state, so that rates share one compiled program.

    A step is: mean of `accumulate` gradients, clip, the optimizer's direction, plus decay times weight, times
    minus the learning rate, times the schedule's factor, times the leaf's factor; then the average moves.

    Args:
        name: one of `OPTIMIZERS`, with the hyperparameters of `keras.optimizers`; or a function of `learning_rate` that
            gives an optax transform, such as `optax.lion`, or its import path, "optax:lion" or "file.py:function". Its
            whole update stands for the optimizer's direction times minus the learning rate.
        learning_rate: the base learning rate (`with_rate` sets another); Keras's default where it is not given.
        schedule: a factor of the base learning rate, 0 to 1, for each optimizer step: `warmup_cosine(1000, 50)`.
        weight_decay: decoupled, of the leaves that `decays` names (Loshchilov & Hutter 2019; times the rate, as
            in Keras). Not given, `adamw` decays every leaf by 4e-3 as Keras's does, the others none.
        clip: largest global norm of the gradient of all leaves that train.
        accumulate: batches whose gradients make one step: their plain mean. Batches that do not fill up a last
            step wait in the state and move nothing.
        ema: decay of the moving average of the weights, such as 0.99; read it with `averaged`.
        factors: each leaf's factor of the whole update, decay included: pattern -> factor (checked against the
            leaves that train, see `by_groups`), or a function from path to factor (`by_groups`, `by_depth`).

    Raises:
        ValueError: for an unknown name, with the nearest; for a value out of range, with what to give.

    Example:
        >>> state = make_optimizer("adam", 1e-4).init({"w": jnp.zeros(3)})
        >>> round(float(state.hyperparams["learning_rate"]), 6)
        0.0001
    """
    if not isinstance(name, str) or is_path(name):
        direction, default, keras_decay = _own(name)
    elif name in _MAKERS:
        maker, default, keras_decay = _MAKERS[name]
        direction = _scaled(maker)
    else:
        found = unknown("optimizer", name, OPTIMIZERS, listed=True)
        raise ValueError(f"{found}, and those of optax by their import path, such as optax:{name}")
    rate = default if learning_rate is None else learning_rate
    _check_rate(rate)
    _check(schedule, weight_decay, clip, accumulate, ema)
    decay = (keras_decay, _every_leaf) if weight_decay is None else (weight_decay, _decaying_leaves)

    def steps(learning_rate: Any) -> optax.GradientTransformation:
        # Always seven places, so that `transfer_optimizer_state` finds its way from one choice of options to another.
        return optax.chain(
            optax.identity() if clip is None else optax.clip_by_global_norm(clip),
            *direction(learning_rate, decay),
            optax.scale_by_schedule(schedule or constant()),
            scale_by_path(factors) if factors else optax.identity(),
            optax.identity() if ema is None else average(ema),
        )

    # float32 whatever the weights are: a rate in bfloat16 would be rounded, and `with_rate` would change its type.
    optimizer = optax.inject_hyperparams(steps, hyperparam_dtype=jnp.dtype("float32"))(learning_rate=rate)
    if accumulate == 1:
        return optimizer
    return optax.with_extra_args_support(optax.MultiSteps(optimizer, accumulate).gradient_transformation())


def _scaled(maker: Callable[[], optax.GradientTransformation]) -> _Direction:
    """Direction, decay and learning rate of an optimizer by name."""

    def made(learning_rate: Any, decay: tuple[float, Any]) -> Sequence[optax.GradientTransformation]:
        return maker(), optax.add_decayed_weights(*decay), optax.scale_by_learning_rate(learning_rate)

    return made


def _own(given: str | Factory) -> tuple[_Direction, float, float]:
    """The same of the user's, which takes the learning rate itself; decay comes after it."""
    path = given if isinstance(given, str) else named(given)
    what, how = "a function of learning_rate that gives an optax transform", "learning_rate=..."
    factory = imported(path, what, "optax:lion") if isinstance(given, str) else given
    gives = "an optax.GradientTransformation"
    kinds: Any = (optax.GradientTransformation, optax.GradientTransformationExtraArgs)
    called(path, factory, how, expected=kinds, gives=gives, learning_rate=_OWN_RATE)

    def made(learning_rate: Any, decay: tuple[float, Any]) -> Sequence[optax.GradientTransformation]:
        strength, mask = decay
        own = optax.add_decayed_weights(-learning_rate * strength, mask) if strength else optax.identity()
        return factory(learning_rate=learning_rate), own, optax.identity()

    return made, _OWN_RATE, 0.0


def with_rate(opt_state: Any, learning_rate: float | jax.Array) -> Any:
    """The optimizer state with another base rate, wherever it lies in it: same types, so nothing compiles again.

    Args:
        opt_state: of an optimizer from `make_optimizer`, or of any that holds one `optax.inject_hyperparams` with
            a `learning_rate`, inside chains, masks, partitions or `optax.MultiSteps`.
        learning_rate: one rate, or f32[R] where the state is stacked over R replicas.

    Raises:
        ValueError: if the rate is not positive, is no part of the state, or there are several.
    """
    _check_rate(learning_rate)
    flat, tree = jax.tree_util.tree_flatten_with_path(opt_state)
    rates = [k for k, (keys, _) in enumerate(flat) if path_of(keys[-2:]) == "hyperparams/learning_rate"]
    if not rates:
        raise ValueError("this optimizer has no learning rate to set; wrap it in optax.inject_hyperparams")
    if len(rates) > 1:
        raise ValueError(f"this optimizer has {len(rates)} learning rates; give one optimizer factors for its leaves")
    if any("hyperparams_states/learning_rate" in path_of(keys) for keys, _ in flat):
        raise ValueError("this optimizer's learning rate follows a schedule; give make_optimizer the schedule instead")
    leaves = [leaf for _, leaf in flat]
    have = leaves[rates[0]]
    leaves[rates[0]] = jnp.broadcast_to(jnp.asarray(learning_rate, have.dtype), have.shape)
    return tree.unflatten(leaves)


def _check_rate(learning_rate: float | jax.Array) -> None:
    values = np.asarray(learning_rate)
    if not (values > 0).all():
        raise ValueError(f"a learning rate must be positive, not {learning_rate}; freeze what is not to move")
    if not np.isfinite(values).all():
        raise ValueError(f"a learning rate must be finite, not {learning_rate}")


def _check(
    schedule: optax.Schedule | None, weight_decay: float | None, clip: float | None, accumulate: int, ema: float | None
) -> None:
    if schedule is not None and not callable(schedule):
        raise ValueError(
            f"schedule: expected a function from step to factor, such as warmup_cosine(1000, 50), found {schedule!r}"
        )
    if weight_decay is not None and not 0 <= weight_decay < math.inf:
        raise ValueError(f"weight_decay: expected 0 or more, such as 1e-4, found {weight_decay}")
    if clip is not None and not 0 < clip < math.inf:
        raise ValueError(f"clip: expected a positive norm, such as 1.0, found {clip}; leave it out not to clip")
    if isinstance(accumulate, bool) or not isinstance(accumulate, int) or accumulate < 1:
        raise ValueError(f"accumulate: expected a whole number of batches from 1 on, found {accumulate!r}")
    if ema is not None and not 0 < ema < 1:
        raise ValueError(f"ema: expected a decay above 0 and below 1, such as 0.99, found {ema}; leave it out for none")
