"""Rates that change without compiling, schedules, and rates by depth and by group."""

import math
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from optim.steps import SHAPES, draw, run

from cnnjax.data import InMemory
from cnnjax.freeze import Freeze, layer_names
from cnnjax.functional import leaves_of
from cnnjax.optim import (
    averaged,
    by_depth,
    by_groups,
    constant,
    make_optimizer,
    warmup_cosine,
    warmup_linear,
    with_rate,
)
from cnnjax.train.trainer import Trainer

PATHS = list(SHAPES)
ALL = dict(
    schedule=warmup_cosine(50, 0), weight_decay=0.1, clip=1.0, accumulate=2, ema=0.9, factors={"backbone": 0.3},
)  # fmt: skip


def small_model() -> nnx.Sequential:
    return nnx.Sequential(
        nnx.Conv(3, 4, (3, 3), rngs=nnx.Rngs(0)), nnx.BatchNorm(4, rngs=nnx.Rngs(0)), lambda x: x.mean((1, 2)),
        nnx.Linear(4, 4, rngs=nnx.Rngs(1)), nnx.Linear(4, 1, rngs=nnx.Rngs(1)),
    )  # fmt: skip


def rate_in(factor, path):
    return factor(path)


@pytest.mark.parametrize("where", ["alone", "accumulated", "chain", "masked", "partition"])
def test_a_rate_is_set_wherever_it_lies_and_nothing_compiles_again(where):
    sgd = make_optimizer("sgd", 0.5)
    frozen = Freeze.depth(1).resolve(small_model())
    tx = {
        "alone": sgd,
        "accumulated": make_optimizer("sgd", 0.5, accumulate=2, ema=0.9, clip=1e9, schedule=constant()),
        "chain": optax.chain(optax.identity(), sgd),
        "masked": optax.masked(sgd, {"layers/3/kernel": True}),
        "partition": frozen.optimizer(make_optimizer("sgd", 0.5, accumulate=2)),
    }[where]
    params = {"layers/3/kernel": jnp.zeros((4, 4))}
    traces = Counter()

    @jax.jit
    def step(params, state):
        traces["step"] += 1
        updates, state = tx.update({p: jnp.ones_like(x) for p, x in params.items()}, state, params)
        return optax.apply_updates(params, updates), state

    state, moved = jax.tree.map(jnp.array, tx.init(params)), 0.0
    for rate in (0.5, 0.25, 2.0):
        state = with_rate(state, rate)
        for _ in range(2):
            params, state = step(params, state)
        moved += rate * (1 if where in ("accumulated", "partition") else 2)
        assert np.allclose(params["layers/3/kernel"], -moved)
    assert traces["step"] == 1


def test_rates_seeds_and_epochs_share_one_program_of_a_trainer():
    rng = np.random.default_rng(0)
    data = InMemory(rng.integers(0, 255, (20, 8, 8, 3), np.uint8), np.arange(20) % 2, ("a", "b"))
    tx = make_optimizer("adamw", **{**ALL, "factors": {"layers/3": 0.3}})
    trainer = Trainer(small_model(), Freeze.depth(1).resolve(small_model()), (8, 8), batch_size=8, optimizer=tx)
    rows, ends = trainer.rows(data), []
    for rate in (1e-3, 1e-2):
        state, _ = trainer.fit(trainer.init(learning_rate=rate), rows, epochs=2)
        assert all(isinstance(x, jax.Array) for x in jax.tree.leaves(state.optimizer))
        assert averaged(state.optimizer).keys() == state.trainable.keys()
        ends.append(state.trainable["layers/4/kernel"])
    assert set(trainer.traces.values()) == {1}
    assert not np.allclose(*ends, atol=1e-4)


def test_a_stack_of_replicas_takes_a_rate_each():
    tx, params = make_optimizer("sgd", accumulate=2, ema=0.5), {"w": jnp.zeros((3, 2))}
    state = with_rate(jax.vmap(tx.init)(params), jnp.array([1.0, 2.0, 3.0]))
    for _ in range(2):
        updates, state = jax.vmap(tx.update)({"w": jnp.ones((3, 2))}, state, params)
    assert updates["w"].tolist() == [[-1, -1], [-2, -2], [-3, -3]]


def test_a_rate_stays_float32_beside_bfloat16_weights():
    tx, params = make_optimizer("sgd"), {"w": jnp.zeros(2, jnp.bfloat16)}
    state = with_rate(tx.init(params), 1e-3)
    _, after = tx.update(params, state, params)
    assert [x.dtype for x in jax.tree.leaves(state)] == [x.dtype for x in jax.tree.leaves(after)]
    assert state.hyperparams["learning_rate"] == np.float32(1e-3)


def test_schedules_are_straight_lines_and_their_steps_are_the_optimizer_s():
    ours = warmup_linear(20, 4, end=0.2)
    assert np.allclose([ours(k) for k in range(30)], np.interp(range(30), [0, 4, 20], [0.2, 1, 0.2]), atol=1e-6)
    # Accumulating two batches a step, the sum of six batches' factors is that of three steps.
    tx = make_optimizer("sgd", 1.0, schedule=ours, accumulate=2)
    params, _ = run(tx, {"w": jnp.zeros(1)}, 0, 6, gradient={"w": np.ones(1, np.float32)})
    assert np.allclose(params["w"], -(0.2 + 0.4 + 0.6), rtol=1e-6)


@pytest.mark.parametrize("name", ["rmsprop", "adam"])
def test_a_factor_scales_the_whole_update_decay_included(name):
    params = {p: jnp.asarray(x) for p, x in draw(7).items()}
    options = dict(weight_decay=0.3, clip=1.0)
    plain, _ = run(make_optimizer(name, 0.01, **options), params, 0, 1)
    by = by_groups({"backbone/dw": 0.5, "head*": 0.1}, PATHS)
    scaled, _ = run(make_optimizer(name, 0.01, factors=by, **options), params, 0, 1)
    expected = {"backbone/dw/kernel": 0.5, "head/dense/kernel": 0.1, "head/dense/bias": 0.1}
    for path, start in params.items():
        moved = expected.get(path, 1.0) * (plain[path] - start)
        assert np.allclose(scaled[path] - start, moved, rtol=1e-3, atol=1e-6), path


def test_by_depth_counts_kernels_from_the_last_layer():
    model = small_model()
    leaves = leaves_of(model)
    paths = [leaf for layer in layer_names(model) for leaf in leaves if leaf.startswith(f"{layer}/")]
    factor = by_depth(paths, 1 / 2.6)
    # Convolution and its BatchNorm together, then the two dense layers.
    for layer, power in (("layers/0", 2), ("layers/1", 2), ("layers/3", 1), ("layers/4", 0)):
        assert all(math.isclose(factor(p), 2.6**-power) for p in paths if p.startswith(layer)), layer
    with pytest.raises(ValueError, match=r"no depth for leaf 'layers/3/kernl' .*; did you mean 'layers/3/kernel'"):
        factor("layers/3/kernl")
    early = by_depth(["norm/scale", "conv/kernel", "conv/bias", "dense/kernel"], 0.5)
    assert [early(p) for p in ("norm/scale", "conv/bias", "dense/kernel")] == [0.5, 0.5, 1.0]


def test_the_first_pattern_counts_and_what_no_pattern_names_keeps_the_rate():
    factor = by_groups({"backbone/dw": 0.2, "backbone*": 0.1, "*/bias": 2.0}, PATHS)
    assert [factor(p) for p in PATHS] == [0.1, 0.2, 0.1, 1.0, 2.0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: by_groups({"backbone/con": 1, "haed*": 1}, PATHS), "(?s)'backbone/con'; .*/conv'.*'haed.*'head'"),
        (lambda: by_groups({"head": 0}, PATHS), "head: expected a positive factor .* found 0; freeze"),
        (lambda: by_groups({"head": math.nan}, PATHS), "found nan"),
        (lambda: by_depth(PATHS, 2.6), "at most 1, not 2.6; did you mean 1/2.6 = 0.385"),
        (lambda: by_depth(PATHS, 0), "not 0"),
        (lambda: by_depth(["conv1", "conv2"], 0.5), "no kernel among 2 leaves"),
        (lambda: make_optimizer(factors={"bakbone": 1.0}).init(draw(0)), "(?s)did you mean 'backbone'.*train later"),
        (lambda: make_optimizer(factors=lambda path: -1.0).init(draw(0)), "backbone/bn/scale: .* found -1"),
        (lambda: make_optimizer(learning_rate=0), "must be positive, not 0; freeze"),
        (lambda: make_optimizer(learning_rate=math.nan), "must be positive, not nan"),
        (lambda: make_optimizer(learning_rate=math.inf), "must be finite, not inf"),
        (lambda: with_rate(make_optimizer().init(draw(0)), -1), "must be positive, not -1"),
        (lambda: with_rate(optax.adam(1e-3).init(draw(0)), 1), "wrap it in optax.inject_hyperparams"),
        (lambda: with_rate([make_optimizer().init(draw(0))] * 2, 1), "has 2 learning rates"),
        (lambda: with_rate(optax.inject_hyperparams(optax.sgd)(constant()).init(draw(0)), 1), "follows a schedule"),
        (lambda: make_optimizer(schedule="cosine"), "function from step to factor, such as warmup_cosine"),
        (lambda: make_optimizer(weight_decay=-1e-4), "weight_decay: expected 0 or more, .* found -0.0001"),
        (lambda: make_optimizer(clip=0), "clip: expected a positive norm, .* found 0; leave it out"),
        (lambda: make_optimizer(accumulate=0), "accumulate: expected a whole number .* found 0"),
        (lambda: make_optimizer(accumulate=1.5), "accumulate: .* found 1.5"),
        (lambda: make_optimizer(ema=1.0), "ema: expected a decay above 0 and below 1, .* found 1.0"),
        (lambda: warmup_cosine(10, 10), "warm-up of 10 steps .* run's 10 .* at most 9, such as a tenth: 1"),
        (lambda: warmup_linear(10, -1), "warmup: expected a whole number .* from 0 on, found -1"),
        (lambda: warmup_linear(0, 0), "steps: expected a whole number .* from 1 on, found 0"),
        (lambda: warmup_cosine(10, 1, end=2), "end: expected a factor .* found 2"),
    ],
)  # fmt: skip
def test_wrong_values_are_answered_with_what_to_give(call, message):
    with pytest.raises(ValueError, match=message):
        call()
