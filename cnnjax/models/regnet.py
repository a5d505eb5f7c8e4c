"""RegNet X and Y (Radosavovic et al. 2020, arXiv:2003.13678), as in torchvision and timm."""

import math
from typing import Literal, NamedTuple

import numpy as np
from flax import nnx

from cnnjax.models.backbone import Backbone, Shape
from cnnjax.models.graph import Graph, Tensor
from cnnjax.models.registry import register
from cnnjax.models.sizes import checked_images
from cnnjax.runtime.nearest import unknown

Variant = Literal[
    "x_200mf", "x_400mf", "x_400mf_tv", "x_600mf", "x_800mf", "x_1.6gf", "x_3.2gf", "x_4gf", "x_6.4gf", "x_8gf",
    "x_12gf", "x_16gf", "x_32gf",
    "y_200mf", "y_400mf", "y_600mf", "y_800mf", "y_800mf_tv", "y_1.6gf", "y_3.2gf", "y_4gf", "y_6.4gf", "y_8gf",
    "y_8gf_tv", "y_12gf", "y_16gf", "y_32gf", "y_64gf", "y_128gf",
]  # fmt: skip


class _Line(NamedTuple):
    """The line that gives the blocks their widths, and the width of a group."""

    initial: int
    slope: float
    step: float
    group: int
    depth: int


_LINES = {
    "x_200mf": _Line(24, 36.44, 2.49, 8, 13),
    "x_400mf": _Line(24, 24.48, 2.54, 16, 22),
    "x_600mf": _Line(48, 36.97, 2.24, 24, 16),
    "x_800mf": _Line(56, 35.73, 2.28, 16, 16),
    "x_1.6gf": _Line(80, 34.01, 2.25, 24, 18),
    "x_3.2gf": _Line(88, 26.31, 2.25, 48, 25),
    "x_4gf": _Line(96, 38.65, 2.43, 40, 23),
    "x_6.4gf": _Line(184, 60.83, 2.07, 56, 17),
    "x_8gf": _Line(80, 49.56, 2.88, 120, 23),
    "x_12gf": _Line(168, 73.36, 2.37, 112, 19),
    "x_16gf": _Line(216, 55.59, 2.1, 128, 22),
    "x_32gf": _Line(320, 69.86, 2.0, 168, 23),
    "y_200mf": _Line(24, 36.44, 2.49, 8, 13),
    "y_400mf": _Line(48, 27.89, 2.09, 8, 16),
    "y_600mf": _Line(48, 32.54, 2.32, 16, 15),
    "y_800mf": _Line(56, 38.84, 2.4, 16, 14),
    "y_1.6gf": _Line(48, 20.71, 2.65, 24, 27),
    "y_3.2gf": _Line(80, 42.63, 2.66, 24, 21),
    "y_4gf": _Line(96, 31.41, 2.24, 64, 22),
    "y_6.4gf": _Line(112, 33.22, 2.27, 72, 25),
    "y_8gf": _Line(192, 76.82, 2.19, 56, 17),
    "y_12gf": _Line(168, 73.36, 2.37, 112, 19),
    "y_16gf": _Line(200, 106.23, 2.48, 112, 18),
    "y_32gf": _Line(232, 115.89, 2.53, 232, 20),
    "y_64gf": _Line(352, 147.48, 2.4, 328, 20),
    "y_128gf": _Line(456, 160.83, 2.52, 264, 27),
}


@register(
    small={"variant": "y_200mf", "widths": (4, 8), "depths": (1, 2), "group_width": 2, "input_shape": (32, 32, 3)}
)
def regnet(
    variant: Variant = "y_400mf",
    widths: tuple[int, ...] = (),
    depths: tuple[int, ...] = (),
    group_width: int = 0,
    input_shape: Shape = (224, 224, 3),
    include_top: bool = True,
    classes: int = 1000,
    classifier_activation: str | None = "softmax",
    *,
    rngs: nnx.Rngs,
) -> Backbone:
    """Build a RegNet; layers are named in Keras's habit (`stage2_block1_1_conv`, `stage2_block1_se_reduce`).

    Args:
        variant: The paper's name; Y has squeeze and excitation. torchvision rounds three of them otherwise (`_tv`).
        widths: Channels of each stage; if none are given, the variant's.
        depths: Blocks of each stage; if none are given, the variant's.
        group_width: Channels of a group of the 3x3 convolutions; 0 for the variant's.
        input_shape: (H, W, C), at least 32 pixels a side; None for any height or width.
        include_top: Whether to end in classification layers (avg_pool, predictions).
        classes: Classes of the top.
        classifier_activation: Of the top; None for logits.
        rngs: Keys for weights.

    Returns:
        f32[N, H, W, C] (less ImageNet's mean, over its deviation) to f32[N, H/32, W/32, channels] (rounded up; 440 for
        y_400mf), or to f32[N, classes] with top.

    Raises:
        ValueError: There is no such variant, the images are smaller than 32 pixels, there is not a width for each
            depth, groups do not divide a width, or the top has no classes.

    >>> regnet("x_200mf", (4, 8), (1, 1), 4, (64, 64, 3), include_top=False, rngs=nnx.Rngs(0)).output_shape()
    (8, 8, 8)
    """
    if variant.removesuffix("_tv") not in _LINES or variant not in Variant.__args__:
        raise ValueError(unknown("RegNet", variant, Variant.__args__, listed=True))
    own = stages(variant)
    widths, depths = widths or own[0], depths or own[1]
    groups = [group_width] * len(widths) if group_width else own[2]
    if len(widths) != len(depths) or min(*widths, *depths) < 1:
        raise ValueError(f"RegNet has a width and a depth from 1 on for each stage, found {widths} and {depths}")
    checked_images("RegNet", input_shape, 32)
    if include_top and classes < 1:
        raise ValueError(f"RegNet with top needs at least one class, found {classes}")
    net = Graph(input_shape, rngs=rngs, name="regnet")
    x = _normed(net, "stem", net.input, 32, 3, 2, relu=True)
    for stage, (width, depth, group) in enumerate(zip(widths, depths, groups, strict=False), start=1):
        for k in range(1, depth + 1):
            x = _block(net, f"stage{stage}_block{k}", x, width, 2 if k == 1 else 1, group, squeeze=variant[0] == "y")
    if include_top:
        x = net.global_avg_pool("avg_pool", x)
        x = net.dense("predictions", x, classes, activation=classifier_activation or "linear")
    return net.backbone(x)


def stages(variant: str) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Widths, depths and group widths of a variant's stages (equations 2 to 4 of the paper, and section 4).

    Widths are rounded to multiples of the group's, halves to even ones as in timm; torchvision rounds halves up, and
    all that would lose more than a tenth.

    >>> stages("x_200mf")
    ((24, 56, 152, 368), (1, 1, 4, 7), (8, 8, 8, 8))
    """
    line = _LINES[variant.removesuffix("_tv")]
    straight = np.arange(line.depth) * line.slope + line.initial
    exponents = np.round(np.log(straight / line.initial) / math.log(line.step))
    each = (np.round(line.initial * np.power(line.step, exponents) / 8) * 8).astype(int).tolist()
    widths = sorted(set(each))
    groups = [min(line.group, width) for width in widths]
    fitting = []
    for width, group in zip(widths, groups, strict=True):
        if variant.endswith("_tv"):
            rounded = max(group, int(width + group / 2) // group * group)
            fitting.append(rounded + group if rounded < 0.9 * width else rounded)
        else:
            fitting.append(max(group, round(width / group) * group))
    return tuple(fitting), tuple(each.count(width) for width in widths), tuple(groups)


def _normed(
    net: Graph, name: str, x: Tensor, filters: int, size: int, stride: int = 1, groups: int = 1, *, relu: bool = False
) -> Tensor:
    x = net.conv(f"{name}_conv", x, filters, size, strides=stride, padding=size // 2, groups=groups, bias=False)
    x = net.batch_norm(f"{name}_bn", x, epsilon=1e-5, momentum=0.9)
    return net.activation(f"{name}_relu", x, "relu") if relu else x


def _block(net: Graph, name: str, x: Tensor, width: int, stride: int, group: int, *, squeeze: bool) -> Tensor:
    """1x1, 3x3 in groups, squeeze and excitation to a quarter of the input's channels, 1x1: all of one width."""
    if width % group:
        raise ValueError(f"{name}: groups of {group} channels do not divide a width of {width}")
    projected = width != x.channels or stride != 1
    shortcut = _normed(net, f"{name}_0", x, width, 1, stride) if projected else x
    y = _normed(net, f"{name}_1", x, width, 1, relu=True)
    y = _normed(net, f"{name}_2", y, width, 3, stride, width // group, relu=True)
    if squeeze:
        z = net.global_avg_pool(f"{name}_se_squeeze", y, keepdims=True)
        z = net.conv(f"{name}_se_reduce", z, max(1, round(x.channels / 4)), 1, activation="relu")
        z = net.conv(f"{name}_se_expand", z, width, 1, activation="sigmoid")
        y = net.multiply(f"{name}_se_excite", y, z)
    y = net.add(f"{name}_add", shortcut, _normed(net, f"{name}_3", y, width, 1))
    return net.activation(f"{name}_out", y, "relu")
