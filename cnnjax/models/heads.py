"""Heads: features to logits, one logit for two classes."""

from flax import nnx

from cnnjax.models.backbone import Backbone
from cnnjax.models.graph import Graph


def lecture_head(feature_shape: tuple[int, ...], classes: int, *, rngs: nnx.Rngs) -> Backbone:
    """Build the lecture's head: Flatten, Dense 256 (no activation, as in its Keras code), Dropout 0.5, Dense.

    Args:
        feature_shape: One example's features, (H, W, C).
        classes: Two classes share one logit; more have one each.
        rngs: Keys for weights and dropout.

    Raises:
        ValueError: The features are no maps (the backbone has a top already), or there are too few classes.

    >>> lecture_head((5, 5, 768), 2, rngs=nnx.Rngs(0)).output_shape()
    (1,)
    """
    net = Graph(_maps(feature_shape), rngs=rngs, name="lecture_head", input_layer=None)
    x = net.dense("dense", net.flatten("flatten", net.input), 256)
    x = net.dropout("dropout", x, 0.5)
    return net.backbone(net.dense("dense_1", x, _logits(classes)))


def linear_head(feature_shape: tuple[int, ...], classes: int, *, rngs: nnx.Rngs) -> Backbone:
    """Build GlobalAveragePooling2D, Dropout 0.2, Dense: the head of Keras's guide to transfer learning.

    Args and units are those of `lecture_head`.

    >>> linear_head((5, 5, 768), 10, rngs=nnx.Rngs(0)).output_shape()
    (10,)
    """
    net = Graph(_maps(feature_shape), rngs=rngs, name="linear_head", input_layer=None)
    x = net.global_avg_pool("global_average_pooling2d", net.input)
    x = net.dropout("dropout", x, 0.2)
    return net.backbone(net.dense("dense", x, _logits(classes)))


def _maps(feature_shape: tuple[int, ...]) -> tuple[int, ...]:
    if len(feature_shape) != 3:
        raise ValueError(
            f"a head goes on feature maps (H, W, C), found {feature_shape}; build the backbone with include_top=False"
        )
    return feature_shape


def _logits(classes: int) -> int:
    if classes < 2:
        raise ValueError(f"a classifier needs at least two classes, found {classes}")
    return 1 if classes == 2 else classes


HEADS = {"lecture": lecture_head, "linear": linear_head}
"""Name to function."""
