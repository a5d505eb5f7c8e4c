"""MobileNet, version 2 (Sandler et al. 2018, arXiv:1801.04381), as in `keras.applications.MobileNetV2`."""

from functools import partial

from flax import nnx

from cnnjax.models.backbone import Backbone, Shape
from cnnjax.models.graph import Graph, Tensor
from cnnjax.models.published import Published
from cnnjax.models.registry import register
from cnnjax.models.sizes import checked_images, divisible

# (filters at alpha 1, blocks, stride of the first)
_STAGES = ((16, 1, 1), (24, 2, 2), (32, 3, 2), (64, 4, 2), (96, 3, 1), (160, 3, 2), (320, 1, 1))
_EXPANSION = 6

PUBLISHED = tuple(
    Published(
        name=f"mobilenet_v2_weights_tf_dim_ordering_tf_kernels_{alpha}_{size}" + ("" if top else "_no_top"),
        backbone="mobilenet_v2",
        url="https://storage.googleapis.com/tensorflow/keras-applications/mobilenet_v2/"
        f"mobilenet_v2_weights_tf_dim_ordering_tf_kernels_{alpha}_{size}{'' if top else '_no_top'}.h5",
        digest=None,
        input_size=size,
        preprocessing="tf",
        classes=1000,
        licence="Apache-2.0",
        include_top=top,
        options={"alpha": alpha},
        top1=0.713 if (alpha, size) == (1.0, 224) else None,
    )
    for alpha in (1.0, 0.75, 0.5, 0.35, 1.3, 1.4)
    for size in ((224, 192, 160, 128, 96) if alpha <= 1 else (224,))
    for top in (True, False)
)


@register(published=PUBLISHED, small={"alpha": 0.25, "input_shape": (32, 32, 3)})
def mobilenet_v2(
    alpha: float = 1.0,
    input_shape: Shape = (224, 224, 3),
    include_top: bool = True,
    classes: int = 1000,
    classifier_activation: str | None = "softmax",
    *,
    rngs: nnx.Rngs,
) -> Backbone:
    """Build MobileNetV2 with Keras's layer names in Keras's order (154 layers, 156 with top).

    Args:
        alpha: The width multiplier; every layer has a multiple of 8 channels near alpha times its width.
        input_shape: (H, W, C), at least 32 pixels a side; None for any height or width.
        include_top: Whether to end in Keras's classification layers; False for a backbone under another head.
        classes: Classes of the top.
        classifier_activation: Of the top; None for logits.
        rngs: Keys for weights.

    Returns:
        f32[N, H, W, C] with values -1 to 1 to f32[N, H/32, W/32, 1280] (rounded up; times alpha above 1), or to
        f32[N, classes] with top.

    Raises:
        ValueError: The images are smaller than 32 pixels, `alpha` is 0, or the top has no classes.

    >>> mobilenet_v2(0.35, (96, 96, 3), include_top=False, rngs=nnx.Rngs(0)).output_shape()
    (3, 3, 1280)
    """
    if alpha <= 0:
        raise ValueError(f"alpha of MobileNetV2 must be above 0, found {alpha}")
    checked_images("MobileNetV2", input_shape, 32)
    if include_top and classes < 1:
        raise ValueError(f"MobileNetV2 with top needs at least one class, found {classes}")
    net = Graph(input_shape, rngs=rngs, name="mobilenet_v2")
    normed = partial(net.batch_norm, momentum=0.999)
    x = net.conv("Conv1", net.input, divisible(32 * alpha), 3, strides=2, padding="same", bias=False)
    x = net.relu("Conv1_relu", normed("bn_Conv1", x), 6.0)
    blocks = ((filters, stride if k == 0 else 1) for filters, count, stride in _STAGES for k in range(count))
    for number, (filters, stride) in enumerate(blocks):
        x = _inverted(net, number, x, divisible(int(filters * alpha)), stride)
    x = net.conv("Conv_1", x, divisible(1280 * alpha) if alpha > 1 else 1280, 1, bias=False)
    x = net.relu("out_relu", normed("Conv_1_bn", x), 6.0)
    if include_top:
        x = net.global_avg_pool("global_average_pooling2d", x)
        x = net.dense("predictions", x, classes, activation=classifier_activation or "linear")
    return net.backbone(x, alpha=alpha)


def _inverted(net: Graph, number: int, x: Tensor, filters: int, stride: int) -> Tensor:
    """1x1 to six times the channels, 3x3 of each, 1x1 to the filters; the first block does not widen."""
    name, normed = f"block_{number}_" if number else "expanded_conv_", partial(net.batch_norm, momentum=0.999)
    y = x
    if number:
        y = net.conv(f"{name}expand", y, _EXPANSION * x.channels, 1, padding="same", bias=False)
        y = net.relu(f"{name}expand_relu", normed(f"{name}expand_BN", y), 6.0)
    if stride == 2:
        y = net.halving_pad(f"{name}pad", y, 3)
    padding = "valid" if stride == 2 else "same"
    y = net.depthwise_conv(f"{name}depthwise", y, 3, strides=stride, padding=padding, bias=False)
    y = net.relu(f"{name}depthwise_relu", normed(f"{name}depthwise_BN", y), 6.0)
    y = normed(f"{name}project_BN", net.conv(f"{name}project", y, filters, 1, padding="same", bias=False))
    return net.add(f"{name}add", x, y) if stride == 1 and x.channels == filters else y
