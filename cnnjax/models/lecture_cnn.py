"""The lecture's own small network for cats and dogs: convolutions with rectifiers and pooling, in turn."""

from typing import Any

from flax import nnx

from cnnjax.models import layers
from cnnjax.models.backbone import Backbone, Shape


def lecture_cnn(
    input_shape: Shape = (150, 150, 3), widths: tuple[int, ...] = (32, 64, 128, 128), *, rngs: nnx.Rngs
) -> Backbone:
    """Build 3x3 convolutions (no padding, rectified), each followed by 2x2 max pooling.

    The layers are called conv2d_1, max_pooling2d_1, conv2d_2, ... and, as in a Keras Sequential, no input
    layer is counted.

    Args:
        input_shape: (H, W, C), large enough for all pooling layers; None for any height or width.
        widths: Filters of each convolution.
        rngs: Keys for weights.

    Returns:
        f32[N, H, W, C] with values 0 to 1 to the last pooling layer's f32[N, H', W', widths[-1]].

    Raises:
        ValueError: Nothing would be left of the images before the last layer.

    >>> lecture_cnn(rngs=nnx.Rngs(0)).output_shape()
    (7, 7, 128)
    """
    height, width, channels = input_shape
    if channels is None or not widths:
        raise ValueError(
            f"needs known channels and at least one width, found input_shape {input_shape}, widths {widths}"
        )
    smallest = min((n for n in (height, width) if n is not None), default=_smallest(len(widths)))
    if smallest < _smallest(len(widths)):
        deepest = max((depth for depth in range(1, len(widths)) if _smallest(depth) <= smallest), default=0)
        raise ValueError(
            f"images of input_shape {input_shape} are too small for {len(widths)} widths: "
            f"that needs {_smallest(len(widths))} pixels a side; {smallest} are enough for {deepest} widths"
        )
    named: list[tuple[str, Any]] = []
    for i, filters in enumerate(widths, start=1):
        named.append((f"conv2d_{i}", layers.conv2d(channels, filters, (3, 3), activation="relu", rngs=rngs)))
        named.append((f"max_pooling2d_{i}", layers.MaxPooling2D((2, 2))))
        channels = filters
    return Backbone(named, input_shape=input_shape)


def _smallest(depth: int) -> int:
    """Return the side of which `depth` convolutions and poolings leave one pixel: each needs 2n + 2 for n."""
    side = 1
    for _ in range(depth):
        side = 2 * side + 2
    return side
