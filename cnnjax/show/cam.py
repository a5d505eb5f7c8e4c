"""Where a classifier looks: class activation by gradients (Grad-CAM)."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import ArrayLike

from cnnjax.functional import Leaves, functionalize, leaves_of, model_name, modules
from cnnjax.hooks import reachable, with_hook
from cnnjax.runtime import Tree
from cnnjax.show.maps import Called, called, checked_maps, last_maps
from cnnjax.sizing.field import Field

_PROBABILITIES = ("sigmoid", "softmax")


@dataclass(frozen=True)
class ClassActivation:
    """What speaks for a class, and where.

    Attributes:
        heat: f32[N, h, w], at least 0, in units of the logit: the layer's resolution, not scaled.
        layer: Path of the layer.
        classes: i32[N], the class of each image; 0 and 1 for a model with one logit.
        logits: f32[N, classes], or f32[N, 1].
    """

    heat: np.ndarray
    layer: str
    classes: np.ndarray
    logits: np.ndarray

    @property
    def probabilities(self) -> np.ndarray:
        """f32[N, classes]: softmax of the logits; for one logit (1 - sigmoid, sigmoid)."""
        logits = self.logits if self.logits.shape[1] > 1 else np.concatenate([0 * self.logits, self.logits], 1)
        return np.asarray(jax.nn.softmax(logits))


def grad_cam(
    model: nnx.Module, images: jax.Array | np.ndarray, layer: str | None = None, class_index: int | None = None
) -> np.ndarray:
    """Where a layer's maps speak for a class.

    The maps are added up, each weighted by the mean of the class logit's gradient over it, and what is
    negative is set to zero. With global average pooling and one dense layer behind the maps this is CAM
    (Zhou et al. 2016), divided by the number of cells.

    Args:
        model: Any NNX module from images to logits f32[N, classes]: a `Classifier`, a `Backbone` with a top
            that gives logits (`classifier_activation=None`), your own. It is not changed.
        images: f32[N, H, W, C], as the model takes them (a `Classifier` takes pixels).
        layer: Path of a module that gives maps; the last one if not given.
        class_index: The class; the top prediction of each image if not given. A model with one logit has
            class 1, for which the logit speaks, and class 0, against which it does.

    Returns:
        f32[N, h, w], at least 0, at the layer's resolution and not scaled. Divide by the maximum to look at it.

    Raises:
        LookupError: There is no such layer, or it is not called; the nearest name is given.
        ValueError: The layer gives no maps, the model gives no logits, or there is no such class.

    Source: Selvaraju et al. 2017, "Grad-CAM", arXiv:1610.02391.

    >>> from cnnjax.models import lecture_cnn
    >>> model = lecture_cnn((32, 32, 3), (4, 8), classifier_activation=None, rngs=nnx.Rngs(0))
    >>> grad_cam(model, jnp.ones((1, 32, 32, 3))).shape
    (1, 6, 6)
    """
    return class_activation(model, images, layer, class_index).heat


def class_activation(
    model: nnx.Module, images: jax.Array | np.ndarray, layer: str | None = None, class_index: int | None = None
) -> ClassActivation:
    """The same as `grad_cam`, with the layer, classes and logits it was made for.

    >>> from cnnjax.models import lecture_cnn
    >>> model = lecture_cnn((32, 32, 3), (4, 8), classifier_activation=None, rngs=nnx.Rngs(0))
    >>> class_activation(model, jnp.ones((1, 32, 32, 3))).layer
    'max_pooling2d_2'
    """
    images = jnp.asarray(images)
    found = called(model, images.shape[1:])
    layer = last_maps(found, model) if layer is None else layer
    maps = checked_maps(layer, found, model)
    _refuse_probabilities(model, found)
    functional, calls = functionalize(model), found[layer].calls

    def score(change: jax.Array, leaves: Leaves, images: jax.Array) -> tuple[jax.Array, Any]:
        seen: list[jax.Array] = []

        def add(path: str, out: Tree) -> Any:
            if path == layer:
                seen.append(out)
                if len(seen) == calls:
                    return out + change.astype(out.dtype)
            return out

        logits = with_hook(functional.module(leaves), add)(images)
        chosen = _chosen(logits, class_index)
        # One logit speaks for class 1, and its negative for class 0.
        both = logits if logits.shape[1] > 1 else jnp.concatenate([-logits, logits], 1)
        return jnp.take_along_axis(both, chosen[:, None], 1).sum(), (seen[-1], chosen, logits)

    change = jnp.zeros((len(images), *maps), jnp.float32)
    with reachable([layer]):
        gradient, (seen, chosen, logits) = jax.jit(jax.grad(score, has_aux=True))(change, leaves_of(model), images)
    weights = gradient.mean((1, 2), keepdims=True)
    heat = jax.nn.relu((weights * seen).sum(-1))
    return ClassActivation(np.asarray(heat), layer, np.asarray(chosen), np.asarray(logits))


def placed(heat: ArrayLike, fields: Sequence[Field | None], size: tuple[int, int]) -> np.ndarray:
    """Spread a layer's cells over the image: each value stands in the middle of what its cell sees.

    Stretching the map to the image's size, as is often done, moves the heat: strides with padding on one
    side put a cell's middle elsewhere (MobileNet's last layer at 224 pixels: by 15.5 pixels, down and right).

    Args:
        heat: f32[h, w].
        fields: Receptive fields of the layer's rows and columns (`receptive_fields`); where one is not known,
            the cells are spread evenly.
        size: Height and width of the image.

    Returns:
        f32[*size], linear between the middles and constant beyond the outermost.

    >>> placed([[0.0, 1.0]], (None, Field(3, 2, 0)), (1, 6)).round(1).tolist()
    [[0.0, 0.0, 0.5, 1.0, 1.0, 1.0]]
    """
    spread = np.asarray(heat, np.float32)
    for axis, (pixels, field) in enumerate(zip(size, fields, strict=True)):
        cells = spread.shape[axis]
        even = [(k + 0.5) * pixels / cells - 0.5 for k in range(cells)]
        middles = [field.centre(k) for k in range(cells)] if field and field.jump else even
        spread = np.apply_along_axis(partial(np.interp, np.arange(pixels), middles), axis, spread)
    return spread.astype(np.float32)


def _chosen(logits: jax.Array, class_index: int | None) -> jax.Array:
    """The class of each image."""
    if getattr(logits, "ndim", 0) != 2:
        raise ValueError(f"a classifier gives logits f32[N, classes], found {getattr(logits, 'shape', type(logits))}")
    classes = max(logits.shape[1], 2)
    if class_index is not None:
        if not 0 <= class_index < classes:
            raise ValueError(f"no class {class_index}: the model knows {classes}, 0 to {classes - 1}")
        return jnp.full(len(logits), class_index)
    return logits.argmax(1) if logits.shape[1] > 1 else (logits[:, 0] > 0).astype(int)


def _refuse_probabilities(model: nnx.Module, found: dict[str, Called]) -> None:
    """The gradient of a probability vanishes where the model is sure."""
    own = [path for path, layer in found.items() if not layer.passes_on]
    if (activation := getattr(dict(modules(model))[own[-1]], "activation", "")) in _PROBABILITIES:
        raise ValueError(
            f"{model_name(model)} ends in a {activation}; class activation needs its logits: build it with "
            "classifier_activation=None"
        )
