"""Heads: features to logits, one logit for two classes."""

import math

from flax import nnx

from cnnjax.models.backbone import Backbone
from cnnjax.models.graph import Graph


def lecture_head(
    feature_shape: tuple[int, ...], classes: int | None = None, *, rngs: nnx.Rngs, outputs: int | None = None
) -> Backbone:
    """Build the lecture's head: Flatten, Dense 256 (no activation, as in its Keras code), Dropout 0.5, Dense.

    Args:
        feature_shape: One example's features: maps (H, W, C), tokens (T, C) or a vector (C,).
        classes: Two classes share one logit; more have one each.
        rngs: Keys for weights and dropout.
        outputs: In place of classes, how many numbers it gives.

    Raises:
        ValueError: There are no features, or there are too few classes.

    >>> lecture_head((5, 5, 768), 2, rngs=nnx.Rngs(0)).output_shape()
    (1,)
    """
    net = Graph(_features(feature_shape), rngs=rngs, name="lecture_head", input_layer=None)
    x = net.dense("dense", net.flatten("flatten", net.input), 256)
    x = net.dropout("dropout", x, 0.5)
    return net.backbone(net.dense("dense_1", x, _outputs(classes, outputs)))


def linear_head(
    feature_shape: tuple[int, ...], classes: int | None = None, *, rngs: nnx.Rngs, outputs: int | None = None
) -> Backbone:
    """Build GlobalAveragePooling2D, Dropout 0.2, Dense: the head of Keras's guide to transfer learning.

    The mean is over maps or tokens; of a vector there is none.

    Args and units are those of `lecture_head`.

    >>> linear_head((5, 5, 768), 10, rngs=nnx.Rngs(0)).output_shape()
    (10,)
    """
    net = Graph(_features(feature_shape), rngs=rngs, name="linear_head", input_layer=None)
    x = net.input
    if len(feature_shape) not in (1, 3):  # tokens f32[N, T, C]
        x = net.reshape("reshape", x, (math.prod(feature_shape[:-1]), 1, feature_shape[-1]))
    if len(feature_shape) > 1:
        x = net.global_avg_pool("global_average_pooling2d", x)
    x = net.dropout("dropout", x, 0.2)
    return net.backbone(net.dense("dense", x, _outputs(classes, outputs)))


def _features(feature_shape: tuple[int, ...]) -> tuple[int, ...]:
    if not feature_shape or not all(feature_shape):
        raise ValueError(f"a head goes on features (H, W, C), (T, C) or (C,) of known size, found {feature_shape}")
    return feature_shape


def _outputs(classes: int | None, outputs: int | None) -> int:
    if (classes is None) == (outputs is None):
        raise ValueError(f"give a head its classes or its outputs, found {classes} and {outputs}")
    if outputs is not None or classes is None:
        return outputs or 1
    if classes < 2:
        raise ValueError(f"a classifier needs at least two classes, found {classes}")
    return 1 if classes == 2 else classes


HEADS = {"lecture": lecture_head, "linear": linear_head}
"""Name to function."""
