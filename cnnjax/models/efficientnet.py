"""EfficientNet B0 to B7 (Tan & Le 2019, arXiv:1905.11946), as in `keras.applications.EfficientNetB0` and so on."""

import math
from typing import Literal, NamedTuple

from flax import nnx

from cnnjax.models.backbone import Backbone, Shape
from cnnjax.models.graph import Graph, Tensor
from cnnjax.models.published import Published
from cnnjax.models.registry import register
from cnnjax.models.sizes import checked_images, divisible
from cnnjax.runtime.nearest import unknown


class Stage(NamedTuple):
    """Inverted residual blocks of one width, for coefficients of 1."""

    count: int
    kernel_size: int
    stride: int
    expansion: int
    filters: int


STAGES = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)


class _Variant(NamedTuple):
    """Width and depth coefficient, images' size, dropout of the top, accuracy and MD5 that Keras states."""

    width: float
    depth: float
    size: int
    dropout: float
    top1: float
    with_top: str
    without: str


_VARIANTS = {
    "b0": _Variant(
        1.0, 1.0, 224, 0.2, 0.771, "902e53a9f72be733fc0bcb005b3ebbac", "50bc09e76180e00e4465e1a485ddc09d"),
    "b1": _Variant(
        1.0, 1.1, 240, 0.2, 0.791, "1d254153d4ab51201f1646940f018540", "74c4e6b3e1f6a1eea24c589628592432"),
    "b2": _Variant(
        1.1, 1.2, 260, 0.3, 0.801, "b15cce36ff4dcbd00b6dd88e7857a6ad", "111f8e2ac8aa800a7a99e3239f7bfb39"),
    "b3": _Variant(
        1.2, 1.4, 300, 0.3, 0.816, "ffd1fdc53d0ce67064dc6a9c7960ede0", "af6d107764bb5b1abb91932881670226"),
    "b4": _Variant(
        1.4, 1.8, 380, 0.4, 0.829, "18c95ad55216b8f92d7e70b3a046e2fc", "ebc24e6d6c33eaebbd558eafbeedf1ba"),
    "b5": _Variant(
        1.6, 2.2, 456, 0.4, 0.836, "ace28f2a6363774853a83a0b21b9421a", "38879255a25d3c92d5e44e04ae6cec6f"),
    "b6": _Variant(
        1.8, 2.6, 528, 0.5, 0.840, "165f6e37dce68623721b423839de8be5", "9ecce42647a20130c1f39a5d4cb75743"),
    "b7": _Variant(
        2.0, 3.1, 600, 0.5, 0.843, "8c03f828fec3ef71311cd463b6759d99", "cbcfe4450ddf6f3ad90b1b398090fe4a"),
}  # fmt: skip
_DEVIATIONS = (0.229, 0.224, 0.225)
_MOST_BLOCKS = 26  # of a stage: they are called a, b, c, ...

PUBLISHED = tuple(
    Published(
        name=f"efficientnet{variant}{'' if top else '_notop'}",
        backbone="efficientnet",
        url=f"https://storage.googleapis.com/keras-applications/efficientnet{variant}{'' if top else '_notop'}.h5",
        digest=f"md5:{known.with_top if top else known.without}",
        input_size=known.size,
        preprocessing="none",
        classes=1000,
        licence=None,
        include_top=top,
        options={"variant": variant, "second_rescaling": True},
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
def efficientnet(
    variant: Literal["b0", "b1", "b2", "b3", "b4", "b5", "b6", "b7"] = "b0",
    width_coefficient: float | None = None,
    depth_coefficient: float | None = None,
    stochastic_depth: float = 0.2,
    second_rescaling: bool = False,
    input_shape: Shape | None = None,
    include_top: bool = True,
    classes: int = 1000,
    dropout: float | None = None,
    classifier_activation: str | None = "softmax",
    *,
    rngs: nnx.Rngs,
) -> Backbone:
    """Build an EfficientNet with Keras's layer names in Keras's order (B0: 237 layers, 240 with top).

    Pixels are scaled in the network, by its first layers.

    Args:
        variant: b0 to b7, which give both coefficients, the images' size and the top's dropout.
        width_coefficient: Factor of the widths; the variant's if not given.
        depth_coefficient: Factor of the numbers of blocks; the variant's if not given.
        stochastic_depth: At which rate the last block's residual is left out for an image in training; lower for the
            others, in proportion to their place (Keras's `drop_connect_rate`). 0 for never.
        second_rescaling: Whether normalised pixels are divided by the roots of ImageNet's deviations, for which the
            weights were made that Keras publishes; Keras puts the layer in with those only.
        input_shape: (H, W, C), at least 32 pixels a side; None for any height or width. The variant's own if not given.
        include_top: Whether to end in Keras's classification layers; False for a backbone under another head.
        classes: Classes of the top.
        dropout: Dropout rate in the top; the variant's if not given.
        classifier_activation: Of the top; None for logits.
        rngs: Keys for weights, dropout and stochastic depth.

    Returns:
        f32[N, H, W, C] with values 0 to 255 to f32[N, H/32, W/32, 1280] (rounded up; times the width coefficient), or
        to f32[N, classes] with top.

    Raises:
        ValueError: There is no such variant, a coefficient is 0 or too large, the images are smaller than 32 pixels,
            the second rescaling is asked for other than three channels, or the top has no classes.

    >>> efficientnet("b1", input_shape=(96, 96, 3), include_top=False, rngs=nnx.Rngs(0)).output_shape()
    (3, 3, 1280)
    """
    if variant not in _VARIANTS:
        raise ValueError(unknown("EfficientNet", variant, _VARIANTS, listed=True))
    known = _VARIANTS[variant]
    shape = input_shape or (known.size, known.size, 3)
    checked_images("EfficientNet", shape, 32)
    if include_top and classes < 1:
        raise ValueError(f"EfficientNet with top needs at least one class, found {classes}")
    if second_rescaling and shape[2] != 3:
        raise ValueError(f"the second rescaling is of red, green and blue, found input_shape {shape}")
    net = Graph(shape, rngs=rngs, name=f"efficientnet_{variant}")
    x = net.normalization("normalization", net.rescale("rescaling", net.input, 1 / 255))
    if second_rescaling:
        x = net.rescale("rescaling_1", x, [1 / math.sqrt(deviation) for deviation in _DEVIATIONS])
    blocks = Blocks(
        net,
        known.width if width_coefficient is None else width_coefficient,
        known.depth if depth_coefficient is None else depth_coefficient,
        stochastic_depth,
    )
    x = blocks.all(x, divisible(32 * blocks.width))
    return ended(
        net, x, divisible(1280 * blocks.width), include_top, classes,
        known.dropout if dropout is None else dropout, classifier_activation,
    )  # fmt: skip


class Blocks(NamedTuple):
    """The blocks of an EfficientNet in the making."""

    net: Graph
    width: float
    depth: float
    stochastic_depth: float
    activation: str = "swish"
    squeezed: bool = True
    ends_scaled: bool = True  # whether the depth coefficient is of the first and last stage too

    def all(self, x: Tensor, stem: int) -> Tensor:
        """A convolution of stride 2 to `stem` channels, and the stages.

        Raises:
            ValueError: A coefficient is 0, or a stage becomes too deep.
        """
        if min(self.width, self.depth) <= 0:
            raise ValueError(f"coefficients of width and depth must be above 0, found {self.width} and {self.depth}")
        counts = [self.repeated(k) for k in range(len(STAGES))]
        if max(counts) > _MOST_BLOCKS:
            raise ValueError(f"depth_coefficient {self.depth} gives a stage {max(counts)} blocks, above {_MOST_BLOCKS}")
        net = self.net
        x = net.conv("stem_conv", net.halving_pad("stem_conv_pad", x, 3), stem, 3, strides=2, bias=False)
        x = net.activation("stem_activation", net.batch_norm("stem_bn", x), self.activation)
        number, total = 0, sum(counts)
        for k, (stage, count) in enumerate(zip(STAGES, counts, strict=True), start=1):
            for letter in range(count):
                first = stage if letter == 0 else stage._replace(stride=1)
                x = self.inverted(f"block{k}{chr(97 + letter)}_", x, first, self.stochastic_depth * number / total)
                number += 1
        return x

    def repeated(self, stage: int) -> int:
        """How many blocks a stage has."""
        scaled = self.ends_scaled or 0 < stage < len(STAGES) - 1
        return math.ceil(self.depth * STAGES[stage].count) if scaled else STAGES[stage].count

    def inverted(self, name: str, x: Tensor, stage: Stage, rate: float) -> Tensor:
        """1x1 to more channels, a kernel for each, squeeze and excitation, 1x1 to the filters."""
        net, y, filters = self.net, x, divisible(stage.filters * self.width)
        if stage.expansion != 1:
            y = net.conv(f"{name}expand_conv", y, x.channels * stage.expansion, 1, padding="same", bias=False)
            y = net.activation(f"{name}expand_activation", net.batch_norm(f"{name}expand_bn", y), self.activation)
        if stage.stride == 2:
            y = net.halving_pad(f"{name}dwconv_pad", y, stage.kernel_size)
        padding = "valid" if stage.stride == 2 else "same"
        y = net.depthwise_conv(f"{name}dwconv", y, stage.kernel_size, strides=stage.stride, padding=padding, bias=False)
        y = net.activation(f"{name}activation", net.batch_norm(f"{name}bn", y), self.activation)
        if self.squeezed:
            y = squeezed(net, name, y, max(1, int(x.channels * 0.25)))
        y = net.conv(f"{name}project_conv", y, filters, 1, padding="same", bias=False)
        y = net.batch_norm(f"{name}project_bn", y)
        return added(net, name, x, y, rate) if stage.stride == 1 and x.channels == filters else y


def squeezed(net: Graph, name: str, x: Tensor, narrow: int) -> Tensor:
    """Each channel weighted by what all of them are on average (squeeze and excitation)."""
    y = net.global_avg_pool(f"{name}se_squeeze", x)
    y = net.reshape(f"{name}se_reshape", y, (1, 1, x.channels))
    y = net.conv(f"{name}se_reduce", y, narrow, 1, padding="same", activation="swish")
    y = net.conv(f"{name}se_expand", y, x.channels, 1, padding="same", activation="sigmoid")
    return net.multiply(f"{name}se_excite", x, y)


def added(net: Graph, name: str, x: Tensor, y: Tensor, rate: float) -> Tensor:
    """The residual `y` added, left out at that rate in training."""
    if rate > 0:
        y = net.dropout(f"{name}drop", y, rate, whole_image=True)
    return net.add(f"{name}add", y, x)


def ended(
    net: Graph,
    x: Tensor,
    filters: int,
    include_top: bool,
    classes: int,
    dropout: float,
    classifier_activation: str | None,
    activation: str = "swish",
    momentum: float = 0.99,
) -> Backbone:
    """The last convolution, and the classification layers if wanted."""
    x = net.batch_norm("top_bn", net.conv("top_conv", x, filters, 1, padding="same", bias=False), momentum=momentum)
    x = net.activation("top_activation", x, activation)
    if include_top:
        x = net.global_avg_pool("avg_pool", x)
        if dropout > 0:
            x = net.dropout("top_dropout", x, dropout)
        x = net.dense("predictions", x, classes, activation=classifier_activation or "linear")
    return net.backbone(x)
