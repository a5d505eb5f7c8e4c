"""Measures a model for its table, as Keras prints it, with what nobody else prints."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from cnnjax.freeze import Freeze, Frozen, layer_names
from cnnjax.functional import Functional, children, functionalize, join, leaves_of, model_name, modules, names_of
from cnnjax.models.backbone import Backbone
from cnnjax.models.layer_order import Example
from cnnjax.models.layer_order import layers as unordered
from cnnjax.summaries.frontier import Frontier, frontier
from cnnjax.summaries.measure import Call, Measured, known_shape, measure
from cnnjax.summaries.table import Layer, Summary

_NOT_WEIGHTS = (nnx.RngState, nnx.Cache, nnx.Intermediate)


def summary(
    model: nnx.Module,
    *,
    input_shape: Sequence[int] | None = None,
    freeze: Freeze | Frozen | str | None = None,
    dtype: Any = jnp.float32,
    call: Call | None = None,
) -> Summary:
    """Measure a model layer by layer, without running it.

    Layers, names, shapes and parameters are those of Keras's `model.summary()` for our architectures. Any
    NNX model can be summarised: its layers are its innermost modules as they run (`cnnjax.freeze.layer_names`). A
    module that multiplies outside of them (attention) has a line of its own behind them. What cannot be known (the
    shape of a layer that is not called, a receptive field through attention) is blank.

    Args:
        model: Any NNX module; its leaves may be abstract (`nnx.eval_shape`).
        input_shape: Of one example, (H, W, C) for images; the model's own if it has an `input_shape`.
            Without either, shapes and multiplications are blank.
        freeze: What is frozen: a `Freeze`, its text ("block4_pool", "[:-4]") or a resolved `Frozen`. In a
            model with a `backbone` it speaks of that.
        dtype: Of the input.
        call: How the model is called with a batch, if not by `model(x)`: `lambda m, x: m(x, train=False)`.

    Raises:
        ValueError: The freeze does not fit the model, `input_shape` is no shape, or the model cannot be called
            with it.

    >>> from cnnjax.models import lecture_cnn
    >>> table = summary(lecture_cnn(rngs=nnx.Rngs(0)))
    >>> table.parameters, table.layer("conv2d_2").output_shape, table.layer("conv2d_2").parameters
    (3453121, (None, 72, 72, 64), 18496)
    """
    if not isinstance(model, nnx.Module):
        raise ValueError(f"summary takes a Flax NNX module, found {type(model).__name__}: {model!r:.60}")
    shape = known_shape(model, input_shape)
    frozen = _resolved(model, freeze, shape and jax.ShapeDtypeStruct(shape, dtype), call)
    functional = functionalize(model)
    measured = measure(model, shape, dtype, call) if shape else {}
    cut = frontier(model, frozen, shape, dtype, call) if shape and frozen.layers else None
    leaves = leaves_of(model)
    kinds = {"": type(model).__name__, **{path: type(module).__name__ for path, module in modules(model)}}
    weights = [path for path, kind in functional.kinds.items() if not issubclass(kind, _NOT_WEIGHTS)]
    kinds |= {path: functional.kinds[path].__name__ for path in weights}
    order = _order(model, shape and jax.ShapeDtypeStruct(shape, dtype), call)
    layers = _layers(model, order, kinds, weights)
    measured = _gathered(measured, layers)
    rows, reads = [], _reads(model)
    for name in _rows(list(layers), measured):
        row = _row(name, kinds, layers.get(name, []), leaves, functional, frozen, measured, cut)
        rows.append(replace(row, reads=reads.get(name, ())))
    nbytes = sum(leaves[path].size * leaves[path].dtype.itemsize for path in weights)
    return Summary(model_name(model), tuple(rows), nbytes, _total(measured), frozen.label, cut)


def _row(
    name: str,
    kinds: dict[str, str],
    weights: list[str],
    leaves: dict[str, Any],
    functional: Functional,
    frozen: Frozen,
    measured: dict[str, Measured],
    cut: Frontier | None,
) -> Layer:
    parameters = set(functional.parameters())
    found = measured.get(name)
    views = found.views[1:] if found and found.views else ()
    return Layer(
        name=name or f"({kinds['']})",
        kind=kinds[name],
        output_shape=found.shape if found else None,
        parameters=sum(leaves[path].size for path in weights),
        trainable=sum(leaves[path].size for path in weights if path in parameters and not frozen(path)),
        multiplications=found.multiplications if found else None,
        fields=tuple(view.field if view else None for view in views),
        once=cut.once.get(name) if cut else None,
    )


def _reads(model: nnx.Module) -> dict[str, tuple[str, ...]]:
    """What the layers of the model's graphs with branches read."""
    found = {}
    for path, module in [("", model), *modules(model)]:
        if isinstance(module, Backbone) and module.branches:
            before = f"{path}/" if path else ""
            for name, reads in zip(module.layer_names, module.layer_inputs, strict=True):
                found[before + name] = tuple(before + read for read in reads if read)
    return found


def _order(model: nnx.Module, example: Example | None, call: Call | None) -> tuple[str, ...]:
    """The layers as they run; by their paths where no input is known."""
    try:
        return layer_names(model, example=example, call=call)
    except ValueError:
        if example is not None:
            raise
        return tuple(layer.name for layer in unordered(model))


def _layers(
    model: nnx.Module, order: Sequence[str], kinds: dict[str, str], weights: Sequence[str]
) -> dict[str, list[str]]:
    """The layers with their weights, each once, and the weights that stand in none of them."""
    if len(kinds) == 1 + sum(path in kinds for path in weights):
        return {"": list(weights)}  # the model is one layer
    layers, paths, names, free = {}, list(_paths(model).values()), names_of(model), list(weights)
    for name in order:
        # NNX knows a shared layer's weights by one of its names, which need not be the first; so do `kinds`.
        places = next((every for every in paths if name in every), [name])
        # What is no weight (a cache) has no line.
        if known := next((place for place in places if place in kinds), None):
            layers[known] = [p for p in free if any(_within(n, place) for n in names[p] for place in places)]
            free = [p for p in free if p not in layers[known]]  # what layers share counts once, in the first of them
    return layers | {p: [p] for p in free}


def _within(path: str, place: str) -> bool:
    return path == place or path.startswith(f"{place}/")


def _paths(model: nnx.Module) -> dict[int, list[str]]:
    """Every path to every module, shared ones under several."""
    found: dict[int, list[str]] = {}

    def walk(node: Any, path: tuple[Any, ...], above: tuple[int, ...]) -> None:
        if id(node) in above:
            return
        if path and isinstance(node, nnx.Module):
            found.setdefault(id(node), []).append(join(path))
        for name, child in children(node):
            walk(child, (*path, name), (*above, id(node)))

    walk(model, (), ())
    return found


def _total(measured: dict[str, Measured]) -> int | None:
    counts = [found.multiplications for found in measured.values()]
    known = [n for n in counts if n is not None]
    return sum(known) if measured and len(known) == len(counts) else None


def _gathered(measured: dict[str, Measured], layers: Iterable[str]) -> dict[str, Measured]:
    """What is inside of a layer (a separable convolution has two) counts as that layer's."""
    gathered, names = {path: replace(found) for path, found in measured.items()}, set(layers) - {""}
    for path, inner in measured.items():
        above = [path[:k] for k, sign in enumerate(path) if sign == "/" and path[:k] in names]
        if not above or path in names or above[0] not in gathered:
            continue
        own, count = gathered[above[0]], inner.multiplications
        known = own.multiplications is not None and count is not None
        own.multiplications = own.multiplications + count if known else None
        del gathered[path]
    return gathered


def _rows(names: Sequence[str], measured: dict[str, Measured]) -> list[str]:
    """The layers, and each larger module that multiplies by itself behind the last of its layers."""
    rows = list(names)
    own = [p for p, found in measured.items() if p not in names and found.multiplications != 0]
    for path in sorted(own, key=len, reverse=True):
        inside = [k for k, name in enumerate(rows) if not path or name.startswith(f"{path}/")]
        rows.insert(inside[-1] + 1 if inside else len(rows), path)
    return rows


def _resolved(model: Any, freeze: Freeze | Frozen | str | None, example: Example | None, call: Call | None) -> Frozen:
    if isinstance(freeze, Frozen):
        return freeze
    chosen = Freeze.parse(freeze) if isinstance(freeze, str) else freeze or Freeze.none()
    within = "backbone" if isinstance(getattr(model, "backbone", None), nnx.Module) else ""
    return chosen.resolve(model, within=within, example=example, call=call)
