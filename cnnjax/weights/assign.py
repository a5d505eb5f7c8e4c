"""Put the tensors of a file onto a backbone: everything fits, or nothing changes and one error says why."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from os import PathLike
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from cnnjax.models.backbone import Backbone
from cnnjax.models.layers import DepthwiseConv2D, LayerScale, Normalization, SeparableConv2D
from cnnjax.runtime.nearest import nearest
from cnnjax.weights.hdf5 import Tensors, WeightsError, read_tensors

_WHATEVER = "*"  # a tensor without a name of its own: variable, variable_1, Variable
# Keras's names of the leaves of each kind of layer, where they are not ours.
_NAMES: tuple[tuple[Any, Mapping[str, tuple[str, ...]]], ...] = (
    (
        nnx.BatchNorm | nnx.LayerNorm | nnx.GroupNorm,
        {"scale": ("gamma",), "bias": ("beta",), "mean": ("moving_mean",), "var": ("moving_variance",)},
    ),
    (Normalization, {"mean": ("mean",), "var": ("variance",)}),
    (LayerScale, {"gamma": ("gamma", _WHATEVER)}),
)
_SEPARABLE = {"depthwise/kernel": "depthwise_kernel", "pointwise/kernel": "pointwise_kernel", "pointwise/bias": "bias"}
_UNUSED = "count"  # how many examples Keras's Normalization has seen, which nothing depends on


@dataclass(frozen=True)
class LoadReport:
    """What became of a file's tensors.

    Attributes:
        path: The file.
        loaded: Paths of the leaves that were filled, which are all the model has: `conv1/kernel`,
            `conv1_bn/mean`.
        left_out: Tensors of the file that were left out on request: `conv_preds/kernel`.
    """

    path: Path
    loaded: tuple[str, ...]
    left_out: tuple[str, ...]

    def __str__(self) -> str:
        """Return one line to print."""
        without = f", without {', '.join(self.left_out)}" if self.left_out else ""
        return f"{len(self.loaded)} tensors from {self.path}{without}"


def load_weights(model: Backbone, path: str | PathLike[str], *, leave_out: str | Iterable[str] = ()) -> LoadReport:
    """Fill every leaf of `model` from a file in Keras's legacy HDF5.

    Strict both ways: every parameter and every BatchNorm statistic is filled, every tensor of the file is
    used or left out on request (but the number of examples that Keras's `Normalization` has seen, of which nothing
    depends). Values change; structure, shapes and types do not. Nothing is assigned before everything has been
    checked. Leaves may be abstract (`nnx.eval_shape(lambda: mobilenet(...))`), so that nothing is initialised for
    nothing.

    Args:
        model: The backbone.
        path: The file, read by `cnnjax.weights.hdf5.read_tensors`. A slash in a layer's name is an underscore here.
        leave_out: "top": whatever the file has after the last of the model's layers, if anything (the
            classification layers of a file with top, for a model without). Or layer names or patterns
            (`block5_*`), each of which must match a layer of the file.

    Returns:
        What was loaded and what was left out.

    Raises:
        WeightsError: The file cannot be read, or it does not fit; then all misfits are named and the model
            is as it was.
    """
    path = Path(path)
    tensors = _as_attributes(path, {layer: named for layer, named in read_tensors(path).items() if named})
    for name in set(tensors) & set(model.layer_names):
        if isinstance(getattr(model, name), Normalization):
            tensors[name].pop(_UNUSED, None)
    leaves = {name: found for name in model.layer_names if (found := _leaves(getattr(model, name)))}
    dropped = _left_out(path, tensors, leaves, leave_out)
    used = {layer: named for layer, named in tensors.items() if layer not in dropped}

    faults = _misfits(leaves, used)
    if faults:
        hint = _hint(model, leaves, used)
        raise WeightsError("\n  ".join([f"{path} does not fit the model{hint}; nothing was loaded:", *faults]))

    loaded = []
    for layer, found in leaves.items():
        for name, leaf in found.items():
            _fill(leaf, _values(leaf, used[layer]))
            loaded.append(f"{layer}/{name}")
    left_out = tuple(f"{layer}/{name}" for layer in dropped for name in tensors[layer])
    return LoadReport(path, tuple(loaded), left_out)


def _as_attributes(path: Path, tensors: Tensors) -> Tensors:
    """The tensors by names that a layer of ours can have: `fire2/expand1x1` is `fire2_expand1x1`."""
    renamed: dict[str, str] = {}
    for layer in tensors:
        other = renamed.setdefault(layer.replace("/", "_"), layer)
        if other != layer:
            raise WeightsError(f"{path}: {other!r} and {layer!r} would be one layer here, {layer.replace('/', '_')!r}")
    return {name: tensors[layer] for name, layer in renamed.items()}


@dataclass(frozen=True)
class _Leaf:
    """One variable of the model, with the names and the shape that Keras gives it."""

    variable: nnx.Variable
    names: tuple[str, ...]
    shape: tuple[int, ...]

    def called(self, named: Mapping[str, Any]) -> str | None:
        """Return the name under which the file has it, if it does."""
        if _WHATEVER in self.names and len(named) == 1:
            return next(iter(named))
        return next((name for name in self.names if name in named), None)


def _leaves(layer: nnx.Module) -> dict[str, _Leaf]:
    flat = nnx.to_flat_state(nnx.state(layer, nnx.Any(nnx.Param, nnx.BatchStat)))
    return {name: _leaf(layer, name) for name in ("/".join(map(str, path)) for path, _ in flat)}


def _leaf(layer: nnx.Module, name: str) -> _Leaf:
    *inside, short = name.split("/")
    owner: Any = layer
    for part in inside:
        owner = getattr(owner, part)
    variable = getattr(owner, short)
    shape = tuple(variable.get_value().shape)
    names = next((known[short] for kind, known in _NAMES if isinstance(owner, kind)), (short,))
    if short == "kernel" and isinstance(owner, DepthwiseConv2D):
        # In Keras [h, w, channels, multiplier], and since version 3 just "kernel".
        names = ("depthwise_kernel", "kernel")
        shape = (*shape[:2], owner.feature_group_count, shape[3] // owner.feature_group_count)
    if isinstance(layer, SeparableConv2D):
        names = (_SEPARABLE[name],)
    elif inside:  # of a Sequential that is one layer
        names = (*names, *(f"{'/'.join(inside)}/{other}" for other in names))
    return _Leaf(variable, names, shape)


def _left_out(path: Path, tensors: Tensors, leaves: Mapping[str, Any], leave_out: str | Iterable[str]) -> list[str]:
    order = list(tensors)
    if leave_out == "top":
        last = max((order.index(layer) for layer in leaves if layer in tensors), default=len(order))
        return order[last + 1 :]
    patterns = [leave_out] if isinstance(leave_out, str) else list(leave_out)
    if useless := [pattern for pattern in patterns if not any(fnmatchcase(layer, pattern) for layer in order)]:
        named = ", ".join(f"{pattern!r}{_nearest(pattern, order)}" for pattern in useless)
        raise WeightsError(f"{path}: no layer of the file with tensors matches what should be left out: {named}")
    return [layer for layer in order if any(fnmatchcase(layer, pattern) for pattern in patterns)]


def _misfits(leaves: Mapping[str, Mapping[str, _Leaf]], used: Tensors) -> list[str]:
    faults = []
    for layer, named in used.items():
        if layer not in leaves:
            shapes = ", ".join(f"{name} {values.shape}" for name, values in named.items())
            near = _nearest(layer, [name for name in leaves if name not in used])
            faults.append(f"layer {layer!r} of the file ({shapes}) is not in the model{near}, nor left out")
    for layer, found in leaves.items():
        if layer not in used:
            shapes = ", ".join(f"{leaf.names[0]} {leaf.shape}" for leaf in found.values())
            near = _nearest(layer, [name for name in used if name not in leaves])
            faults.append(f"layer {layer!r} of the model ({shapes}) gets nothing from the file{near}")
        else:
            faults += _layer_misfits(layer, found, used[layer])
    return faults or _contradictions(leaves, used)


def _contradictions(leaves: Mapping[str, Mapping[str, _Leaf]], used: Tensors) -> list[str]:
    """What several layers of the model share gets the same from each of the file's."""
    faults, first = [], {}
    for layer, found in leaves.items():
        for leaf in found.values():
            place, values = f"{layer}/{leaf.called(used[layer])}", _values(leaf, used[layer])
            before, have = first.setdefault(id(leaf.variable), (place, values))
            if not np.array_equal(have.ravel(), values.ravel()):
                faults.append(f"{before} and {place} are one array in the model, and differ in the file")
    return faults


def _values(leaf: _Leaf, named: Mapping[str, np.ndarray]) -> np.ndarray:
    found = leaf.called(named)
    assert found is not None
    return named[found]


def _layer_misfits(layer: str, found: Mapping[str, _Leaf], named: Mapping[str, np.ndarray]) -> list[str]:
    faults = []
    taken = {leaf.called(named) for leaf in found.values()}
    spare = [name for name in named if name not in taken]
    wanted = [leaf for leaf in found.values() if leaf.called(named) is None]
    for leaf in wanted:
        faults.append(
            f"{layer}/{leaf.names[0]} {leaf.shape} of the model is not in the file" + _nearest(leaf.names[0], spare)
        )
    for name in spare:
        near = _nearest(name, [other for leaf in wanted for other in leaf.names])
        faults.append(f"{layer}/{name} {named[name].shape} of the file is not in the model{near}")
    for leaf in found.values():
        name = leaf.called(named)
        if name is None:
            continue
        values, dtype = named[name], leaf.variable.get_value().dtype
        if values.shape != leaf.shape:
            faults.append(f"{layer}/{name} is {values.shape} in the file, {leaf.shape} in the model")
        elif not np.can_cast(values.dtype, dtype):
            faults.append(f"{layer}/{name} is {values.dtype} in the file, {dtype} in the model, which is narrower")
        elif bad := values.size - np.count_nonzero(np.isfinite(values)):
            faults.append(f"{layer}/{name} {values.shape} has {bad} values in the file that are NaN or infinite")
    return faults


def _hint(model: Backbone, leaves: Mapping[str, Mapping[str, _Leaf]], used: Tensors) -> str:
    if not any(layer in used for layer in leaves):
        return " (no layer in common: weights of another architecture?)"
    widths = [
        (leaf.shape[0], used[layer]["gamma"].shape[0])
        for layer, found in leaves.items()
        for leaf in found.values()
        if "gamma" in leaf.names and used.get(layer, {}).get("gamma", np.zeros(())).ndim == 1
    ]
    mine, theirs = max(widths, default=(0, 0))
    if model.alpha is None or mine == theirs:
        return ""
    return f" (the file looks like alpha {model.alpha * theirs / mine:.2g}, the model has alpha {model.alpha:g})"


def _nearest(name: str, others: Iterable[str]) -> str:
    near = nearest(name, others, 0.6)
    return f" (nearest there: {near!r})" if near else ""


def _fill(leaf: _Leaf, values: np.ndarray) -> None:
    old = leaf.variable.get_value()
    new = jnp.array(values.reshape(old.shape), dtype=old.dtype)
    leaf.variable.set_value(jax.device_put(new, old.sharding) if getattr(old, "committed", False) else new)
