"""Batch normalisation: in one loop on few threads, by XLA's own sums on many; both against double precision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cnnjax import ops
from cnnjax.ops.spread import cpu_threads, spread_over_devices

EPSILON = 1e-3


def in_double(x, scale, bias, g):
    """Values, statistics and gradients, by the formulas of Ioffe & Szegedy 2015."""
    x, g = np.asarray(x, np.float64), np.asarray(g, np.float64)
    scale, bias = np.asarray(scale, np.float64), np.asarray(bias, np.float64)
    axes, count = tuple(range(x.ndim - 1)), x.size // x.shape[-1]
    mean, variance = x.mean(axes), x.var(axes)
    root = np.sqrt(variance + EPSILON)
    of_normal = g * scale
    of_variance = (of_normal * (x - mean)).sum(axes) * -0.5 / root**3
    of_mean = -of_normal.sum(axes) / root  # the variance's own share is a sum of x - mean, which is 0
    of_x = of_normal / root + of_variance * 2 * (x - mean) / count + of_mean / count
    normal = (x - mean) / root
    return normal * scale + bias, mean, variance, of_x, (g * normal).sum(axes), g.sum(axes)


def computed(x, scale, bias, g):
    def both(x, scale, bias, g):
        y, pull, (mean, variance) = jax.vjp(lambda *a: (lambda y, m, v: (y, (m, v)))(*ops.batch_norm(*a, EPSILON)),
                                            x, scale, bias, has_aux=True)  # fmt: skip
        return y, mean, variance, *pull(g)

    return jax.jit(both)(x, scale, bias, g)


@pytest.mark.parametrize("threads", ["1", "64"])
@pytest.mark.parametrize(
    ("shape", "kind"),
    [
        ((16, 7, 9, 5), jnp.float32), ((3, 4, 1, 8), jnp.float32), ((1, 1, 1, 3), jnp.float32),
        ((11, 2, 3, 4), jnp.bfloat16), ((12, 6), jnp.float32),
    ],
)  # fmt: skip
def test_values_statistics_and_gradients_are_the_formulas(shape, kind, threads, monkeypatch):
    monkeypatch.setenv("NPROC", threads)
    random = np.random.default_rng(0)
    # Far from zero: where the mean is large, sums of squares and of products lose what they are for.
    x, g = (jnp.asarray(random.normal(offset, 1, shape), kind) for offset in (10, 1))
    scale, bias = (jnp.asarray(random.normal(1, 0.5, shape[-1:]), jnp.float32) for _ in range(2))
    loops = str(jax.make_jaxpr(lambda *a: computed(*a))(x, scale, bias, g)).count("scan[")
    assert loops == (2 if threads == "1" and len(shape) == 4 else 0)
    expected, found = in_double(x, scale, bias, g), computed(x, scale, bias, g)
    rounding = 1e-2 if kind == jnp.bfloat16 else 2e-5
    for name, want, got in zip(("y", "mean", "variance", "x", "scale", "bias"), expected, found, strict=True):
        bound = rounding * max(1.0, np.abs(want).max()) * (10 if name in ("y", "x", "scale", "variance") else 1)
        np.testing.assert_allclose(np.asarray(got, np.float64), want, atol=bound, err_msg=name)


def far(ratio, shape, random):
    """A mean of so many deviations."""
    return ratio + random.normal(size=shape)


def one_row_apart(ratio, shape, random):
    """What the shift is taken from lies as far from the rest."""
    x = random.normal(size=shape)
    x[:, 8::16] += ratio
    return x


def one_image_apart(ratio, shape, random):
    x = random.normal(size=shape)
    x[0] += ratio
    return x


def constant_but_for_one(ratio, shape, random):
    x = np.full(shape, float(ratio))
    x[0, 0] += 1
    return x


@pytest.mark.parametrize("threads", ["1", "64"])
@pytest.mark.parametrize("make", [far, one_row_apart, one_image_apart, constant_but_for_one])
def test_the_variance_loses_no_digits_to_the_mean(make, threads, monkeypatch):
    monkeypatch.setenv("NPROC", threads)
    for shape in ((8, 24, 5, 4), (40, 6)):
        for ratio in (1, 100, 1000, 3000, -3000):
            x = make(ratio, shape, np.random.default_rng(0)).astype(np.float32)
            _, mean, variance = ops.batch_norm(jnp.asarray(x), jnp.ones(shape[-1]), jnp.zeros(shape[-1]))
            exact = x.astype(np.float64).reshape(-1, shape[-1])
            np.testing.assert_allclose(mean, exact.mean(0), rtol=2e-6, atol=1e-5 * exact.std(), err_msg=str(ratio))
            # Of 24 rows the shift is taken from one: if that lies apart, rounding may count 24 times.
            bound = 2e-4 if make is one_row_apart else 1e-5
            np.testing.assert_allclose(variance, exact.var(0), rtol=bound, err_msg=str(ratio))


@pytest.mark.parametrize("threads", ["1", "64"])
@pytest.mark.parametrize(
    ("shape", "kind"),
    [((6, 5, 3, 4), jnp.float32), ((16, 3, 2, 5), jnp.bfloat16), ((9, 7, 3), jnp.float32), ((12, 6), jnp.float32)],
)
def test_rows_that_do_not_count_are_as_if_masked_in_flax(shape, kind, threads, monkeypatch):
    """Values, statistics and all gradients, also those of the rows that do not count."""
    monkeypatch.setenv("NPROC", threads)
    random = np.random.default_rng(0)
    x, g = (jnp.asarray(random.normal(offset, 1, shape), kind) for offset in (5, 1))
    x = x.at[1].set(1e4)  # would be seen
    scale, bias = (jnp.asarray(random.normal(1, 0.5, shape[-1:]), jnp.float32) for _ in range(2))
    counts = np.arange(shape[0]) % 3 != 1

    def flax(x, scale, bias):
        norm = nnx.BatchNorm(
            shape[-1], use_running_average=False, momentum=0, epsilon=EPSILON, use_fast_variance=False, rngs=nnx.Rngs(0)
        )
        norm.scale[...], norm.bias[...] = scale, bias
        y = norm(x.astype(jnp.float32), mask=jnp.asarray(counts).reshape(-1, *[1] * (len(shape) - 1)))
        return y.astype(x.dtype), norm.mean[...], norm.var[...]

    def gradients(of):
        return jax.jit(jax.grad(lambda *a: (of(*a)[0].astype(jnp.float32) * g).sum(), (0, 1, 2)))(x, scale, bias)

    def ours(*a):
        return ops.batch_norm(*a, EPSILON, jnp.asarray(counts))

    real = np.asarray(x, np.float64)[counts].reshape(-1, shape[-1])
    found = jax.jit(ours)(x, scale, bias)
    np.testing.assert_allclose(found[1], real.mean(0), rtol=1e-5)
    np.testing.assert_allclose(found[2], real.var(0), rtol=1e-5)
    rounding = 2e-2 if kind == jnp.bfloat16 else 1e-5
    for mine, theirs in zip((*found, *gradients(ours)), (*flax(x, scale, bias), *gradients(flax)), strict=True):
        mine, theirs = np.asarray(mine, np.float64), np.asarray(theirs, np.float64)
        np.testing.assert_allclose(mine, theirs, rtol=rounding, atol=rounding * np.abs(theirs).mean())


def test_rows_that_all_count_give_the_plain_numbers():
    x = jnp.asarray(np.random.default_rng(0).normal(3, 1, (8, 5, 3, 4)), jnp.float32)
    plain = ops.batch_norm(x, jnp.ones(4), jnp.zeros(4))
    for mine, theirs in zip(ops.batch_norm(x, jnp.ones(4), jnp.zeros(4), counts=jnp.ones(8, bool)), plain, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-6, atol=1e-6)


def test_a_gradients_gradient_goes_through_the_loop(monkeypatch):
    monkeypatch.setenv("NPROC", "1")
    random = np.random.default_rng(1)
    x, g = (jnp.asarray(random.normal(size=(2, 3, 2, 2)), jnp.float32) for _ in range(2))
    ones = jnp.ones(2)

    def slope(of):
        return jax.jit(jax.grad(lambda x: (jax.grad(lambda x: (of(x) * g).sum())(x) ** 2).sum()))(x)

    def by_definition(x):
        mean = x.mean((0, 1, 2))
        return (x - mean) / jnp.sqrt(((x - mean) ** 2).mean((0, 1, 2)) + EPSILON)

    mine = slope(lambda x: ops.batch_norm(x, ones, 0 * ones, EPSILON)[0])
    np.testing.assert_allclose(mine, slope(by_definition), rtol=1e-3, atol=1e-3)


def test_several_devices_and_accelerators_get_sums_over_the_batch(monkeypatch):
    monkeypatch.setenv("NPROC", "1")
    x, ones = jnp.ones((4, 3, 3, 2)), jnp.ones(2)

    def loops(platform):
        exported = jax.export.export(jax.jit(lambda x: ops.batch_norm(x, ones, ones)[0]), platforms=[platform])(x)
        return exported.mlir_module().count("stablehlo.while")

    assert (loops("cpu"), loops("cuda"), loops("tpu")) == (1, 0, 0)
    with spread_over_devices():
        assert loops("cpu") == 0


def test_threads_are_those_that_xla_will_have(monkeypatch):
    monkeypatch.setenv("NPROC", "5")
    assert cpu_threads() == 5
    monkeypatch.setenv("NPROC", "many")
    assert cpu_threads() >= 1
