"""The frontier in whole models, and the keys of what is stored."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from residual import ResNet, randomized

from cnnjax.freeze import Freeze
from cnnjax.functional import functionalize, leaves_of
from cnnjax.models import Classifier, linear_head, mobilenet
from cnnjax.staging import Staged

pytestmark = pytest.mark.usefixtures("compiled_fast")


def stage(model, spec, size=16, dtype=jnp.float32, within=""):
    """A model as the trainer stages it, with everything that is needed to run both ways."""
    frozen = Freeze.parse(spec).resolve(model, within)
    f = functionalize(model, frozen=frozen)
    leaves = {p: x for p, x in leaves_of(model).items() if p not in f.random()}
    live, fixed = frozen.partition(leaves)
    moving = [p for p in live if p.endswith(("mean", "var"))]

    def program(fixed, images, late):
        random = f.random_leaves(late["key"])
        out, after = f.apply({**fixed, **late["live"], **random}, images, train=True)
        return out, {p: after[p] for p in moving}

    late = {"live": live, "key": jax.random.key(3)}
    return Staged(program, fixed, jax.ShapeDtypeStruct((size, size, 3), dtype), late), program, fixed, late


@pytest.fixture(scope="module")
def resnet():
    return randomized(ResNet(rngs=nnx.Rngs(0)))


@pytest.mark.parametrize(
    ("spec", "shapes"),
    [
        ("none", [(16, 16, 3)]),  # the images, scaled
        ("stem", [(8, 8, 8)]),
        ("blocks/0/norm2", [(8, 8, 8)]),  # one array, though both branches of the next block read it
        ("blocks/1/norm2", [(8, 8, 8)]),
        ("blocks/1/conv1", [(8, 8, 8), (8, 8, 8)]),  # inside a block: the shortcut and the branch
        ("blocks/2/norm2", [(8,)]),  # the average is taken before storing
        ("all", [(8,)]),
    ],
)
def test_the_frontier_of_a_residual_network(resnet, spec, shapes):
    cut, program, fixed, late = stage(resnet, spec)
    assert [f.shape for f in cut.features] == shapes
    assert set(cut.blocked) <= {"reduce_sum"}  # the statistics of a live BatchNorm, over the batch
    images = 255 * jax.random.uniform(jax.random.key(1), (6, 16, 16, 3))
    rows = jax.jit(cut.maker(cut.features, 6).run)(fixed, images)
    sliced = cut.maker(cut.features, 6, cache=9_000)  # 1.5 kB an image are large: two images at a time
    assert sliced.few == 2
    for a, b in zip(jax.jit(sliced.run)(fixed, images), rows, strict=True):
        assert jnp.allclose(a, b, rtol=1e-5, atol=1e-5)
    whole = jax.jit(program)(fixed, images, late)
    for a, b in zip(
        jax.tree.leaves(jax.jit(cut.late)(cut.constants(fixed), rows, late)), jax.tree.leaves(whole), strict=True
    ):
        assert jnp.allclose(a, b, rtol=1e-5, atol=1e-6)


def test_dropout_before_the_end_of_the_frozen_part_waits_for_the_step():
    model = randomized(ResNet(inner_dropout=0.3, rngs=nnx.Rngs(0)))
    cut, *_ = stage(model, "all")
    assert [f.shape for f in cut.features] == [(8, 8, 8)]
    assert "random_bits" in cut.late_primitives and "conv_general_dilated" in cut.late_primitives


def test_frozen_layers_after_a_trained_one_are_prepared_once_a_run(resnet):
    cut, program, fixed, late = stage(resnet, "blocks/2/*")
    assert len(cut.constants(fixed)) >= 2
    assert [f.shape for f in cut.features] == [(16, 16, 3)]


def test_a_cast_stays_on_the_side_that_stores_fewer_bytes(resnet):
    cut, *_ = stage(resnet, "none", dtype=jnp.uint8)
    assert [(f.shape, f.dtype.name) for f in cut.features] == [((16, 16, 3), "uint8")]
    assert cut.stores_images_only


def test_mobilenet_is_cut_at_every_depth():
    backbone = mobilenet(alpha=0.25, input_shape=(64, 64, 3), include_top=False, rngs=nnx.Rngs(0))
    model = Classifier(backbone, linear_head(backbone.output_shape(), 2, rngs=nnx.Rngs(0)), "tf")
    for spec, expected in (("conv_pw_5_relu", (8, 8, 64)), ("conv_pw_11_relu", (4, 4, 128)), ("all", (256,))):
        cut, *_ = stage(model, spec, size=64, within="backbone")
        assert [f.shape for f in cut.features] == [expected] and cut.blocked == ()


def test_deeper_features_are_made_from_shallower_ones(resnet):
    shallow, _, few, _ = stage(resnet, "stem")
    deep, _, fixed, _ = stage(resnet, "blocks/1/norm2")
    images = 255 * jax.random.uniform(jax.random.key(1), (4, 16, 16, 3))
    rows = shallow.maker(shallow.features, 4)(few, images)
    chained = deep.maker(deep.features, 4, stored=shallow.features)
    whole = deep.maker(deep.features, 4)
    assert chained.reads == shallow.features and not chained.reads_images and whole.reads_images
    assert chained.equations < whole.equations
    for a, b in zip(chained(fixed, None, *rows), whole(fixed, images), strict=True):
        assert jnp.allclose(a, b, rtol=1e-5, atol=1e-6)


def test_keys_change_with_weights_and_program_and_nothing_else(resnet):
    keys = {name: stage(resnet, spec)[0].features[0].key for name, spec in {"a": "stem", "b": "blocks/0/norm2"}.items()}
    assert keys["a"] != keys["b"]
    # Another way to name the same frozen part is the same program.
    assert stage(resnet, "stem,norm")[0].features[0].key != keys["b"]
    assert stage(resnet, "[:6]")[0].features[0].key == keys["b"]
    # A weight that the frozen part does not read does not matter; one that it reads does, by one bit.
    graph, state = nnx.split(resnet)
    for path, same in (("out", True), ("stem", False)):
        changed = nnx.merge(graph, jax.tree.map(jnp.copy, state))
        bias = getattr(changed, path).bias
        bias[...] = bias[...].at[0].add(1e-6)
        assert (stage(changed, "blocks/0/norm2")[0].features[0].key == keys["b"]) is same


_PRINT_KEY = """
import sys; sys.path.insert(0, {tests!r})
import jax, jax.numpy as jnp
from flax import nnx
from cnnjax import Classifier, Freeze, Trainer, linear_head, mobilenet
b = mobilenet(alpha=0.25, input_shape=(32, 32, 3), include_top=False, rngs=nnx.Rngs(0))
m = Classifier(b, linear_head(b.output_shape(), 2, rngs=nnx.Rngs(0)), "tf")
print(Trainer(m, Freeze.all().resolve(m, "backbone"), (32, 32)).staged.features[0].key)
"""


def test_keys_are_the_same_in_another_process(request):
    code = _PRINT_KEY.format(tests=str(request.path.parents[1]))
    # Two hash seeds: nothing in the key may hang on the order of a set or on an address.
    runs = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env).stdout.strip()
        for env in ({"PYTHONHASHSEED": "1", "PATH": ""}, {"PYTHONHASHSEED": "2", "PATH": ""})
    ]
    assert len(runs[0]) == 64 and runs[0] == runs[1]
