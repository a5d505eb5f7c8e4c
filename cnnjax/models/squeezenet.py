"""SqueezeNet 1.1 (Iandola et al. 2016, arXiv:1602.07360), as in rcmalli/keras-squeezenet and torchvision.

The layers are called as there, with an underscore for the slash: `fire2/expand1x1` is `fire2_expand1x1`.
"""

from flax import nnx

from cnnjax.models.backbone import Backbone, Shape
from cnnjax.models.graph import Graph
from cnnjax.models.published import Published
from cnnjax.models.registry import register
from cnnjax.models.sizes import checked_images

_SMALLEST = 31  # leaves one pixel behind three poolings that pad nothing

PUBLISHED = tuple(
    Published(
        name=f"squeezenet_weights_tf_dim_ordering_tf_kernels{end}",
        backbone="squeezenet",
        url="https://github.com/rcmalli/keras-squeezenet/releases/download/v1.0/"
        f"squeezenet_weights_tf_dim_ordering_tf_kernels{end}.h5",
        digest=None,
        input_size=227,
        preprocessing="caffe",
        classes=1000,
        licence="BSD",
        include_top=top,
    )
    for end, top in (("", True), ("_notop", False))
)


@register(published=PUBLISHED, top=("dropout",), small={"squeeze": (2, 2, 2), "input_shape": (32, 32, 3)})
def squeezenet(
    squeeze: tuple[int, ...] = (16, 16, 32, 32, 48, 48, 64, 64),
    input_shape: Shape = (227, 227, 3),
    include_top: bool = True,
    classes: int = 1000,
    dropout: float = 0.5,
    classifier_activation: str | None = "softmax",
    *,
    rngs: nnx.Rngs,
) -> Backbone:
    """Build SqueezeNet 1.1 (63 layers, 68 with top).

    Nothing is padded before pooling; torchvision's rounds sizes up instead, which is the same at 224 pixels.

    Args:
        squeeze: Filters that each fire module squeezes to; it expands to four times as many of 1x1 and of 3x3. Fewer
            numbers make fewer modules.
        input_shape: (H, W, C), at least 31 pixels a side; None for any height or width.
        include_top: Whether to end in the classification layers (drop9 to loss).
        classes: Classes of the top.
        dropout: Dropout rate in the top.
        classifier_activation: Of the top; None for logits.
        rngs: Keys for weights and dropout.

    Returns:
        f32[N, H, W, C] (BGR less ImageNet's mean) to f32[N, H', W', 512] (13 x 13 for 227 x 227), or to f32[N, classes]
        with top.

    Raises:
        ValueError: The images are smaller than 31 pixels, there are too few or too many modules, or the top has no
            classes.

    >>> squeezenet(input_shape=(64, 64, 3), include_top=False, rngs=nnx.Rngs(0)).output_shape()
    (3, 3, 512)
    """
    if not 1 <= len(squeeze) <= 8 or min(squeeze) < 1:
        raise ValueError(f"SqueezeNet has one to eight fire modules, each of a width from 1 on, found {squeeze}")
    checked_images("SqueezeNet", input_shape, _SMALLEST)
    if include_top and classes < 1:
        raise ValueError(f"SqueezeNet with top needs at least one class, found {classes}")
    net = Graph(input_shape, rngs=rngs, name="squeezenet")
    x = net.activation("relu_conv1", net.conv("conv1", net.input, 64, 3, strides=2), "relu")
    x = net.max_pool("pool1", x, 3, 2)
    for k, width in enumerate(squeeze, start=2):
        x = net.activation(f"fire{k}_relu_squeeze1x1", net.conv(f"fire{k}_squeeze1x1", x, width, 1), "relu")
        small = net.conv(f"fire{k}_expand1x1", x, 4 * width, 1)
        large = net.conv(f"fire{k}_expand3x3", x, 4 * width, 3, padding="same")
        small = net.activation(f"fire{k}_relu_expand1x1", small, "relu")
        x = net.concat(f"fire{k}_concat", small, net.activation(f"fire{k}_relu_expand3x3", large, "relu"))
        if k in (3, 5) and k <= len(squeeze):
            x = net.max_pool(f"pool{k}", x, 3, 2)
    if include_top:
        x = net.conv("conv10", net.dropout("drop9", x, dropout), classes, 1)
        x = net.global_avg_pool("global_average_pooling2d", net.activation("relu_conv10", x, "relu"))
        x = net.activation("loss", x, classifier_activation or "linear")
    return net.backbone(x)
