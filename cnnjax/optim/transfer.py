"""Moving an optimizer's state when the set of leaves that train changes in the middle of a run."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from cnnjax.functional import Leaves
from cnnjax.runtime import Tree


class Moved(NamedTuple):
    """What became of the leaves' part in the state: paths, in alphabetical order.

    Attributes:
        kept: paths that trained before and still do.
        fresh: paths that start to train.
        dropped: paths that no longer train.
    """

    kept: tuple[str, ...]
    fresh: tuple[str, ...]
    dropped: tuple[str, ...]


def transfer_optimizer_state(
    old_state: optax.OptState,
    old_params: Mapping[str, Any],
    new_optimizer: optax.GradientTransformation,
    new_params: Leaves,
    *,
    restart: bool = False,
) -> tuple[Any, Moved]:
    """The state of `new_optimizer` for `new_params` that goes on from `old_state`, path by path.

    A leaf that trains before and after keeps all that the state holds of it, bit for bit: moments, gradients
    accumulated so far, its average. A leaf that starts to train gets what `new_optimizer.init` gives it; its
    average starts at its value. What the state holds of other leaves is dropped. All that belongs to no leaf is
    kept: the learning rate (also where `new_optimizer` was made with another: see `with_rate`), the schedule's
    step, the place in an accumulation. Under `make_optimizer`'s Adam each leaf has its own step count; with
    `optax.adam` itself a late leaf inherits the common one, and its first steps come out up to 6.6 times too long.
    A leaf that joins in the middle of an accumulation counts as if its gradients up to there had been zero.

    Args:
        old_state: the state before.
        old_params: the leaves that trained before, by path; only their paths, shapes and types are read.
        new_optimizer: the same optimizer; schedule, weight decay, clip and factors may be others.
        new_params: the leaves that train from now on. Both may also be the whole model's leaves, for an
            optimizer from `Frozen.optimizer`, where masked leaves count as not training.
        restart: begin `optax.scale_by_schedule` (`make_optimizer`'s schedule) again from step 0.

    Returns:
        The new state, which shares no array with anything given, and what moved.

    Raises:
        ValueError: if the two states are not of one optimizer, or a leaf changed its shape or type.

    Example:
        >>> from cnnjax.optim import make_optimizer
        >>> adam, head, deep = make_optimizer("adam"), {"head/kernel": jnp.ones(2)}, {"block5/kernel": jnp.ones(3)}
        >>> _, state = adam.update(head, adam.init(head), head)
        >>> state, moved = transfer_optimizer_state(state, head, adam, head | deep)
        >>> moved
        Moved(kept=('head/kernel',), fresh=('block5/kernel',), dropped=())
        >>> {path: int(own.count) for path, own in sorted(state.inner_state[1].items())}
        {'block5/kernel': 0, 'head/kernel': 1}
    """
    faults = [
        f"  {p}: {_kind(old_params[p])} before, {_kind(x)} after"
        for p, x in new_params.items()
        if p in old_params and _kind(old_params[p]) != _kind(x)
    ]
    if faults:
        raise ValueError("leaves that changed; their state cannot move:\n" + "\n".join(faults))
    held: dict[str, set[str]] = {"kept": set(), "fresh": set(), "dropped": set(), "masked": set()}

    def move(old: Tree, new: Tree, where: str) -> Any:
        if restart and isinstance(old, optax.ScaleByScheduleState) and isinstance(new, optax.ScaleByScheduleState):
            return new
        if _is_tree_of(old, old_params) and _is_tree_of(new, new_params):
            for p in old.keys() | new.keys():
                before, after = (not isinstance(s.get(p, _NONE), optax.MaskedNode) for s in (old, new))
                held[{(1, 1): "kept", (0, 1): "fresh", (1, 0): "dropped", (0, 0): "masked"}[before, after]].add(p)
            both = (p for p in new if not any(isinstance(s.get(p, _NONE), optax.MaskedNode) for s in (old, new)))
            return new | {p: move(old[p], new[p], f"{where}[{p!r}]") for p in both}
        olds, form = jax.tree.flatten(old, is_leaf=lambda node: node is not old)
        news, new_form = jax.tree.flatten(new, is_leaf=lambda node: node is not new)
        leaf = form == _LEAF
        if form != new_form or (leaf and _kind(old) != _kind(new)):
            raise ValueError(
                f"the state is another optimizer's: at {where} it holds {_name(old)}, the new one {_name(new)}; "
                "go on with the same optimizer, or begin with new_optimizer.init"
            )
        if leaf:
            return old
        names = getattr(old, "_fields", None) or (sorted(old) if isinstance(old, dict) else range(len(olds)))
        return form.unflatten([move(*pair, f"{where}.{n}") for n, *pair in zip(names, olds, news, strict=True)])

    state = jax.tree.map(jnp.copy, move(old_state, new_optimizer.init(new_params), "state"))
    both = new_params.keys() & old_params.keys()
    inside = held["masked"] - held["kept"]  # frozen before and after, under a mask over the whole tree
    fresh = (new_params.keys() - both) | held["fresh"]
    dropped = (old_params.keys() - both) | held["dropped"]
    return state, Moved(tuple(sorted(both - fresh - dropped - inside)), tuple(sorted(fresh)), tuple(sorted(dropped)))


_NONE, _LEAF = optax.MaskedNode(), jax.tree.structure(0)


def _is_tree_of(node: Tree, params: Mapping[str, Any]) -> bool:
    """Whether a part of a state holds something for each of the leaves."""
    return isinstance(node, dict) and node.keys() == params.keys()


def _kind(x: Any) -> str:
    return f"{jnp.result_type(x)}{list(jnp.shape(x))}"


def _name(node: Tree) -> str:
    return _kind(node) if hasattr(node, "dtype") else type(node).__name__
