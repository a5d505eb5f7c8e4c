"""The specification, its errors, and what it gives optax."""

import jax
import jax.numpy as jnp
import keras
import optax
import pytest
from flax import nnx
from residual import ResNet

from cnnjax import Trainer
from cnnjax.freeze import Freeze, layer_names
from cnnjax.functional import leaves_of
from cnnjax.models import Classifier, lecture_cnn, linear_head, mobilenet, vgg16


@pytest.fixture(scope="module")
def mobile():
    return mobilenet(alpha=0.25, input_shape=(64, 64, 3), include_top=False, rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def resnet():
    return ResNet(rngs=nnx.Rngs(0))


@pytest.mark.parametrize("text", ["none", "all", "3", "[:-4]", "[2:5]", "[3:]", "block4_pool", "conv_dw_*", "a*,b"])
def test_parse_reads_what_str_writes(text):
    assert str(Freeze.parse(text)) == text


@pytest.mark.parametrize("text", ["", "-3", "  ", "[-1]", "[1:2:3]", "[a:b]", "[:-4", "[-:2]"])
def test_parse_refuses_what_is_no_freeze(text):
    with pytest.raises(ValueError, match="is no (freeze|slice)"):
        Freeze.parse(text)


@pytest.mark.parametrize("stop", [-4, -1, 0, 5, 86])
def test_slices_mean_what_they_mean_in_keras(mobile, stop):
    theirs = keras.applications.MobileNet(alpha=0.25, input_shape=(64, 64, 3), include_top=False, weights=None)
    frozen = Freeze.slice(None, stop).resolve(mobile)
    expected = [layer.name for layer in theirs.layers[:stop]]
    assert [n for n in frozen.layers if n != "input_layer"] == [n for n in expected if not n.startswith("input")]


def test_the_lectures_slice_leaves_block5_of_vgg16_trainable():
    model = vgg16(input_shape=(32, 32, 3), include_top=False, rngs=nnx.Rngs(0))
    trainable, _ = Freeze.parse("[:-4]").resolve(model).partition(leaves_of(model))
    assert {p.split("/")[0] for p in trainable} == {"block5_conv1", "block5_conv2", "block5_conv3"}


def test_depth_counts_layers_with_a_kernel(mobile):
    # MobileNet without top has 27: conv1 and 13 pairs of depthwise and pointwise convolutions.
    assert Freeze.depth(0).resolve(mobile).layers == ()
    assert Freeze.depth(1).resolve(mobile).layers == ("input_layer", "conv1", "conv1_bn", "conv1_relu")
    assert Freeze.depth(27).resolve(mobile).layers == mobile.layer_names
    with pytest.raises(
        ValueError, match=r"cannot freeze 28 layers of mobilenet: it has 27 layers .*conv1 to conv_pw_13"
    ):
        Freeze.depth(28).resolve(mobile)


def test_through_is_up_to_and_including(mobile):
    frozen = Freeze.through("conv_pw_1_bn").resolve(mobile)
    assert frozen.layers[-1] == "conv_pw_1_bn"
    assert frozen("conv_pw_1_bn/mean") and frozen("conv1/kernel") and not frozen("conv_dw_2/kernel")
    # A name that another begins with is not that other.
    assert not Freeze.match("conv_pw_1").resolve(mobile)("conv_pw_13/kernel")


def test_an_unknown_layer_is_answered_with_the_nearest(mobile):
    with pytest.raises(ValueError, match=r"no layer 'conv_pw_14' in mobilenet; did you mean 'conv_pw_\d+'\?"):
        Freeze.through("conv_pw_14").resolve(mobile)


def test_every_pattern_must_match_something(mobile):
    assert len(Freeze.match("conv_dw_*_bn", "conv1").resolve(mobile).layers) == 14
    with pytest.raises(ValueError, match=r"match nothing(?s:.*)'block\*' matches no layer(?s:.*)'convdw_3'"):
        Freeze.match("block*", "conv_dw_*", "convdw_3").resolve(mobile)


def test_layers_of_a_model_that_is_not_ours_come_in_the_order_in_which_they_run(resnet):
    names = layer_names(resnet)
    assert names[:6] == ("stem", "norm", "blocks/0/conv1", "blocks/0/norm1", "blocks/0/conv2", "blocks/0/norm2")
    assert names[-1] == "out"
    # The dropout that is called after the first block stands there.
    assert Freeze.depth(3).resolve(resnet).layers == (*names[:6], "inner") and names[7] == "blocks/1/conv1"
    assert Freeze.match("blocks/1/*").resolve(resnet).layers == tuple(n for n in names if n.startswith("blocks/1"))


def test_all_freezes_parameters_that_belong_to_no_layer():
    class Token(nnx.Module):
        def __init__(self, rngs: nnx.Rngs):
            self.token = nnx.Param(jnp.zeros(3))
            self.linear = nnx.Linear(3, 3, rngs=rngs)

    model = Token(nnx.Rngs(0))
    assert Freeze.all().resolve(model).partition(leaves_of(model))[0] == {}


def test_within_keeps_the_head_trainable():
    backbone = lecture_cnn((48, 48, 3), (4, 4, 4, 4), include_top=False, rngs=nnx.Rngs(0))
    model = Classifier(backbone, linear_head(backbone.output_shape(), 2, rngs=nnx.Rngs(0)), "unit")
    trainable, _ = Freeze.all().resolve(model, within="backbone").partition(leaves_of(model))
    assert {p for p in trainable if "dropout" not in p} == {"head/dense/kernel", "head/dense/bias"}


def test_frozen_leaves_hold_no_optimizer_bytes(mobile):
    leaves = {p: x for p, x in leaves_of(mobile).items() if not p.endswith(("mean", "var"))}
    for spec in ("none", "5", "conv_pw_11_relu", "all"):
        frozen = Freeze.parse(spec).resolve(mobile)
        trainable, _ = frozen.partition(leaves)
        state = frozen.optimizer(optax.adam(1e-3)).init(leaves)
        held = sum(x.nbytes for x in jax.tree.leaves(state) if x.ndim)
        assert held == 2 * sum(x.nbytes for x in trainable.values()), spec


def test_full_tree_mask_and_partition_give_identical_updates(resnet):
    params = {p: x for p, x in leaves_of(resnet).items() if not p.endswith(("mean", "var", "count", "key"))}
    grads = {p: jax.random.normal(jax.random.key(k), x.shape) for k, (p, x) in enumerate(params.items())}
    frozen = Freeze.depth(3).resolve(resnet)
    # A global clip and weight decay are where a plain mask goes wrong.
    tx = optax.chain(optax.clip_by_global_norm(0.1), optax.adamw(1e-2, weight_decay=0.1))
    mine, _ = frozen.partition(params)
    expected, _ = tx.update(frozen.partition(grads)[0], tx.init(mine), mine)
    full = frozen.optimizer(tx)
    updates, _ = full.update(grads, full.init(params), params)
    for path, update in updates.items():
        if path in expected:
            assert jnp.array_equal(update, expected[path]), path
        else:
            assert not update.any(), path


def test_the_mask_reads_nested_and_nnx_trees(resnet):
    frozen = Freeze.through("stem").resolve(resnet)
    nested = frozen.mask({"stem": {"kernel": 1}, "out": {"kernel": 1}})
    assert nested == {"stem": {"kernel": False}, "out": {"kernel": True}}
    state = nnx.state(resnet, nnx.Param)
    flags = jax.tree.leaves(frozen.mask(state))
    assert flags.count(False) == 2 and len(flags) == len(jax.tree.leaves(state))


class Loop(nnx.Module):
    """Layers set by `setattr`, defined in another order than the one in which they run."""

    def __init__(self, rngs: nnx.Rngs):
        self.head = nnx.Linear(2, 2, rngs=rngs)
        self.unused = nnx.Linear(2, 2, rngs=rngs)
        for k in reversed(range(11)):
            setattr(self, f"conv{k}", nnx.Linear(2, 2, rngs=rngs))
        self.body = nnx.Dict(first=nnx.Linear(2, 2, rngs=rngs), second=nnx.Linear(2, 2, rngs=rngs))
        self.stem = nnx.Linear(2, 2, rngs=rngs)

    def __call__(self, x):
        x = self.stem(x)
        for k in range(11):
            x = getattr(self, f"conv{k}")(x)
        return self.head(self.body["first"](self.body["second"](x)))


@pytest.mark.parametrize("copied", [lambda model: model, lambda model: nnx.merge(*nnx.split(model)), nnx.clone])
def test_layers_come_in_the_order_in_which_they_run_also_in_copies(copied):
    model = copied(Loop(nnx.Rngs(0)))
    expected = ("stem", *(f"conv{k}" for k in range(11)), "body/second", "body/first", "head", "unused")
    assert layer_names(model, example=(2,)) == expected
    assert Freeze.depth(3).resolve(model, example=(2,)).layers == ("stem", "conv0", "conv1")
    assert Freeze.through("conv1").resolve(model, example=(2,)).layers == ("stem", "conv0", "conv1")
    assert Freeze.slice(-2, None).resolve(model, example=(2,)).layers == ("head", "unused")
    # What does not go by the order needs no example.
    assert set(Freeze.match("conv*").resolve(model).layers) == set(expected[1:12])
    assert len(Freeze.all().resolve(model).layers) == len(expected)
    assert Freeze.none().resolve(model).layers == ()
    for freeze in (Freeze.depth(3), Freeze.through("conv1"), Freeze.slice(None, 2)):
        with pytest.raises(ValueError, match=r"layers of Loop run is found by tracing.*give example=\(height, width"):
            freeze.resolve(model)
    with pytest.raises(ValueError, match=r"Loop cannot be called with one input of shape \(N, 3\) and type float32: "):
        Freeze.depth(1).resolve(model, example=(3,))
    model.input_shape = (2,)
    assert Freeze.depth(1).resolve(model).layers == ("stem",)


class Scaled(nnx.Module):
    """A block with a parameter of its own beside its layers, as in ConvNeXt."""

    def __init__(self, rngs: nnx.Rngs):
        self.dw = nnx.Conv(4, 4, (3, 3), feature_group_count=4, rngs=rngs)
        self.pw = nnx.Linear(4, 4, rngs=rngs)
        self.gamma = nnx.Param(jnp.ones(4))

    def __call__(self, x):
        return x + self.gamma * self.pw(self.dw(x))


class Stack(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.stem = nnx.Linear(3, 4, rngs=rngs)
        self.token = nnx.Param(jnp.zeros(4))
        self.blocks = nnx.List([Scaled(rngs), Scaled(rngs)])

    def __call__(self, x):
        x = self.stem(x) + self.token
        for block in self.blocks:
            x = block(x)
        return x


def test_a_blocks_own_parameter_stands_for_itself():
    model = Stack(nnx.Rngs(0))
    model.input_shape = (8, 8, 3)
    names = layer_names(model)
    assert names == ("stem", "token", *(f"blocks/{k}/{n}" for k in (0, 1) for n in ("dw", "pw", "gamma")))
    frozen = Freeze.depth(2).resolve(model)
    assert frozen.layers == ("stem", "token", "blocks/0/dw") and not frozen("blocks/0/pw/kernel")
    assert frozen("token") and not frozen("blocks/0/gamma")
    # A block's name stands for all that is in it.
    assert Freeze.through("blocks/0").resolve(model).layers == names[:5]


def test_an_unknown_part_is_named(mobile):
    with pytest.raises(ValueError, match="no part 'heads' in Backbone"):
        Freeze.all().resolve(mobile, within="heads")


class Told(nnx.Module):
    """Its normalisation is told in the call to follow the batch, whatever mode the model is in."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.conv, self.norm = nnx.Conv(3, 4, (1, 1), rngs=rngs), nnx.BatchNorm(4, rngs=rngs)
        self.head = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x):
        return self.head(self.norm(self.conv(x), use_running_average=False).mean((1, 2)))


def test_a_frozen_batchnorm_that_is_called_to_follow_the_batch_is_refused():
    Trainer(Told(), Freeze.match("conv").resolve(Told()), (4, 4), batch_size=4)
    with pytest.raises(ValueError, match="a frozen BatchNorm .*use_running_average=False: leave that argument out"):
        Trainer(Told(), Freeze.match("conv", "norm").resolve(Told()), (4, 4), batch_size=4)
