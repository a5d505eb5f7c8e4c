"""MobileNet, version 1 (Howard et al. 2017, arXiv:1704.04861), as in `keras.applications.MobileNet`."""

from flax import nnx

from cnnjax.models.backbone import Backbone, Shape
from cnnjax.models.graph import Graph
from cnnjax.models.published import Published
from cnnjax.models.registry import register
from cnnjax.models.sizes import checked_images

# (pointwise filters at alpha 1, stride of the depthwise convolution) of blocks 1 to 13
_BLOCKS = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *((512, 1),) * 5, (1024, 2), (1024, 1))


_DIGESTS = {
    "mobilenet_2_5_224_tf_no_top": "sha256:dbdb03ee2a22fd895301636cd328b234bb3a9952358f436d82f46b81e0d5b0bf",
}

PUBLISHED = tuple(
    Published(
        name=name,
        backbone="mobilenet",
        url=f"https://storage.googleapis.com/tensorflow/keras-applications/mobilenet/{name}.h5",
        digest=_DIGESTS.get(name),
        input_size=size,
        preprocessing="tf",
        classes=1000,
        licence="Apache-2.0",
        include_top=top,
        options={"alpha": alpha},
    )
    for alpha, text in ((1.0, "1_0"), (0.75, "7_5"), (0.5, "5_0"), (0.25, "2_5"))
    for size in (224, 192, 160, 128)
    for top in (False, True)
    for name in (f"mobilenet_{text}_{size}_tf" + ("" if top else "_no_top"),)
)


@register(published=PUBLISHED, top=("dropout",), small={"alpha": 1 / 32, "input_shape": (32, 32, 3)})
def mobilenet(
    alpha: float = 1.0,
    input_shape: Shape = (224, 224, 3),
    include_top: bool = True,
    classes: int = 1000,
    dropout: float = 1e-3,
    classifier_activation: str | None = "softmax",
    *,
    rngs: nnx.Rngs,
) -> Backbone:
    """Build MobileNet with Keras's layer names in Keras's order (86 layers, 91 with top).

    Args:
        alpha: The width multiplier; every layer has int(alpha * its width) channels.
        input_shape: (H, W, C), at least 32 pixels a side; None for any height or width.
        include_top: Whether to end in Keras's classification layers; False for a backbone under another head.
        classes: Classes of the top.
        dropout: Dropout rate in the top.
        classifier_activation: Of the top; None for logits.
        rngs: Keys for weights and dropout.

    Returns:
        f32[N, H, W, C] with values -1 to 1 to f32[N, H/32, W/32, 1024 alpha] (rounded up), or to f32[N,
        classes] with top.

    Raises:
        ValueError: The images are smaller than 32 pixels, `alpha` leaves a layer without channels, or the top
            has no classes.

    >>> mobilenet(0.25, (160, 160, 3), include_top=False, rngs=nnx.Rngs(0)).output_shape()
    (5, 5, 256)
    """
    if int(32 * alpha) < 1:
        raise ValueError(f"alpha {alpha} leaves conv1 {int(32 * alpha)} of its 32 channels; it must be at least 1/32")
    checked_images("MobileNet", input_shape, 32)
    if include_top and classes < 1:
        raise ValueError(f"MobileNet with top needs at least one class, found {classes}")
    net = Graph(input_shape, rngs=rngs, name="mobilenet")
    x = net.conv("conv1", net.input, int(32 * alpha), 3, strides=2, padding="same", bias=False)
    x = net.relu("conv1_relu", net.batch_norm("conv1_bn", x), 6.0)
    for block, (width, stride) in enumerate(_BLOCKS, start=1):
        if stride == 2:
            x = net.zero_padding(f"conv_pad_{block}", x, ((0, 1), (0, 1)))
        padding = "same" if stride == 1 else "valid"
        x = net.depthwise_conv(f"conv_dw_{block}", x, 3, strides=stride, padding=padding, bias=False)
        x = net.relu(f"conv_dw_{block}_relu", net.batch_norm(f"conv_dw_{block}_bn", x), 6.0)
        x = net.conv(f"conv_pw_{block}", x, int(width * alpha), 1, padding="same", bias=False)
        x = net.relu(f"conv_pw_{block}_relu", net.batch_norm(f"conv_pw_{block}_bn", x), 6.0)
    if include_top:
        x = net.global_avg_pool("global_average_pooling2d", x, keepdims=True)
        x = net.dropout("dropout", x, dropout)
        x = net.conv("conv_preds", x, classes, 1, padding="same")
        x = net.reshape("reshape_2", x, (classes,))
        x = net.activation("predictions", x, classifier_activation or "linear")
    return net.backbone(x, alpha=alpha)
