"""Heads: features to logits, one logit for two classes."""

import math

from flax import nnx

from cnnjax.models.backbone import Backbone
from cnnjax.models.layers import Flatten, GlobalAveragePooling2D, dense


def lecture_head(
    feature_shape: tuple[int, ...], classes: int | None = None, *, rngs: nnx.Rngs, outputs: int | None = None
) -> Backbone:
    """Build the lecture's head: Flatten, Dense 256 (no activation, as in its Keras code), Dropout 0.5, Dense.

    Args:
        feature_shape: One example's features, (H, W, C).
        classes: Two classes share one logit; more have one each.
        rngs: Keys for weights and dropout.
        outputs: In place of classes, how many numbers it gives.

    Raises:
        ValueError: The features are no maps (the backbone has a top already), or there are too few classes.

    >>> lecture_head((5, 5, 768), 2, rngs=nnx.Rngs(0)).output_shape()
    (1,)
    """
    return Backbone(
        [
            ("flatten", Flatten()),
            ("dense", dense(math.prod(_maps(feature_shape)), 256, rngs=rngs)),
            ("dropout", nnx.Dropout(0.5, rngs=rngs)),
            ("dense_1", dense(256, _outputs(classes, outputs), rngs=rngs)),
        ],
        input_shape=feature_shape,
        name="lecture_head",
    )


def linear_head(
    feature_shape: tuple[int, ...], classes: int | None = None, *, rngs: nnx.Rngs, outputs: int | None = None
) -> Backbone:
    """Build GlobalAveragePooling2D, Dropout 0.2, Dense: the head of Keras's guide to transfer learning.

    Args and units are those of `lecture_head`.

    >>> linear_head((5, 5, 768), 10, rngs=nnx.Rngs(0)).output_shape()
    (10,)
    """
    return Backbone(
        [
            ("global_average_pooling2d", GlobalAveragePooling2D()),
            ("dropout", nnx.Dropout(0.2, rngs=rngs)),
            ("dense", dense(_maps(feature_shape)[-1], _outputs(classes, outputs), rngs=rngs)),
        ],
        input_shape=feature_shape,
        name="linear_head",
    )


def _maps(feature_shape: tuple[int, ...]) -> tuple[int, ...]:
    if len(feature_shape) != 3:
        raise ValueError(
            f"a head goes on feature maps (H, W, C), found {feature_shape}; build the backbone with include_top=False"
        )
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
