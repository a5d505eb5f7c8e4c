"""NASNet-A (Zoph et al. 2017, arXiv:1707.07012), as in `keras.applications`."""

from typing import Literal, NamedTuple

import jax
from flax import nnx

from cnnjax.models.backbone import Backbone, Shape
from cnnjax.models.graph import Graph, Tensor
from cnnjax.models.published import Published
from cnnjax.models.registry import register
from cnnjax.models.sizes import checked_images
from cnnjax.models.weightless import Pairs
from cnnjax.runtime.nearest import unknown


class _Variant(NamedTuple):
    filters: int  # of the last cells' output
    cells: int  # normal cells between two that halve the size
    stem: int
    skips: bool  # whether the cell after one that halves reads the cell before that
    size: int
    top1: float
    with_top: str  # MD5 of the files
    without: str


_VARIANTS = {
    "mobile": _Variant(
        1056, 4, 32, False, 224, 0.744, "020fb642bf7360b370c678b08e0adf61", "1ed92395b5b598bdda52abe5c0dbfd63"),
    "large": _Variant(
        4032, 6, 96, True, 331, 0.825, "11577c9a518f0070763c2b964a382f17", "d81d89dc07e6e56530c4e77faddd61b5"),
}  # fmt: skip

PUBLISHED = tuple(
    Published(
        name=f"NASNet-{variant}{'' if top else '-no-top'}",
        backbone="nasnet",
        url="https://storage.googleapis.com/tensorflow/keras-applications/nasnet/"
        f"NASNet-{variant}{'' if top else '-no-top'}.h5",
        digest=f"md5:{known.with_top if top else known.without}",
        input_size=known.size,
        preprocessing="tf",
        classes=1000,
        licence="Apache-2.0",
        include_top=top,
        options={"variant": variant},
        top1=known.top1,
    )
    for variant, known in _VARIANTS.items()
    for top in (True, False)
)


class Cropping2D(nnx.Module):
    """f32[N, H, W, C] without some rows and columns: ((above, below), (left, right)).

    >>> import jax.numpy as jnp
    >>> Cropping2D(((1, 0), (1, 0)))(jnp.ones((1, 4, 4, 2))).shape
    (1, 3, 3, 2)
    """

    def __init__(self, cropping: Pairs):
        self.cropping = cropping

    def __call__(self, x: jax.Array) -> jax.Array:
        """Crop `x`."""
        (above, below), (left, right) = self.cropping
        return x[:, above : x.shape[1] - below, left : x.shape[2] - right]


@register(
    published=PUBLISHED,
    small={"filters": 96, "cells": 1, "input_shape": (32, 32, 3)},
    sizes={name: variant.size for name, variant in _VARIANTS.items()},
)
def nasnet(
    variant: Literal["mobile", "large"] = "mobile",
    filters: int | None = None,
    cells: int | None = None,
    input_shape: Shape | None = None,
    include_top: bool = True,
    classes: int = 1000,
    classifier_activation: str | None = "softmax",
    *,
    rngs: nnx.Rngs,
) -> Backbone:
    """Build a NASNet-A with Keras's layer names in Keras's order (mobile: 769 layers, 771 with top).

    Args:
        variant: mobile (4 cells, 1056 filters) or large (6 cells, 4032 filters).
        filters: Channels at the end, a multiple of 96; the variant's if not given.
        cells: Normal cells of each of the three stages; the variant's if not given.
        input_shape: (H, W, C), at least 32 pixels a side; None for any height or width. The variant's own if not given.
        include_top: Whether to end in Keras's classification layers; False for a backbone under another head.
        classes: Classes of the top.
        classifier_activation: Of the top; None for logits.
        rngs: Keys for weights.

    Returns:
        f32[N, H, W, C] with values -1 to 1 to f32[N, H/32, W/32, filters] (rounded up, about), or to f32[N, classes]
        with top.

    Raises:
        ValueError: There is no such variant, the filters are no multiple of 96, there are no cells, the images are
            smaller than 32 pixels, or the top has no classes.

    >>> nasnet(filters=96, cells=1, input_shape=(64, 64, 3), include_top=False, rngs=nnx.Rngs(0)).output_shape()
    (2, 2, 96)
    """
    if variant not in _VARIANTS:
        raise ValueError(unknown("NASNet", variant, _VARIANTS, listed=True))
    known = _VARIANTS[variant]
    penultimate = known.filters if filters is None else filters
    count = known.cells if cells is None else cells
    shape = input_shape or (known.size, known.size, 3)
    if penultimate < 96 or penultimate % 96:
        raise ValueError(f"filters of NASNet: expected a multiple of 96, found {penultimate}")
    if count < 1:
        raise ValueError(f"NASNet has at least one cell in each stage, found {count}")
    checked_images("NASNet", shape, 32)
    if include_top and classes < 1:
        raise ValueError(f"NASNet with top needs at least one class, found {classes}")
    net, width = Graph(shape, rngs=rngs, name=f"nasnet_{variant}"), penultimate // 24
    of = _Cells(net)
    x = net.conv("stem_conv1", net.input, known.stem, 3, strides=2, bias=False)
    x = of.norm("stem_bn1", x)
    # A cell reads the one before it (x) and the one before that (p), which is twice the size behind a halving cell.
    x, p = of.reduction(x, None, width // 4, "stem_1", halved=False), x
    x, p = of.reduction(x, p, width // 2, "stem_2", halved=True), x
    for stage in range(3):
        if stage:
            before = p
            x, p = of.reduction(x, p, width * 2**stage, f"reduce_{stage * count}", halved=False), x
            p = before if known.skips else p
        for k in range(count):
            # Keras counts the halving cells too, but the first stage's from 0.
            number = stage * count + k + (stage > 0)
            x, p = of.normal(x, p, width * 2**stage, str(number), halved=k == 0), x
    x = of.relu(x)
    if include_top:
        x = net.global_avg_pool("global_average_pooling2d", x)
        x = net.dense("predictions", x, classes, activation=classifier_activation or "linear")
    return net.backbone(x)


class _Cells(NamedTuple):
    """A graph in the making, and the cells of which it is made."""

    net: Graph

    def relu(self, x: Tensor) -> Tensor:
        return self.net.activation(self.net.unnamed("activation"), x, "relu")

    def norm(self, name: str, x: Tensor) -> Tensor:
        return self.net.batch_norm(name, x, momentum=0.9997)

    def conv(self, name: str, x: Tensor, filters: int) -> Tensor:
        return self.net.conv(name, x, filters, 1, padding="same", bias=False)

    def separable(self, x: Tensor, filters: int, size: int, name: str, stride: int = 1) -> Tensor:
        """Twice: rectified, convolved channel by channel, mixed, normalised."""
        net, x, padding = self.net, self.relu(x), "same"
        if stride == 2:
            x, padding = net.halving_pad(f"separable_conv_1_pad_{name}", x, size), "valid"
        x = net.separable_conv(
            f"separable_conv_1_{name}", x, filters, size, strides=stride, padding=padding, bias=False
        )
        x = self.relu(self.norm(f"separable_conv_1_bn_{name}", x))
        x = net.separable_conv(f"separable_conv_2_{name}", x, filters, size, padding="same", bias=False)
        return self.norm(f"separable_conv_2_bn_{name}", x)

    def adjusted(self, p: Tensor | None, x: Tensor, filters: int, name: str, halved: bool) -> Tensor:
        """What the cell before the last gave, in the size of the last and with `filters` channels."""
        net = self.net
        if p is None:
            return x
        if halved:
            p = net.activation(f"adjust_relu_1_{name}", p, "relu")
            # Every other pixel, once from the first on, once from the second.
            first = self.conv(f"adjust_conv_1_{name}", net.avg_pool(f"adjust_avg_pool_1_{name}", p, 1, 2), filters // 2)
            other = net.zero_padding(net.unnamed("zero_padding2d"), p, ((0, 1), (0, 1)))
            other = net.layer(net.unnamed("cropping2d"), Cropping2D(((1, 0), (1, 0))), other)
            other = net.avg_pool(f"adjust_avg_pool_2_{name}", other, 1, 2)
            other = self.conv(f"adjust_conv_2_{name}", other, filters // 2)
            return self.norm(f"adjust_bn_{name}", net.concat(net.unnamed("concatenate"), first, other))
        if p.channels != filters:
            return self.norm(f"adjust_bn_{name}", self.conv(f"adjust_conv_projection_{name}", self.relu(p), filters))
        return p

    def normal(self, x: Tensor, p: Tensor, filters: int, name: str, *, halved: bool) -> Tensor:
        """A cell that keeps the size, with six times the filters (figure 4 of the paper)."""
        net, p = self.net, self.adjusted(p, x, filters, name, halved)
        h = self.norm(f"normal_bn_1_{name}", self.conv(f"normal_conv_1_{name}", self.relu(x), filters))
        left = self.separable(h, filters, 5, f"normal_left1_{name}")
        x1 = net.add(f"normal_add_1_{name}", left, self.separable(p, filters, 3, f"normal_right1_{name}"))
        left = self.separable(p, filters, 5, f"normal_left2_{name}")
        x2 = net.add(f"normal_add_2_{name}", left, self.separable(p, filters, 3, f"normal_right2_{name}"))
        x3 = net.add(f"normal_add_3_{name}", net.avg_pool(f"normal_left3_{name}", h, 3, 1, "same"), p)
        left = net.avg_pool(f"normal_left4_{name}", p, 3, 1, "same")
        x4 = net.add(f"normal_add_4_{name}", left, net.avg_pool(f"normal_right4_{name}", p, 3, 1, "same"))
        x5 = net.add(f"normal_add_5_{name}", self.separable(h, filters, 3, f"normal_left5_{name}"), h)
        return net.concat(f"normal_concat_{name}", p, x1, x2, x3, x4, x5)

    def reduction(self, x: Tensor, p: Tensor | None, filters: int, name: str, *, halved: bool) -> Tensor:
        """A cell that halves the size, with four times the filters."""
        net, p = self.net, self.adjusted(p, x, filters, name, halved)
        h = self.norm(f"reduction_bn_1_{name}", self.conv(f"reduction_conv_1_{name}", self.relu(x), filters))
        around = net.halving_pad(f"reduction_pad_1_{name}", h, 3)
        left = self.separable(h, filters, 5, f"reduction_left1_{name}", 2)
        x1 = net.add(f"reduction_add_1_{name}", left, self.separable(p, filters, 7, f"reduction_right1_{name}", 2))
        left = net.max_pool(f"reduction_left2_{name}", around, 3, 2)
        x2 = net.add(f"reduction_add_2_{name}", left, self.separable(p, filters, 7, f"reduction_right2_{name}", 2))
        left = net.avg_pool(f"reduction_left3_{name}", around, 3, 2)
        x3 = net.add(f"reduction_add3_{name}", left, self.separable(p, filters, 5, f"reduction_right3_{name}", 2))
        x4 = net.avg_pool(f"reduction_left4_{name}", x1, 3, 1, "same")
        x4 = net.add(net.unnamed("add"), x2, x4)
        left = self.separable(x1, filters, 3, f"reduction_left4_{name}")
        x5 = net.add(f"reduction_add4_{name}", left, net.max_pool(f"reduction_right5_{name}", around, 3, 2))
        return net.concat(f"reduction_concat_{name}", x2, x3, x4, x5)
