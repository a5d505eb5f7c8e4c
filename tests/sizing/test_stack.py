"""Stacks written in text against Keras's layers, our networks and the published figures."""

import math

import jax
import pytest
from flax import nnx

from cnnjax import sizing
from cnnjax.models import mobilenet, vgg16


def test_stack_is_that_of_keras_layers():
    from keras import layers

    zeros = {"kernel_initializer": "zeros"}
    stack = {
        "conv3-8/2same": layers.Conv2D(8, 3, 2, "same", **zeros),
        "dwconv3same": layers.DepthwiseConv2D(3, padding="same", depthwise_initializer="zeros"),
        "conv3-12g4d2": layers.Conv2D(12, 3, groups=4, dilation_rate=2, **zeros),
        "pool2": layers.MaxPooling2D(),
        "dwconv2/2": layers.DepthwiseConv2D(2, 2, depthwise_initializer="zeros"),
        "pool3/2same": layers.MaxPooling2D(3, 2, "same"),
        "flatten": layers.Flatten(),
        "dense7": layers.Dense(7, **zeros),
    }
    rows = sizing.size_stack("53x38x3", *stack, rule="floor")
    shape = (None, 53, 38, 3)
    for row, (text, layer) in zip(rows, stack.items(), strict=True):
        layer.build(shape)
        shape = layer.compute_output_shape(shape)
        assert (*row.output.cells, row.output.channels) == tuple(shape[1:]), text
        assert row.parameters == layer.count_params(), text
        assert row.biases == (layer.bias.shape[0] if getattr(layer, "bias", None) is not None else 0), text


def test_vgg16_is_the_papers():
    blocks = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
    layers = [text for width, count in blocks for text in [f"conv3-{width}same"] * count + ["pool2"]]
    rows = sizing.size_stack("224x224x3", *layers, "flatten", "dense4096", "dense4096", "dense1000")
    model = nnx.eval_shape(lambda: vgg16(rngs=nnx.Rngs(0)))
    named = [layer for name, layer in zip(model.layer_names, model.layers, strict=True) if name != "input_layer"]
    for row, layer in zip(rows, named, strict=True):
        assert row.parameters == sum(leaf.size for leaf in jax.tree.leaves(nnx.state(layer))), row.layer
    sums = sizing.total(rows)
    assert sums["parameters"] == 138_357_544  # 138 million in Simonyan and Zisserman 2014, table 2
    assert round(sums["multiplications"] / 1e9, 1) == 15.5
    assert rows[17].output == sizing.Volume((7, 7), 512) and rows[17].fields[0].size == 212


def test_mobilenet_is_the_papers():
    blocks = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *((512, 1),) * 5, (1024, 2), (1024, 1))
    layers = [text for width, stride in blocks for text in (f"dwconv3/{stride}same", f"conv1-{width}")]
    rows = sizing.size_stack("224x224x3", "conv3-32/2same", *layers, "gap", "dense1000")
    model = nnx.eval_shape(lambda: mobilenet(include_top=True, rngs=nnx.Rngs(0)))
    kernels = [math.prod(layer.kernel.shape) for layer in model.layers if hasattr(layer, "kernel")]
    assert [row.weights for row in rows if row.layer != "gap"] == kernels
    sums = sizing.total(rows)
    # Howard et al. 2017, table 8: 569 million multiplications and additions, 4.2 million parameters.
    assert round(sums["multiplications"] / 1e6) == 569 and round(sums["weights"] / 1e6, 1) == 4.2


def test_the_lectures_network_is_the_slides():
    layers = [text for width in (32, 64, 128, 128) for text in (f"conv3-{width}", "pool2")]
    rows = sizing.size_stack("150x150x3", *layers, "flatten", "dense512", "dense1", rule="floor")
    assert [row.parameters for row in rows if row.parameters] == [896, 18_496, 73_856, 147_584, 3_211_776, 513]
    assert rows[-3].output == sizing.Volume((), 6272) and sizing.total(rows)["parameters"] == 3_453_121
    with pytest.raises(
        ValueError, match=r"layer 8 of 11, 'pool2', on 15x15x128: .*= 7\.5\. .*pool2same pads as it needs.* gives 7"
    ):
        sizing.size_stack("150x150x3", *layers, "flatten", "dense512", "dense1")


def test_suffixes_stand_in_any_order():
    one, other = sizing.parse_layer("conv3-64/2+1d3g4"), sizing.parse_layer("conv3-64g4+1d3/2")
    assert (one.stride, one.padding, one.dilation, one.groups) == (2, 1, 3, 4)
    assert (other.stride, other.padding, other.dilation, other.groups) == (2, 1, 3, 4)
    assert sizing.parse_layer("pool3").stride == 3 and sizing.parse_layer("pool3/2").stride == 2
    assert sizing.parse_layer("gap").kind == sizing.parse_layer("globalpool").kind == "globalpool"


def test_what_is_not_known_is_left_open():
    line = sizing.size_stack("7", "conv3-8", "dwconv3", "pool3", "dense4")
    assert [str(row.output) for row in line] == ["5", "3", "1", "4"]
    assert [row.parameters for row in line] == [None, None, 0, None]
    assert [row.weights_per_filter for row in line] == [None] * 4
    flat = sizing.size_stack("32x32", "conv5", "conv3-8", "conv3-8", "dwconv3", "gap", "dense10")
    assert [row.parameters for row in flat] == [None, None, 8 * (9 * 8 + 1), 8 * 10, 0, 90]
    assert [row.weights_per_filter for row in flat] == [None, None, 72, 9, None, None]
    assert sizing.total(flat)["parameters"] is None and sizing.total(flat)["multiplications"] is None
    unknown = sizing.size_stack("32x32", "dwconv3", "flatten", "dense10")
    assert [str(row.output) for row in unknown] == ["30x30", "?", "10"]
    assert [row.parameters for row in unknown] == [None, 0, None] and unknown[0].weights_per_filter == 9


@pytest.mark.parametrize(
    ("stack", "message"),
    [
        ("7 conv3/3", r"layer 1 of 1, 'conv3/3', on 7: a filter of 3 with stride 3 does not fit .*= 2\.33\."),
        ("32x32x3 conv5-6 conv5-10/7", "layer 2 of 2, 'conv5-10/7', on 28x28x6: .* does not fit an input of 28"),
        ("32x16x3 conv5-6 conv20-6", "layer 2 of 2, 'conv20-6', on 28x12x6: a filter of 20 is larger .* of 12"),
        ("7", "no layers after the input 7; give at least one"),
        ("conv5-6 conv5-6", r"the input comes first, as HxWxC .*, not 'conv5-6'"),
        ("7x7x7x7 conv3", "not '7x7x7x7'"),
        ("0x7x3 conv3", "input size must be a whole number of at least 1, not 0"),
        ("-7 conv3", "not '-7'"),
        ("7.5 conv3", "not '7.5'"),
        ("٧ conv3", "not '٧'"),
        ("7 cnv3-64", "layer 1 of 1, 'cnv3-64', on 7: no layer 'cnv'; did you mean convF-K"),
        ("7 Conv3-64", "no layer 'Conv'; did you mean convF-K"),
        ("7 maxpool2", "no layer 'maxpool'; did you mean poolF"),
        ("7 flaten", "no layer 'flaten'; did you mean flatten"),
        ("7 64", "no layer '64'; a layer is convF-K .* or denseN"),
        ("7 conv-64", "convF-K .* was expected, not 'conv-64'"),
        ("7 dense", "denseN .* was expected, not 'dense'"),
        ("7 dense-10", "denseN .* was expected, not 'dense-10'"),
        ("7 gap2", "gap .* was expected, not 'gap2'"),
        ("7 pool2-1", r"poolF .* was expected, not 'pool2-1'; poolF\+P is a padding"),
        ("7 conv0-3", "filter must be a whole number of at least 1, not 0"),
        ("7 conv3-0", "number of filters must be .* not 0"),
        ("7 dense0", "number of units must be .* not 0"),
        ("7 conv3/0", "stride must be a whole number of at least 1, not 0"),
        ("7 conv3/-1", r"'/-1' cannot be read in 'conv3/-1'; after it may come /NUMBER \(stride\)"),
        ("7 conv3x5", "'x5' cannot be read in 'conv3x5'"),
        ("7 conv3+1same", "the padding is given twice in 'conv3[+]1same'; leave 'same' away"),
        ("7 conv3/2/2", "the stride is given twice"),
        ("7 flatten/2", "flatten has no stride, but '/2' gives one; it may stand with conv, dwconv or pool"),
        ("7 pool2d2", "pool has no dilation, but 'd2' gives one; it may stand with conv or dwconv"),
        ("7 gap!", "'!' cannot be read in 'gap!'; nothing may come after it"),
        ("8x8x3 flatten conv3-8", "layer 2 of 2, 'conv3-8', on 192: conv needs a map, but an earlier layer left a"),
        ("8x8x3 gap gap", "layer 2 of 2, 'gap', on 3: globalpool needs a map"),
        ("8x8x3 conv3-8g2", "2 groups do not divide 3 channels; 1 or 3 would"),
    ],
)
def test_errors_tell_the_layer_at_fault(stack, message):
    with pytest.raises(ValueError, match=message):
        sizing.size_stack(*stack.split())


def test_the_rule_of_a_stack():
    with pytest.raises(ValueError, match="the rule of a stack is 'exact' or 'floor'; write same behind a layer"):
        sizing.size_stack("7", "conv3", rule="same")
    with pytest.raises(ValueError, match="no rule 'flor'; did you mean 'floor'"):
        sizing.size_stack("7", "conv3", rule="flor")
