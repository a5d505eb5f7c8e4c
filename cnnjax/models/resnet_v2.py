"""ResNet version 2 (He et al. 2016, arXiv:1603.05027): normalised before each convolution, as in `keras.applications`.

Keras puts the stride into the last block of a stage, not into the next one's first.
"""

from flax import nnx

from cnnjax.models.backbone import Backbone, Shape
from cnnjax.models.graph import Graph, Tensor
from cnnjax.models.published import Published
from cnnjax.models.registry import register
from cnnjax.models.sizes import checked_images

_BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
_EPSILON = 1.001e-5

PUBLISHED = tuple(
    Published(
        name=f"resnet{depth}v2_weights_tf_dim_ordering_tf_kernels" + ("" if top else "_notop"),
        backbone="resnet_v2",
        url="https://storage.googleapis.com/tensorflow/keras-applications/resnet/"
        f"resnet{depth}v2_weights_tf_dim_ordering_tf_kernels{'' if top else '_notop'}.h5",
        digest=f"md5:{md5}",
        input_size=224,
        preprocessing="tf",
        classes=1000,
        licence=None,
        include_top=top,
        options={"depth": depth},
        top1=top1,
    )
    for depth, top1, *digests in (
        (50, 0.760, "3ef43a0b657b3be2300d5770ece849e0", "fac2f116257151a9d068a22e544a4917"),
        (101, 0.772, "6343647c601c52e1368623803854d971", "c0ed64b8031c3730f411d2eb4eea35b5"),
        (152, 0.780, "a49b44d1979771252814e80f8ec446f9", "ed17cf2e0169df9d443503ef94b23b33"),
    )
    for md5, top in zip(digests, (True, False), strict=True)
)


@register(published=PUBLISHED, small={"depth": 50, "widths": (2, 3), "input_shape": (32, 32, 3)})
def resnet_v2(
    depth: int = 50,
    widths: tuple[int, ...] = (64, 128, 256, 512),
    input_shape: Shape = (224, 224, 3),
    include_top: bool = True,
    classes: int = 1000,
    classifier_activation: str | None = "softmax",
    *,
    rngs: nnx.Rngs,
) -> Backbone:
    """Build a ResNet-V2 with Keras's layer names in Keras's order (ResNet-50: 190 layers, 192 with top).

    Args:
        depth: The number of weighted layers: 50, 101 or 152.
        widths: Filters of the inner convolutions of each stage; fewer widths make fewer stages.
        input_shape: (H, W, C), at least 32 pixels a side; None for any height or width.
        include_top: Whether to end in Keras's classification layers; False for a backbone under another head.
        classes: Classes of the top.
        classifier_activation: Of the top; None for logits.
        rngs: Keys for weights.

    Returns:
        f32[N, H, W, C] with values -1 to 1 to f32[N, H/32, W/32, 2048] (rounded up), or to f32[N, classes] with top.

    Raises:
        ValueError: There is no such depth, the images are smaller than 32 pixels, there are too few or too many
            widths, or the top has no classes.

    >>> resnet_v2(50, (2, 4, 6, 8), (160, 160, 3), include_top=False, rngs=nnx.Rngs(0)).output_shape()
    (5, 5, 32)
    """
    if depth not in _BLOCKS:
        nearest = min(_BLOCKS, key=lambda known: abs(known - depth))
        raise ValueError(
            f"no ResNet-V2 of depth {depth}; did you mean {nearest}? There are {', '.join(map(str, _BLOCKS))}"
        )
    if not 1 <= len(widths) <= len(_BLOCKS[depth]) or min(widths) < 1:
        raise ValueError(
            f"ResNet-V2 has one to {len(_BLOCKS[depth])} stages, each of a width from 1 on, found {widths}"
        )
    checked_images("ResNet-V2", input_shape, 32)
    if include_top and classes < 1:
        raise ValueError(f"ResNet-V2 with top needs at least one class, found {classes}")
    net = Graph(input_shape, rngs=rngs, name="resnet_v2")
    x = net.conv("conv1_conv", net.zero_padding("conv1_pad", net.input, 3), widths[0], 7, strides=2)
    x = net.max_pool("pool1_pool", net.zero_padding("pool1_pad", x, 1), 3, 2)
    for stage, (width, count) in enumerate(zip(widths, _BLOCKS[depth], strict=False), start=2):
        for k in range(1, count + 1):
            stride = 2 if k == count and stage < 5 else 1
            x = _block(
                net, f"conv{stage}_block{k}", x, width, stride, pool=f"max_pooling2d{f'_{stage - 2}' * (stage > 2)}"
            )
    x = _rectified(net, "post", x)
    if include_top:
        x = net.global_avg_pool("avg_pool", x)
        x = net.dense("predictions", x, classes, activation=classifier_activation or "linear")
    return net.backbone(x)


def _rectified(net: Graph, name: str, x: Tensor) -> Tensor:
    return net.activation(f"{name}_relu", net.batch_norm(f"{name}_bn", x, epsilon=_EPSILON), "relu")


def _block(net: Graph, name: str, x: Tensor, width: int, stride: int, *, pool: str) -> Tensor:
    """1x1 to the width, 3x3, 1x1 to four times the width; a stage's first projects what it adds to."""
    before = _rectified(net, f"{name}_preact", x)
    if name.endswith("_block1"):
        shortcut = net.conv(f"{name}_0_conv", before, 4 * width, 1, strides=stride)
    else:
        shortcut = net.max_pool(pool, x, 1, stride) if stride > 1 else x
    y = _rectified(net, f"{name}_1", net.conv(f"{name}_1_conv", before, width, 1, bias=False))
    y = net.zero_padding(f"{name}_2_pad", y, 1)
    y = _rectified(net, f"{name}_2", net.conv(f"{name}_2_conv", y, width, 3, strides=stride, bias=False))
    return net.add(f"{name}_out", shortcut, net.conv(f"{name}_3_conv", y, 4 * width, 1))
