"""The filters of a first layer, as images."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import ArrayLike

from cnnjax.functional import Leaves, model_name, modules, named_variables
from cnnjax.hooks import checked_layer
from cnnjax.show.maps import called
from cnnjax.summaries.measure import known_shape

DEAD = 1e-3
"""A filter whose largest weight is below this part of the layer's largest is drawn grey, not scaled up."""


@dataclass(frozen=True)
class Convolution:
    """A convolution's kernel, as trained and as it acts.

    Attributes:
        layer: Path of the module.
        kernel: f32[F, F, C, K], its weights.
        norm: Path of the BatchNorm that reads what the layer gives, "" if none does.
        folded: f32[F, F, C, K], the kernel times that BatchNorm's scale over its deviation: what both
            together multiply the image with. The kernel itself where there is no BatchNorm.
    """

    layer: str
    kernel: np.ndarray
    norm: str
    folded: np.ndarray


def convolution(
    model: nnx.Module, layer: str | None = None, *, input_shape: Sequence[int] | None = None
) -> Convolution:
    """Find a model's convolution.

    Args:
        model: Any NNX module from images to anything.
        layer: Path of the convolution; the first one that is called, if not given.
        input_shape: (H, W, C); the model's own if not given.

    Raises:
        LookupError: There is no such layer, or it has no kernel f32[F, F, C, K]; the nearest name is given.
        ValueError: The size of the model's images is not known, or it calls no convolution.

    >>> from cnnjax.models import lecture_cnn
    >>> found = convolution(lecture_cnn((32, 32, 3), (4, 8), rngs=nnx.Rngs(0)))
    >>> found.layer, found.kernel.shape, found.norm
    ('conv2d_1', (3, 3, 3, 4), '')
    """
    name, shape, leaves = model_name(model), known_shape(model, input_shape), _leaves(model)
    if shape is None:
        raise ValueError(f"the size of {name}'s images is not known: give input_shape, (H, W, C)")
    found = called(model, shape)
    kernels = _convolutions(model, found)
    layer = checked_layer(layer or kernels[0], kernels, f"{name}'s layers with a kernel f32[F, F, C, K]")
    kernel = np.asarray(leaves[f"{layer}/kernel"], np.float32)
    norm = next((path for path, other in found.items() if other.reads == (layer,) and f"{path}/var" in leaves), "")
    variance = leaves.get(f"{norm}/var", jnp.zeros(()))
    if variance.shape != kernel.shape[-1:]:
        return Convolution(layer, kernel, "", kernel)
    epsilon = getattr(dict(modules(model))[norm], "epsilon", 0.0)
    scale = leaves.get(f"{norm}/scale", jnp.ones(())) / jnp.sqrt(variance + epsilon)
    return Convolution(layer, kernel, norm, kernel * np.asarray(scale, np.float32))


def first_maps(model: nnx.Module, input_shape: Sequence[int]) -> str:
    """The layer whose maps the second convolution reads: the end of the first stage.

    Raises:
        ValueError: The model calls no convolution.

    >>> from cnnjax.models import mobilenet
    >>> first_maps(nnx.eval_shape(lambda: mobilenet(0.25, rngs=nnx.Rngs(0))), (224, 224, 3))
    'conv1_relu'
    """
    found = called(model, input_shape)
    first, *others = _convolutions(model, found)
    order = [path for path, layer in found.items() if (layer.maps and not layer.passes_on) or path in others]
    return order[order.index(others[0]) - 1] if others else order[-1]


def _convolutions(model: nnx.Module, order: Iterable[str]) -> list[str]:
    leaves = _leaves(model)
    found = [path for path in order if f"{path}/kernel" in leaves and leaves[f"{path}/kernel"].ndim == 4]
    if not found:
        raise ValueError(f"{model_name(model)} calls no layer with a kernel f32[F, F, C, K]")
    return found


def _leaves(model: nnx.Module) -> Leaves:
    """By every path that leads to them: layers may share a kernel."""
    return {path: variable.get_value() for path, variable in named_variables(model).items()}


def filter_images(kernel: ArrayLike) -> np.ndarray:
    """Scale filters so that they can be seen: zero is mid-grey, each filter's own largest weight is 0 or 1.

    So the filters' shapes can be compared, and not their strengths. A filter that is as good as zero (below
    a thousandth of the layer's largest weight, as a trained network has them) stays grey.

    Args:
        kernel: f32[F, F, C, K], its channels red, green, blue if there are three.

    Returns:
        f32[K, F, F, 3] in colour for three channels; f32[K, C, F, F] for any other number, an image for
        each filter and each of its slices, the slices of a filter scaled alike.

    Raises:
        ValueError: The kernel has other axes, or none to show.

    Source: the slide on first-layer filters; after Krizhevsky, Sutskever and Hinton 2012.

    >>> filter_images(np.ones((3, 3, 3, 8))).shape, filter_images(np.ones((5, 5, 16, 8))).shape
    ((8, 3, 3, 3), (8, 16, 5, 5))
    >>> filter_images(np.array([-2.0, 0.0, 1.0]).reshape(1, 3, 1, 1)).ravel().tolist()
    [0.0, 0.5, 0.75]
    """
    weights = np.asarray(kernel, np.float32)
    if weights.ndim != 4 or 0 in weights.shape:
        raise ValueError(f"a kernel is f32[F, F, C, K], with nothing empty, found {weights.shape}")
    weights = np.moveaxis(weights, -1, 0)
    largest = np.abs(weights).max((1, 2, 3), keepdims=True)
    alive = largest > DEAD * largest.max()
    images = 0.5 + 0.5 * np.divide(weights, largest, out=np.zeros_like(weights), where=alive)
    return images if weights.shape[-1] == 3 else np.moveaxis(images, -1, 1)
