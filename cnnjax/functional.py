"""A Flax NNX model as a pure function of named arrays.

Training, freezing and staging work on a flat dictionary from leaf path to array, such as
`{"backbone/conv1/kernel": f32[3, 3, 3, 24], ...}`: easy to partition, to mask and to print.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from cnnjax.ops.counting import counting
from cnnjax.runtime import Tree

Leaves = dict[str, jax.Array]


def model_name(model: object) -> str:
    """What a model is called in messages and tables: its `name` if it has one, or its class's."""
    name = getattr(model, "name", None)
    return name if isinstance(name, str) and name else type(model).__name__


def join(path: tuple[Any, ...]) -> str:
    """`("blocks", 0, "kernel")` as `"blocks/0/kernel"`."""
    return "/".join(str(part) for part in path)


def modules(model: nnx.Module) -> Iterator[tuple[str, nnx.Module]]:
    """Every module below `model` as (path, module), each once, parents first."""
    seen: set[int] = set()

    def walk(node: object, path: tuple[Any, ...]) -> Iterator[tuple[str, nnx.Module]]:
        if isinstance(node, nnx.Module) and not isinstance(node, nnx.List | nnx.Dict):
            if id(node) in seen:
                return
            seen.add(id(node))
            if path:
                yield join(path), node
        for name, child in children(node):
            yield from walk(child, (*path, name))

    return walk(model, ())


def children(node: object) -> list[tuple[Any, Any]]:
    """The named parts of a module, list or dictionary, in NNX's order: by the alphabet, or by their place in a list.

    That order is the same in every copy of a model, and is not the one in which they run (`cnnjax.models.layer_order`).
    """
    if isinstance(node, nnx.List | list | tuple):
        return list(enumerate(node))
    if isinstance(node, dict | nnx.Dict):
        return sorted(node.items(), key=lambda item: str(item[0]))
    if not isinstance(node, nnx.Module):
        return []
    return [(name, vars(node)[name]) for name in sorted(vars(node)) if not name.startswith("_pytree__")]


@dataclass(frozen=True)
class Functional:
    """The two programs of a model (training, inference) and the kinds of its leaves.

    Build it with `functionalize`. `apply` is pure and can be traced, differentiated and compiled.
    """

    training: Any
    inference: Any
    variables: tuple[tuple[tuple[Any, ...], Any], ...]
    normalises: bool = False
    """Whether a BatchNorm takes its statistics from the batch while training."""
    counted: frozenset[str] = frozenset()
    """Leaves of the BatchNorms, whose statistics can leave rows out (see `cnnjax.ops.counting`)."""

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
        leaves = {}
        variables = ((join(path), v) for path, v in self.variables if issubclass(type(v), nnx.RngState))
        for index, (path, variable) in enumerate(variables):
            shape, own = variable.get_value().shape, jax.random.fold_in(key, index)
            if issubclass(type(variable), nnx.RngKey):
                leaves[path] = jax.random.split(own, shape) if shape else own
            else:
                leaves[path] = jnp.zeros(shape, jnp.uint32)
        return leaves

    def module(self, leaves: Leaves, *, train: bool = False) -> nnx.Module:
        """The model again, holding `leaves`."""
        state = nnx.from_flat_state([(path, v.replace(leaves[join(path)])) for path, v in self.variables])
        return nnx.merge(self.training if train else self.inference, state)

    def apply(self, leaves: Leaves, *inputs: Tree, train: bool) -> tuple[Any, Leaves]:
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


def leaves_of(model: nnx.Module, kind: type = nnx.Variable) -> Leaves:
    """All arrays of a model by path, or those of one kind (`nnx.Param`, `nnx.BatchStat`).

    Example:
        >>> sorted(leaves_of(nnx.Linear(2, 3, rngs=nnx.Rngs(0))))
        ['bias', 'kernel']
    """
    found = nnx.to_flat_state(nnx.split(model)[1])
    return {join(path): v.get_value() for path, v in found if isinstance(v, kind)}


def named_variables(model: nnx.Module) -> dict[str, nnx.Variable]:
    """Every variable under every path that leads to it, by the alphabet.

    What is shared has several paths; `leaves_of` knows it by the first of them.
    """
    found: dict[str, nnx.Variable] = {}

    def walk(node: object, path: tuple[Any, ...], above: tuple[int, ...]) -> None:
        if isinstance(node, nnx.Variable):
            found[join(path)] = node
        elif id(node) not in above:
            for name, child in children(node):
                walk(child, (*path, name), (*above, id(node)))

    walk(model, (), ())
    return found


def names_of(model: nnx.Module) -> dict[str, tuple[str, ...]]:
    """The paths of every leaf: by its path in `leaves_of`, all that lead to it, by the alphabet.

    Example:
        >>> model = nnx.Sequential(nnx.Linear(2, 2, rngs=nnx.Rngs(0)), nnx.Linear(2, 2, rngs=nnx.Rngs(1)))
        >>> model.layers[1].kernel = model.layers[0].kernel
        >>> names_of(model)["layers/0/kernel"]
        ('layers/0/kernel', 'layers/1/kernel')
    """
    paths: dict[int, list[str]] = {}
    for path, variable in named_variables(model).items():
        paths.setdefault(id(variable), []).append(path)
    every = {path: tuple(names) for names in paths.values() for path in names}
    # What hides in an object that only NNX looks into has the one name.
    return {path: every.get(path, (path,)) for path in leaves_of(model)}


def lasting_leaves(model: nnx.Module) -> Leaves:
    """Every leaf of a model by path, random keys and counters left out."""
    random = leaves_of(model, nnx.RngState)
    return {path: x for path, x in leaves_of(model).items() if path not in random}


def functionalize(model: nnx.Module, *, frozen: Callable[[str], bool] = lambda path: False) -> Functional:
    """Take a model apart into pure programs.

    Args:
        model: any Flax NNX module; it is not changed.
        frozen: says of a leaf path whether it is frozen. A normalisation layer all of whose leaves are
            frozen runs on its stored statistics also while training (Keras's `trainable = False`), and so does
            one whose statistics are frozen. In the training program the others take their statistics over the rows
            that count (see `cnnjax.ops.counting`).
    """
    graph, state = nnx.split(model)
    training, inference = nnx.merge(graph, state), nnx.merge(graph, state)
    training.train()
    inference.eval()
    # By the leaves' own paths: a module that is shared has several, and `modules` gives one of them.
    own = {name: path for path, names in names_of(training).items() for name in names}
    for path, module in modules(training):
        if hasattr(module, "use_running_average"):
            statistics = leaves_of(module, nnx.BatchStat) or leaves_of(module)
            places = (f"{path}/{name}" for name in statistics)
            if statistics and all(frozen(own.get(place, place)) for place in places):
                module.use_running_average = True  # ty: ignore[invalid-assignment]
    variables = tuple((path, v) for path, v in nnx.to_flat_state(state))
    norms = [(p, m) for p, m in (("", training), *modules(training)) if isinstance(m, nnx.BatchNorm)]
    places = [f"{path}/{name}".removeprefix("/") for path, norm in norms for name in leaves_of(norm)]
    for _, norm in norms:
        norm.__class__ = counting(type(norm))
    live = any(not norm.use_running_average for _, norm in norms)
    counted = frozenset(own.get(place, place) for place in places)
    return Functional(nnx.split(training)[0], nnx.split(inference)[0], variables, live, counted)
