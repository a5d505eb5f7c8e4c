"""Named layers in order, and the classifier made of a backbone and a head."""

import difflib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import ArrayLike

from cnnjax.models.layers import DepthwiseConv2D, ZeroPadding2D
from cnnjax.models.preprocessing import checked_preprocessing, preprocess

Shape = tuple[int | None, ...]


class Backbone(nnx.Module):
    """A chain of layers under Keras's names.

    Each layer is an attribute under its own name, so leaves have paths like `conv_pw_13/kernel` and
    `conv1_bn/mean`; each also carries its name as `layer.name`. A layer stands in one place only: nothing
    is shared, so NNX's tree mode works too.

    Attributes:
        input_shape: The shape of one example, (H, W, C) for images; None where any size will do.
        layer_names: The layers' names in Keras's order, input and weightless layers included.
        alpha: The width multiplier, for architectures that have one.
        name: What it is called in tables and pictures.

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
        alpha: float | None = None,
        name: str = "backbone",
    ):
        named = tuple(layers)
        if not named:
            raise ValueError("a backbone needs at least one layer")
        self.input_shape = tuple(input_shape)
        self.layer_names = tuple(name for name, _ in named)
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
        """The layers in Keras's order: `len(model.layers)`, `model.layers[:-4]` mean what they mean there."""
        return tuple(getattr(self, name) for name in self.layer_names)

    def get_layer(self, name: str) -> Any:
        """Return the layer of that name.

        Raises:
            LookupError: There is none; the nearest name is given.
        """
        self._position(name)
        return getattr(self, name)

    def ends_at(self, name: str) -> "Backbone":
        """Return a backbone that ends with that layer (included). It is a copy and shares nothing.

        Raises:
            LookupError: There is no such layer; the nearest name is given.
        """
        graphdef, state = nnx.split(self)
        copy = nnx.merge(graphdef, jax.tree.map(jnp.copy, state))
        kept = self.layer_names[: self._position(name) + 1]
        chain = [(n, getattr(copy, n)) for n in kept]
        return Backbone(chain, input_shape=self.input_shape, alpha=self.alpha, name=self.name)

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
        last = max((self._position(name) for name in names), default=-1)
        out = jnp.asarray(x)
        shape, found = out.shape, {}
        self._check(shape)
        chain = self.layer_names[: last + 1]
        zeros: ZeroPadding2D | None = None
        for name, following in zip(chain, (*chain[1:], None), strict=True):
            layer = getattr(self, name)
            if name not in names and following and _belongs_to(getattr(self, following), layer):
                zeros = layer
                continue
            with jax.named_scope(name):
                out = layer(out) if zeros is None else layer.of_padded(out, zeros.padding)
            zeros = None
            if 0 in out.shape[1:]:
                raise ValueError(
                    f"input of shape {shape[1:]} is too small: layer {name!r} leaves {out.shape[1:]} of it"
                )
            if name in names:
                found[name] = out
        return {name: found[name] for name in names}

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
            nearest = difflib.get_close_matches(name, self.layer_names, n=1, cutoff=0)[0]
            raise LookupError(f"no layer {name!r} among {len(self.layer_names)} layers; did you mean {nearest!r}?")
        return self.layer_names.index(name)

    def _check(self, shape: tuple[int, ...]) -> None:
        fits = len(shape) == len(self.input_shape) + 1 and all(
            want in (None, have) for want, have in zip(self.input_shape, shape[1:], strict=True)
        )
        if not fits:
            wanted = ", ".join("any" if n is None else str(n) for n in self.input_shape)
            raise ValueError(f"expected a batch of shape (N, {wanted}), found {shape}")


def _belongs_to(layer: Any, padding: Any) -> bool:
    """Whether zeros before a layer can be its own. Not where a hook looks at either: its class is another one then."""
    return type(padding) is ZeroPadding2D and type(layer) is DepthwiseConv2D and layer.padding == "VALID"


class Classifier(nnx.Module):
    """Pixels to logits: preprocessing, backbone, and a head if the backbone has no top of its own.

    Attributes:
        backbone: Images to features.
        head: Features to logits; None for a backbone that gives logits (`classifier_activation=None`).
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

    def __init__(self, backbone: Backbone, head: Backbone | None, preprocessing: str):
        if head is not None and None not in backbone.input_shape:
            head._check((1, *backbone.output_shape()))
        self.backbone = backbone
        self.head = head
        self.preprocessing = checked_preprocessing(preprocessing)

    def __call__(self, images: ArrayLike) -> jax.Array:
        """Return logits f32[N, classes] (f32[N, 1] for two) of f32 or uint8 [N, H, W, 3] pixels 0 to 255."""
        out = self.backbone(preprocess(images, self.preprocessing))
        return out if self.head is None else self.head(out)
