"""Xception (Chollet 2017, arXiv:1610.02357), as in `keras.applications.Xception`."""

from flax import nnx

from cnnjax.models.backbone import Backbone, Shape
from cnnjax.models.graph import Graph, Tensor
from cnnjax.models.published import Published
from cnnjax.models.registry import register
from cnnjax.models.sizes import checked_images

PUBLISHED = tuple(
    Published(
        name=f"xception_weights_tf_dim_ordering_tf_kernels{'' if top else '_notop'}",
        backbone="xception",
        url="https://storage.googleapis.com/tensorflow/keras-applications/xception/"
        f"xception_weights_tf_dim_ordering_tf_kernels{'' if top else '_notop'}.h5",
        digest=f"md5:{md5}",
        input_size=299,
        preprocessing="tf",
        classes=1000,
        licence="MIT",
        include_top=top,
        top1=0.79,
    )
    for md5, top in (("0a58e3b7378bc2990ea3b43d5981f1f6", True), ("b0042744bf5b25fce3cb969f33bebb97", False))
)


@register(published=PUBLISHED, small={"alpha": 1 / 32, "middle_blocks": 1, "input_shape": (71, 71, 3)})
def xception(
    alpha: float = 1.0,
    middle_blocks: int = 8,
    input_shape: Shape = (299, 299, 3),
    include_top: bool = True,
    classes: int = 1000,
    classifier_activation: str | None = "softmax",
    *,
    rngs: nnx.Rngs,
) -> Backbone:
    """Build Xception with Keras's layer names in Keras's order (132 layers, 134 with top).

    Args:
        alpha: The width multiplier; every layer has int(alpha * its width) channels.
        middle_blocks: Blocks of 728 channels that change neither size nor width.
        input_shape: (H, W, C), at least 71 pixels a side; None for any height or width.
        include_top: Whether to end in Keras's classification layers; False for a backbone under another head.
        classes: Classes of the top.
        classifier_activation: Of the top; None for logits.
        rngs: Keys for weights.

    Returns:
        f32[N, H, W, C] with values -1 to 1 to f32[N, H/32, W/32, 2048 alpha] (10 for 299), or to f32[N, classes] with
        top.

    Raises:
        ValueError: The images are smaller than 71 pixels, `alpha` leaves a layer without channels, or the top has no
            classes.

    >>> xception(1 / 16, input_shape=(150, 150, 3), include_top=False, rngs=nnx.Rngs(0)).output_shape()
    (5, 5, 128)
    """
    if int(32 * alpha) < 1:
        raise ValueError(
            f"alpha {alpha} leaves block1_conv1 {int(32 * alpha)} of its 32 channels; it must be at least 1/32"
        )
    checked_images("Xception", input_shape, 71)
    if include_top and classes < 1:
        raise ValueError(f"Xception with top needs at least one class, found {classes}")
    net = Graph(input_shape, rngs=rngs, name="xception")
    small, middle, wide, last = (int(n * alpha) for n in (32, 728, 1024, 1536))
    x = _normed(net, "block1_conv1", net.conv("block1_conv1", net.input, small, 3, strides=2, bias=False), True)
    x = _normed(net, "block1_conv2", net.conv("block1_conv2", x, int(64 * alpha), 3, bias=False), True)
    for number, filters in enumerate((int(128 * alpha), int(256 * alpha), middle), start=2):
        x = _halved(net, f"block{number}", x, filters, filters, rectified=number > 2)
    for number in range(5, 5 + middle_blocks):
        y = x
        for k in (1, 2, 3):
            y = _separable(net, f"block{number}_sepconv{k}", y, middle)
        x = net.add(net.unnamed("add"), y, x)
    exit = 5 + middle_blocks
    x = _halved(net, f"block{exit}", x, middle, wide)
    for k, filters in ((1, last), (2, int(2048 * alpha))):
        name = f"block{exit + 1}_sepconv{k}"
        x = _normed(net, name, net.separable_conv(name, x, filters, 3, padding="same", bias=False), True)
    if include_top:
        x = net.global_avg_pool("avg_pool", x)
        x = net.dense("predictions", x, classes, activation=classifier_activation or "linear")
    return net.backbone(x, alpha=alpha)


def _normed(net: Graph, name: str, x: Tensor, rectified: bool = False) -> Tensor:
    x = net.batch_norm(f"{name}_bn", x)
    return net.activation(f"{name}_act", x, "relu") if rectified else x


def _separable(net: Graph, name: str, x: Tensor, filters: int, rectified: bool = True) -> Tensor:
    """A rectified input, its separable convolution and the normalisation."""
    x = net.activation(f"{name}_act", x, "relu") if rectified else x
    return _normed(net, name, net.separable_conv(name, x, filters, 3, padding="same", bias=False))


def _halved(net: Graph, name: str, x: Tensor, first: int, second: int, rectified: bool = True) -> Tensor:
    """Two separable convolutions and a pooling beside a convolution of stride 2."""
    shortcut = net.conv(net.unnamed("conv2d"), x, second, 1, strides=2, padding="same", bias=False)
    shortcut = net.batch_norm(net.unnamed("batch_normalization"), shortcut)
    x = _separable(net, f"{name}_sepconv1", x, first, rectified)
    x = net.max_pool(f"{name}_pool", _separable(net, f"{name}_sepconv2", x, second), 3, 2, "same")
    return net.add(net.unnamed("add"), x, shortcut)
