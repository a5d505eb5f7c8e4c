"""A model's layers in the order in which they run, found by tracing it once; nothing is computed."""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from cnnjax.files.digests import digest
from cnnjax.functional import children, functionalize, join, leaves_of, model_name, names_of
from cnnjax.hooks import layer_of, with_hook
from cnnjax.staging.trace import ClosedJaxpr, Jaxpr, Var, scope_of

Example = Sequence[int] | jax.ShapeDtypeStruct | jax.Array
"""One example without the batch's axis: its shape, (H, W, C) for images, or anything with a shape and a type."""
Call = Callable[[Any, Any], Any]
"""(model, batch) -> output: how a model is called."""

_NEVER = 1 << 60


class Layer(NamedTuple):
    """A layer of a model: a module without submodules, or a variable that stands beside some.

    Attributes:
        node: the module or variable.
        names: every path to it; the first is NNX's own, as in `leaves_of`.
        unit: the path of the module of which the layer is a part whose order is known, "" if of none.
    """

    node: Any
    names: tuple[str, ...]
    unit: str

    @property
    def name(self) -> str:
        return self.names[0]


def layers(model: nnx.Module) -> list[Layer]:
    """Every layer once, in no particular order but that of `layer_names` where a module has them."""
    return _found(model)[0]


def layers_in_order(
    model: nnx.Module, within: str = "", *, example: Example | None = None, call: Call | None = None
) -> list[Layer]:
    """The layers of a model, or of a part of it, in the order in which they run.

    A module with `layer_names` keeps that order, and an `nnx.Sequential` its own. Anything else is traced in inference
    mode with an example. A layer that runs twice stands at its first place. A variable that belongs to no layer (a
    class token, a layer's scale) stands where it is first used. What the trace does not meet comes last, by its path.

    Args:
        model: any Flax NNX module; its leaves may be abstract.
        within: the path of the part; names are counted from there.
        example: what the whole model takes, without the batch's axis; the part's or the model's own `input_shape` if
            not given.
        call: how the whole model is called with a batch; `model(batch)` if not given.

    Raises:
        ValueError: the order has to be traced, and the example is not known, or the model cannot be called with it.
    """
    part = part_of(model, within)
    found, certain = _found(part)
    if certain:
        return found
    traced, prefix = model, f"{within}/" if within else ""
    if example is None and within and (example := own_shape(part)) is not None:
        traced, prefix, call = part, "", None
    if example is None and (example := own_shape(model)) is None:
        raise ValueError(
            f"the order in which the layers of {model_name(part)} run is found by tracing it, and the shape of its "
            "input is not known: give example=(height, width, channels), or the model an `input_shape`"
        )
    key = (traced, as_struct(example), call)
    try:
        places = _cached_places(_Graph(*nnx.split(traced)), *key[1:])
    except TypeError:  # an attribute that cannot be hashed
        places = _places(*key)
    # Every name of a layer counts, since the trace knows a module by one of them.
    firsts = {id(k): min((places.get(prefix + n, (_NEVER,)) for n in k.names), default=(_NEVER,)) for k in found}
    units: dict[str, tuple[int, ...]] = {}
    for layer in found:
        if layer.unit:
            own = min(firsts[id(layer)], places.get(prefix + layer.unit, (_NEVER,)))
            units[layer.unit] = min(units.get(layer.unit, (_NEVER,)), own)
    order = sorted(enumerate(found), key=lambda k: (units.get(k[1].unit, firsts[id(k[1])]), k[0]))
    return [layer for _, layer in order]


def part_of(model: nnx.Module, within: str) -> Any:
    """The submodule at a path; "" is the model.

    Raises:
        ValueError: There is none.
    """
    part: Any = model
    for name in within.split("/") if within else ():
        if not hasattr(part, name):
            raise ValueError(f"no part {within!r} in {type(model).__name__}: {type(part).__name__} has no {name!r}")
        part = getattr(part, name)
    return part


def own_shape(model: Any) -> tuple[int, ...] | None:
    """The `input_shape` of a model or its backbone, if it is known whole.

    >>> own_shape(nnx.Linear(2, 3, rngs=nnx.Rngs(0))) is None
    True
    """
    shape = getattr(model, "input_shape", None) or getattr(getattr(model, "backbone", None), "input_shape", None)
    known = isinstance(shape, tuple | list) and bool(shape) and all(isinstance(n, int) and n > 0 for n in shape)
    return tuple(int(n) for n in shape) if known and shape else None


def as_struct(example: Example) -> jax.ShapeDtypeStruct:
    """One example as shape and type; a shape alone is of float32, and a height and width of an RGB image.

    >>> as_struct((32, 48)), as_struct((16000,)).shape
    (ShapeDtypeStruct(shape=(32, 48, 3), dtype=float32), (16000,))
    """
    if hasattr(example, "shape") and hasattr(example, "dtype"):
        return jax.ShapeDtypeStruct(example.shape, example.dtype)
    shape: Any = tuple(example)
    if not all(isinstance(n, int) and not isinstance(n, bool) and n >= 1 for n in shape):
        raise ValueError(f"example: expected the shape of one example, such as (224, 224, 3), found {example!r}")
    return jax.ShapeDtypeStruct((*shape, 3) if len(shape) == 2 else shape, jnp.float32)


def batch_struct(example: Example, batch: int) -> jax.ShapeDtypeStruct:
    """The shape and type of a batch of examples."""
    one = as_struct(example)
    return jax.ShapeDtypeStruct((batch, *one.shape), one.dtype)


def output_shape(model: nnx.Module, example: Example) -> tuple[int, ...]:
    """The shape of what a model gives for one example, without running anything.

    Raises:
        ValueError: The model cannot be called with it, or gives no array with a row an example.

    >>> output_shape(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), (2,))
    (3,)
    """
    what, batch = model_name(model), batch_struct(example, 2)
    functional = functionalize(model)
    try:
        out = jax.eval_shape(lambda k, x: functional.apply(k, x, train=False)[0], _abstract(model), batch)
    except Exception as error:
        raise _cannot_be_called(what, batch, error) from error
    shape = getattr(out, "shape", None)
    if shape is None or shape[:1] != (2,):
        found = type(out).__name__ if shape is None else f"shape {shape} for a batch of 2"
        raise ValueError(f"{what}: expected an array with a row an example, found {found}")
    return tuple(shape[1:])


def program_digest(model: nnx.Module, example: Example) -> str:
    """SHA-256 (hex) of what a model computes for one example, from its program: it tells changed code apart."""
    functional, batch = functionalize(model), batch_struct(example, 2)

    def run(leaves: Any, x: Any) -> Any:
        return functional.apply(leaves, x, train=True), functional.apply(leaves, x, train=False)

    program = str(jax.make_jaxpr(run)(_abstract(model), batch))
    return digest(re.sub(r"0x[0-9a-f]+", "", program))


# The parts of a model.


def _found(model: nnx.Module) -> tuple[list[Layer], bool]:
    """The layers, and whether they stand in the order in which they run."""
    nodes: dict[int, Layer] = {}

    def walk(node: Any, path: tuple[Any, ...], unit: str, above: tuple[int, ...], chain: bool) -> tuple[int, bool]:
        """Adds the layers; returns how many parts were met, and whether their order is certain."""
        if id(node) in above:
            return 0, True
        named = None if isinstance(node, nnx.Variable) else getattr(node, "layer_names", None)
        if named is not None:
            for name in named:
                add(getattr(node, name), (*path, name), unit or join(path))
            return 1, True
        parts = children(node)
        inner = [(name, part) for name, part in parts if _holds(part, nnx.Module)]
        if isinstance(node, nnx.Variable) or (path and not inner and _is_one(node)):
            add(node, path, unit)
            return 1, True
        named_inside = {name for name, _ in inner}
        loose = [part for part in parts if part[0] not in named_inside and _holds(part[1], nnx.Variable)]
        chain = not loose and (type(node) is nnx.Sequential or (chain and isinstance(node, nnx.List | list | tuple)))
        walks = [walk(part, (*path, name), unit, (*above, id(node)), chain) for name, part in [*inner, *loose]]
        count = sum(n for n, _ in walks)
        return count, all(certain for _, certain in walks) and (count <= 1 or chain)

    def add(node: Any, path: tuple[Any, ...], unit: str) -> None:
        have = nodes.setdefault(id(node), Layer(node, (), unit))
        nodes[id(node)] = have._replace(names=(*have.names, join(path)))

    _, certain = walk(model, (), "", (), False)
    return list(nodes.values()), certain


def _is_one(node: Any) -> bool:
    return isinstance(node, nnx.Module) and not isinstance(node, nnx.List | nnx.Dict)


def _holds(part: Any, kind: type) -> bool:
    """Whether something is a module or variable, or a list or dictionary of some; random keys do not count."""
    if isinstance(part, nnx.Rngs | nnx.RngStream | nnx.RngState):
        return False
    if isinstance(part, nnx.List | nnx.Dict | list | tuple | dict):
        return any(_holds(inner, kind) for _, inner in children(part))
    return isinstance(part, kind)


# The trace.


class _Graph:
    """A model that is known by its structure, so that the same one is traced once."""

    def __init__(self, graph: Any, state: Any):
        self.graph, self.state = graph, jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)
        flat = jax.tree_util.tree_flatten_with_path(self.state)[0]
        self.key = (graph, tuple((jax.tree_util.keystr(path), x.shape, str(x.dtype)) for path, x in flat))

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Graph) and self.key == other.key


@lru_cache(16)
def _cached_places(graph: _Graph, example: jax.ShapeDtypeStruct, call: Call | None) -> Mapping[str, tuple[int, ...]]:
    return _places(nnx.merge(graph.graph, graph.state), example, call)


def _places(model: nnx.Module, example: jax.ShapeDtypeStruct, call: Call | None) -> Mapping[str, tuple[int, ...]]:
    """When each module is called first and each variable is used first, by path; later is larger."""
    calls: dict[str, int] = {}

    def note(path: str, out: Any) -> Any:
        calls.setdefault(path, len(calls) + 1)
        return out

    functional, leaves, batch = functionalize(model), _abstract(model), batch_struct(example, 1)

    def run(leaves: Any, batch: Any) -> Any:
        hooked: Any = with_hook(functional.module(leaves), note)
        out = call(hooked, batch) if call else hooked(batch)
        return [x for x in jax.tree.leaves(out) if isinstance(x, jax.Array)]

    try:
        jaxpr = jax.make_jaxpr(run)(leaves, batch).jaxpr
    except Exception as error:
        raise _cannot_be_called(model_name(model), batch, error) from error
    # A container ends after its parts, and its own operations lie between theirs: only innermost modules tell the time.
    outer = {path[: end.start()] for path in calls for end in re.finditer("/", path)}
    innermost = {path: k for path, k in calls.items() if path not in outer}
    paths = sorted(leaves)  # as JAX flattens them
    uses = _Uses(innermost)
    uses.follow(jaxpr, dict(zip(jaxpr.invars, paths, strict=False)))
    found: dict[str, tuple[int, ...]] = {path: (k,) for path, k in calls.items()}
    for path, names in names_of(model).items():
        if path in uses.first:
            for name in names:
                found[name] = uses.first[path]
                # A layer whose weights are used without calling it.
                above = name.rpartition("/")[0]
                if above not in calls:
                    found[above] = min(found.get(above, (_NEVER,)), uses.first[path])
    return found


class _Uses:
    """Where in a program the leaves are first used: (innermost modules called so far, 1, uses so far)."""

    def __init__(self, calls: Mapping[str, int]):
        self.calls, self.first, self.now = calls, {}, 0

    def follow(self, jaxpr: Any, paths: Mapping[Any, str]) -> None:
        for eqn in jaxpr.eqns:
            self.now = max(self.now, self.calls.get(layer_of(scope_of(eqn)) or "", 0))
            given = [paths.get(atom) if isinstance(atom, Var) else None for atom in eqn.invars]
            inner = [_opened(x) for value in eqn.params.values() for x in _several(value) if _opened(x) is not None]
            inside = [body for body in inner if len(body.invars) <= len(given)]
            for path in given if not inside else given[: -len(inside[0].invars) or None]:
                if path is not None:
                    self.first.setdefault(path, (self.now, 1, len(self.first)))
            for body in inside:
                # Constants and conditions come before what the body takes.
                known = zip(body.invars, given[len(given) - len(body.invars) :], strict=True)
                self.follow(body, {var: path for var, path in known if path is not None})


def _several(value: Any) -> Sequence[Any]:
    return value if isinstance(value, tuple | list) else (value,)


def _opened(value: Any) -> Any:
    if isinstance(value, ClosedJaxpr):
        return value.jaxpr
    return value if isinstance(value, Jaxpr) else None


def _abstract(model: nnx.Module) -> dict[str, Any]:
    return {path: jax.ShapeDtypeStruct(x.shape, x.dtype) for path, x in leaves_of(model).items()}


def _cannot_be_called(what: str, batch: jax.ShapeDtypeStruct, error: Exception) -> ValueError:
    text = re.sub(r"\s+", " ", (str(error).strip() or type(error).__name__).splitlines()[0])
    shape = ", ".join(map(str, batch.shape[1:]))
    return ValueError(f"{what} cannot be called with one input of shape (N, {shape}) and type {batch.dtype}: {text}")
