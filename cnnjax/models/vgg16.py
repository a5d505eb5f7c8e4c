"""VGG16 (Simonyan and Zisserman 2014, arXiv:1409.1556), as in `keras.applications.VGG16`."""

from flax import nnx

from cnnjax.models.backbone import Backbone, Shape
from cnnjax.models.graph import Graph
from cnnjax.models.published import Published
from cnnjax.models.registry import register
from cnnjax.models.sizes import checked_images

_BLOCKS = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))  # (filters, convolutions)


PUBLISHED = tuple(
    Published(
        name=name,
        backbone="vgg16",
        url=f"https://storage.googleapis.com/tensorflow/keras-applications/vgg16/{name}.h5",
        digest=f"md5:{md5}",
        input_size=224,
        preprocessing="caffe",
        classes=1000,
        licence="CC-BY-4.0",
        include_top=top,
    )
    for name, md5, top in (
        ("vgg16_weights_tf_dim_ordering_tf_kernels", "64373286793e3c8b2b4e3219cbf3544b", True),
        ("vgg16_weights_tf_dim_ordering_tf_kernels_notop", "6d6bbae143d832006294945121d1f1fc", False),
    )
)


@register(published=PUBLISHED, small={"input_shape": (32, 32, 3)})
def vgg16(
    input_shape: Shape = (224, 224, 3),
    include_top: bool = True,
    classes: int = 1000,
    classifier_activation: str | None = "softmax",
    *,
    rngs: nnx.Rngs,
) -> Backbone:
    """Build VGG16 with Keras's layer names in Keras's order (19 layers, 23 with top).

    Args:
        input_shape: (H, W, C), at least 32 pixels a side; None for any height or width, without top only.
        include_top: Whether to end in Keras's classification layers (fc1, fc2, predictions); False for a backbone
            under another head.
        classes: Classes of the top.
        classifier_activation: Of the top; None for logits.
        rngs: Keys for weights.

    Returns:
        f32[N, H, W, C] (BGR less ImageNet's mean) to f32[N, H/32, W/32, 512] (rounded down), or to f32[N,
        classes] with top.

    Raises:
        ValueError: The images are smaller than 32 pixels, or of unknown size with a top, or the top has no classes.

    >>> vgg16((180, 180, 3), include_top=False, rngs=nnx.Rngs(0)).output_shape()
    (5, 5, 512)
    """
    checked_images("VGG16", input_shape, 32)
    if include_top and None in input_shape:
        raise ValueError(f"VGG16 with top needs a known image size (fc1 reads every position), found {input_shape}")
    if include_top and classes < 1:
        raise ValueError(f"VGG16 with top needs at least one class, found {classes}")
    net = Graph(input_shape, rngs=rngs, name="vgg16")
    x = net.input
    for block, (filters, convolutions) in enumerate(_BLOCKS, start=1):
        for i in range(1, convolutions + 1):
            x = net.conv(f"block{block}_conv{i}", x, filters, 3, padding="same", activation="relu")
        x = net.max_pool(f"block{block}_pool", x, 2)
    if include_top:
        x = net.flatten("flatten", x)
        x = net.dense("fc1", x, 4096, activation="relu")
        x = net.dense("fc2", x, 4096, activation="relu")
        x = net.dense("predictions", x, classes, activation=classifier_activation or "linear")
    return net.backbone(x)
