"""EfficientNetV2 (Tan & Le 2021, arXiv:2104.00298), as in `keras.applications.EfficientNetV2B0` to `V2L`."""

import math
from typing import Literal, NamedTuple

from flax import nnx

from cnnjax.models.backbone import Backbone, Shape
from cnnjax.models.efficientnet import added, ended, squeezed
from cnnjax.models.graph import Graph, Tensor
from cnnjax.models.published import Published
from cnnjax.models.registry import register
from cnnjax.models.sizes import checked_images
from cnnjax.runtime.nearest import unknown


class _Stage(NamedTuple):
    """Inverted residual blocks of one width, for coefficients of 1."""

    count: int
    stride: int
    expansion: int
    filters: int
    fused: bool  # one full convolution instead of 1x1 and depthwise, and no squeeze and excitation


def _stages(*fused: tuple[int, int], plain: tuple[tuple[int, int], ...], strides: tuple[int, ...]) -> list[_Stage]:
    """Stages of (count, filters); the first does not widen, fused ones and the first plain one four times."""
    first = [_Stage(n, 2 if k else 1, 4 if k else 1, filters, True) for k, (n, filters) in enumerate(fused)]
    expansions = [4] + [6] * (len(plain) - 1)
    last = zip(plain, strides, expansions, strict=True)
    return first + [_Stage(n, stride, expansion, filters, False) for (n, filters), stride, expansion in last]


_B = _stages((1, 16), (2, 32), (2, 48), plain=((3, 96), (5, 112), (8, 192)), strides=(2, 1, 2))
_S = _stages((2, 24), (4, 48), (4, 64), plain=((6, 128), (9, 160), (15, 256)), strides=(2, 1, 2))
_M = _stages((3, 24), (5, 48), (5, 80), plain=((7, 160), (14, 176), (18, 304), (5, 512)), strides=(2, 1, 2, 1))
_L = _stages((4, 32), (7, 64), (7, 96), plain=((10, 192), (19, 224), (25, 384), (7, 640)), strides=(2, 1, 2, 1))


class _Variant(NamedTuple):
    """Width and depth coefficient, images' size, first width, stages, accuracy and MD5 that Keras states."""

    width: float
    depth: float
    size: int
    stem: int
    stages: list[_Stage]
    top1: float
    with_top: str
    without: str


_VARIANTS = {
    "b0": _Variant(
        1.0, 1.0, 224, 32, _B, 0.787, "21ecbf6da12460d5c40bb2f29ceb2188", "893217f2bb855e2983157299931e43ff"),
    "b1": _Variant(
        1.0, 1.1, 240, 32, _B, 0.798, "069f0534ff22adf035c89e2d9547a9dc", "0e80663031ca32d657f9caa404b6ec37"),
    "b2": _Variant(
        1.1, 1.2, 260, 32, _B, 0.805, "424e49f28180edbde1e94797771950a7", "1dfe2e7a5d45b6632553a8961ea609eb"),
    "b3": _Variant(
        1.2, 1.4, 300, 32, _B, 0.820, "1f1fc43bd98a6e4fd8fdfd551e02c7a0", "f6abf7b5849ac99a89b50dd3fd532856"),
    "s": _Variant(
        1.0, 1.0, 384, 24, _S, 0.839, "e1d88a8495beba45748fedd0cecbe016", "af0682fb74e8c54910f2d4393339c070"),
    "m": _Variant(
        1.0, 1.0, 480, 24, _M, 0.853, "a3bf6aa3276309f4fc6a34aa114c95cd", "1b8dc055df72dde80d614482840fe342"),
    "l": _Variant(
        1.0, 1.0, 480, 32, _L, 0.857, "27e6d408b53c7ebc868fefa357689935", "b0b66b5c863aef5b46e8608fe1711615"),
}  # fmt: skip
_MOMENTUM = 0.9
_MEANS, _VARIANCES = (0.485, 0.456, 0.406), (0.229**2, 0.224**2, 0.225**2)
_MOST_BLOCKS = 26  # of a stage: they are called a, b, c, ...

PUBLISHED = tuple(
    Published(
        name=f"efficientnetv2-{variant}{'' if top else '_notop'}",
        backbone="efficientnet_v2",
        url="https://storage.googleapis.com/tensorflow/keras-applications/efficientnet_v2/"
        f"efficientnetv2-{variant}{'' if top else '_notop'}.h5",
        digest=f"md5:{known.with_top if top else known.without}",
        input_size=known.size,
        preprocessing="none",
        classes=1000,
        licence=None,
        include_top=top,
        options={"variant": variant},
        top1=known.top1,
    )
    for variant, known in _VARIANTS.items()
    for top in (True, False)
)


@register(
    published=PUBLISHED,
    top=("dropout",),
    small={"width_coefficient": 0.1, "depth_coefficient": 0.5, "input_shape": (32, 32, 3)},
    sizes={name: variant.size for name, variant in _VARIANTS.items()},
)
def efficientnet_v2(
    variant: Literal["b0", "b1", "b2", "b3", "s", "m", "l"] = "b0",
    width_coefficient: float | None = None,
    depth_coefficient: float | None = None,
    stochastic_depth: float = 0.2,
    input_shape: Shape | None = None,
    include_top: bool = True,
    classes: int = 1000,
    dropout: float = 0.2,
    classifier_activation: str | None = "softmax",
    *,
    rngs: nnx.Rngs,
) -> Backbone:
    """Build an EfficientNetV2 with Keras's layer names in Keras's order (B0: 270 layers, 273 with top).

    Pixels are scaled in the network, by its first layers.

    Args:
        variant: b0 to b3, s, m or l, which give the stages, both coefficients and the images' size.
        width_coefficient: Factor of the widths; the variant's if not given.
        depth_coefficient: Factor of the numbers of blocks; the variant's if not given.
        stochastic_depth: At which rate the last block's residual is left out for an image in training; lower for the
            others, in proportion to their place (Keras's `drop_connect_rate`). 0 for never.
        input_shape: (H, W, C), at least 32 pixels a side; None for any height or width. The variant's own if not given.
        include_top: Whether to end in Keras's classification layers; False for a backbone under another head.
        classes: Classes of the top.
        dropout: Dropout rate in the top.
        classifier_activation: Of the top; None for logits.
        rngs: Keys for weights, dropout and stochastic depth.

    Returns:
        f32[N, H, W, C] with values 0 to 255 to f32[N, H/32, W/32, 1280] (rounded up; times the width coefficient), or
        to f32[N, classes] with top.

    Raises:
        ValueError: There is no such variant, a coefficient is 0 or too large, the images are smaller than 32 pixels, or
            the top has no classes.

    >>> efficientnet_v2("b1", input_shape=(96, 96, 3), include_top=False, rngs=nnx.Rngs(0)).output_shape()
    (3, 3, 1280)
    """
    if variant not in _VARIANTS:
        raise ValueError(unknown("EfficientNetV2", variant, _VARIANTS, listed=True))
    known = _VARIANTS[variant]
    shape = input_shape or (known.size, known.size, 3)
    width = known.width if width_coefficient is None else width_coefficient
    depth = known.depth if depth_coefficient is None else depth_coefficient
    checked_images("EfficientNetV2", shape, 32)
    if min(width, depth) <= 0:
        raise ValueError(f"coefficients of width and depth must be above 0, found {width} and {depth}")
    counts = [math.ceil(depth * stage.count) for stage in known.stages]
    if max(counts) > _MOST_BLOCKS:
        raise ValueError(f"depth_coefficient {depth} gives a stage {max(counts)} blocks, above {_MOST_BLOCKS}")
    if include_top and classes < 1:
        raise ValueError(f"EfficientNetV2 with top needs at least one class, found {classes}")
    net = Graph(shape, rngs=rngs, name=f"efficientnet_v2_{variant}")
    x = _scaled(net, variant.startswith("b") and shape[2] == 3)
    x = net.conv("stem_conv", x, _rounded(known.stem * width), 3, strides=2, padding="same", bias=False)
    x = _normed(net, "stem_", x)
    # Keras divides by the number of blocks for a depth coefficient of 1.
    number, total = 0, sum(stage.count for stage in known.stages)
    for k, (stage, count) in enumerate(zip(known.stages, counts, strict=True), start=1):
        block = _fused if stage.fused else _inverted
        for letter in range(count):
            own = stage._replace(filters=_rounded(stage.filters * width), stride=1 if letter else stage.stride)
            x = block(net, f"block{k}{chr(97 + letter)}_", x, own, stochastic_depth * number / total)
            number += 1
    return ended(
        net, x, _rounded(1280 * width), include_top, classes, dropout, classifier_activation, momentum=_MOMENTUM
    )


def _rounded(channels: float) -> int:
    """The next multiple of 8; unlike `divisible` it may be less than 9/10."""
    return max(8, int(channels + 4) // 8 * 8)


def _scaled(net: Graph, as_b: bool) -> Tensor:
    """Pixels 0 to 255 as the variants b0 to b3 take them, or all others."""
    if not as_b:
        return net.rescale("rescaling", net.input, 1 / 128, -1.0)
    return net.normalization("normalization", net.rescale("rescaling", net.input, 1 / 255), _MEANS, _VARIANCES)


def _normed(net: Graph, name: str, x: Tensor) -> Tensor:
    return net.activation(f"{name}activation", net.batch_norm(f"{name}bn", x, momentum=_MOMENTUM), "swish")


def _inverted(net: Graph, name: str, x: Tensor, stage: _Stage, rate: float) -> Tensor:
    """1x1 to more channels, 3x3 of each, squeeze and excitation, 1x1 to the filters."""
    y = net.conv(f"{name}expand_conv", x, x.channels * stage.expansion, 1, padding="same", bias=False)
    y = _normed(net, f"{name}expand_", y)
    y = net.depthwise_conv(f"{name}dwconv2", y, 3, strides=stage.stride, padding="same", bias=False)
    y = squeezed(net, name, _normed(net, name, y), max(1, int(x.channels * 0.25)))
    y = net.conv(f"{name}project_conv", y, stage.filters, 1, padding="same", bias=False)
    y = net.batch_norm(f"{name}project_bn", y, momentum=_MOMENTUM)
    return added(net, name, x, y, rate) if stage.stride == 1 and x.channels == stage.filters else y


def _fused(net: Graph, name: str, x: Tensor, stage: _Stage, rate: float) -> Tensor:
    """3x3 to more channels, 1x1 to the filters; without the former where it would not widen."""
    y, wide, stride = x, stage.expansion > 1, stage.stride
    if wide:
        y = net.conv(
            f"{name}expand_conv", y, x.channels * stage.expansion, 3, strides=stride, padding="same", bias=False
        )
        y = _normed(net, f"{name}expand_", y)
    size, step = (1, 1) if wide else (3, stride)
    y = net.conv(f"{name}project_conv", y, stage.filters, size, strides=step, padding="same", bias=False)
    y = net.batch_norm(f"{name}project_bn", y, momentum=_MOMENTUM)
    y = y if wide else net.activation(f"{name}project_activation", y, "swish")
    return added(net, name, x, y, rate) if stride == 1 and x.channels == stage.filters else y
