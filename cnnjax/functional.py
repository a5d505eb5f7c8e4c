"""A Flax NNX model as a pure function of named arrays.

Training, freezing and staging work on a flat dictionary from leaf path to array, such as
`{"backbone/conv1/kernel": f32[3, 3, 3, 24], ...}`: easy to partition, to mask and to print.
"""

import dis
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

Leaves = dict[str, jax.Array]


def join(path: tuple[Any, ...]) -> str:
    """`("blocks", 0, "kernel")` as `"blocks/0/kernel"`."""
    return "/".join(str(part) for part in path)


def modules(model: nnx.Module) -> Iterator[tuple[str, nnx.Module]]:
    """Every module below `model` as (path, module), parents first, in the order of definition."""

    def walk(node: Any, path: tuple[Any, ...]) -> Iterator[tuple[str, nnx.Module]]:
        if isinstance(node, nnx.Module) and path and not isinstance(node, nnx.List | nnx.Dict):
            yield join(path), node
        if isinstance(node, nnx.List | list | tuple):
            children: list[tuple[Any, Any]] = list(enumerate(node))
        elif isinstance(node, dict):
            children = list(node.items())
        elif isinstance(node, nnx.Module):
            children = [(k, vars(node)[k]) for k in _attributes(node)]
        else:
            return
        for name, child in children:
            yield from walk(child, (*path, name))

    seen: set[int] = set()
    for path, module in walk(model, ()):
        if id(module) not in seen:
            seen.add(id(module))
            yield path, module


def _attributes(module: nnx.Module) -> list[str]:
    """A module's attributes in the order in which its class sets them.

    `nnx.merge` and `nnx.clone` give attributes back in alphabetical order, so that of `vars` is no guide.
    """
    places: dict[str, int] = {}
    for cls in reversed(type(module).__mro__):
        code = getattr(vars(cls).get("__init__"), "__code__", None)
        for step in dis.get_instructions(code) if code else ():
            if step.opname == "STORE_ATTR":
                places.setdefault(step.argval, len(places))
        for name in getattr(cls, "__dataclass_fields__", ()):
            places.setdefault(name, len(places))
    names = [name for name in vars(module) if not name.startswith("_pytree__")]
    return sorted(names, key=lambda name: places.get(name, len(places)))


@dataclass(frozen=True)
class Functional:
    """The two programs of a model (training, inference) and the kinds of its leaves.

    Build it with `functionalize`. `apply` is pure and can be traced, differentiated and compiled.
    """

    training: Any
    inference: Any
    variables: tuple[tuple[tuple[Any, ...], Any], ...]

    @property
    def kinds(self) -> dict[str, type]:
        """Leaf path -> variable type (`nnx.Param`, `nnx.BatchStat`, ...)."""
        return {join(path): type(variable) for path, variable in self.variables}

    def parameters(self) -> tuple[str, ...]:
        """Paths of the leaves an optimizer may move."""
        return tuple(p for p, kind in self.kinds.items() if issubclass(kind, nnx.Param))

    def random(self) -> tuple[str, ...]:
        """Paths of the leaves that hold random keys and their counters."""
        return tuple(p for p, kind in self.kinds.items() if issubclass(kind, nnx.RngState))

    def random_leaves(self, key: jax.Array) -> Leaves:
        """Fresh random leaves for one step, every stream from its own fold of `key`."""
        kinds, leaves = self.kinds, {}
        for index, path in enumerate(self.random()):
            is_key = issubclass(kinds[path], nnx.RngKey)
            leaves[path] = jax.random.fold_in(key, index) if is_key else jnp.zeros((), jnp.uint32)
        return leaves

    def module(self, leaves: Leaves, *, train: bool = False) -> nnx.Module:
        """The model again, holding `leaves`."""
        state = nnx.from_flat_state([(path, v.replace(leaves[join(path)])) for path, v in self.variables])
        return nnx.merge(self.training if train else self.inference, state)

    def apply(self, leaves: Leaves, *inputs: Any, train: bool) -> tuple[Any, Leaves]:
        """Call the model.

        Args:
            leaves: every leaf of the model, by path.
            *inputs: what the model's `__call__` takes.
            train: whether dropout is active and BatchNorm uses the batch.

        Returns:
            The model's output, and all leaves afterwards (statistics and counters may have moved).
        """
        model = self.module(leaves, train=train)
        out = model(*inputs)
        return out, leaves_of(model)


def leaves_of(model: nnx.Module) -> Leaves:
    """All arrays of a model by path.

    Example:
        >>> sorted(leaves_of(nnx.Linear(2, 3, rngs=nnx.Rngs(0))))
        ['bias', 'kernel']
    """
    return {join(path): v.get_value() for path, v in nnx.to_flat_state(nnx.split(model)[1])}


def functionalize(model: nnx.Module, *, frozen: Callable[[str], bool] = lambda path: False) -> Functional:
    """Take a model apart into pure programs.

    Args:
        model: any Flax NNX module; it is not changed.
        frozen: says of a leaf path whether it is frozen. A normalisation layer all of whose leaves are
            frozen runs on its stored statistics also while training (Keras's `trainable = False`).
    """
    graph, state = nnx.split(model)
    training, inference = nnx.merge(graph, state), nnx.merge(graph, state)
    training.train()
    inference.eval()
    for path, module in modules(training):
        if hasattr(module, "use_running_average"):
            leaves = [f"{path}/{name}" for name in leaves_of(module)]
            if leaves and all(frozen(leaf) for leaf in leaves):
                module.use_running_average = True  # ty: ignore[invalid-assignment]
    variables = tuple((path, v) for path, v in nnx.to_flat_state(state))
    return Functional(nnx.split(training)[0], nnx.split(inference)[0], variables)
