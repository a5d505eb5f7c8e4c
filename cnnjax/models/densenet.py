"""DenseNet (Huang et al. 2016, arXiv:1608.06993), as in `keras.applications`."""

from flax import nnx

from cnnjax.models.backbone import Backbone, Shape
from cnnjax.models.graph import Graph, Tensor
from cnnjax.models.published import Published
from cnnjax.models.registry import register
from cnnjax.models.sizes import checked_images

_BLOCKS = {121: (6, 12, 24, 16), 161: (6, 12, 36, 24), 169: (6, 12, 32, 32), 201: (6, 12, 48, 32)}
_EPSILON = 1.001e-5

PUBLISHED = tuple(
    Published(
        name=f"densenet{depth}_weights_tf_dim_ordering_tf_kernels" + ("" if top else "_notop"),
        backbone="densenet",
        url="https://storage.googleapis.com/tensorflow/keras-applications/densenet/"
        f"densenet{depth}_weights_tf_dim_ordering_tf_kernels{'' if top else '_notop'}.h5",
        digest=f"md5:{md5}",
        input_size=224,
        preprocessing="torch",
        classes=1000,
        licence="BSD-3-Clause",
        include_top=top,
        options={"depth": depth},
        top1=top1,
    )
    for depth, top1, *digests in (
        (121, 0.750, "9d60b8095a5708f2dcce2bca79d332c7", "30ee3e1110167f948a6b9946edeeb738"),
        (169, 0.762, "d699b8f76981ab1b30698df4c175e90b", "b8c4d4c20dd625c148057b9ff1c1176b"),
        (201, 0.773, "1ceb130c1ea1b78c3bf6114dbdfd8807", "c13680b51ded0fb44dff2d8f86ac8bb1"),
    )
    for md5, top in zip(digests, (True, False), strict=True)
)


@register(published=PUBLISHED, small={"growth": 2, "depths": (2, 2), "input_shape": (32, 32, 3)})
def densenet(
    depth: int = 121,
    growth: int = 32,
    depths: tuple[int, ...] = (),
    input_shape: Shape = (224, 224, 3),
    include_top: bool = True,
    classes: int = 1000,
    classifier_activation: str | None = "softmax",
    *,
    rngs: nnx.Rngs,
) -> Backbone:
    """Build a DenseNet with Keras's layer names in Keras's order (DenseNet-121: 427 layers, 429 with top).

    Args:
        depth: The number of weighted layers: 121, 161 (in the paper with a growth of 48), 169 or 201.
        growth: Channels that each layer adds; the first convolution has twice as many.
        depths: Layers of each dense block, one to four blocks; if none are given, those of the depth.
        input_shape: (H, W, C), at least 32 pixels a side; None for any height or width.
        include_top: Whether to end in Keras's classification layers; False for a backbone under another head.
        classes: Classes of the top.
        classifier_activation: Of the top; None for logits.
        rngs: Keys for weights.

    Returns:
        f32[N, H, W, C] (less ImageNet's mean, over its deviation) to f32[N, H/32, W/32, 1024] (rounded down; 1664
        channels of DenseNet-169, 1920 of DenseNet-201), or to f32[N, classes] with top.

    Raises:
        ValueError: There is no such depth, the images are smaller than 32 pixels, a block has no layers, there is no
            growth, or the top has no classes.

    >>> densenet(growth=4, input_shape=(160, 160, 3), include_top=False, rngs=nnx.Rngs(0)).output_shape()
    (5, 5, 128)
    """
    if depth not in _BLOCKS:
        nearest = min(_BLOCKS, key=lambda known: abs(known - depth))
        raise ValueError(
            f"no DenseNet of depth {depth}; did you mean {nearest}? There are {', '.join(map(str, _BLOCKS))}"
        )
    counts = depths or _BLOCKS[depth]
    if len(counts) > 4 or min(counts) < 1 or growth < 1:
        raise ValueError(
            f"DenseNet has one to four blocks, each of at least one layer, and a growth from 1 on; found {depths} and "
            f"{growth}"
        )
    checked_images("DenseNet", input_shape, 32)
    if include_top and classes < 1:
        raise ValueError(f"DenseNet with top needs at least one class, found {classes}")
    net = Graph(input_shape, rngs=rngs, name="densenet")
    x = net.zero_padding("zero_padding2d", net.input, 3)
    x = _rectified(net, "conv1", net.conv("conv1_conv", x, 2 * growth, 7, strides=2, bias=False))
    x = net.max_pool("pool1", net.zero_padding("zero_padding2d_1", x, 1), 3, 2)
    for stage, count in enumerate(counts, start=2):
        if stage > 2:
            x = _rectified(net, f"pool{stage - 1}", x)
            x = net.conv(f"pool{stage - 1}_conv", x, x.channels // 2, 1, bias=False)
            x = net.avg_pool(f"pool{stage - 1}_pool", x, 2)
        for k in range(1, count + 1):
            name = f"conv{stage}_block{k}"
            y = net.conv(f"{name}_1_conv", _rectified(net, f"{name}_0", x), 4 * growth, 1, bias=False)
            y = net.conv(f"{name}_2_conv", _rectified(net, f"{name}_1", y), growth, 3, padding="same", bias=False)
            x = net.concat(f"{name}_concat", x, y)
    x = net.activation("relu", net.batch_norm("bn", x, epsilon=_EPSILON), "relu")
    if include_top:
        x = net.global_avg_pool("avg_pool", x)
        x = net.dense("predictions", x, classes, activation=classifier_activation or "linear")
    return net.backbone(x)


def _rectified(net: Graph, name: str, x: Tensor) -> Tensor:
    return net.activation(f"{name}_relu", net.batch_norm(f"{name}_bn", x, epsilon=_EPSILON), "relu")
