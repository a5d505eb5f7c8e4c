"""What changes while training."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from cnnjax.functional import Leaves
from cnnjax.optim import with_rate


class State(NamedTuple):
    """All that changes while training: plain dictionaries and arrays.

    Attributes:
        step: i32[], steps done.
        trainable: parameters that are moved, by path.
        statistics: running statistics of normalisation layers that are live, by path.
        optimizer: optax's state, for the trainable leaves alone.
    """

    step: jax.Array
    trainable: Leaves
    statistics: Leaves
    optimizer: Any


def checked_leaves(given: Leaves, own: Mapping[str, Any], elsewhere: Collection[str]) -> Leaves:
    """The leaves of `given` that train.

    Args:
        given: values by path.
        own: the leaves that train, or are live statistics.
        elsewhere: paths that the model has too, frozen or random: they are passed over.

    Raises:
        ValueError: if a leaf is unknown or of another shape or type; all of them are named.
    """
    faults = [
        f"  {p}: expected {have.dtype}{list(have.shape)}, found {given[p].dtype}{list(given[p].shape)}"
        for p, have in own.items()
        if p in given and (given[p].shape, given[p].dtype) != (have.shape, have.dtype)
    ]
    faults += [f"  {p}: no such leaf in the model" for p in given if p not in own and p not in elsewhere]
    if faults:
        raise ValueError("leaves that do not fit the model:\n" + "\n".join(faults))
    return {p: x for p, x in given.items() if p in own}


def fresh_state(
    leaves: Leaves,
    trainable: Sequence[str],
    optimizer: optax.GradientTransformation,
    learning_rate: float | None = None,
) -> State:
    """A state before the first step.

    Args:
        leaves: what trains, and live statistics.
        trainable: paths of those that an optimizer moves.
        optimizer: the optimizer.
        learning_rate: the optimizer's own if not given.

    Raises:
        ValueError: if the rate is not positive, or the optimizer has none to set.
    """
    # Copies: the state is donated to the step, the model's own arrays must survive it.
    live = {p: jnp.array(x) for p, x in leaves.items()}
    moved = {p: live.pop(p) for p in trainable}
    # Some optimizers keep the parameters themselves in their state; donated buffers must not be shared.
    state = jax.tree.map(jnp.array, optimizer.init(moved))
    if learning_rate is not None:
        state = with_rate(state, learning_rate)
    return State(jnp.zeros((), jnp.int32), moved, live, state)
