"""ConvNeXt (Liu et al. 2022, arXiv:2201.03545): tiny to xlarge as in `keras.applications`, smaller ones as in timm."""

from typing import Literal

from flax import nnx

from cnnjax.models.backbone import Backbone, Shape
from cnnjax.models.graph import Graph, Tensor
from cnnjax.models.published import Published
from cnnjax.models.registry import register
from cnnjax.models.sizes import checked_images
from cnnjax.runtime.nearest import unknown

# (blocks, width) of each stage. The first four are timm's, in timm/models/convnext.py.
_VARIANTS = {
    "atto": ((2, 40), (2, 80), (6, 160), (2, 320)),
    "femto": ((2, 48), (2, 96), (6, 192), (2, 384)),
    "pico": ((2, 64), (2, 128), (6, 256), (2, 512)),
    "nano": ((2, 80), (2, 160), (8, 320), (2, 640)),
    "tiny": ((3, 96), (3, 192), (9, 384), (3, 768)),
    "small": ((3, 96), (3, 192), (27, 384), (3, 768)),
    "base": ((3, 128), (3, 256), (27, 512), (3, 1024)),
    "large": ((3, 192), (3, 384), (27, 768), (3, 1536)),
    "xlarge": ((3, 256), (3, 512), (27, 1024), (3, 2048)),
}
_EPSILON = 1e-6
_MEANS = tuple(255 * mean for mean in (0.485, 0.456, 0.406))
_VARIANCES = tuple((255 * deviation) ** 2 for deviation in (0.229, 0.224, 0.225))

PUBLISHED = tuple(
    Published(
        name=f"convnext_{variant}{'' if top else '_notop'}",
        backbone="convnext",
        url="https://storage.googleapis.com/tensorflow/keras-applications/convnext/"
        f"convnext_{variant}{'' if top else '_notop'}.h5",
        digest=f"sha256:{digest}",
        input_size=224,
        preprocessing="none",
        classes=1000,
        licence=None,
        include_top=top,
        options={"variant": variant},
        top1=accuracy,
    )
    for variant, accuracy, *digests in (
        ("tiny", 0.813, "8ae6e78ce2933352b1ef4008e6dd2f17bc40771563877d156bc6426c7cf503ff",
         "d547c096cabd03329d7be5562c5e14798aa39ed24b474157cef5e85ab9e49ef1"),
        ("small", 0.823, "ce1277d8f1ee5a0ef0e171469089c18f5233860ceaf9b168049cb9263fd7483c",
         "6fc8009faa2f00c1c1dfce59feea9b0745eb260a7dd11bee65c8e20843da6eab"),
        ("base", 0.853, "52cbb006d3dadd03f6e095a8ca1aca47aecdd75acb4bc74bce1f5c695d0086e6",
         "40a20c5548a5e9202f69735ecc06c990e6b7c9d2de39f0361e27baeb24cb7c45"),
        ("large", 0.863, "070c5ed9ed289581e477741d3b34beffa920db8cf590899d6d2c67fba2a198a6",
         "96f02b6f0753d4f543261bc9d09bed650f24dd6bc02ddde3066135b63d23a1cd"),
        ("xlarge", 0.867, "c1f5ccab661354fc3a79a10fa99af82f0fbf10ec65cb894a3ae0815f17a889ee",
         "de3f8a54174130e0cecdc71583354753d557fcf1f4487331558e2a16ba0cfe05"),
    )
    for digest, top in zip(digests, (True, False), strict=True)
)  # fmt: skip


@register(published=PUBLISHED, small={"widths": (4, 6, 8, 10), "depths": (1, 1, 2, 1), "input_shape": (32, 32, 3)})
def convnext(
    variant: Literal["atto", "femto", "pico", "nano", "tiny", "small", "base", "large", "xlarge"] = "tiny",
    depths: tuple[int, ...] | None = None,
    widths: tuple[int, ...] | None = None,
    stochastic_depth: float = 0.0,
    layer_scale: float = 1e-6,
    input_shape: Shape = (224, 224, 3),
    include_top: bool = True,
    classes: int = 1000,
    classifier_activation: str | None = "softmax",
    *,
    rngs: nnx.Rngs,
) -> Backbone:
    """Build a ConvNeXt with Keras's layer names in Keras's order (tiny: 133 layers, 135 with top).

    Pixels of three channels are scaled in the network, by its first layer. The stem and what halves the size between
    stages are each one layer of two (a nested backbone), as in Keras. The additions (`add`, `add_1`), which Keras does
    not list among the layers, are not counted by slices.

    Args:
        variant: atto, femto, pico or nano (timm's), tiny, small, base, large or xlarge (Keras's).
        depths: Blocks of each of the four stages; the variant's if not given.
        widths: Channels of each stage; the variant's if not given.
        stochastic_depth: At which rate the last block's residual is left out for an image in training; lower for the
            others, from 0 on in even steps (Keras's `drop_path_rate`).
        layer_scale: What each residual's trainable factors begin at; 0 for none.
        input_shape: (H, W, C), at least 32 pixels a side; None for any height or width.
        include_top: Whether to end in Keras's classification layers; False for a backbone that ends in the last
            normalisation, under another head.
        classes: Classes of the top.
        classifier_activation: Of the top; None for logits.
        rngs: Keys for weights and stochastic depth.

    Returns:
        f32[N, H, W, C] with values 0 to 255 to f32[N, H/32, W/32, 768] (rounded down; the last width), or to f32[N,
        classes] with top.

    Raises:
        ValueError: There is no such variant, depths or widths are not four numbers from 1 on, the images are smaller
            than 32 pixels, or the top has no classes.

    >>> convnext("atto", input_shape=(96, 96, 3), include_top=False, rngs=nnx.Rngs(0)).output_shape()
    (3, 3, 320)
    """
    if variant not in _VARIANTS:
        raise ValueError(unknown("ConvNeXt", variant, _VARIANTS, listed=True))
    known = list(zip(*_VARIANTS[variant], strict=True))
    counts, channels = depths or known[0], widths or known[1]
    for what, given in (("depths", counts), ("widths", channels)):
        if len(given) != 4 or min(given) < 1:
            raise ValueError(f"{what} of ConvNeXt: expected four numbers from 1 on, found {tuple(given)}")
    checked_images("ConvNeXt", input_shape, 32)
    if include_top and classes < 1:
        raise ValueError(f"ConvNeXt with top needs at least one class, found {classes}")
    name = f"convnext_{variant}"
    net = Graph(input_shape, rngs=rngs, name=name)
    x = net.input
    if x.channels == 3:
        x = net.normalization(f"{name}_prestem_normalization", x, _MEANS, _VARIANCES)
    number, last = 0, sum(counts) - 1
    for stage, (count, width) in enumerate(zip(counts, channels, strict=True)):
        x = _halved(net, name, stage, x, width, rngs)
        for k in range(count):
            rate = stochastic_depth * number / last if last else 0.0
            x = _block(net, f"{name}_stage_{stage}_block_{k}", x, rate, layer_scale)
            number += 1
    if not include_top:
        return net.backbone(net.layer_norm("layer_normalization", x, epsilon=_EPSILON))
    x = net.layer_norm(f"{name}_head_layernorm", net.global_avg_pool(f"{name}_head_gap", x), epsilon=_EPSILON)
    return net.backbone(net.dense(f"{name}_head_dense", x, classes, activation=classifier_activation or "linear"))


def _halved(net: Graph, name: str, stage: int, x: Tensor, width: int, rngs: nnx.Rngs) -> Tensor:
    """A quarter of the size before the first stage, half of it before the others: two layers in one."""
    whole = f"{name}_downsampling_block_{stage - 1}" if stage else f"{name}_stem"
    inner = Graph(x.shape, rngs=rngs, name=whole, input_layer=None)
    if stage:
        y = inner.layer_norm(f"{name}_downsampling_layernorm_{stage - 1}", inner.input, epsilon=_EPSILON)
        y = inner.conv(f"{name}_downsampling_conv_{stage - 1}", y, width, 2, strides=2)
    else:
        y = inner.conv(f"{name}_stem_conv", inner.input, width, 4, strides=4)
        y = inner.layer_norm(f"{name}_stem_layernorm", y, epsilon=_EPSILON)
    return net.nested(whole, inner.backbone(y), x, y.shape)


def _block(net: Graph, name: str, x: Tensor, rate: float, layer_scale: float) -> Tensor:
    """7x7 of each channel, then at each position to four times the channels and back."""
    y = net.conv(f"{name}_depthwise_conv", x, x.channels, 7, padding="same", groups=x.channels)
    y = net.dense(f"{name}_pointwise_conv_1", net.layer_norm(f"{name}_layernorm", y, epsilon=_EPSILON), 4 * x.channels)
    y = net.dense(f"{name}_pointwise_conv_2", net.activation(f"{name}_gelu", y, "gelu"), x.channels)
    if layer_scale:
        y = net.layer_scale(f"{name}_layer_scale", y, initial=layer_scale)
    if rate:
        y = net.dropout(f"{name}_stochastic_depth", y, rate, whole_image=True)
    else:
        y = net.activation(f"{name}_identity", y, "linear")
    return net.operation(net.add(net.unnamed("add"), x, y))
