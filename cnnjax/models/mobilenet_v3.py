"""MobileNet, version 3 (Howard et al. 2019, arXiv:1905.02244), as in `keras.applications.MobileNetV3Small`, `Large`."""

from functools import partial
from typing import Literal, NamedTuple

from flax import nnx

from cnnjax.models.backbone import Backbone, Shape
from cnnjax.models.graph import Graph, Tensor
from cnnjax.models.published import Published
from cnnjax.models.registry import register
from cnnjax.models.sizes import checked_images, divisible
from cnnjax.runtime.nearest import unknown


class _Block(NamedTuple):
    """An inverted residual block."""

    expansion: float
    filters: int  # at alpha 1
    wide: bool  # a 5x5 kernel, where the network is not minimalistic
    stride: int
    squeezed: bool  # weighted by squeeze and excitation, likewise
    hard: bool  # hard swish instead of ReLU, likewise


_BLOCKS = {
    "small": (
        _Block(1, 16, False, 2, True, False),
        _Block(72 / 16, 24, False, 2, False, False),
        _Block(88 / 24, 24, False, 1, False, False),
        _Block(4, 40, True, 2, True, True),
        *[_Block(6, 40, True, 1, True, True)] * 2,
        *[_Block(3, 48, True, 1, True, True)] * 2,
        _Block(6, 96, True, 2, True, True),
        *[_Block(6, 96, True, 1, True, True)] * 2,
    ),
    "large": (
        _Block(1, 16, False, 1, False, False),
        _Block(4, 24, False, 2, False, False),
        _Block(3, 24, False, 1, False, False),
        _Block(3, 40, True, 2, True, False),
        *[_Block(3, 40, True, 1, True, False)] * 2,
        _Block(6, 80, False, 2, False, True),
        _Block(2.5, 80, False, 1, False, True),
        *[_Block(2.3, 80, False, 1, False, True)] * 2,
        *[_Block(6, 112, False, 1, True, True)] * 2,
        _Block(6, 160, True, 2, True, True),
        *[_Block(6, 160, True, 1, True, True)] * 2,
    ),
}
_LAST = {"small": 1024, "large": 1280}  # filters of the top's convolution

PUBLISHED = tuple(
    Published(
        name=f"weights_mobilenet_v3_{file}{'' if top else '_no_top_v2'}",
        backbone="mobilenet_v3",
        url="https://storage.googleapis.com/tensorflow/keras-applications/mobilenet_v3/"
        f"weights_mobilenet_v3_{file}{'' if top else '_no_top_v2'}.h5",
        digest=f"md5:{md5}",
        input_size=224,
        preprocessing="none",
        classes=1000,
        licence=None,
        include_top=top,
        options={"variant": file.partition("_")[0], "alpha": alpha, "minimalistic": "minimalistic" in file},
        top1=accuracy,
    )
    for file, alpha, accuracy, *digests in (
        ("small_224_1.0_float", 1.0, 0.681, "8768d4c2e7dee89b9d02b2d03d65d862", "d3e8ec802a04aa4fc771ee12a9a9b836"),
        ("small_224_0.75_float", 0.75, 0.654, "cb65d4e5be93758266aa0a7f2c6708b7", "ebdb5cc8e0b497cd13a7c275d475c819"),
        ("small_minimalistic_224_1.0_float", 1.0, 0.619,
         "99cd97fb2fcdad2bf028eb838de69e37", "cde8136e733e811080d9fcd8a252f7e4"),
        ("large_224_1.0_float", 1.0, 0.756, "59e551e166be033d707958cf9e29a6a7", "07fb09a5933dd0c8eaafa16978110389"),
        ("large_224_0.75_float", 0.75, 0.733, "765b44a33ad4005b3ac83185abf1d0eb", "40af19a13ebea4e2ee0c676887f69a2e"),
        ("large_minimalistic_224_1.0_float", 1.0, 0.723,
         "675e7b876c45c57e9e63e6d90a36599c", "ec5221f64a2f6d1ef965a614bdae7973"),
    )
    for md5, top in zip(digests, (True, False), strict=True)
)  # fmt: skip


@register(published=PUBLISHED, top=("dropout",), small={"alpha": 0.25, "input_shape": (32, 32, 3)})
def mobilenet_v3(
    variant: Literal["small", "large"] = "small",
    alpha: float = 1.0,
    minimalistic: bool = False,
    input_shape: Shape = (224, 224, 3),
    include_top: bool = True,
    classes: int = 1000,
    dropout: float = 0.2,
    classifier_activation: str | None = "softmax",
    *,
    rngs: nnx.Rngs,
) -> Backbone:
    """Build MobileNetV3 with Keras's layer names in Keras's order (small: 164 layers, large: 194, both with top).

    Pixels are scaled in the network, by its first layer. Arithmetic that Keras does not list among the layers (x + 3
    and x / 6 of the hard sigmoid) has Keras's names (`add`, `multiply_1`), and slices do not count it.

    Args:
        variant: small or large.
        alpha: The width multiplier; every layer has a multiple of 8 channels near alpha times its width.
        minimalistic: Whether to leave out squeeze and excitation, hard swish and 5x5 kernels.
        input_shape: (H, W, C), at least 32 pixels a side; None for any height or width.
        include_top: Whether to end in Keras's classification layers; False for a backbone under another head.
        classes: Classes of the top.
        dropout: Dropout rate in the top.
        classifier_activation: Of the top; None for logits.
        rngs: Keys for weights and dropout.

    Returns:
        f32[N, H, W, C] with values 0 to 255 to f32[N, H/32, W/32, 576] (rounded up; 960 of large), or to f32[N,
        classes] with top.

    Raises:
        ValueError: There is no such variant, the images are smaller than 32 pixels, `alpha` is 0, or the top has no
            classes.

    >>> mobilenet_v3("small", 0.75, input_shape=(96, 96, 3), include_top=False, rngs=nnx.Rngs(0)).output_shape()
    (3, 3, 432)
    """
    if variant not in _BLOCKS:
        raise ValueError(unknown("MobileNetV3", variant, _BLOCKS, listed=True))
    if alpha <= 0:
        raise ValueError(f"alpha of MobileNetV3 must be above 0, found {alpha}")
    checked_images("MobileNetV3", input_shape, 32)
    if include_top and classes < 1:
        raise ValueError(f"MobileNetV3 with top needs at least one class, found {classes}")
    net = _Net(Graph(input_shape, rngs=rngs, name=f"mobilenet_v3_{variant}"), minimalistic)
    graph = net.graph
    x = graph.rescale("rescaling", graph.input, 1 / 127.5, -1.0)
    x = net.activated(net.normed("conv", x, 16, 3, 2), True)
    for number, block in enumerate(_BLOCKS[variant]):
        x = net.inverted(number, x, block, divisible(block.filters * alpha))
    x = net.activated(net.normed("conv_1", x, divisible(x.channels * 6), 1), True)
    if include_top:
        x = graph.global_avg_pool(graph.unnamed("global_average_pooling2d"), x, keepdims=True)
        last = _LAST[variant]
        x = graph.conv("conv_2", x, divisible(last * alpha) if alpha > 1 else last, 1, padding="same")
        x = net.activated(x, True)
        if dropout:
            x = graph.dropout("dropout", x, dropout)
        x = graph.flatten("flatten", graph.conv("logits", x, classes, 1, padding="same"))
        x = graph.activation("predictions", x, classifier_activation or "linear")
    return graph.backbone(x, alpha=alpha)


class _Net(NamedTuple):
    """A graph in the making, and whether only the simplest layers go into it."""

    graph: Graph
    minimalistic: bool

    def normed(self, name: str, x: Tensor, filters: int, size: int, stride: int = 1) -> Tensor:
        """A convolution and its normalisation."""
        x = self.graph.conv(name, x, filters, size, strides=stride, padding="same", bias=False)
        return self.graph.batch_norm(f"{name}_bn", x, momentum=0.999)

    def activated(self, x: Tensor, hard: bool) -> Tensor:
        """Hard swish or ReLU."""
        if hard and not self.minimalistic:
            return self.graph.activation(self.graph.unnamed("activation"), x, "hard_swish")
        return self.graph.relu(self.graph.unnamed("re_lu"), x)

    def inverted(self, number: int, x: Tensor, block: _Block, filters: int) -> Tensor:
        """1x1 to more channels, a kernel for each, squeeze and excitation, 1x1 to the filters."""
        graph, normalised = self.graph, partial(self.graph.batch_norm, momentum=0.999)
        name = f"expanded_conv_{number}_" if number else "expanded_conv_"
        size, y, wide = 5 if block.wide and not self.minimalistic else 3, x, divisible(x.channels * block.expansion)
        if number:
            y = graph.conv(f"{name}expand", x, wide, 1, padding="same", bias=False)
            y = self.activated(normalised(f"{name}expand_bn", y), block.hard)
        if block.stride == 2:
            y = graph.halving_pad(f"{name}depthwise_pad", y, size)
        padding = "valid" if block.stride == 2 else "same"
        y = graph.depthwise_conv(f"{name}depthwise", y, size, strides=block.stride, padding=padding, bias=False)
        y = self.activated(normalised(f"{name}depthwise_bn", y), block.hard)
        if block.squeezed and not self.minimalistic:
            y = self.squeezed(name, y, wide)
        y = normalised(f"{name}project_bn", graph.conv(f"{name}project", y, filters, 1, padding="same", bias=False))
        return graph.add(f"{name}add", x, y) if block.stride == 1 and x.channels == filters else y

    def squeezed(self, name: str, x: Tensor, channels: int) -> Tensor:
        """Each channel weighted by what all of them are on average."""
        graph = self.graph
        y = graph.global_avg_pool(f"{name}squeeze_excite_avg_pool", x, keepdims=True)
        y = graph.conv(f"{name}squeeze_excite_conv", y, divisible(channels * 0.25), 1, padding="same")
        y = graph.relu(f"{name}squeeze_excite_relu", y)
        y = graph.conv(f"{name}squeeze_excite_conv_1", y, channels, 1, padding="same")
        y = graph.operation(graph.rescale(graph.unnamed("add"), y, 1.0, 3.0))
        y = graph.relu(graph.unnamed("re_lu"), y, 6.0)
        y = graph.operation(graph.rescale(graph.unnamed("multiply"), y, 1 / 6))
        return graph.multiply(f"{name}squeeze_excite_mul", x, y)
