"""Which layers of a model give maps, and what those are for an image."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from cnnjax.functional import Leaves, functionalize, leaves_of, model_name
from cnnjax.hooks import checked_layer, outputs, with_hook
from cnnjax.runtime import Tree

MapShape = tuple[int, int, int]


@dataclass(frozen=True)
class Called:
    """A module that a model calls.

    Attributes:
        maps: (height, width, channels) of the maps it gives for one image; None if it gives no maps.
        shape: Of its output for one image; None if that is no array.
        calls: How often it is called.
        passes_on: Whether its output is another module's, passed on as it is (a container's is).
        reads: The modules whose outputs it was (last) called with, as they are.
    """

    maps: MapShape | None
    shape: tuple[int, ...] | None
    calls: int
    passes_on: bool
    reads: tuple[str, ...] = ()


def called(model: nnx.Module, input_shape: Sequence[int]) -> dict[str, Called]:
    """Every module that the model calls for an image, in the order in which they give their (last) output.

    Nothing is run. What gives a single cell (1 x 1), as global pooling does, gives no maps.

    >>> from cnnjax.models import lecture_cnn
    >>> model = lecture_cnn((32, 32, 3), (4, 8), rngs=nnx.Rngs(0))
    >>> found = called(model, (32, 32, 3))
    >>> found["max_pooling2d_2"].maps, found["dense_1"].maps, found["dense_1"].shape
    ((6, 6, 8), None, (512,))
    """
    functional, found = functionalize(model), {}
    known: list[Any] = []  # holds the tracers, so that an identity is not used twice
    makers: dict[int, str] = {}
    read: dict[str, tuple[str, ...]] = {}

    def given(path: str, inputs: tuple[Any, ...]) -> None:
        read[path] = tuple(makers[id(x)] for x in inputs if id(x) in makers)

    def note(path: str, out: Tree) -> Any:
        shape = tuple(out.shape[1:]) if hasattr(out, "shape") else None
        before = found.pop(path, None)
        maps = shape if shape is not None and len(shape) == 3 and shape[0] * shape[1] > 1 else None
        passes_on = any(out is x for x in known)
        found[path] = Called(maps, shape, 1 + (before.calls if before else 0), passes_on, read.get(path, ()))
        known.append(out)
        makers.setdefault(id(out), path)
        return out

    def run(leaves: Leaves, images: jax.Array | np.ndarray) -> Any:
        known.append(images)
        return with_hook(functional.module(leaves), note, given)(images)

    jax.eval_shape(run, leaves_of(model), jax.ShapeDtypeStruct((1, *input_shape), jnp.float32))
    return found


def last_maps(found: dict[str, Called], model: nnx.Module) -> str:
    """The last layer that gives maps.

    Raises:
        ValueError: None does.
    """
    names = [path for path, layer in found.items() if layer.maps and not layer.passes_on]
    if not names:
        raise ValueError(f"no layer of {model_name(model)} gives maps (height, width, channels) of these images")
    return names[-1]


def checked_maps(layer: str, found: dict[str, Called], model: nnx.Module) -> MapShape:
    """The shape of the maps that a layer gives.

    Raises:
        LookupError: There is no such layer, or it is not called; the nearest name is given.
        ValueError: It gives no maps; the last one that does is given.
    """
    maps = found[checked_layer(layer, found, model_name(model))].maps
    if maps is None:
        shape, last = found[layer].shape, last_maps(found, model)
        raise ValueError(
            f"layer {layer!r} gives {shape or 'no array'}, no maps to show; the last one that does is {last!r}, "
            f"{found[last].maps}"
        )
    return maps


def activation_maps(model: nnx.Module, images: jax.Array | np.ndarray, layer: str) -> np.ndarray:
    """The maps that a layer gives for images, as the network computes them.

    Args:
        model: Any NNX module from images to anything; it is not changed.
        images: f32[N, H, W, C], preprocessed as the model wants them.
        layer: Path of a module, such as "conv_pw_13_relu" or "backbone/conv1".

    Returns:
        f32[N, h, w, K], not scaled.

    Raises:
        LookupError: There is no such layer, or it is not called; the nearest name is given.
        ValueError: It gives no maps; the last one that does is given.

    Source: the slides on visualising what a network learns; after Zeiler and Fergus 2013, arXiv:1311.2901.

    >>> from cnnjax.models import lecture_cnn
    >>> model = lecture_cnn((32, 32, 3), (4, 8), rngs=nnx.Rngs(0))
    >>> activation_maps(model, jnp.ones((1, 32, 32, 3)), "conv2d_2").shape
    (1, 13, 13, 8)
    """
    checked_maps(layer, called(model, np.shape(images)[1:]), model)
    return np.asarray(outputs(model, images, [layer])[layer])


def visible_maps(maps: np.ndarray) -> np.ndarray:
    """Scale maps so that each can be seen: by its own largest value.

    Args:
        maps: f32[h, w, K], of one image.

    Returns:
        f32[K, h, w]. Maps without negative values go to 0..1 (0 stays 0). If any map has negative values, all
        go to 0..1 with 0 at 0.5, so that signs can be seen. A map that is zero everywhere stays so.

    >>> visible_maps(np.array([[[0.0, 0.0], [2.0, 0.0]]])).tolist()
    [[[0.0, 1.0]], [[0.0, 0.0]]]
    >>> visible_maps(np.array([[[-4.0], [2.0]]])).tolist()
    [[[0.0, 0.75]]]
    """
    maps = np.moveaxis(np.asarray(maps, np.float32), -1, 0)
    largest = np.abs(maps).max((1, 2), keepdims=True)
    scaled = np.divide(maps, largest, out=np.zeros_like(maps), where=largest > 0)
    return (scaled + 1) / 2 if maps.min() < 0 else scaled
