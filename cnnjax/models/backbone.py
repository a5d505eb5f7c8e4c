"""A graph of named layers, and the classifier made of a backbone and a head."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import ArrayLike

from cnnjax.models.layers import Conv2D, DepthwiseConv2D, ZeroPadding2D
from cnnjax.models.preprocessing import checked_preprocessing, preprocess
from cnnjax.models.weightless import Pairs, is_operation
from cnnjax.runtime.nearest import did_you_mean, unknown

Shape = tuple[int | None, ...]
INPUT = ""
"""What a layer reads that reads the backbone's own input."""


class _Step(NamedTuple):
    """A layer to run, what it reads, and the zeros that it puts around that itself."""

    name: str
    reads: tuple[str, ...]
    padding: Pairs | None = None


def depth_order(inputs: Mapping[str, Sequence[str]], end: str) -> tuple[str, ...]:
    """The layers that `end` needs in Keras's order: by the longest way to `end`, then as a walk from `end` meets them.

    Args:
        inputs: By layer, the layers that it reads; each layer after all that it reads.
        end: The last layer.

    Source: `map_graph` in keras/src/ops/function.py.

    >>> block = {"a": ("",), "b": ("a",), "c": ("b",), "shortcut": ("a",), "add": ("shortcut", "c"), "unused": ("a",)}
    >>> depth_order(block, "add")
    ('a', 'b', 'shortcut', 'c', 'add')
    """
    met: dict[str, int] = {}
    stack = [end]
    while stack:
        name = stack.pop()
        if name != INPUT and name not in met:
            met[name] = len(met)
            stack += reversed(inputs[name])
    depths = dict.fromkeys(met, 0)
    for name in reversed(list(inputs)):
        for read in inputs[name] if name in met else ():
            if read != INPUT:
                depths[read] = max(depths[read], depths[name] + 1)
    return tuple(sorted(met, key=lambda name: (-depths[name], met[name])))


class Backbone(nnx.Module):
    """A graph of layers under Keras's names, with one input and one output; a chain if nothing else is said.

    Each layer is an attribute under its own name, so leaves have paths like `conv_pw_13/kernel` and
    `conv1_bn/mean`; each also carries its name as `layer.name`. A layer stands in one place only: nothing
    is shared, so NNX's tree mode works too. `cnnjax.models.graph.Graph` builds them.

    Args:
        layers: Names and modules, each after all that it reads; the last one is the end.
        input_shape: The shape of one example, (H, W, C) for images; None where any size will do.
        inputs: By layer, the names of the layers that it reads ("" is the backbone's own input). A chain if not given.
        alpha: The width multiplier, for architectures that have one.
        name: What it is called in tables and images.

    Attributes:
        layer_names: The layers' names in Keras's order (`depth_order`), input and weightless layers included.
        layer_inputs: For each of them, the names of the layers that it reads.
        input_shape, alpha, name: As given.

    Raises:
        ValueError: Names or modules are used twice, or a layer reads what does not come before it, or does not lead to
            the last one.

    >>> from cnnjax.models.layers import Flatten, dense
    >>> named = [("flatten", Flatten()), ("dense", dense(12, 5, rngs=nnx.Rngs(0)))]
    >>> model = Backbone(named, input_shape=(2, 2, 3))
    >>> model.layer_names, model.output_shape(), model.dense.kernel.shape
    (('flatten', 'dense'), (5,), (12, 5))
    """

    def __init__(
        self,
        layers: Iterable[tuple[str, Any]],
        *,
        input_shape: Shape,
        inputs: Mapping[str, Sequence[str]] | None = None,
        alpha: float | None = None,
        name: str = "backbone",
    ):
        named = tuple(layers)
        if not named:
            raise ValueError("a backbone needs at least one layer")
        names = [name for name, _ in named]
        if inputs is None:
            inputs = dict(zip(names, [(INPUT,), *((name,) for name in names)], strict=False))
        reads = {name: tuple(inputs[name]) for name in names}
        order = _checked_order(reads, names)
        self.input_shape = tuple(input_shape)
        self.layer_names = order
        self.layer_inputs = tuple(reads[name] for name in order)
        self.alpha = alpha
        self.name = name
        places: dict[int, str] = {}
        for name, layer in named:
            if not name.isidentifier() or name in vars(self) or hasattr(Backbone, name):
                raise ValueError(f"layer name {name!r} is used twice, taken by Backbone, or no Python name")
            if id(layer) in places:
                raise ValueError(f"layers {places[id(layer)]!r} and {name!r} are one and the same module")
            places[id(layer)] = name
            layer.name = name
            setattr(self, name, layer)

    if TYPE_CHECKING:  # layers are attributes that only the constructor's caller knows

        def __getattr__(self, name: str) -> Any: ...

    @property
    def layers(self) -> tuple[Any, ...]:
        """The layers in Keras's order: `len(model.layers)`, `model.layers[:-4]` mean what they mean there.

        Arithmetic on tensors, which Keras does not list among them, is left out (`Graph.operation`).
        """
        found = (getattr(self, name) for name in self.layer_names)
        return tuple(layer for layer in found if not is_operation(layer))

    def get_layer(self, name: str) -> Any:
        """Return the layer of that name.

        Raises:
            LookupError: There is none; the nearest name is given.
        """
        self._position(name)
        return getattr(self, name)

    @property
    def branches(self) -> bool:
        """Whether it is more than a chain: whether a layer reads anything but the one before it."""
        before = (INPUT, *self.layer_names)
        return any(reads != (name,) for reads, name in zip(self.layer_inputs, before, strict=False))

    def ends_at(self, name: str) -> "Backbone":
        """Return a backbone that ends with that layer (included). It is a copy and shares nothing.

        It has the layers that this one needs, in the order of Keras's `Model(inputs, layer.output)`.

        Raises:
            LookupError: There is no such layer; the nearest name is given.
        """
        self._position(name)
        graphdef, state = nnx.split(self)
        copy = nnx.merge(graphdef, jax.tree.map(jnp.copy, state))
        inputs = dict(zip(self.layer_names, self.layer_inputs, strict=True))
        kept = depth_order(inputs, name)
        return Backbone(
            [(n, getattr(copy, n)) for n in kept],
            input_shape=self.input_shape, inputs={n: inputs[n] for n in kept}, alpha=self.alpha, name=self.name,
        )  # fmt: skip

    def __call__(self, x: ArrayLike) -> jax.Array:
        """Run every layer on f32[N, *input_shape].

        Raises:
            ValueError: Rank, channels or size do not fit, or the images are too small for some layer.
        """
        return self.activations(x, self.layer_names[-1:])[self.layer_names[-1]]

    def activations(self, x: ArrayLike, names: Iterable[str]) -> dict[str, jax.Array]:
        """Run the layers up to the last one named and return the outputs of the named ones.

        Args:
            x: f32[N, *input_shape].
            names: Names of layers, in any order.

        Raises:
            LookupError: There is no such layer; the nearest name is given.
            ValueError: `x` does not fit, as in calling the backbone.
        """
        names = tuple(names)
        out = jnp.asarray(x)
        shape, values, found = out.shape, {INPUT: out}, {}
        steps = self._steps(names)
        self.check_shape(shape)
        readers = Counter(read for step in steps for read in step.reads)
        for name, reads, padding in steps:
            layer, given = getattr(self, name), [values[read] for read in reads]
            with jax.named_scope(name):
                out = layer(*given) if padding is None else layer.of_padded(*given, padding)
            if 0 in out.shape[1:]:
                raise ValueError(
                    f"input of shape {shape[1:]} is too small: layer {name!r} leaves {out.shape[1:]} of it"
                )
            if name in names:
                found[name] = out
            values[name] = out
            readers.subtract(reads)
            for read in reads:
                if not readers[read]:  # what nobody reads any more need not be held
                    values.pop(read, None)
        return {name: found[name] for name in names}

    def _steps(self, names: Sequence[str]) -> list[_Step]:
        """What has to run for the layers of these names, in order."""
        for name in names:
            self._position(name)
        reads = dict(zip(self.layer_names, self.layer_inputs, strict=True))
        needed = set(names)
        for name in reversed(self.layer_names):
            needed.update(reads[name] if name in needed else ())
        readers = Counter(read for name in needed - {INPUT} for read in reads[name])
        steps: dict[str, _Step] = {}
        for name in self.layer_names:
            if name not in needed:
                continue
            first, layer = reads[name][0], getattr(self, name)
            # Nobody looks at zeros that only this layer reads: it can put them there itself.
            if (
                first in steps
                and first not in names
                and readers[first] == 1
                and _belongs_to(layer, getattr(self, first))
            ):
                steps[name] = _Step(name, steps.pop(first).reads, getattr(self, first).padding)
            else:
                steps[name] = _Step(name, reads[name])
        return list(steps.values())

    def output_shape(self, input_shape: tuple[int, ...] | None = None) -> tuple[int, ...]:
        """Return the shape of one example's output, without running anything.

        Args:
            input_shape: The shape of one example; the backbone's own where it is not given.

        Raises:
            ValueError: The backbone takes any size and none was given, or the shape does not fit.
        """
        shape = self.input_shape if input_shape is None else tuple(input_shape)
        if None in shape:
            raise ValueError(f"this backbone takes inputs of shape {self.input_shape}: give output_shape a size")
        graphdef, state = nnx.split(self)
        out = jax.eval_shape(
            lambda s, x: nnx.merge(graphdef, s)(x), state, jax.ShapeDtypeStruct((1, *shape), jnp.float32)
        )
        return out.shape[1:]

    def _position(self, name: str) -> int:
        if name not in self.layer_names:
            raise LookupError(unknown("layer", name, self.layer_names, f"in {self.name}"))
        return self.layer_names.index(name)

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Raise `ValueError` unless a batch of that shape, (N, ...), fits the network's input."""
        fits = len(shape) == len(self.input_shape) + 1 and all(
            want in (None, have) for want, have in zip(self.input_shape, shape[1:], strict=True)
        )
        if not fits:
            wanted = ", ".join("any" if n is None else str(n) for n in self.input_shape)
            raise ValueError(f"expected a batch of shape (N, {wanted}), found {shape}")


def _belongs_to(layer: Any, padding: Any) -> bool:
    """Whether zeros before a layer can be its own. Not where a hook looks at either: its class is another one then."""
    return type(padding) is ZeroPadding2D and type(layer) in (Conv2D, DepthwiseConv2D) and layer.padding == "VALID"


def _checked_order(reads: Mapping[str, Sequence[str]], names: Sequence[str]) -> tuple[str, ...]:
    """The order of the layers, if each reads what comes before it and leads to the last one."""
    if len(set(names)) < len(names):
        return tuple(names)  # the caller says which name is used twice
    for place, name in enumerate(names):
        if not reads[name]:
            raise ValueError(f"layer {name!r} reads nothing")
        if late := [read for read in reads[name] if read != INPUT and read not in names[:place]]:
            hint = did_you_mean(late[0], names[:place])
            raise ValueError(f"layer {name!r} reads {late[0]!r}, which does not come before it{hint}")
    order = depth_order(reads, names[-1])
    if idle := [name for name in names if name not in order]:
        raise ValueError(f"{', '.join(map(repr, idle))}: what these layers give does not lead to {names[-1]!r}")
    return order


class Classifier(nnx.Module):
    """Pixels to logits: preprocessing, backbone, and a head if the backbone has no top of its own.

    Attributes:
        backbone: Images to features; any NNX module.
        head: Features to logits; any NNX module, or None for a backbone that gives logits
            (`classifier_activation=None`).
        preprocessing: A name from `cnnjax.models.preprocessing.PREPROCESSING`.

    >>> from cnnjax.models.heads import linear_head
    >>> from cnnjax.models.lecture_cnn import lecture_cnn
    >>> rngs = nnx.Rngs(0)
    >>> backbone = lecture_cnn((32, 32, 3), (4, 8), include_top=False, rngs=rngs)
    >>> model = Classifier(backbone, linear_head(backbone.output_shape(), 2, rngs=rngs), "unit")
    >>> model.eval()
    >>> model(jnp.zeros((5, 32, 32, 3), jnp.uint8)).shape
    (5, 1)
    """

    def __init__(self, backbone: Any, head: Any, preprocessing: str):
        both_ours = isinstance(backbone, Backbone) and isinstance(head, Backbone)
        if both_ours and None not in backbone.input_shape:
            head.check_shape((1, *backbone.output_shape()))
        self.backbone = backbone
        self.head = head
        self.preprocessing = checked_preprocessing(preprocessing)

    def __call__(self, images: ArrayLike) -> jax.Array:
        """Return logits f32[N, classes] (f32[N, 1] for two) of f32 or uint8 [N, H, W, 3] pixels 0 to 255."""
        out = self.backbone(preprocess(images, self.preprocessing))
        return out if self.head is None else self.head(out)
