"""Inception, version 3 (Szegedy et al. 2015, arXiv:1512.00567), as in `keras.applications.InceptionV3`."""

from collections.abc import Sequence
from typing import NamedTuple

from flax import nnx

from cnnjax.models.backbone import Backbone, Shape
from cnnjax.models.graph import Graph, Tensor
from cnnjax.models.published import Published
from cnnjax.models.registry import register
from cnnjax.models.sizes import checked_images

Kernel = tuple[int, int, int]  # filters at alpha 1, height, width

PUBLISHED = tuple(
    Published(
        name=f"inception_v3_weights_tf_dim_ordering_tf_kernels{'' if top else '_notop'}",
        backbone="inception_v3",
        url="https://storage.googleapis.com/tensorflow/keras-applications/inception_v3/"
        f"inception_v3_weights_tf_dim_ordering_tf_kernels{'' if top else '_notop'}.h5",
        digest=f"md5:{md5}",
        input_size=299,
        preprocessing="tf",
        classes=1000,
        licence="Apache-2.0",
        include_top=top,
        top1=0.779,
    )
    for md5, top in (("9a0d58056eeedaa3f26cb7ebd46da564", True), ("bcbd6486424b2319ff4ef7d526e38f63", False))
)


@register(published=PUBLISHED, small={"alpha": 1 / 32, "input_shape": (75, 75, 3)})
def inception_v3(
    alpha: float = 1.0,
    input_shape: Shape = (299, 299, 3),
    include_top: bool = True,
    classes: int = 1000,
    classifier_activation: str | None = "softmax",
    *,
    rngs: nnx.Rngs,
) -> Backbone:
    """Build Inception v3 with Keras's layer names in Keras's order (311 layers, 313 with top).

    Convolutions, normalisations and activations have Keras's numbers (`conv2d_93`); the blocks end at `mixed0` to
    `mixed10`.

    Args:
        alpha: The width multiplier; every layer has int(alpha * its width) channels.
        input_shape: (H, W, C), at least 75 pixels a side; None for any height or width.
        include_top: Whether to end in Keras's classification layers; False for a backbone under another head.
        classes: Classes of the top.
        classifier_activation: Of the top; None for logits.
        rngs: Keys for weights.

    Returns:
        f32[N, H, W, C] with values -1 to 1 to f32[N, 8, 8, 2048 alpha] (for 299 pixels), or to f32[N, classes] with
        top.

    Raises:
        ValueError: The images are smaller than 75 pixels, `alpha` leaves a layer without channels, or the top has no
            classes.

    >>> inception_v3(1 / 16, (150, 150, 3), include_top=False, rngs=nnx.Rngs(0)).output_shape()
    (3, 3, 128)
    """
    if int(32 * alpha) < 1:
        raise ValueError(f"alpha {alpha} leaves conv2d {int(32 * alpha)} of its 32 channels; it must be at least 1/32")
    checked_images("Inception v3", input_shape, 75)
    if include_top and classes < 1:
        raise ValueError(f"Inception v3 with top needs at least one class, found {classes}")
    graph = Graph(input_shape, rngs=rngs, name="inception_v3")
    net = _Net(graph, alpha)
    x = net.conv(graph.input, (32, 3, 3), 2, "valid")
    x = net.max_pool(net.conv(net.conv(x, (32, 3, 3), 1, "valid"), (64, 3, 3)))
    x = net.max_pool(net.conv(net.conv(x, (80, 1, 1), 1, "valid"), (192, 3, 3), 1, "valid"))
    for k, pooled in enumerate((32, 64, 64)):
        ways = [[(64, 1, 1)], [(48, 1, 1), (64, 5, 5)], [(64, 1, 1), (96, 3, 3), (96, 3, 3)]]
        x = net.mixed(f"mixed{k}", x, ways, pooled)
    x = net.halved("mixed3", x, [[(384, 3, 3)], [(64, 1, 1), (96, 3, 3), (96, 3, 3)]])
    for k, n in enumerate((128, 160, 160, 192), start=4):
        twice = [(n, 1, 1), (n, 7, 1), (n, 1, 7), (n, 7, 1), (192, 1, 7)]
        x = net.mixed(f"mixed{k}", x, [[(192, 1, 1)], [(n, 1, 1), (n, 1, 7), (192, 7, 1)], twice], 192)
    ways = [[(192, 1, 1), (320, 3, 3)], [(192, 1, 1), (192, 1, 7), (192, 7, 1), (192, 3, 3)]]
    x = net.halved("mixed8", x, ways)
    for k in range(2):
        x = net.widened(k, x)
    if include_top:
        x = graph.global_avg_pool("avg_pool", x)
        x = graph.dense("predictions", x, classes, activation=classifier_activation or "linear")
    return graph.backbone(x, alpha=alpha)


class _Net(NamedTuple):
    """A graph in the making and its width."""

    graph: Graph
    alpha: float

    def conv(self, x: Tensor, kernel: Kernel, stride: int = 1, padding: str = "same") -> Tensor:
        """A convolution, its normalisation without a factor, and ReLU."""
        filters, *size = kernel
        name, width, net = self.graph.unnamed("conv2d"), int(filters * self.alpha), self.graph
        x = net.conv(name, x, width, (size[0], size[1]), strides=stride, padding=padding, bias=False)
        x = net.batch_norm(net.unnamed("batch_normalization"), x, scale=False)
        return net.activation(net.unnamed("activation"), x, "relu")

    def max_pool(self, x: Tensor) -> Tensor:
        """Half the size."""
        return self.graph.max_pool(self.graph.unnamed("max_pooling2d"), x, 3, 2)

    def pooled(self, x: Tensor, filters: int) -> Tensor:
        """The mean of the neighbours, and a 1x1 convolution."""
        x = self.graph.avg_pool(self.graph.unnamed("average_pooling2d"), x, 3, 1, "same")
        return self.conv(x, (filters, 1, 1))

    def mixed(self, name: str, x: Tensor, ways: Sequence[Sequence[Kernel]], pooled: int) -> Tensor:
        """Chains of convolutions beside each other, and a pooling."""
        ends = []
        for way in ways:
            y = x
            for kernel in way:
                y = self.conv(y, kernel)
            ends.append(y)
        return self.graph.concat(name, *ends, self.pooled(x, pooled))

    def halved(self, name: str, x: Tensor, ways: Sequence[Sequence[Kernel]]) -> Tensor:
        """The same with strides in each chain's last convolution."""
        ends = []
        for *way, last in ways:
            y = x
            for kernel in way:
                y = self.conv(y, kernel)
            ends.append(self.conv(y, last, 2, "valid"))
        return self.graph.concat(name, *ends, self.max_pool(x))

    def widened(self, number: int, x: Tensor) -> Tensor:
        """A block two of whose ways part once more."""
        first = self.conv(x, (320, 1, 1))
        y = self.conv(x, (384, 1, 1))
        second = self.graph.concat(f"mixed9_{number}", self.conv(y, (384, 1, 3)), self.conv(y, (384, 3, 1)))
        y = self.conv(self.conv(x, (448, 1, 1)), (384, 3, 3))
        third = (self.conv(y, (384, 1, 3)), self.conv(y, (384, 3, 1)))
        third = self.graph.concat(self.graph.unnamed("concatenate"), *third)
        return self.graph.concat(f"mixed{9 + number}", first, second, third, self.pooled(x, 192))
