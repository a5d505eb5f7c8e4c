"""Big Transfer (Kolesnikov et al. 2019, arXiv:1912.11370): ResNet-V2 with group normalisation and standardised weights.

The form is that of google-research/big_transfer and timm (`resnetv2_50x1_bit`).
"""

from typing import NamedTuple

from flax import nnx

from cnnjax.models.backbone import Backbone, Shape
from cnnjax.models.graph import Graph, Tensor
from cnnjax.models.registry import register
from cnnjax.models.sizes import checked_images

_BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


@register(small={"widths": (4, 8), "groups": 2, "input_shape": (32, 32, 3)})
def bit(
    depth: int = 50,
    factor: int = 1,
    widths: tuple[int, ...] = (64, 128, 256, 512),
    groups: int = 32,
    input_shape: Shape = (224, 224, 3),
    include_top: bool = True,
    classes: int = 1000,
    classifier_activation: str | None = "softmax",
    *,
    rngs: nnx.Rngs,
) -> Backbone:
    """Build a BiT network; layers are named as Keras names those of ResNet-V2 (`conv2_block1_preact_gn`).

    Args:
        depth: The number of weighted layers: 50, 101 or 152.
        factor: How many times wider every layer is: 1 to 4 in the paper (R50x1, R101x3).
        widths: Filters of the inner convolutions of each stage, before the factor; fewer widths make fewer stages.
        groups: Of channels that are normalised together; it divides every width.
        input_shape: (H, W, C), at least 32 pixels a side; None for any height or width.
        include_top: Whether to end in classification layers (avg_pool, predictions).
        classes: Classes of the top.
        classifier_activation: Of the top; None for logits.
        rngs: Keys for weights.

    Returns:
        f32[N, H, W, C] with values -1 to 1 to f32[N, H/32, W/32, 2048 factor] (rounded up), or to f32[N, classes] with
        top.

    Raises:
        ValueError: There is no such depth, the images are smaller than 32 pixels, there are too few or too many widths,
            the groups do not divide them, or the top has no classes.

    >>> bit(50, 1, (4, 8, 8, 8), 4, (160, 160, 3), include_top=False, rngs=nnx.Rngs(0)).output_shape()
    (5, 5, 32)
    """
    if depth not in _BLOCKS:
        nearest = min(_BLOCKS, key=lambda known: abs(known - depth))
        raise ValueError(f"no BiT of depth {depth}; did you mean {nearest}? There are {', '.join(map(str, _BLOCKS))}")
    if not 1 <= len(widths) <= len(_BLOCKS[depth]) or min(*widths, factor) < 1:
        raise ValueError(
            f"BiT has one to {len(_BLOCKS[depth])} stages, each of a width from 1 on, and a factor from 1 on; found "
            f"{widths} and {factor}"
        )
    if groups < 1 or any(width * factor % groups for width in widths):
        raise ValueError(f"BiT: {groups} groups do not divide every one of the widths {widths} times {factor}")
    checked_images("BiT", input_shape, 32)
    if include_top and classes < 1:
        raise ValueError(f"BiT with top needs at least one class, found {classes}")
    net = _Net(Graph(input_shape, rngs=rngs, name="bit"), groups)
    x = net.conv("conv1_conv", net.graph.input, widths[0] * factor, 7, 2)
    # What is pooled may be negative, so that the zeros count.
    x = net.graph.max_pool("pool1_pool", net.graph.zero_padding("pool1_pad", x, 1), 3, 2)
    for stage, (width, count) in enumerate(zip(widths, _BLOCKS[depth], strict=False), start=2):
        for k in range(1, count + 1):
            x = net.block(f"conv{stage}_block{k}", x, width * factor, 2 if k == 1 and stage > 2 else 1)
    x = net.rectified("post", x)
    if include_top:
        x = net.graph.global_avg_pool("avg_pool", x)
        x = net.graph.dense("predictions", x, classes, activation=classifier_activation or "linear")
    return net.graph.backbone(x)


class _Net(NamedTuple):
    """A graph in the making, and how many groups of channels are normalised."""

    graph: Graph
    groups: int

    def conv(self, name: str, x: Tensor, filters: int, size: int, stride: int = 1) -> Tensor:
        return self.graph.conv(name, x, filters, size, strides=stride, padding=size // 2, bias=False, standardized=True)

    def rectified(self, name: str, x: Tensor) -> Tensor:
        x = self.graph.group_norm(f"{name}_gn", x, self.groups, epsilon=1e-5)
        return self.graph.activation(f"{name}_relu", x, "relu")

    def block(self, name: str, x: Tensor, width: int, stride: int) -> Tensor:
        """1x1 to the width, 3x3 with the stride, 1x1 to four times the width."""
        before = self.rectified(f"{name}_preact", x)
        shortcut = self.conv(f"{name}_0_conv", before, 4 * width, 1, stride) if name.endswith("_block1") else x
        y = self.rectified(f"{name}_1", self.conv(f"{name}_1_conv", before, width, 1))
        y = self.rectified(f"{name}_2", self.conv(f"{name}_2_conv", y, width, 3, stride))
        return self.graph.add(f"{name}_out", shortcut, self.conv(f"{name}_3_conv", y, 4 * width, 1))
