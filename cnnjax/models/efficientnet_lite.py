"""EfficientNet-Lite 0 to 4: EfficientNet for integer arithmetic, without squeeze and excitation and with ReLU6.

Source: github.com/tensorflow/tpu, models/official/efficientnet/lite (2020). Keras has none; the layers' names are those
of its EfficientNet.
"""

from typing import Literal

from flax import nnx

from cnnjax.models.backbone import Backbone, Shape
from cnnjax.models.efficientnet import Blocks, ended
from cnnjax.models.graph import Graph
from cnnjax.models.registry import register
from cnnjax.models.sizes import checked_images
from cnnjax.runtime.nearest import unknown

# Width and depth coefficient, images' size, dropout of the top.
_VARIANTS = {
    "lite0": (1.0, 1.0, 224, 0.2),
    "lite1": (1.0, 1.1, 240, 0.2),
    "lite2": (1.1, 1.2, 260, 0.3),
    "lite3": (1.2, 1.4, 280, 0.3),
    "lite4": (1.4, 1.8, 300, 0.3),
}


@register(
    top=("dropout",),
    small={"width_coefficient": 0.1, "depth_coefficient": 0.5, "input_shape": (32, 32, 3)},
    sizes={name: size for name, (_, _, size, _) in _VARIANTS.items()},
)
def efficientnet_lite(
    variant: Literal["lite0", "lite1", "lite2", "lite3", "lite4"] = "lite0",
    width_coefficient: float | None = None,
    depth_coefficient: float | None = None,
    stochastic_depth: float = 0.2,
    input_shape: Shape | None = None,
    include_top: bool = True,
    classes: int = 1000,
    dropout: float | None = None,
    classifier_activation: str | None = "softmax",
    *,
    rngs: nnx.Rngs,
) -> Backbone:
    """Build an EfficientNet-Lite, with the layers of `efficientnet` that it keeps, under their names.

    The first convolution has 32 channels and the last 1280 in every variant, and the first and last stage one block.

    Args:
        variant: lite0 to lite4, which give both coefficients, the images' size and the top's dropout.
        width_coefficient: Factor of the stages' widths; the variant's if not given.
        depth_coefficient: Factor of the numbers of blocks; the variant's if not given.
        stochastic_depth: At which rate the last block's residual is left out for an image in training; lower for the
            others, in proportion to their place. 0 for never.
        input_shape: (H, W, C), at least 32 pixels a side; None for any height or width. The variant's own if not given.
        include_top: Whether to end in classification layers; False for a backbone under another head.
        classes: Classes of the top.
        dropout: Dropout rate in the top; the variant's if not given.
        classifier_activation: Of the top; None for logits.
        rngs: Keys for weights, dropout and stochastic depth.

    Returns:
        f32[N, H, W, C], scaled as the weights expect, to f32[N, H/32, W/32, 1280] (rounded up), or to f32[N, classes]
        with top.

    Raises:
        ValueError: There is no such variant, a coefficient is 0 or too large, the images are smaller than 32 pixels, or
            the top has no classes.

    >>> efficientnet_lite(input_shape=(96, 96, 3), include_top=False, rngs=nnx.Rngs(0)).output_shape()
    (3, 3, 1280)
    """
    if variant not in _VARIANTS:
        raise ValueError(unknown("EfficientNet-Lite", variant, _VARIANTS, listed=True))
    width, depth, size, rate = _VARIANTS[variant]
    shape = input_shape or (size, size, 3)
    checked_images("EfficientNet-Lite", shape, 32)
    if include_top and classes < 1:
        raise ValueError(f"EfficientNet-Lite with top needs at least one class, found {classes}")
    net = Graph(shape, rngs=rngs, name=f"efficientnet_{variant}")
    blocks = Blocks(
        net,
        width if width_coefficient is None else width_coefficient,
        depth if depth_coefficient is None else depth_coefficient,
        stochastic_depth,
        activation="relu6",
        squeezed=False,
        ends_scaled=False,
    )
    return ended(
        net, blocks.all(net.input, 32), 1280, include_top, classes,
        rate if dropout is None else dropout, classifier_activation, "relu6",
    )  # fmt: skip
