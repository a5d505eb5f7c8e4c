"""Families in torchvision's, timm's and others' form: their publishers' parameters, and their arithmetic by hand.

`scripts/parity_torch.py` compares every variant with torchvision and timm themselves.
"""

import csv
import json

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from families import DEPTHS
from flax import nnx
from jax import lax
from PIL import Image
from residual import randomized
from safetensors.numpy import load_file
from staged import check_two_steps_through_features

from cnnjax import Freeze
from cnnjax.freeze import num_weighted_layers
from cnnjax.functional import leaves_of, named_variables
from cnnjax.models import create
from cnnjax.models.alexnet import LocalResponseNormalization
from cnnjax.models.preprocessing import preprocess
from cnnjax.models.regnet import stages
from cnnjax.weights.assign import load_weights

# By torchvision and timm 1.0, whose names are regnetx_002 to regnety_1280.
REGNET = {
    "x_200mf": 2_684_792, "x_400mf": 5_157_512, "x_400mf_tv": 5_495_976, "x_600mf": 6_196_040, "x_800mf": 7_259_656,
    "x_1.6gf": 9_190_136, "x_3.2gf": 15_296_552, "x_4gf": 22_118_248, "x_6.4gf": 26_209_256, "x_8gf": 39_572_648,
    "x_12gf": 46_106_056, "x_16gf": 54_278_536, "x_32gf": 107_811_560, "y_200mf": 3_162_996, "y_400mf": 4_344_144,
    "y_600mf": 6_055_160, "y_800mf": 6_263_168, "y_800mf_tv": 6_432_512, "y_1.6gf": 11_202_430, "y_3.2gf": 19_436_338,
    "y_4gf": 20_646_656, "y_6.4gf": 30_583_252, "y_8gf": 39_180_068, "y_8gf_tv": 39_381_472, "y_12gf": 51_822_544,
    "y_16gf": 83_590_140, "y_32gf": 145_046_770, "y_64gf": 281_378_786, "y_128gf": 644_812_894,
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "options", "trainable"),
    [
        ("regnet", {"variant": "x_200mf"}, REGNET["x_200mf"]),
        ("regnet", {"variant": "y_800mf_tv"}, REGNET["y_800mf_tv"]),
        ("resnet", {"depth": 50, "variant": "v1.5", "groups": 32, "base_width": 4}, 25_028_904),
        ("resnet", {"depth": 50, "variant": "v1.5", "base_width": 128}, 68_883_240),
        ("densenet", {"depth": 161, "growth": 48}, 28_681_000),
        ("squeezenet", {}, 1_235_496),
        ("alexnet", {"variant": "one_tower"}, 61_100_840),
        ("alexnet", {}, 60_965_224),  # Caffe's bvlc_alexnet
        ("bit", {}, 25_549_352),
        ("resnet_cifar", {"depth": 20}, 269_722),  # of the repository's table: 0.27 million
        ("resnet_cifar", {"depth": 110}, 1_727_962),
    ],
)
def test_networks_have_their_publishers_parameters(name, options, trainable):
    model = nnx.eval_shape(lambda: create(name, rngs=nnx.Rngs(0), **options))
    assert sum(leaf.size for leaf in leaves_of(model, nnx.Param).values()) == trainable


@pytest.mark.parametrize("variant", REGNET)
def test_regnets_of_every_variant_have_their_publishers_parameters(variant):
    count, before = 32 * (27 + 2), 32  # the stem, and its channels
    for width, depth, group in zip(*stages(variant), strict=True):
        for _ in range(depth):
            count += before * width + width * group * 9 + width * width + 3 * 2 * width
            count += before * width + 2 * width if width != before or _ == 0 else 0
            squeezed = round(before / 4)
            count += 2 * width * squeezed + squeezed + width if variant.startswith("y") else 0
            before = width
    assert count + 1000 * (before + 1) == REGNET[variant]


def conv(leaves, name, x, stride=1, padding=None, kernel=None):
    """torch.nn.Conv2d on our leaves, in as many groups as its kernel says."""
    kernel = leaves[f"{name}/kernel"] if kernel is None else kernel
    pad = kernel.shape[0] // 2 if padding is None else padding
    y = lax.conv_general_dilated(
        x, kernel, (stride, stride), [(pad, pad)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=x.shape[3] // kernel.shape[2],
    )  # fmt: skip
    return y + leaves[f"{name}/bias"] if f"{name}/bias" in leaves else y


def normed(leaves, name, x, stride=1):
    """Conv2dNormActivation of torchvision, not yet activated."""
    scale, bias, mean, var = (leaves[f"{name}_bn/{leaf}"] for leaf in ("scale", "bias", "mean", "var"))
    return (conv(leaves, f"{name}_conv", x, stride) - mean) / jnp.sqrt(var + 1e-5) * scale + bias


def assert_close(got, want):
    assert np.abs(want).max() > 0
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4 * np.abs(want).max())


def run(model, x):
    model.eval()
    return jax.jit(lambda m, x: m(x))(model, x)


@pytest.mark.parametrize("variant", ["x_200mf", "y_200mf"])
def test_regnet_is_torchvisions(variant):
    widths, depths = (8, 12), (1, 2)
    model = create(
        "regnet", variant=variant, widths=widths, depths=depths, group_width=4, input_shape=(37, 50, 3),
        include_top=False, rngs=nnx.Rngs(0),
    )  # fmt: skip
    randomized(model)
    x = np.random.default_rng(0).normal(size=(2, 37, 50, 3)).astype("float32")

    def torchvision(leaves, x):
        x = jax.nn.relu(normed(leaves, "stem", x, 2))
        for stage, depth in enumerate(depths, 1):
            for k in range(1, depth + 1):
                name, stride = f"stage{stage}_block{k}", 2 if k == 1 else 1
                y = jax.nn.relu(normed(leaves, f"{name}_1", x))
                y = jax.nn.relu(normed(leaves, f"{name}_2", y, stride))
                if variant.startswith("y"):
                    z = jax.nn.relu(conv(leaves, f"{name}_se_reduce", y.mean((1, 2), keepdims=True)))
                    y = y * jax.nn.sigmoid(conv(leaves, f"{name}_se_expand", z))
                shortcut = normed(leaves, f"{name}_0", x, stride) if k == 1 else x
                x = jax.nn.relu(shortcut + normed(leaves, f"{name}_3", y))
        return x

    assert leaves_of(model)["stage2_block1_2_conv/kernel"].shape == (3, 3, 4, 12)
    assert_close(run(model, x), jax.jit(torchvision)(leaves_of(model), x))


def test_bit_is_resnet_v2_of_standardised_weights_and_normalised_groups():
    model = create("bit", widths=(4, 8), groups=2, input_shape=(37, 50, 3), include_top=False, rngs=nnx.Rngs(0))
    for path, variable in named_variables(model).items():
        if path.endswith("_gn/bias"):  # so that zeros around what is pooled show, and none is the identity
            variable.set_value(jax.random.uniform(jax.random.key(len(path)), variable.get_value().shape) - 0.5)
    x = np.random.default_rng(0).normal(size=(2, 37, 50, 3)).astype("float32")

    def standard(leaves, name, x, stride=1):
        kernel = leaves[f"{name}/kernel"]
        kernel = (kernel - kernel.mean((0, 1, 2))) / jnp.sqrt(kernel.var((0, 1, 2)) + 1e-8)
        return conv(leaves, name, x, stride, kernel=kernel)

    def rectified(leaves, name, x):
        groups = x.reshape(*x.shape[:3], 2, -1)
        mean, var = (f(groups, axis=(1, 2, 4), keepdims=True) for f in (jnp.mean, jnp.var))
        y = ((groups - mean) / jnp.sqrt(var + 1e-5)).reshape(x.shape)
        return jax.nn.relu(y * leaves[f"{name}_gn/scale"] + leaves[f"{name}_gn/bias"])

    def timm(leaves, x):
        x = jnp.pad(standard(leaves, "conv1_conv", x, 2), ((0, 0), (1, 1), (1, 1), (0, 0)))
        x = lax.reduce_window(x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), "VALID")
        for stage, blocks in ((2, 3), (3, 4)):
            for k in range(1, blocks + 1):
                name, stride = f"conv{stage}_block{k}", 2 if (stage, k) == (3, 1) else 1
                before = rectified(leaves, f"{name}_preact", x)
                y = rectified(leaves, f"{name}_1", standard(leaves, f"{name}_1_conv", before))
                y = rectified(leaves, f"{name}_2", standard(leaves, f"{name}_2_conv", y, stride))
                y = standard(leaves, f"{name}_3_conv", y)
                x = y + (standard(leaves, f"{name}_0_conv", before, stride) if k == 1 else x)
        return rectified(leaves, "post", x)

    assert_close(run(model, x), jax.jit(timm)(leaves_of(model), x))


def test_local_response_normalisation_is_the_papers_formula():
    x = np.random.default_rng(0).normal(0, 50, (1, 2, 3, 9))
    want = np.empty_like(x)
    for k in range(9):  # section 3.3: the sum runs from max(0, i - n/2) to min(N - 1, i + n/2)
        around = x[..., max(0, k - 2) : min(8, k + 2) + 1]
        want[..., k] = x[..., k] / (2 + 1e-4 * (around**2).sum(-1)) ** 0.75
    np.testing.assert_allclose(LocalResponseNormalization()(jnp.asarray(x, jnp.float32)), want, rtol=1e-5)


@pytest.mark.parametrize(("variant", "smallest"), [("two_towers", 67), ("one_tower", 63)])
def test_alexnet_is_its_papers(variant, smallest):
    # All pixels that the smallest images have lead to one.
    towers, widths = 2 if variant == "two_towers" else 1, (4, 8, 8, 8, 4)
    model = create(
        "alexnet", variant=variant, widths=widths, input_shape=(smallest, smallest + 16, 3), include_top=False,
        rngs=nnx.Rngs(0),
    )  # fmt: skip
    x = np.random.default_rng(0).normal(0, 60, (2, smallest, smallest + 16, 3)).astype("float32")

    def pooled(x):
        return lax.reduce_window(x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), "VALID")

    def paper(leaves, x):
        for k in range(1, 6):
            stride, padding = (4, 0 if towers == 2 else 2) if k == 1 else (1, None)
            if towers == 2 and k in (2, 4, 5):  # each tower reads its own half
                halves = [
                    conv({}, "", half, kernel=kernel)
                    for half, kernel in zip(
                        jnp.split(x, 2, -1), jnp.split(leaves[f"conv{k}/kernel"], 2, -1), strict=True
                    )
                ]
                x = jnp.concatenate(halves, -1) + leaves[f"conv{k}/bias"]
            else:
                x = conv(leaves, f"conv{k}", x, stride, padding)
            x = jax.nn.relu(x)
            x = LocalResponseNormalization()(x) if towers == 2 and k < 3 else x
            x = pooled(x) if k in (1, 2, 5) else x
        return x

    got = run(model, x)
    assert got.shape[1] == 1
    assert_close(got, jax.jit(paper)(leaves_of(model), x))
    assert model.layer_names[:3] == ("input_layer", "conv1", "norm1" if towers == 2 else "pool1")
    with pytest.raises(ValueError, match=f"at least {smallest}x{smallest} pixels"):
        create("alexnet", variant=variant, input_shape=(smallest - 1, 99, 3), include_top=False, rngs=nnx.Rngs(0))


@pytest.mark.slow
def test_squeezenet_names_photographs_as_its_publishers_does(shared_data):
    """65.5 % and 86.5 % of the 200 photographs, as in Keras."""
    model = nnx.eval_shape(lambda: create("squeezenet", rngs=nnx.Rngs(0)))
    file = shared_data / "weights" / "squeezenet_weights_tf_dim_ordering_tf_kernels.h5"
    assert load_weights(model, file).left_out == ()
    model.eval()
    rows = list(csv.DictReader((shared_data / "imagenet_samples" / "labels.csv").read_text().splitlines()))
    images = []
    for row in rows:
        image = Image.open(shared_data / "imagenet_samples" / row["file"]).convert("RGB")
        width, height = (round(n * 256 / min(image.size)) for n in image.size)
        left, above = (width - 227) // 2, (height - 227) // 2
        resized = image.resize((width, height), Image.Resampling.BILINEAR)
        images.append(np.asarray(resized.crop((left, above, left + 227, above + 227))))
    infer = jax.jit(lambda m, x: jax.lax.top_k(m(preprocess(x, "caffe")), 5)[1])
    found = np.concatenate([infer(model, np.stack(images[k : k + 40])) for k in range(0, 200, 40)])
    labels = np.array([int(row["class_index"]) for row in rows])
    assert [(found[:, 0] == labels).sum(), (found == labels[:, None]).any(1).sum()] == [131, 173]


@pytest.fixture(scope="module")
def cifar(shared_data):
    """500 of the test images, and their classes."""
    root = shared_data / "cifar10_small" / "test"
    files = [(file, k) for k, c in enumerate(sorted(root.iterdir())) for file in sorted(c.iterdir())[:50]]
    return np.stack([np.asarray(Image.open(file)) for file, _ in files]), np.array([k for _, k in files])


def test_resnet20_names_cifars_images_as_its_publishers_does(shared_data, cifar):
    """akamaster's weights: right for 80.5 % of all 2,000 images, as JPEG."""
    model = nnx.eval_shape(lambda: create("resnet_cifar", classifier_activation=None, rngs=nnx.Rngs(0)))
    given = {}
    for key, value in load_file(shared_data / "weights" / "resnet20-12fca82f.safetensors").items():
        *module, leaf = key.removeprefix("module.").split(".")
        if module[0].startswith("layer"):
            layer = f"conv{int(module[0][-1]) + 1}_block{int(module[1]) + 1}_{module[2][-1]}_{module[2][:-1]}"
        else:
            layer = {"conv1": "conv1_conv", "bn1": "conv1_bn", "linear": "predictions"}[module[0]]
        names = {"running_mean": "mean", "running_var": "var", "weight": "scale" if value.ndim == 1 else "kernel"}
        given[f"{layer}/{names.get(leaf, leaf)}"] = value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T
    variables = named_variables(model)
    assert set(variables) == {path for path in given if not path.endswith("num_batches_tracked")}
    for path, variable in variables.items():
        assert variable.get_value().shape == given[path].shape
        variable.set_value(jnp.asarray(given[path]))
    images, labels = cifar
    assert 0.78 < (run(model, preprocess(images, "torch")).argmax(1) == labels).mean() < 0.84


def test_resnet8_is_keras_network(shared_data, cifar, keras_oracle):
    file = shared_data / "weights" / "mlperf_tiny_resnet8.h5"
    model = nnx.eval_shape(lambda: create("resnet8", rngs=nnx.Rngs(0)))
    assert load_weights(model, file).left_out == ()
    images, labels = cifar
    x = images[::10].astype("float32")
    got = run(model, x)
    with h5py.File(file) as opened:
        names = [name.decode() for name in opened["model_weights"].attrs["layer_names"]]
        config = json.loads(opened.attrs["model_config"])
    assert ["input_layer", *names[1:]] == list(model.layer_names)
    # What the file's own description of the network gives, layer by layer, in Keras.
    layers, outputs = keras_oracle.keras.layers, {}
    for made in config["config"]["layers"]:
        kind, settings = made["class_name"], made["config"]
        if kind == "InputLayer":
            outputs[made["name"]] = x
            continue
        keep = ("filters", "kernel_size", "strides", "padding", "activation", "epsilon", "pool_size", "units", "name")
        layer = getattr(layers, kind)(**{key: settings[key] for key in keep if key in settings})
        reads = [outputs[read[0]] for read in made["inbound_nodes"][0]]
        layer.build([a.shape for a in reads] if len(reads) > 1 else reads[0].shape)
        leaves = {"kernel": "kernel", "bias": "bias", "gamma": "scale", "beta": "bias", "moving_mean": "mean",
                  "moving_variance": "var"}  # fmt: skip
        for variable in layer.weights:
            variable.assign(getattr(model.get_layer(made["name"]), leaves[variable.name])[...])
        outputs[made["name"]] = layer(reads if len(reads) > 1 else reads[0])
    np.testing.assert_allclose(got, outputs["dense"], atol=1e-5)
    assert (run(model, images.astype("float32")).argmax(1) == labels).mean() > 0.7


# Small networks: the images' size, options, and three layers up to which they are frozen.
SMALL = {
    "vgg19": (32, {"widths": (2, 2, 4, 4, 4)}, ("block1_conv2", "block3_pool", "block5_conv2")),
    "resnet": (32, {"depth": 50, "variant": "v1.5", "widths": (4, 8), "groups": 2, "base_width": 32},
               ("conv1_relu", "conv2_block2_2_conv", "conv3_block1_0_bn")),
    "regnet": (32, {"widths": (4, 8), "depths": (1, 2), "group_width": 2},
               ("stem_relu", "stage1_block1_out", "stage2_block1_se_expand")),
    "squeezenet": (32, {"squeeze": (2, 2, 2)}, ("pool1", "fire3_expand1x1", "fire3_concat")),
    "alexnet": (67, {"widths": (4, 4, 4, 4, 4)}, ("norm1", "conv3", "conv4")),
    "bit": (32, {"widths": (4, 8), "groups": 2}, ("pool1_pool", "conv2_block2_1_gn", "conv3_block2_out")),
    "resnet_cifar": (16, {"depth": 14, "widths": (2, 4)}, ("conv1_relu", "conv2_block1_2_bn", "conv3_block1_0_pad")),
    "resnet8": (16, {"widths": (2, 4, 4)}, ("activation", "batch_normalization_3", "add_1")),
}  # fmt: skip


def small(name):
    size, options, _ = SMALL[name]
    shape = (size, size + 8, 3)
    return randomized(create(name, input_shape=shape, include_top=False, rngs=nnx.Rngs(0), **options))


@pytest.mark.slow
@pytest.mark.usefixtures("compiled_fast")
@pytest.mark.parametrize("place", DEPTHS)
@pytest.mark.parametrize("name", SMALL)
def test_training_through_stored_features_is_training_unstaged(name, place):
    check_two_steps_through_features(small(name), SMALL[name][2][place])


@pytest.mark.parametrize(
    ("name", "stage", "last"),
    [
        ("vgg19", "block3", "block3_pool"),
        ("resnet", "conv2", "conv2_block3_out"),
        ("resnet", "conv3_block1", "conv3_block1_out"),
        ("regnet", "stage1", "stage1_block1_out"),
        ("squeezenet", "fire2", "fire2_concat"),
        ("bit", "conv3_block2", "conv3_block2_out"),
    ],
)
def test_a_stage_is_frozen_up_to_its_last_layer(name, stage, last):
    model = small(name)
    frozen = Freeze.parse(stage).resolve(model)
    assert frozen.layers == Freeze.through(last).resolve(model).layers == frozen.layers
    assert frozen.layers[-1] == last or set(frozen.layers) >= {n for n in model.layer_names if n.startswith(stage)}


def test_what_is_no_stage_is_not_taken_for_one():
    model = small("regnet")
    for text in ("stage3", "stage", "stage1_block", "stage2_block1_se"):
        with pytest.raises(ValueError, match=f"no layer {text!r} in "):
            Freeze.parse(text).resolve(model)


@pytest.mark.parametrize("name", SMALL)
def test_freezing_means_what_it_means_in_keras(name):
    model = small(name)
    names = list(model.layer_names)
    kernels = [k for k, layer in enumerate(model.layers) if getattr(layer, "kernel", None) is not None
               or hasattr(layer, "pointwise")]  # fmt: skip
    assert num_weighted_layers(model) == len(kernels)
    assert list(Freeze.parse("[:-4]").resolve(model).layers) == names[:-4]
    assert list(Freeze.depth(2).resolve(model).layers) == names[: kernels[2]]
    assert list(Freeze.parse("all").resolve(model).layers) == names
    pattern = f"{names[kernels[1]]},{names[-1]}*"
    assert set(Freeze.parse(pattern).resolve(model).layers) == {names[kernels[1]], names[-1]}


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet", {"groups": 32}, "groups and base_width are of version 1.5 from depth 50 on"),
        ("resnet", {"depth": 18, "variant": "v1.5", "base_width": 128}, "of version 1.5 from depth 50 on"),
        ("resnet", {"variant": "v1.5", "base_width": 0}, "leaves a convolution of widths .* no filters"),
        ("resnet_v2", {"depth": 49}, "no ResNet-V2 of depth 49; did you mean 50"),
        ("resnet_v2", {"widths": ()}, "one to 4 stages"),
        ("densenet", {"depth": 160}, "no DenseNet of depth 160; did you mean 161"),
        ("densenet", {"depths": (1, 0)}, "each of at least one layer, and a growth from 1 on; found .1, 0. and 32"),
        ("regnet", {"variant": "y_401mf"}, "no RegNet 'y_401mf'; did you mean 'y_400mf'"),
        ("regnet", {"widths": (8, 8)}, "a width and a depth from 1 on for each stage"),
        ("regnet", {"widths": (8, 9), "depths": (1, 1), "group_width": 2}, "groups of 2 channels do not divide"),
        ("squeezenet", {"squeeze": (1,) * 9}, "one to eight fire modules"),
        ("alexnet", {"variant": "three"}, "no AlexNet 'three'; did you mean"),
        ("alexnet", {"widths": (4,)}, "five convolutions"),
        ("alexnet", {"widths": (3, 3, 3, 3, 3)}, "2 groups do not divide 3 channels"),
        ("alexnet", {"input_shape": (None, 99, 3)}, "with top needs a known image size"),
        ("bit", {"groups": 48}, "48 groups do not divide every one of the widths"),
        ("bit", {"factor": 0}, "a factor from 1 on"),
        ("nasnet", {"filters": 100}, "expected a multiple of 96, found 100"),
        ("nasnet", {"variant": "small"}, "no NASNet 'small'"),
        ("nasnet", {"cells": 0}, "at least one cell in each stage"),
        ("resnet_cifar", {"depth": 21}, "6 n . 2 layers, found depth 21; did you mean 20"),
        ("resnet_cifar", {"widths": (4, 2)}, "none narrower than the one before"),
        ("resnet8", {"input_shape": (None, 32, 3)}, "with top needs a known image size"),
        *((name, {"classes": 0}, "at least one class, found 0") for name in SMALL),
        *((name, {"input_shape": (7, 99, 3)}, r"found input_shape \(7, 99, 3\)") for name in SMALL),
    ],
)
def test_impossible_models_are_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        create(name, rngs=nnx.Rngs(0), **options)
