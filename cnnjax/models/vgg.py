"""VGG16 and VGG19 (Simonyan and Zisserman 2014, arXiv:1409.1556), as in `keras.applications`."""

from flax import nnx

from cnnjax.models.backbone import Backbone, Shape
from cnnjax.models.graph import Graph
from cnnjax.models.published import Published
from cnnjax.models.registry import register
from cnnjax.models.sizes import checked_images

# Convolutions of each block, and the MD5 of the files that Keras publishes, with top and without.
_CONVOLUTIONS = {16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
_DIGESTS = {
    16: ("64373286793e3c8b2b4e3219cbf3544b", "6d6bbae143d832006294945121d1f1fc"),
    19: ("cbe5617147190e668d6c5d5026f83318", "253f8cb515780f3b799900260a226db6"),
}


def _published(depth: int) -> tuple[Published, ...]:
    return tuple(
        Published(
            name=name,
            backbone=f"vgg{depth}",
            url=f"https://storage.googleapis.com/tensorflow/keras-applications/vgg{depth}/{name}.h5",
            digest=f"md5:{md5}",
            input_size=224,
            preprocessing="caffe",
            classes=1000,
            licence="CC-BY-4.0",
            include_top=top,
            top1=0.713,
        )
        for name, md5, top in (
            (f"vgg{depth}_weights_tf_dim_ordering_tf_kernels", _DIGESTS[depth][0], True),
            (f"vgg{depth}_weights_tf_dim_ordering_tf_kernels_notop", _DIGESTS[depth][1], False),
        )
    )


PUBLISHED = _published(16) + _published(19)
_SMALL = {"widths": (2, 2, 4, 4, 4), "input_shape": (32, 32, 3)}


@register(published=_published(16), small=_SMALL)
def vgg16(
    input_shape: Shape = (224, 224, 3),
    include_top: bool = True,
    classes: int = 1000,
    classifier_activation: str | None = "softmax",
    *,
    widths: tuple[int, ...] = (64, 128, 256, 512, 512),
    rngs: nnx.Rngs,
) -> Backbone:
    """Build VGG16 with Keras's layer names in Keras's order (19 layers, 23 with top).

    Args:
        input_shape: (H, W, C), at least 32 pixels a side; None for any height or width, without top only.
        include_top: Whether to end in Keras's classification layers (fc1, fc2, predictions); False for a backbone
            under another head.
        classes: Classes of the top.
        classifier_activation: Of the top; None for logits.
        widths: Filters of the convolutions of each block; fewer widths make fewer blocks.
        rngs: Keys for weights.

    Returns:
        f32[N, H, W, C] (BGR less ImageNet's mean) to f32[N, H/32, W/32, 512] (rounded down), or to f32[N,
        classes] with top.

    Raises:
        ValueError: The images are smaller than 32 pixels, or of unknown size with a top, there are too few or too many
            widths, or the top has no classes.

    >>> vgg16((180, 180, 3), include_top=False, rngs=nnx.Rngs(0)).output_shape()
    (5, 5, 512)
    """
    return _vgg(16, widths, input_shape, include_top, classes, classifier_activation, rngs)


@register(published=_published(19), small=_SMALL)
def vgg19(
    input_shape: Shape = (224, 224, 3),
    include_top: bool = True,
    classes: int = 1000,
    classifier_activation: str | None = "softmax",
    *,
    widths: tuple[int, ...] = (64, 128, 256, 512, 512),
    rngs: nnx.Rngs,
) -> Backbone:
    """Build VGG19 with Keras's layer names in Keras's order (22 layers, 26 with top): as `vgg16`, three layers deeper.

    Args:
        input_shape: (H, W, C), at least 32 pixels a side; None for any height or width, without top only.
        include_top: Whether to end in Keras's classification layers (fc1, fc2, predictions).
        classes: Classes of the top.
        classifier_activation: Of the top; None for logits.
        widths: Filters of the convolutions of each block; fewer widths make fewer blocks.
        rngs: Keys for weights.

    Returns:
        f32[N, H, W, C] (BGR less ImageNet's mean) to f32[N, H/32, W/32, 512] (rounded down), or to f32[N,
        classes] with top.

    Raises:
        ValueError: As `vgg16`.

    >>> vgg19((64, 64, 3), widths=(4, 8), include_top=False, rngs=nnx.Rngs(0)).output_shape()
    (16, 16, 8)
    """
    return _vgg(19, widths, input_shape, include_top, classes, classifier_activation, rngs)


def _vgg(
    depth: int,
    widths: tuple[int, ...],
    input_shape: Shape,
    include_top: bool,
    classes: int,
    classifier_activation: str | None,
    rngs: nnx.Rngs,
) -> Backbone:
    what, blocks = f"VGG{depth}", _CONVOLUTIONS[depth]
    checked_images(what, input_shape, 32)
    if not 1 <= len(widths) <= len(blocks) or min(widths) < 1:
        raise ValueError(f"{what} has one to {len(blocks)} blocks, each of a width from 1 on, found {widths}")
    if include_top and None in input_shape:
        raise ValueError(f"{what} with top needs a known image size (fc1 reads every position), found {input_shape}")
    if include_top and classes < 1:
        raise ValueError(f"{what} with top needs at least one class, found {classes}")
    net = Graph(input_shape, rngs=rngs, name=f"vgg{depth}")
    x = net.input
    for block, (filters, convolutions) in enumerate(zip(widths, blocks, strict=False), start=1):
        for i in range(1, convolutions + 1):
            x = net.conv(f"block{block}_conv{i}", x, filters, 3, padding="same", activation="relu")
        x = net.max_pool(f"block{block}_pool", x, 2)
    if include_top:
        x = net.flatten("flatten", x)
        x = net.dense("fc1", x, 4096, activation="relu")
        x = net.dense("fc2", x, 4096, activation="relu")
        x = net.dense("predictions", x, classes, activation=classifier_activation or "linear")
    return net.backbone(x)
