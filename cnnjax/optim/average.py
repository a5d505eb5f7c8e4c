"""The exponential moving average of the weights (Polyak & Juditsky 1992), kept in the optimizer's state."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from cnnjax.functional import Leaves
from cnnjax.runtime import Tree


class AverageState(NamedTuple):
    """Attributes:
    count: i32[], optimizer steps seen.
    average: the averaged weights, by path.
    """

    count: jax.Array
    average: Any


def average(decay: float) -> optax.GradientTransformation:
    """The last transform of an optimizer: passes updates through, and averages the weights they lead to.

    As Keras's `use_ema`: after the first step the average is the weights, after each later one
    `decay * average + (1 - decay) * weights`. So the weights before the first step have no part in it.
    """

    def init(params: optax.Params) -> AverageState:
        return AverageState(jnp.zeros((), jnp.int32), jax.tree.map(jnp.array, params))

    def update(updates: optax.Updates, state: Any, params: optax.Params | None = None) -> tuple[Any, AverageState]:
        if params is None:
            raise ValueError("the average of the weights needs them: give `update` the parameters too")
        share = jnp.where(state.count == 0, 1.0, 1.0 - decay)
        moved: Any = optax.apply_updates(params, updates)
        mean = optax.incremental_update(moved, state.average, share)
        return updates, AverageState(state.count + 1, jax.tree.map(lambda x, own: x.astype(own.dtype), mean, params))

    return optax.GradientTransformation(init, update)


def averaged(opt_state: optax.OptState) -> Leaves | None:
    """The averaged weights in an optimizer's state, wherever they lie in it; None if it keeps none.

    Before the first step they are the initial weights. They are copies: a step that donates the state does not
    take them away. Running statistics are no weights; live ones are those of the weights that move.

    >>> import optax
    >>> from cnnjax.optim import make_optimizer
    >>> optimizer, weights = make_optimizer("sgd", 1.0, ema=0.75), {"w": jnp.ones(2)}
    >>> state = optimizer.init(weights)
    >>> for _ in range(3):  # 0, -1, -2
    ...     updates, state = optimizer.update({"w": jnp.ones(2)}, state, weights)
    ...     weights = optax.apply_updates(weights, updates)
    >>> averaged(state)["w"].tolist(), averaged(make_optimizer("sgd").init(weights))  # 0.75 (0.75 * 0 - 0.25) - 0.5
    ([-0.6875, -0.6875], None)
    """
    nodes = jax.tree.leaves(opt_state, is_leaf=lambda node: isinstance(node, AverageState))
    found = next((node.average for node in nodes if isinstance(node, AverageState)), None)
    if found is None:
        return None
    # Under a mask over the whole tree, frozen leaves stand there as empty nodes.
    return {path: jnp.array(x) for path, x in found.items() if not isinstance(x, optax.MaskedNode)}


def with_average(opt_state: optax.OptState, weights: Leaves) -> Any:
    """The optimizer's state with an average that goes on from these weights: the best ones need not be the last."""

    def moved(node: Tree) -> Any:
        return node._replace(average=jax.tree.map(jnp.array, weights)) if isinstance(node, AverageState) else node

    return jax.tree.map(moved, opt_state, is_leaf=lambda node: isinstance(node, AverageState))
