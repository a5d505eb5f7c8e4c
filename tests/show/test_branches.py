"""Images of a network with branches: which layer belongs to which, and what a joining layer sees."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from residual import randomized

from cnnjax.hooks import outputs
from cnnjax.models import Classifier, Graph, linear_head, resnet
from cnnjax.show import activation_maps, edge_detectors
from cnnjax.show.cam import class_activation
from cnnjax.show.fields import cell_box, effective_field, layer_with_field
from cnnjax.show.filters import convolution, first_maps
from cnnjax.summaries.measure import receptive_fields


@pytest.fixture(scope="module")
def model():
    """Two stages of ResNet-50 for five channels, in inference mode."""
    made = randomized(resnet(50, widths=(4, 6), input_shape=(40, 56, 5), include_top=False, rngs=nnx.Rngs(0)))
    made.eval()
    return made


@pytest.mark.parametrize("layer", ["conv2_block1_0", "conv2_block1_3", "conv3_block1_0", "conv1"])
def test_the_norm_is_that_which_reads_the_convolution(model, layer):
    # In Keras's order the shortcut's norm stands behind the other branch's convolution.
    found = convolution(model, f"{layer}_conv")
    assert found.norm == f"{layer}_bn"
    norm = getattr(model, f"{layer}_bn")
    scale = norm.scale[...] / jnp.sqrt(norm.var[...] + norm.epsilon)
    np.testing.assert_allclose(found.folded, found.kernel * scale, rtol=1e-5)


def test_layers_are_found_and_drawn(model):
    images = np.random.default_rng(0).normal(size=(1, 40, 56, 5)).astype("float32")
    assert first_maps(model, (40, 56, 5)) == "pool1_pool"
    assert layer_with_field(model, (40, 56, 5)) == "conv2_block2_1_relu"  # 19 of 40 rows
    maps = activation_maps(model, images, "conv2_block1_add")[0]
    seen = outputs(model, images, ["conv2_block1_0_bn", "conv2_block1_3_bn"])
    np.testing.assert_allclose(maps, sum(seen.values())[0], rtol=1e-5, atol=1e-5)
    assert edge_detectors(convolution(model).folded)[0].strength > 0


def mixed(shape=(26, 33, 2)):
    """Ways of unlike reach, stride and padding, all weights equal: every pixel in the field counts."""
    net = Graph(shape, rngs=nnx.Rngs(0))
    x = net.conv("stem", net.input, 2, 3, strides=2, padding=1)
    near = net.conv("near", x, 3, 1, strides=2)
    far = net.conv("far", x, 3, 5, padding="same", dilation=(1, 2))
    far = net.max_pool("pool", net.zero_padding("pad", far, 1), 3, 2)
    tall = net.avg_pool("tall", x, (5, 1), (2, 2), ((2, 2), (0, 0)))
    x = net.concat("concat", net.add("add", near, far), net.conv("after", tall, 2, 3, padding=1))
    model = net.backbone(net.conv("end", x, 2, 1))
    ones = lambda path, v: v.replace(jnp.full(v.get_value().shape, 1e-2))  # noqa: E731
    graph, state = nnx.split(model)
    return nnx.merge(graph, nnx.from_flat_state([(p, ones(p, v)) for p, v in nnx.to_flat_state(state)]))


@pytest.mark.parametrize("layer", ["add", "concat", "end"])
@pytest.mark.parametrize("cell", [(3, 4), (0, 0), (6, 8)])
def test_a_joining_layer_sees_what_its_widest_ways_see(layer, cell):
    model, shape = mixed(), (26, 33, 2)
    images = np.random.default_rng(0).uniform(1, 2, (64, *shape)).astype("float32")
    fields = receptive_fields(model)[layer]
    box, field = cell_box(fields, cell).clipped(*shape[:2]), effective_field(model, images, layer, cell)
    rows, columns = field.nonzero()
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (box.top, box.bottom, box.left, box.right)


def test_a_residual_block_sees_as_far_as_its_convolutions(model):
    fields = receptive_fields(model)
    # 7 (stride 2), 3 (stride 2), then three blocks with one 3x3 each at stride 4: 11 + 3 * 2 * 4; arithmetic as in
    # the lecture's slide on receptive fields.
    assert fields["pool1_pool"][0].size == 11
    assert [fields[f"conv2_block{k}_out"][0].size for k in (1, 2, 3)] == [19, 27, 35]
    assert fields["conv3_block1_out"][1].size == 35 + 2 * 8 and fields["conv3_block1_out"][1].jump == 8
    assert fields["conv3_block1_0_bn"][1].size == 35


def test_cam_speaks_of_the_last_block(model):
    classifier = Classifier(model, linear_head(model.output_shape(), 3, rngs=nnx.Rngs(1)), "none")
    classifier.eval()
    images = np.random.default_rng(0).normal(size=(2, 40, 56, 5)).astype("float32")
    found = class_activation(classifier, images, class_index=1)
    assert found.layer == "backbone/conv3_block4_out"
    # With average pooling and one dense layer, Grad-CAM is CAM: the maps weighted with the class's weights.
    maps = np.asarray(model(images))
    weights = np.asarray(classifier.head.dense.kernel[...])[:, 1]
    want = np.maximum(maps @ weights, 0) / np.prod(maps.shape[1:3])
    np.testing.assert_allclose(found.heat, want, rtol=1e-3, atol=1e-5 * want.max())
    jax.block_until_ready(found.heat)
