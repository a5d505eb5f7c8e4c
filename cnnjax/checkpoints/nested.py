"""Any tree of arrays as plain nested dictionaries with readable names, and back."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import jax
from flax.traverse_util import flatten_dict, unflatten_dict

from cnnjax.checkpoints.errors import CheckpointMismatch
from cnnjax.runtime import Tree


def as_nested(tree: Tree) -> dict[str, Any]:
    """A tree of arrays as nested dictionaries: fields of named tuples by name, places in lists by number.

    Keys such as `"conv1/kernel"` become two levels. None, and nodes without leaves (optax's `EmptyState`), vanish.

    Args:
        tree: dictionaries, lists, tuples, named tuples or other pytrees of arrays.

    Raises:
        ValueError: if two leaves would have one name.

    Example:
        >>> import jax.numpy as jnp
        >>> import optax
        >>> state = optax.scale_by_adam().init({"head/bias": jnp.zeros(2)})
        >>> as_nested((state, None)) == {"0": {
        ...     "count": state.count, "mu": {"head": {"bias": state.mu["head/bias"]}},
        ...     "nu": {"head": {"bias": state.nu["head/bias"]}}}}
        True
    """
    return unflatten_dict(named_leaves(tree), sep="/")


def from_nested(nested: Mapping[str, Any], like: Tree) -> Any:
    """The inverse of `as_nested`.

    Args:
        nested: from `as_nested`.
        like: a tree of the wanted structure; its leaves are not read.

    Raises:
        CheckpointMismatch: naming every leaf that only one of them has.

    Example:
        >>> import optax
        >>> like = (optax.EmptyState(), optax.ScaleByScheduleState(count=0))
        >>> from_nested({"1": {"count": 5}}, like)
        (EmptyState(), ScaleByScheduleState(count=5))
    """
    found, expected = flatten_dict(dict(nested), sep="/"), named_leaves(like)
    if faults := strays(found, expected):
        raise CheckpointMismatch("the names do not fit:\n" + "\n".join(faults))
    return jax.tree.unflatten(jax.tree.structure(like), [found[path] for path in expected])


def named_leaves(tree: Tree) -> dict[str, Any]:
    """The leaves by path, in the tree's own order.

    Raises:
        ValueError: if two leaves would have one name.
    """
    flat = jax.tree_util.tree_flatten_with_path(tree)[0]
    named = [(jax.tree_util.keystr(keys, simple=True, separator="/"), leaf) for keys, leaf in flat]
    leaves = dict(named)
    # On disk a leaf is called by its path with dots: "a.b" and a/b would be one.
    called = Counter(path.replace("/", ".") for path, _ in named)
    inside = {path[:k] for path in leaves for k, letter in enumerate(path) if letter == "/"}
    twice = sorted({path for path in leaves if called[path.replace("/", ".")] > 1} | (inside & leaves.keys()))
    if twice:
        raise ValueError(f"leaves whose names cannot be told apart: {', '.join(map(repr, twice))}; rename them")
    return leaves


def strays(found: Iterable[str], expected: Iterable[str]) -> list[str]:
    """A line for each path that only one of the two has."""
    missing, extra = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
    return [f"  {p}: missing from the checkpoint" for p in missing] + [
        f"  {p}: only in the checkpoint, not expected" for p in extra
    ]
