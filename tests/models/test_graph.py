"""The builder against Keras's functional models: order, shapes and outputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cnnjax.functional import functionalize, leaves_of
from cnnjax.hooks import with_hook
from cnnjax.models.backbone import Backbone
from cnnjax.models.graph import Graph
from cnnjax.models.layers import Flatten
from cnnjax.weights.assign import load_weights


def everything(shape=(18, 27, 4)) -> Backbone:
    """Every layer that the builder knows and Keras has, with branches of unlike length."""
    net = Graph(shape, rngs=nnx.Rngs(0), name="everything")
    x = net.zero_padding("pad", net.input, ((1, 2), (0, 3)))
    x = net.conv("stem", x, 8, (3, 5), strides=(2, 1), bias=False)
    x = net.batch_norm("stem_bn", x, epsilon=1.001e-5)
    x = net.activation("stem_act", x, "swish")
    wide = net.conv("wide", x, 12, 3, padding="same", dilation=2, groups=4, activation="relu")
    deep = net.depthwise_conv("deep_dw", x, 3, strides=2, padding="same", multiplier=2)
    deep = net.layer_norm("deep_ln", deep, epsilon=1e-6)
    deep = net.conv("deep_pw", deep, 12, 1, activation="gelu")
    pooled = net.avg_pool("pooled", wide, 3, 2, "same")
    largest = net.max_pool("largest", wide, 3, 2, "same")
    x = net.add("add", pooled, deep, largest)
    gate = net.global_avg_pool("squeeze", x, keepdims=True)
    gate = net.conv("excite", gate, 12, 1, activation="hard_sigmoid")
    x = net.multiply("scaled", x, gate)
    x = net.rescale("rescaling", x, 0.5, -0.25)
    x = net.concat("concat", x, net.avg_pool("thin", net.relu("clipped", wide, 6.0), 2))
    x = net.dropout("drop", x, 0.3)
    x = net.dense("per_cell", x, 6, bias=False, activation="tanh")
    x = net.concat("ends", net.global_max_pool("top_max", x), net.global_avg_pool("top_mean", x))
    x = net.reshape("rows", x, (3, 4))
    x = net.flatten("flat", x)
    return net.backbone(net.dense("predictions", x, 5, activation="softmax"))


def in_keras(keras, shape=(18, 27, 4)):
    """The same, written for Keras."""
    k = keras.layers
    inputs = k.Input(shape, name="input_layer")
    x = k.ZeroPadding2D(((1, 2), (0, 3)), name="pad")(inputs)
    x = k.Conv2D(8, (3, 5), strides=(2, 1), use_bias=False, name="stem")(x)
    x = k.BatchNormalization(epsilon=1.001e-5, name="stem_bn")(x)
    x = k.Activation("swish", name="stem_act")(x)
    wide = k.Conv2D(12, 3, padding="same", dilation_rate=2, groups=4, activation="relu", name="wide")(x)
    deep = k.DepthwiseConv2D(3, strides=2, padding="same", depth_multiplier=2, name="deep_dw")(x)
    deep = k.LayerNormalization(epsilon=1e-6, name="deep_ln")(deep)
    deep = k.Conv2D(12, 1, activation="gelu", name="deep_pw")(deep)
    pooled = k.AveragePooling2D(3, 2, "same", name="pooled")(wide)
    largest = k.MaxPooling2D(3, 2, "same", name="largest")(wide)
    x = k.Add(name="add")([pooled, deep, largest])
    gate = k.GlobalAveragePooling2D(keepdims=True, name="squeeze")(x)
    gate = k.Conv2D(12, 1, activation="hard_sigmoid", name="excite")(gate)
    x = k.Multiply(name="scaled")([x, gate])
    x = k.Rescaling(0.5, -0.25, name="rescaling")(x)
    x = k.Concatenate(name="concat")([x, k.AveragePooling2D(2, name="thin")(k.ReLU(6.0, name="clipped")(wide))])
    x = k.Dropout(0.3, name="drop")(x)
    x = k.Dense(6, use_bias=False, activation="tanh", name="per_cell")(x)
    x = k.Concatenate(name="ends")(
        [k.GlobalMaxPooling2D(name="top_max")(x), k.GlobalAveragePooling2D(name="top_mean")(x)]
    )
    x = k.Flatten(name="flat")(k.Reshape((3, 4), name="rows")(x))
    return keras.Model(inputs, k.Dense(5, activation="softmax", name="predictions")(x))


def test_every_layer_is_keras_layer(keras_oracle, tmp_path, assert_same):
    theirs = in_keras(keras_oracle.keras)
    rng = np.random.default_rng(1)
    for variable in theirs.weights:  # no symmetry, and statistics and factors that are not 1
        low, high = (-1.0, 1.0) if len(variable.shape) > 1 else (0.5, 1.5)
        variable.assign(rng.uniform(low, high, variable.shape))
    keras_oracle.save(theirs, tmp_path / "everything.h5")
    ours = everything()
    load_weights(ours, tmp_path / "everything.h5")
    ours.eval()
    assert ours.layer_names == tuple(layer.name for layer in theirs.layers)
    assert ours.branches
    x = rng.normal(size=(3, 18, 27, 4)).astype("float32")
    names = ours.layer_names[1:]
    want = keras_oracle.run(theirs, x, names)
    assert_same(jax.jit(lambda m, x: m.activations(x, names))(ours, x), want)
    # With zeros that no one asks for, the convolution puts them there itself.
    assert_same({"predictions": ours(x)}, {"predictions": want["predictions"]})


def test_an_end_in_the_middle_is_ordered_as_keras_orders_it(keras_oracle):
    ours, theirs = everything(), in_keras(keras_oracle.keras)
    for name in ("add", "thin", "concat", "deep_dw", "wide"):
        cut = keras_oracle.keras.Model(theirs.inputs, theirs.get_layer(name).output)
        ended = ours.ends_at(name)
        assert ended.layer_names == tuple(layer.name for layer in cut.layers)
        assert ended.output_shape() == cut.output_shape[1:]
        # What does not lead to it is gone.
        assert not any(hasattr(ended, other) for other in set(ours.layer_names) - set(ended.layer_names))


@pytest.mark.parametrize("shape", [(18, 27, 4), (None, None, 4)])
def test_sizes_are_inferred(shape):
    net_shapes = {}

    class Noting(Graph):
        def _add(self, name, module, inputs, shape):
            net_shapes[name] = shape
            return super()._add(name, module, inputs, shape)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(everything.__globals__, "Graph", Noting)
        model = everything(shape)
    model.eval()
    found = jax.eval_shape(
        lambda m, x: m.activations(x, m.layer_names), model, jax.ShapeDtypeStruct((1, 18, 27, 4), jnp.float32)
    )
    for name, out in found.items():
        inferred = net_shapes[name]
        assert len(inferred) == out.ndim - 1
        assert all(n in (None, m) for n, m in zip(inferred, out.shape[1:], strict=True)), name
        assert None not in inferred or None in shape


def test_a_module_of_any_kind_is_traced_for_its_shape():
    net = Graph((None, 9, 3), rngs=nnx.Rngs(0))
    x = net.layer("conv", nnx.Conv(3, 5, (3, 3), strides=2, rngs=nnx.Rngs(0)), net.input)
    assert x.shape == (None, 5, 5)
    model = net.backbone(net.layer("bilinear", Product(), x, x))
    assert model(jnp.ones((1, 7, 9, 3))).shape == (1, 4, 5, 5)
    with pytest.raises(ValueError, match=r"layer 'wrong' \(Conv\) does not take \[\(224, 9, 3\)\]"):
        net.layer("wrong", nnx.Conv(4, 5, (3, 3), rngs=nnx.Rngs(0)), net.input)


class Product(nnx.Module):
    def __call__(self, a, b):
        return a * b


def test_values_that_no_one_reads_any_more_are_let_go():
    net, held = Graph((8, 8, 1), rngs=nnx.Rngs(0)), []

    class Watched(nnx.Module):
        def __call__(self, x):
            import gc

            y = x + 1
            gc.collect()
            held.append(sum(a.shape == (1, 8, 8, 1) for a in jax.live_arrays()))
            return y

    x = net.input
    for k in range(6):
        x = net.layer(f"step_{k}", Watched(), x)
    model = net.backbone(x)
    held.clear()
    model(jnp.ones((1, 8, 8, 1)))
    assert held[-1] <= held[1]


def test_zeros_before_a_convolution_are_its_own_unless_others_read_them():
    def built(shared):
        net = Graph((9, 9, 2), rngs=nnx.Rngs(0))
        pad = net.zero_padding("pad", net.input, 2)
        x = net.conv("conv", pad, 3, 5, strides=2, activation="relu")
        return net.backbone(net.add("add", x, net.conv("other", pad if shared else x, 3, 5 if shared else 1,
                                                       strides=2 if shared else 1)))  # fmt: skip

    x = jax.random.normal(jax.random.key(0), (2, 9, 9, 2))

    def pads(model, *names):
        equations = jax.make_jaxpr(lambda x: model.activations(x, [*names, "add"]))(x).eqns
        return sum(equation.params.get("name") == "_pad" for equation in equations)

    alone, shared = built(False), built(True)
    assert (pads(alone), pads(alone, "pad"), pads(shared)) == (0, 1, 1)
    np.testing.assert_allclose(alone(x), alone.activations(x, ["pad", "add"])["add"], atol=1e-5)
    emptied = with_hook(functionalize(alone).module(leaves_of(alone)), lambda p, out: 0 * out if p == "pad" else out)
    np.testing.assert_allclose(emptied(x), 0 * alone(x))


def test_dropout_of_whole_images_drops_all_or_nothing():
    net = Graph((4, 4, 3), rngs=nnx.Rngs(0))
    model = net.backbone(net.dropout("drop", net.input, 0.5, whole_image=True))
    model.train()
    out = np.asarray(model(jnp.ones((64, 4, 4, 3)))).reshape(64, -1)
    assert set(np.unique(out)) == {0.0, 2.0}
    assert (out.min(1) == out.max(1)).all()


def test_average_of_zeros_counted_as_pytorch_counts_them():
    net = Graph((3, 3, 1), rngs=nnx.Rngs(0))
    model = net.backbone(net.avg_pool("pool", net.input, 3, 1, 1, count_padding=True))
    x = np.arange(9.0, dtype=np.float32).reshape(1, 3, 3, 1)
    assert float(model(x)[0, 0, 0, 0]) == pytest.approx((0 + 1 + 3 + 4) / 9)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda net, x: net.conv("c", x, 4, 9), r"is too small: layer 'c' leaves \(0, 0, 4\)"),
        (lambda net, x: net.conv("c", x, 4, 3, padding=-1), "layer 'c': expected padding 'valid', 'same', .* found -1"),
        (lambda net, x: net.conv("c", x, 4, 3, padding="sane"), "layer 'c': expected padding .* found 'sane'"),
        (lambda net, x: net.conv("c", x, 4, (3, 3, 3)), r"layer 'c': expected a whole number .*\(3, 3, 3\)"),
        (lambda net, x: net.conv("c", x, 4, 3, groups=2), "layer 'c': 2 groups do not divide 3 channels and 4 filters"),
        (lambda net, x: net.conv("c", x, 4, 3, activation="rule"), "no activation 'rule'; did you mean 'relu'"),
        (
            lambda net, x: net.add("a", x, net.conv("c", x, 3, 3)),
            r"layer 'a' reads maps of different shapes: input_layer \(8, 8, 3\), c \(6, 6, 3\)",
        ),
        (lambda net, x: net.concat("a", x, net.max_pool("p", x)), "layer 'a' reads maps of different shapes"),
        (lambda net, x: net.add("a", x, net.flatten("f", x)), "layer 'a' reads maps of different shapes"),
        (lambda net, x: net.add("a", x), "layer 'a' joins at least two layers, found 1"),
        (lambda net, x: net.reshape("r", x, (5, 5)), r"layer 'r' cannot shape \(8, 8, 3\) as \(5, 5\)"),
        (lambda net, x: net.relu("input_layer", x), "has two layers 'input_layer'"),
        (lambda net, x: net.relu("r", Graph((8, 8, 3), rngs=nnx.Rngs(0)).input), "tensor of another graph"),
        (lambda net, x: net.relu("r", "input_layer"), "layer 'r' of net reads 'input_layer'; give what a layer"),
        (lambda net, x: net.max_pool("p", net.flatten("f", x)), r"layer 'p' reads images .*, found \(192,\)"),
    ],
)  # fmt: skip
def test_layers_that_do_not_fit_are_refused_by_name(build, message):
    net = Graph((8, 8, 3), rngs=nnx.Rngs(0), name="net")
    with pytest.raises(ValueError, match=message):
        build(net, net.input)


def test_graphs_that_do_not_hold_together_are_refused():
    net = Graph((8, 8, 3), rngs=nnx.Rngs(0))
    net.conv("left_over", net.input, 3, 1)
    with pytest.raises(ValueError, match="'left_over': what these layers give does not lead to 'end'"):
        net.backbone(net.relu("end", net.input))
    with pytest.raises(ValueError, match="layer 'a' reads 'bb', which does not come before it; did you mean 'b'"):
        Backbone([("b", Flatten()), ("a", Flatten())], input_shape=(2, 2, 3), inputs={"b": ("",), "a": ("bb",)})


def test_adding_repeats_nothing_where_sizes_were_not_known():
    net = Graph((None, None, 1), rngs=nnx.Rngs(0))
    small = net.conv("small", net.input, 1, 3, strides=2)
    model = net.backbone(net.add("sum", net.input, small))
    with pytest.raises(ValueError, match=r"layer 'sum' adds maps of one shape, found \(1, 3, 3, 1\), \(1, 1, 1, 1\)"):
        model(jnp.ones((1, 3, 3, 1)))
