"""ResNets for images of 32 pixels: those of He et al. 2015 (arXiv:1512.03385, section 4.2), and MLPerf Tiny's."""

import jax
import jax.numpy as jnp
from flax import nnx

from cnnjax.models.backbone import Backbone, Shape
from cnnjax.models.graph import Graph, Tensor
from cnnjax.models.published import Published
from cnnjax.models.registry import register
from cnnjax.models.sizes import checked_images

PUBLISHED = (
    Published(
        name="pretrainedResnet",
        backbone="resnet8",
        url="https://github.com/mlcommons/tiny/raw/master/benchmark/training/image_classification/trained_models/"
        "pretrainedResnet.h5",
        digest="sha256:5f938a8eea605438cc7360aa13c987bc6d7bd0c8d931b2917361ae7ae4eeda2f",
        input_size=32,
        preprocessing="none",
        classes=10,
        licence="Apache-2.0",
        include_top=True,
    ),
)


class ChannelPadding(nnx.Module):
    """Zeros before and behind the channels of f32[N, H, W, C].

    >>> ChannelPadding(1, 2)(jnp.ones((1, 1, 1, 2))).ravel().tolist()
    [0.0, 1.0, 1.0, 0.0, 0.0]
    """

    def __init__(self, before: int, after: int):
        self.before, self.after = before, after

    def __call__(self, x: jax.Array) -> jax.Array:
        """Pad `x` to f32[N, H, W, before + C + after]."""
        return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (self.before, self.after)))


@register(small={"depth": 8, "widths": (2, 4), "input_shape": (32, 32, 3)})
def resnet_cifar(
    depth: int = 20,
    widths: tuple[int, ...] = (16, 32, 64),
    input_shape: Shape = (32, 32, 3),
    include_top: bool = True,
    classes: int = 10,
    classifier_activation: str | None = "softmax",
    *,
    rngs: nnx.Rngs,
) -> Backbone:
    """Build a ResNet for CIFAR-10 whose shortcuts have no weights (the paper's option A).

    Where the width grows, a shortcut takes every other pixel, and zeros for the new channels: half of them on either
    side, as in akamaster/pytorch_resnet_cifar10.

    Args:
        depth: The number of weighted layers: 6 n + 2 for n blocks in each stage (20, 32, 44, 56, 110).
        widths: Filters of each stage; fewer widths make fewer stages.
        input_shape: (H, W, C), at least 8 pixels a side; None for any height or width.
        include_top: Whether to end in the classification layers (avg_pool, predictions).
        classes: Classes of the top.
        classifier_activation: Of the top; None for logits.
        rngs: Keys for weights.

    Returns:
        f32[N, H, W, C] to f32[N, H/4, W/4, 64] (rounded up), or to f32[N, classes] with top.

    Raises:
        ValueError: There is no such depth, the images are smaller than 8 pixels, there are too few or too many widths
            or they shrink, or the top has no classes.

    >>> resnet_cifar(include_top=False, rngs=nnx.Rngs(0)).output_shape()
    (8, 8, 64)
    """
    if depth < 8 or depth % 6 != 2:
        nearest = max(8, 6 * round((depth - 2) / 6) + 2)
        raise ValueError(f"a ResNet for CIFAR has 6 n + 2 layers, found depth {depth}; did you mean {nearest}?")
    if not 1 <= len(widths) <= 3 or min(widths) < 1 or list(widths) != sorted(widths):
        raise ValueError(f"a ResNet for CIFAR has one to three stages, none narrower than the one before: {widths}")
    checked_images("a ResNet for CIFAR", input_shape, 8)
    if include_top and classes < 1:
        raise ValueError(f"a ResNet for CIFAR with top needs at least one class, found {classes}")
    net = Graph(input_shape, rngs=rngs, name="resnet_cifar")
    x = _normed(net, "conv1", net.input, widths[0], 1)
    x = net.activation("conv1_relu", x, "relu")
    for stage, width in enumerate(widths, start=2):
        for k in range(1, (depth - 2) // 6 + 1):
            name, stride = f"conv{stage}_block{k}", 2 if k == 1 and stage > 2 else 1
            y = net.activation(f"{name}_1_relu", _normed(net, f"{name}_1", x, width, stride), "relu")
            y = _normed(net, f"{name}_2", y, width, 1)
            y = net.add(f"{name}_add", _shortcut(net, name, x, width, stride), y)
            x = net.activation(f"{name}_out", y, "relu")
    if include_top:
        x = net.global_avg_pool("avg_pool", x)
        x = net.dense("predictions", x, classes, activation=classifier_activation or "linear")
    return net.backbone(x)


def _normed(net: Graph, name: str, x: Tensor, filters: int, stride: int) -> Tensor:
    x = net.conv(f"{name}_conv", x, filters, 3, strides=stride, padding=1, bias=False)
    return net.batch_norm(f"{name}_bn", x, epsilon=1e-5, momentum=0.9)


def _shortcut(net: Graph, name: str, x: Tensor, width: int, stride: int) -> Tensor:
    new = width - x.channels
    x = net.max_pool(f"{name}_0_pool", x, 1, stride) if stride > 1 else x
    return net.layer(f"{name}_0_pad", ChannelPadding(new // 2, new - new // 2), x) if new else x


@register(published=PUBLISHED, small={"widths": (2, 4), "input_shape": (32, 32, 3)})
def resnet8(
    widths: tuple[int, ...] = (16, 32, 64),
    input_shape: Shape = (32, 32, 3),
    include_top: bool = True,
    classes: int = 10,
    classifier_activation: str | None = "softmax",
    *,
    rngs: nnx.Rngs,
) -> Backbone:
    """Build MLPerf Tiny's ResNet-8 for CIFAR-10, under the names that Keras gave its layers (conv2d, conv2d_1, ...).

    Args:
        widths: Filters of each stage; fewer widths make fewer stages.
        input_shape: (H, W, C), at least 8 pixels a side; None for any height or width, without top only.
        include_top: Whether to end in the classification layers (average_pooling2d, flatten, dense).
        classes: Classes of the top.
        classifier_activation: Of the top; None for logits.
        rngs: Keys for weights.

    Returns:
        f32[N, H, W, C] (pixels 0 to 255) to f32[N, H/4, W/4, 64] (rounded up), or to f32[N, classes] with top.

    Raises:
        ValueError: The images are smaller than 8 pixels, or of unknown size with a top, there are too few or too many
            widths, or the top has no classes.

    Source: keras_model.py in mlcommons/tiny, benchmark/training/image_classification.

    >>> resnet8(include_top=False, rngs=nnx.Rngs(0)).output_shape()
    (8, 8, 64)
    """
    if not 1 <= len(widths) <= 3 or min(widths) < 1:
        raise ValueError(f"ResNet-8 has one to three stages, each of a width from 1 on, found {widths}")
    checked_images("ResNet-8", input_shape, 8)
    if include_top and None in input_shape:
        raise ValueError(
            f"ResNet-8 with top needs a known image size (dense reads every position), found {input_shape}"
        )
    if include_top and classes < 1:
        raise ValueError(f"ResNet-8 with top needs at least one class, found {classes}")
    net = Graph(input_shape, rngs=rngs, name="resnet8")

    def conv(x: Tensor, filters: int, size: int, stride: int = 1) -> Tensor:
        return net.conv(net.unnamed("conv2d"), x, filters, size, strides=stride, padding="same")

    def normed(x: Tensor) -> Tensor:
        return net.batch_norm(net.unnamed("batch_normalization"), x)

    def rectified(x: Tensor) -> Tensor:
        return net.activation(net.unnamed("activation"), x, "relu")

    x = rectified(normed(conv(net.input, widths[0], 3)))
    for stage, width in enumerate(widths):
        y = rectified(normed(conv(x, width, 3, 2 if stage else 1)))
        y = normed(conv(y, width, 3))
        shortcut = conv(x, width, 1, 2) if stage else x
        x = rectified(net.add(net.unnamed("add"), shortcut, y))
    if include_top:
        x = net.avg_pool("average_pooling2d", x, min(n for n in x.shape[:2] if n is not None))
        x = net.dense("dense", net.flatten("flatten", x), classes, activation=classifier_activation or "linear")
    return net.backbone(x)
