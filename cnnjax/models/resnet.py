"""ResNet (He et al. 2015, arXiv:1512.03385): version 1 as in `keras.applications`, 1.5 as in torchvision and timm.

Version 1.5 with groups is ResNeXt (Xie et al. 2016, arXiv:1611.05431); with a wider base, Wide ResNet.
"""

from typing import Literal, NamedTuple

from flax import nnx

from cnnjax.models.backbone import Backbone, Shape
from cnnjax.models.graph import Graph, Tensor
from cnnjax.models.published import Published
from cnnjax.models.registry import register
from cnnjax.models.sizes import checked_images
from cnnjax.runtime.nearest import unknown


class _Variant(NamedTuple):
    """In what two publishers' networks differ."""

    bias: bool  # of the convolutions
    epsilon: float
    momentum: float
    strided: int  # the convolution of a bottleneck that has the stride
    own_padding: bool  # zeros before the first convolution and pooling are layers of their own


_VARIANTS = {"v1": _Variant(True, 1.001e-5, 0.99, 1, True), "v1.5": _Variant(False, 1e-5, 0.9, 2, False)}
_BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
_BOTTLENECKS = 50  # from this depth on, of three convolutions that end in four times the width


PUBLISHED = tuple(
    Published(
        name=f"resnet{depth}_weights_tf_dim_ordering_tf_kernels" + ("" if top else "_notop"),
        backbone="resnet",
        url="https://storage.googleapis.com/tensorflow/keras-applications/resnet/"
        f"resnet{depth}_weights_tf_dim_ordering_tf_kernels{'' if top else '_notop'}.h5",
        digest=f"md5:{md5}",
        input_size=224,
        preprocessing="caffe",
        classes=1000,
        licence="MIT",
        include_top=top,
        options={"depth": depth, "variant": "v1"},
        top1=top1,
    )
    for depth, top1, *digests in (
        (50, 0.749, "2cb95161c43110f7111970584f804107", "4d473c1dd8becc155b73f8504c6f6626"),
        (101, 0.764, "f1aeb4b969a6efcfb50fad2f0c20cfc5", "88cf7a10940856eca736dc7b7e228a21"),
        (152, 0.766, "100835be76be38e30d865e96f2aaae62", "ee4c566cf9a93f14d82f913c2dc6dd0c"),
    )
    for md5, top in zip(digests, (True, False), strict=True)
)


@register(
    published=PUBLISHED, small={"depth": 18, "variant": "v1.5", "widths": (2, 4, 4, 6), "input_shape": (32, 32, 3)}
)
def resnet(
    depth: int = 50,
    variant: Literal["v1", "v1.5"] = "v1",
    widths: tuple[int, ...] = (64, 128, 256, 512),
    input_shape: Shape = (224, 224, 3),
    include_top: bool = True,
    classes: int = 1000,
    classifier_activation: str | None = "softmax",
    *,
    groups: int = 1,
    base_width: int = 64,
    rngs: nnx.Rngs,
) -> Backbone:
    """Build a ResNet with Keras's layer names in Keras's order (ResNet-50: 175 layers, 177 with top).

    Args:
        depth: The number of weighted layers: 18, 34, 50, 101 or 152.
        variant: v1 (Keras's: strides in the first 1x1 convolution, biases) or v1.5 (torchvision's: strides in the 3x3).
        widths: Filters of the inner convolutions of each stage; fewer widths make fewer stages.
        input_shape: (H, W, C), at least 32 pixels a side; None for any height or width.
        include_top: Whether to end in Keras's classification layers; False for a backbone under another head.
        classes: Classes of the top.
        classifier_activation: Of the top; None for logits.
        groups: Of the 3x3 convolutions of v1.5 from depth 50 on; ResNeXt-50 32x4d has 32, and a base_width of 4.
        base_width: Filters of each group in the first stage, for 64 widths; ResNet's is 64.
        rngs: Keys for weights.

    Returns:
        f32[N, H, W, C] (v1: BGR less ImageNet's mean; v1.5: less mean, over deviation) to f32[N, H/32, W/32, 2048]
        (rounded up; 512 channels below depth 50), or to f32[N, classes] with top.

    Raises:
        ValueError: There is no such depth or variant, the images are smaller than 32 pixels, there are too few or too
            many widths, groups do not fit the variant or the depth, or the top has no classes.

    >>> resnet(input_shape=(160, 160, 3), widths=(4, 8, 16, 32), include_top=False, rngs=nnx.Rngs(0)).output_shape()
    (5, 5, 128)
    """
    if depth not in _BLOCKS:
        nearest = min(_BLOCKS, key=lambda known: abs(known - depth))
        raise ValueError(
            f"no ResNet of depth {depth}; did you mean {nearest}? There are {', '.join(map(str, _BLOCKS))}"
        )
    if variant not in _VARIANTS:
        raise ValueError(unknown("ResNet", variant, _VARIANTS, listed=True))
    if not 1 <= len(widths) <= len(_BLOCKS[depth]) or min(widths) < 1:
        raise ValueError(f"ResNet has one to {len(_BLOCKS[depth])} stages, each of a width from 1 on, found {widths}")
    checked_images("ResNet", input_shape, 32)
    if include_top and classes < 1:
        raise ValueError(f"ResNet with top needs at least one class, found {classes}")
    if (groups, base_width) != (1, 64) and (variant != "v1.5" or depth < _BOTTLENECKS or groups < 1):
        raise ValueError(
            f"groups and base_width are of version 1.5 from depth {_BOTTLENECKS} on (ResNeXt), found variant "
            f"{variant!r}, depth {depth}, groups {groups} and base_width {base_width}"
        )
    inner = [width * base_width // 64 * groups for width in widths]
    if min(inner) < 1:
        raise ValueError(f"base_width {base_width} leaves a convolution of widths {widths} no filters")
    net = _Net(Graph(input_shape, rngs=rngs, name="resnet"), _VARIANTS[variant], groups)
    x = net.stem(widths[0])
    for stage, (width, own, count) in enumerate(zip(widths, inner, _BLOCKS[depth], strict=False), start=2):
        for k in range(1, count + 1):
            name, stride = f"conv{stage}_block{k}", 2 if k == 1 and stage > 2 else 1
            x = (
                net.bottleneck(name, x, width, own, stride)
                if depth >= _BOTTLENECKS
                else net.basic(name, x, width, stride)
            )
    if include_top:
        x = net.graph.global_avg_pool("avg_pool", x)
        x = net.graph.dense("predictions", x, classes, activation=classifier_activation or "linear")
    return net.graph.backbone(x)


class _Net(NamedTuple):
    """A graph in the making, and whose network it becomes."""

    graph: Graph
    of: _Variant
    groups: int

    def normed(
        self, name: str, x: Tensor, filters: int, size: int, stride: int = 1, padding: int = 0, groups: int = 1
    ) -> Tensor:
        """A convolution and its normalisation."""
        x = self.graph.conv(
            f"{name}_conv", x, filters, size, strides=stride, padding=padding, groups=groups, bias=self.of.bias
        )
        return self.graph.batch_norm(f"{name}_bn", x, epsilon=self.of.epsilon, momentum=self.of.momentum)

    def rectified(
        self, name: str, x: Tensor, filters: int, size: int, stride: int = 1, padding: int = 0, groups: int = 1
    ) -> Tensor:
        """The same, rectified."""
        x = self.normed(name, x, filters, size, stride, padding, groups)
        return self.graph.activation(f"{name}_relu", x, "relu")

    def stem(self, width: int) -> Tensor:
        """A quarter of the size."""
        if not self.of.own_padding:
            x = self.rectified("conv1", self.graph.input, width, 7, 2, 3)
            return self.graph.max_pool("pool1_pool", x, 3, 2, 1)
        x = self.rectified("conv1", self.graph.zero_padding("conv1_pad", self.graph.input, 3), width, 7, 2)
        return self.graph.max_pool("pool1_pool", self.graph.zero_padding("pool1_pad", x, 1), 3, 2)

    def bottleneck(self, name: str, x: Tensor, width: int, inner: int, stride: int) -> Tensor:
        """1x1 to the inner width (the width, but for groups), 3x3, 1x1 to four times the width."""
        first, second = (stride, 1) if self.of.strided == 1 else (1, stride)
        shortcut = self.normed(f"{name}_0", x, 4 * width, 1, stride) if name.endswith("_block1") else x
        x = self.rectified(f"{name}_1", x, inner, 1, first)
        x = self.rectified(f"{name}_2", x, inner, 3, second, 1, self.groups)
        return self.joined(name, shortcut, self.normed(f"{name}_3", x, 4 * width, 1))

    def basic(self, name: str, x: Tensor, width: int, stride: int) -> Tensor:
        """Two 3x3."""
        plain = stride == 1 and x.channels == width
        shortcut = x if plain else self.normed(f"{name}_0", x, width, 1, stride)
        x = self.rectified(f"{name}_1", x, width, 3, stride, 1)
        return self.joined(name, shortcut, self.normed(f"{name}_2", x, width, 3, 1, 1))

    def joined(self, name: str, shortcut: Tensor, x: Tensor) -> Tensor:
        """What the block adds to its input."""
        return self.graph.activation(f"{name}_out", self.graph.add(f"{name}_add", shortcut, x), "relu")
