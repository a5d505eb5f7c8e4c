"""AlexNet: in two towers (Krizhevsky et al. 2012, the lecture's "96 local filters"), and in one, as in torchvision."""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from cnnjax.models.backbone import Backbone, Shape
from cnnjax.models.graph import Graph, Tensor
from cnnjax.models.registry import register
from cnnjax.models.sizes import checked_images
from cnnjax.runtime.nearest import unknown


class LocalResponseNormalization(nnx.Module):
    """x / (offset + scale * the sum of squares over `size` neighbouring channels) ** power (section 3.3 of the paper).

    >>> LocalResponseNormalization(3, 1.0, 1.0, 1.0)(jnp.array([[[[1.0, 0.0, 2.0]]]])).tolist()
    [[[[0.5, 0.0, 0.4000000059604645]]]]
    """

    def __init__(self, size: int = 5, scale: float = 1e-4, power: float = 0.75, offset: float = 2.0):
        self.size, self.scale, self.power, self.offset = size, scale, power, offset

    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalise f32[N, H, W, C] over its channels."""
        window, before = (1, 1, 1, self.size), (self.size - 1) // 2
        around = ((0, 0), (0, 0), (0, 0), (before, self.size - 1 - before))
        total = lax.reduce_window(x * x, np.zeros((), x.dtype), lax.add, window, (1, 1, 1, 1), around)
        return x * jnp.power(self.offset + self.scale * total, -self.power)


class _Variant(NamedTuple):
    widths: tuple[int, ...]
    padding: int  # of the first convolution
    towers: int  # which see each other in the third convolution alone
    normalized: bool
    dropout_first: bool  # in the top: before each of its wide layers, not behind
    smallest: int


_VARIANTS = {
    "two_towers": _Variant((96, 256, 384, 384, 256), 0, 2, True, False, 67),
    "one_tower": _Variant((64, 192, 384, 256, 256), 2, 1, False, True, 63),
}
_SIZES = (11, 5, 3, 3, 3)


@register(top=("dropout",), small={"widths": (4, 4, 4, 4, 4), "input_shape": (67, 67, 3)})
def alexnet(
    variant: Literal["two_towers", "one_tower"] = "two_towers",
    widths: tuple[int, ...] = (),
    input_shape: Shape = (227, 227, 3),
    include_top: bool = True,
    classes: int = 1000,
    dropout: float = 0.5,
    classifier_activation: str | None = "softmax",
    *,
    rngs: nnx.Rngs,
) -> Backbone:
    """Build AlexNet, with the names of Caffe's (conv1, norm1, pool1, ..., fc6, fc7).

    Args:
        variant: two_towers (96 filters first; the second, fourth and fifth convolution in two groups; local response
            normalisation) or one_tower (torchvision's, arXiv:1404.5997: 64 filters first, one group, no normalisation).
        widths: Filters of the five convolutions; if none are given, the variant's.
        input_shape: (H, W, C), at least 67 pixels a side (63 in one tower); None for any height or width, without top
            only. Of 227 pixels 6 x 6 are left; torchvision pools images of other sizes to that, which is not done here.
        include_top: Whether to end in the classification layers (fc6, fc7, predictions).
        classes: Classes of the top.
        dropout: Dropout rate in the top.
        classifier_activation: Of the top; None for logits.
        rngs: Keys for weights and dropout.

    Returns:
        f32[N, H, W, C] to f32[N, H', W', 256], or to f32[N, classes] with top.

    Raises:
        ValueError: There is no such variant, the images are too small, or of unknown size with a top, there are not
            five widths, or the top has no classes.

    >>> alexnet(include_top=False, rngs=nnx.Rngs(0)).output_shape()
    (6, 6, 256)
    """
    if variant not in _VARIANTS:
        raise ValueError(unknown("AlexNet", variant, _VARIANTS, listed=True))
    of = _VARIANTS[variant]
    widths = widths or of.widths
    if len(widths) != 5 or min(widths) < 1:
        raise ValueError(f"AlexNet has five convolutions, each of a width from 1 on, found {widths}")
    checked_images("AlexNet", input_shape, of.smallest)
    if include_top and None in input_shape:
        raise ValueError(f"AlexNet with top needs a known image size (fc6 reads every position), found {input_shape}")
    if include_top and classes < 1:
        raise ValueError(f"AlexNet with top needs at least one class, found {classes}")
    net = Graph(input_shape, rngs=rngs, name="alexnet")
    x = net.input
    for k, (width, size) in enumerate(zip(widths, _SIZES, strict=True), start=1):
        strides, padding = (4, of.padding) if k == 1 else (1, size // 2)
        groups = of.towers if k in (2, 4, 5) else 1
        x = net.conv(f"conv{k}", x, width, size, strides=strides, padding=padding, groups=groups, activation="relu")
        if k < 3 and of.normalized:
            x = net.layer(f"norm{k}", LocalResponseNormalization(), x)
        if k in (1, 2, 5):
            x = net.max_pool(f"pool{k}", x, 3, 2)
    if include_top:
        x = net.flatten("flatten", x)
        x = _wide(net, 6, x, dropout, of.dropout_first)
        x = _wide(net, 7, x, dropout, of.dropout_first)
        x = net.dense("predictions", x, classes, activation=classifier_activation or "linear")
    return net.backbone(x)


def _wide(net: Graph, k: int, x: Tensor, dropout: float, dropout_first: bool) -> Tensor:
    x = net.dropout(f"drop{k}", x, dropout) if dropout_first else x
    x = net.dense(f"fc{k}", x, 4096, activation="relu")
    return x if dropout_first else net.dropout(f"drop{k}", x, dropout)
