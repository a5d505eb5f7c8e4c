"""Which layers do not train, and what follows for gradients, optimizer and normalisation.

A `Freeze` is a specification that knows no model; `Freeze.resolve(model)` gives a `Frozen`, the same
choice spelt out in leaf paths. Gradients, the optax mask, BatchNorm and the staged frontier are all
derived from that one object.
"""

import fnmatch
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import jax
import optax
from flax import nnx

from cnnjax.functional import leaves_of, model_name, named_variables, names_of
from cnnjax.models.layer_order import Call, Example, Layer, layers_in_order, part_of
from cnnjax.models.layer_order import layers as unordered
from cnnjax.models.weightless import is_operation
from cnnjax.runtime.nearest import did_you_mean

T = TypeVar("T")


@dataclass(frozen=True)
class Freeze:
    """A specification of frozen layers. Build it with one of the constructors or `parse`.

    Example:
        >>> Freeze.depth(3), Freeze.through("block4_pool"), Freeze.parse("[:-4]")
        (Freeze('3'), Freeze('block4_pool'), Freeze('[:-4]'))
    """

    kind: Literal["depth", "all", "through", "slice", "match"]
    value: Any = field(default=None)

    @classmethod
    def none(cls) -> "Freeze":
        """Everything trains."""
        return cls("depth", 0)

    @classmethod
    def all(cls) -> "Freeze":
        """Nothing trains (a head put on top still does)."""
        return cls("all")

    @classmethod
    def depth(cls, layers: int) -> "Freeze":
        """The first `layers` layers that have a kernel, and all that lies before the next one.

        Kernels are counted as in the names VGG16 and ResNet-50: normalisation, activation and pooling
        belong to the convolution they follow.
        """
        if isinstance(layers, bool) or not isinstance(layers, int) or layers < 0:
            raise ValueError(f"a freezing depth is a whole number of layers from 0 on, not {layers!r}")
        return cls("depth", layers)

    @classmethod
    def through(cls, layer: str) -> "Freeze":
        """Every layer up to and including the one named, or the last of a stage or block: `block4`, `conv4_block2`.

        A stage is named by what its layers' names begin with, up to a number.
        """
        return cls("through", layer)

    @classmethod
    def slice(cls, start: int | None = None, stop: int | None = None) -> "Freeze":
        """Keras's `for layer in model.layers[start:stop]: layer.trainable = False`."""
        return cls("slice", (start, stop))

    @classmethod
    def match(cls, *patterns: str) -> "Freeze":
        """The layers whose names match a shell pattern (`conv_dw_*`); every pattern must match one."""
        if not patterns:
            raise ValueError("Freeze.match needs at least one pattern, such as 'conv_dw_*'")
        return cls("match", tuple(patterns))

    @classmethod
    def parse(cls, text: str) -> "Freeze":
        """Read what a person types: `none`, `all`, `5`, `[:-4]`, `block4_pool`, `conv_dw_*,conv1`."""
        text = text.strip()
        if text in ("none", "all"):
            return cls.none() if text == "none" else cls.all()
        if re.fullmatch(r"\d+", text):
            return cls.depth(int(text))
        if found := re.fullmatch(r"\[((?:-?\d+)?):((?:-?\d+)?)\]", text):
            start, stop = (int(part) if part else None for part in found.groups())
            return cls.slice(start, stop)
        if text.startswith("["):
            raise ValueError(f"{text!r} is no slice: write [start:stop], such as [:-4] or [2:]")
        if "," in text or any(c in text for c in "*?["):
            return cls.match(*(part.strip() for part in text.split(",") if part.strip()))
        if not text or text.startswith("-"):
            raise ValueError(f"{text!r} is no freeze: give none, all, a depth, [start:stop], a layer or a pattern")
        return cls.through(text)

    def __str__(self) -> str:
        """The text that `parse` reads back."""
        if self.kind == "depth":
            return str(self.value) if self.value else "none"
        if self.kind == "slice":
            start, stop = ("" if part is None else part for part in self.value)
            return f"[{start}:{stop}]"
        return {"all": "all", "match": ",".join(self.value or ()), "through": self.value}[self.kind]

    def __repr__(self) -> str:
        return f"Freeze({str(self)!r})"

    def resolve(
        self,
        model: nnx.Module,
        within: str = "",
        *,
        live_statistics: bool = True,
        example: Example | None = None,
        call: Call | None = None,
    ) -> "Frozen":
        """Spell the choice out for a model.

        Args:
            model: any Flax NNX module. Its layers are its `layer_names` if it has them (as our backbones do), otherwise
                every module without submodules, in the order in which they run (`layer_names` tells).
            within: the path of the submodule that the specification speaks of (`"backbone"`); everything
                outside it trains.
            live_statistics: whether normalisation layers that train also follow the batch, as in Keras; otherwise
                all those of the part run on their stored statistics, and only their scale and bias train.
            example: what the model takes, without the batch's axis: its shape, (H, W, C) for images. Depths, slices and
                "up to a layer" need it where the model has no `input_shape` (nor `layer_names`).
            call: how the model is called with a batch, if not by `model(batch)`.

        Raises:
            ValueError: if a name, a pattern or a depth does not fit the model, all faults in one message; or the order
                of the layers is needed, and the example is not known.
        """
        part = part_of(model, within)
        try:
            layers = layers_in_order(model, within, example=example, call=call)
        except ValueError:
            if self._needs_order:
                raise
            layers = unordered(part)
        chosen = self._choose(model_name(part), layers)
        prefix = f"{within}/" if within else ""
        # "all" names the whole part, so that nothing in it is left out.
        frozen = {within} if self.kind == "all" else {prefix + n for k in layers if k.name in chosen for n in k.names}
        if not live_statistics:
            statistics = (n for n, v in named_variables(part).items() if isinstance(v, nnx.BatchStat))
            frozen |= {prefix + name for name in statistics}
        names = tuple(layer.name for layer in layers if layer.name in chosen)
        found = Frozen(str(self), names, frozenset(frozen), tuple(leaves_of(model)))
        _refuse_half(found, model, within)
        return found

    @property
    def _needs_order(self) -> bool:
        return self.kind in ("slice", "through") or (self.kind == "depth" and self.value > 0)

    def _choose(self, what: str, layers: Sequence[Layer]) -> set[str]:
        names = [layer.name for layer in layers]
        # A shared layer is one layer, as in Keras: it is frozen under all of its names or under none.
        called = {name: layer.name for layer in layers for name in layer.names}
        if self.kind == "all":
            return set(names)
        if self.kind == "match":
            hits = {p: fnmatch.filter(called, p) for p in self.value}
            missed = [f"  {p!r} matches no layer{_nearest(p, called)}" for p, found in hits.items() if not found]
            if missed:
                raise ValueError(f"patterns that match nothing in {what}:\n" + "\n".join(missed))
            return {called[name] for found in hits.values() for name in found}
        if self.kind == "slice":
            counted = [layer.name for layer in layers if not is_operation(layer.node)]
            return set(counted[slice(*self.value)])
        if self.kind == "through":
            inside = {own for name, own in called.items() if name == self.value or name.startswith(f"{self.value}/")}
            if not inside and re.search(r"\d[a-z]?$", self.value):  # a stage or block: stage3, conv4_block2, block3a
                of_stage = re.compile(rf"{re.escape(self.value)}[a-z]?_")
                inside = {own for name, own in called.items() if of_stage.match(name)}
            if not inside:
                raise ValueError(f"no layer {self.value!r} in {what}{_nearest(self.value, called)}")
            return set(names[: max(names.index(name) for name in inside) + 1])
        kernels = [k for k, layer in enumerate(layers) if _has_kernel(layer.node)]
        if self.value > len(kernels):
            raise ValueError(
                f"cannot freeze {self.value} layers of {what}: it has {len(kernels)} layers with a kernel"
                f"{f' ({names[kernels[0]]} to {names[kernels[-1]]})' if kernels else ''}"
            )
        stop = [*kernels, len(names)][self.value] if self.value else 0
        return set(names[:stop])


def _refuse_half(frozen: "Frozen", model: nnx.Module, within: str) -> None:
    """An array that several layers share is frozen or trains; it cannot do both."""
    faults = []
    for path, names in names_of(model).items():
        cold = [name for name in names if frozen.is_frozen(name)]
        warm = [name for name in names if name not in cold]
        if cold and warm and path not in leaves_of(model, nnx.RngState):
            trains = f"{_layer_of(warm[0])} trains"
            if within and not f"{warm[0]}/".startswith(f"{within}/"):
                trains += f", as all does outside of {within}"
            faults.append(f"  {cold[0]} is {warm[0]} too: {_layer_of(cold[0])} is to be frozen, and {trains}")
    if faults:
        raise ValueError(
            f"Freeze({frozen.label!r}) freezes arrays that layers which train share:\n"
            + "\n".join(faults)
            + "\nfreeze both layers, or neither, or give each its own array"
        )


def _layer_of(leaf: str) -> str:
    return leaf.rpartition("/")[0] or leaf


@dataclass(frozen=True)
class Frozen:
    """A resolved `Freeze`: which leaves of one model are frozen.

    Attributes:
        label: the specification's text.
        layers: the frozen layers' names, in the order in which they run where that is known.
    """

    label: str
    layers: tuple[str, ...]
    _paths: frozenset[str]
    _leaves: tuple[str, ...]

    def is_frozen(self, path: str) -> bool:
        """Whether the leaf or module at `path` (`"backbone/conv1/kernel"`) is frozen."""
        while path and path not in self._paths:
            path = path.rpartition("/")[0]
        return path in self._paths

    def __call__(self, path: str) -> bool:
        return self.is_frozen(path)

    def partition(self, leaves: Mapping[str, T]) -> tuple[dict[str, T], dict[str, T]]:
        """Split a dictionary of leaves into (trainable, frozen)."""
        trainable = {p: v for p, v in leaves.items() if not self.is_frozen(p)}
        return trainable, {p: v for p, v in leaves.items() if self.is_frozen(p)}

    def mask(self, tree: Any) -> Any:
        """True where a leaf of `tree` (flat, nested or an NNX state) trains: an optax mask."""
        return jax.tree_util.tree_map_with_path(lambda keys, _: not self.is_frozen(_path(keys)), tree)

    def optimizer(self, transform: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
        """`transform` for a whole parameter tree: frozen leaves get no state and an update of zero.

        The transform sees the trainable leaves alone, so a global clip is not distorted by frozen
        gradients. (`optax.masked` alone would pass the frozen gradients through and move the weights.)

        Example:
            >>> model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
            >>> tx = Freeze.all().resolve(model).optimizer(optax.adam(1e-3))
            >>> sum(x.size for x in jax.tree.leaves(tx.init(leaves_of(model))))
            0
        """

        def labels(tree: Any) -> Any:
            return jax.tree.map(lambda trains: "trainable" if trains else "frozen", self.mask(tree))

        # An optimizer over no leaves would still hold its step counter.
        trains = not all(self.is_frozen(path) for path in self._leaves)
        chosen = transform if trains else optax.set_to_zero()
        return optax.partition({"trainable": chosen, "frozen": optax.set_to_zero()}, labels)


def layer_names(
    model: nnx.Module, within: str = "", *, example: Example | None = None, call: Call | None = None
) -> tuple[str, ...]:
    """The layers of a model in order: its `layer_names` if it has them, otherwise its innermost modules as they run.

    The order is found by tracing the model once with abstract values (`cnnjax.models.layer_order`). Parameters that
    belong to a module with submodules (a class token, a layer's scale) stand for themselves, where they are first used.
    A layer that is used twice is one layer, as in Keras; it stands where it runs first. One with several names bears
    the name that its leaves have in `leaves_of`. A layer that does not run comes last.

    Args:
        model: any Flax NNX module.
        within: the path of a part, whose layers are wanted.
        example: what the model takes, without the batch's axis: its shape, (H, W, C) for images; the model's own
            `input_shape` if not given.
        call: how the model is called with a batch, if not by `model(batch)`.

    Raises:
        ValueError: the order has to be traced, and the example is not known or does not fit.

    Example:
        >>> layer_names(nnx.Sequential(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), nnx.BatchNorm(3, rngs=nnx.Rngs(0))))
        ('layers/0', 'layers/1')
    """
    return tuple(layer.name for layer in layers_in_order(model, within, example=example, call=call))


def num_weighted_layers(model: nnx.Module) -> int:
    """The number of layers that have a kernel: the greatest `Freeze.depth` of a model.

    Example:
        >>> num_weighted_layers(nnx.Sequential(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), nnx.BatchNorm(3, rngs=nnx.Rngs(0))))
        1
    """
    return sum(_has_kernel(layer.node) for layer in unordered(model))


def _has_kernel(layer: Any) -> bool:
    if isinstance(layer, nnx.Variable):
        return False
    return any(x.ndim >= 2 for x in jax.tree.leaves(nnx.state(layer, nnx.Param)))


def _nearest(name: str, names: Iterable[str]) -> str:
    names = list(names)
    return did_you_mean(name, names, 0.3) or f"; its layers are {', '.join(names[:8])}, ..."


def _path(keys: tuple[Any, ...]) -> str:
    parts = (getattr(k, "key", getattr(k, "name", getattr(k, "idx", k))) for k in keys)
    return "/".join(str(part) for part in parts)
