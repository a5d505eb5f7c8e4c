"""The lecture's own small networks: one for cats and dogs, and a pair for images of 32x32."""

from collections import Counter
from typing import Literal, get_args

from flax import nnx

from cnnjax.models.backbone import Backbone, Shape
from cnnjax.models.graph import Graph, Tensor
from cnnjax.models.registry import register
from cnnjax.models.sizes import checked_images
from cnnjax.runtime.nearest import unknown

Pooling = Literal["flatten", "max"]
POOLINGS = get_args(Pooling)


@register(small={"widths": (4, 8), "input_shape": (10, 10, 3)})
def lecture_cnn(
    input_shape: Shape = (150, 150, 3),
    widths: tuple[int, ...] = (32, 64, 128, 128),
    include_top: bool = True,
    classes: int = 2,
    classifier_activation: str | None = "auto",
    *,
    rngs: nnx.Rngs,
) -> Backbone:
    """Build the lecture's network for cats and dogs: 3,453,121 parameters as it stands on the slide.

    3x3 convolutions (no padding, rectified), each followed by 2x2 max pooling; then Flatten, Dense 512
    (rectified) and one sigmoid. The layers are called conv2d_1, max_pooling2d_1, conv2d_2, ..., flatten_1,
    dense_1, dense_2 and, as in a Keras Sequential, no input layer is counted.

    Args:
        input_shape: (H, W, C), large enough for all pooling layers; None for any height or width, without
            top only.
        widths: Filters of each convolution.
        include_top: Whether to end in the dense layers; without, the last pooling layer is the end.
        classes: Classes of the top; two share one output.
        classifier_activation: Of the last layer. "auto": sigmoid for two classes, softmax for more. None:
            logits.
        rngs: Keys for weights.

    Returns:
        f32[N, H, W, C] with values 0 to 1 to f32[N, classes] (f32[N, 1] for two), or without top to the last
        pooling layer's f32[N, H', W', widths[-1]].

    Raises:
        ValueError: Nothing would be left of the images before the last layer, or their size is not known
            though there is a top.

    >>> lecture_cnn(include_top=False, rngs=nnx.Rngs(0)).output_shape()
    (7, 7, 128)
    """
    if not widths or any(width < 1 for width in widths):
        raise ValueError(f"lecture_cnn needs at least one width, each of at least 1, found {tuple(widths)}")
    checked_images("lecture_cnn", input_shape)
    smallest = _smallest(len(widths))
    side = min((n for n in input_shape[:2] if n is not None), default=smallest)
    if side < smallest:
        deepest = max((depth for depth in range(1, len(widths)) if _smallest(depth) <= side), default=0)
        raise ValueError(
            f"images of input_shape {input_shape} are too small for {len(widths)} widths: "
            f"that needs {smallest} pixels a side; {side} are enough for {deepest} widths"
        )
    called = _Names()
    net = Graph(input_shape, rngs=rngs, name="lecture_cnn", input_layer=None)
    x = net.input
    for filters in widths:
        x = net.conv(called("conv2d"), x, filters, 3, activation="relu")
        x = net.max_pool(called("max_pooling2d"), x, 2)
    if include_top:
        x = _top(net, called, x, "lecture_cnn", "flatten", (512, classes), classifier_activation)
    return net.backbone(x)


@register(top=("pooling",), small={"input_shape": (24, 24, 3)})
def cifar_cnn(
    input_shape: Shape = (32, 32, 3),
    pooling: Pooling = "flatten",
    include_top: bool = True,
    classes: int = 10,
    classifier_activation: str | None = "auto",
    *,
    rngs: nnx.Rngs,
) -> Backbone:
    """Build the lecture's pair for 32x32: with Flatten (703,594 parameters) or global max pooling (179,306).

    3x3 convolutions (no padding, rectified) of 32, 32, pooling, 64, 64, pooling, 64 filters; then Flatten or
    GlobalMaxPooling2D, Dense 1024 (rectified) and the classes. The layers are called conv2d_1 to conv2d_5,
    max_pooling2d_1 and _2, flatten_1 or global_max_pooling2d_1, dense_1 and dense_2.

    Args:
        input_shape: (H, W, C), at least 24 pixels a side; None for any height or width, without top or with
            `pooling="max"`.
        pooling: What joins maps and dense layers: "flatten" or "max".
        include_top: Whether to end in these layers; without, conv2d_5 is the end.
        classes: Classes of the top; two share one output.
        classifier_activation: Of the last layer. "auto": sigmoid for two classes, softmax for more. None:
            logits.
        rngs: Keys for weights.

    Returns:
        f32[N, H, W, C] with values 0 to 1 to f32[N, classes], or without top to f32[N, H', W', 64].

    Raises:
        ValueError: The images are too small, their size is not known though they are flattened, or there is
            no such pooling.

    >>> cifar_cnn(pooling="max", rngs=nnx.Rngs(0)).layer_names[-4:]
    ('conv2d_5', 'global_max_pooling2d_1', 'dense_1', 'dense_2')
    """
    if pooling not in POOLINGS:
        raise ValueError(unknown("pooling", pooling, POOLINGS, "in cifar_cnn", listed=True))
    checked_images("cifar_cnn", input_shape, 24)
    called = _Names()
    net = Graph(input_shape, rngs=rngs, name="cifar_cnn", input_layer=None)
    x = net.input
    for filters, pools in ((32, False), (32, True), (64, False), (64, True), (64, False)):
        x = net.conv(called("conv2d"), x, filters, 3, activation="relu")
        if pools:
            x = net.max_pool(called("max_pooling2d"), x, 2)
    if include_top:
        x = _top(net, called, x, "cifar_cnn", pooling, (1024, classes), classifier_activation)
    return net.backbone(x)


class _Names:
    """What Keras calls the layers of a Sequential: each kind is counted from 1."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def __call__(self, kind: str) -> str:
        """The next name of a kind."""
        self._counts[kind] += 1
        return f"{kind}_{self._counts[kind]}"


def _top(
    net: Graph, called: _Names, x: Tensor, what: str, pooling: str, units: tuple[int, int], activation: str | None
) -> Tensor:
    """Add what joins maps and dense layers, and the dense layers: (hidden units, classes)."""
    hidden, classes = units
    if classes < 2:
        raise ValueError(f"a classifier needs at least two classes, found {classes}")
    if pooling == "max":
        x = net.global_max_pool(called("global_max_pooling2d"), x)
    else:
        if None in x.shape:
            raise ValueError(
                f"{what} with a flattening top needs a known image size (dense_1 reads every position), found "
                f"{net.input.shape}; build it with include_top=False for any size"
            )
        x = net.flatten(called("flatten"), x)
    outputs = 1 if classes == 2 else classes
    if activation == "auto":
        activation = "sigmoid" if outputs == 1 else "softmax"
    x = net.dense(called("dense"), x, hidden, activation="relu")
    return net.dense(called("dense"), x, outputs, activation=activation or "linear")


def _smallest(depth: int) -> int:
    """Return the side of which `depth` convolutions and poolings leave one pixel: each needs 2n + 2 for n."""
    side = 1
    for _ in range(depth):
        side = 2 * side + 2
    return side
