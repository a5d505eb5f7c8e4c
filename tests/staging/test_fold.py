"""Frozen normalisation inside kernels, against the model as it stands."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import cnnjax
from cnnjax import ops
from cnnjax.staging import Staged
from cnnjax.staging.cut import made_of
from cnnjax.staging.fold import folded
from cnnjax.staging.trace import flat_trace

NHWC = ("NHWC", "HWIO", "NHWC")


def random(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def both(fn, *fixed, size=(6, 6, 3)):
    """A function of frozen arrays and images, as it is and folded; and the operations of the latter on images."""
    images = random(2, *size, seed=9)
    jaxpr, consts, _ = flat_trace(fn, *fixed, images)
    assert not consts
    known = made_of(jaxpr.invars[: len(fixed)], jaxpr.eqns)
    run = folded(jaxpr, jaxpr.invars, jaxpr.outvars, jaxpr.eqns, known)
    traced = jax.make_jaxpr(run)(*fixed, images)
    shape = images.shape[:1]
    names = [
        e.primitive.name for e in traced.eqns if e.outvars[0].aval.shape[:1] == shape and e.outvars[0].aval.ndim == 4
    ]
    return fn(*fixed, images), run(*fixed, images)[0], names


def convolution(x, k, **options):
    return jax.lax.conv_general_dilated(x, k, (1, 1), "SAME", dimension_numbers=NHWC, **options)


def vector(seed):
    return random(1, 1, 1, 8, seed=seed)


@pytest.mark.parametrize(
    "after",
    [
        lambda y, a, b, c: (y - a) * b + c,
        lambda y, a, b, c: a - y / b,
        lambda y, a, b, c: (c + b * y) * 0.5 - a,
        lambda y, a, b, c: jax.nn.relu(2 * y - c),
    ],
)
@pytest.mark.parametrize(
    "conv", [convolution, lambda x, k: ops.conv_general_dilated(x, k, (1, 1), "SAME", dimension_numbers=NHWC)]
)
def test_affine_maps_of_channels_go_into_the_kernel(conv, after):
    def fn(k, a, b, c, x):
        return after(conv(x, k), a, b, c)

    expected, found, names = both(fn, random(3, 3, 3, 8), vector(1), vector(2), vector(3))
    np.testing.assert_allclose(found, expected, atol=2e-5)
    assert not {"mul", "sub", "div"} & set(names) and names.count("add") == 1, names


@pytest.mark.parametrize(
    "fn",
    {
        "its output is read twice": lambda k, a, x: (y := convolution(x, k)) * a + y,
        "the factor is the image's own": lambda k, a, x: convolution(x, k) * x[..., :1],
        "a term alone costs nothing": lambda k, a, x: convolution(x, k) + a,
        "a factor of places, not of channels": lambda k, a, x: convolution(x, k) * a[:, :, :1, :6].reshape(1, 6, 1, 1),
    }.values(),
)
def test_what_is_not_affine_in_each_channel_stays(fn):
    expected, found, names = both(fn, random(3, 3, 3, 8), vector(1))
    np.testing.assert_array_equal(found, expected)
    assert {"mul", "add"} & set(names)


@pytest.mark.usefixtures("six_blocks")
@pytest.mark.parametrize("frozen", [True, False])
def test_a_backbones_normalisation_is_neither_subtracted_nor_multiplied(frozen):
    """MobileNet with statistics that are not 0 and 1: features to rounding, one equation a layer instead of three.

    Frozen, in the pass that makes them; trained, in evaluation.
    """
    model = cnnjax.mobilenet(0.25, (32, 32, 3), include_top=False, rngs=nnx.Rngs(0))
    state = nnx.state(model)
    generator = np.random.default_rng(1)
    for path, leaf in nnx.to_flat_state(state):
        if path[-1] in ("mean", "var", "scale", "bias"):
            leaf[...] = leaf[...] + jnp.asarray(generator.uniform(0, 0.5, leaf.shape), jnp.float32)
    nnx.update(model, state)
    model.eval()
    graph, weights = nnx.split(model)

    def apply(weights, images, late):
        return nnx.merge(graph, weights)(images)

    images = random(4, 32, 32, 3, seed=2)
    shape = jax.ShapeDtypeStruct((32, 32, 3), jnp.float32)
    if frozen:
        staged = Staged(apply, weights, shape, ())
        run = staged.maker(staged.features, 4).run
    else:
        staged = Staged(lambda fixed, images, weights: apply(weights, images, ()), (), shape, weights)

        def run(weights, images):
            return [staged.late(staged.constants(()), [images], weights, fold=True)]

    equations = jax.make_jaxpr(run)(weights, images).eqns
    made = [(e.primitive.name, e.outvars[0].aval.shape) for e in equations if e.outvars]
    names = [name for name, shape in made if shape[:1] == (4,)]
    assert names.count("add") == 13 and not {"mul", "sub"} & set(names), names
    (found,) = run(weights, images)
    plain = apply(weights, images, ())
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64) if x.dtype == jnp.float32 else x, (weights, images))
        true = np.asarray(apply(*wide, ()))
    assert true.dtype == np.float64
    errors = [float(abs(np.asarray(x, np.float64) - true).mean()) for x in (found, plain)]
    assert 0 < errors[0] < 2 * errors[1] < 1e-5 * float(abs(true).max()), errors
