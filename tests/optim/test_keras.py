"""Ten steps beside `keras.optimizers`, and schedules beside Keras's."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from operations import QUICK
from optim.steps import SHAPES, draw, run

from cnnjax.optim import averaged, make_optimizer, warmup_cosine

ACCUMULATED = ({"accumulate": 3, "clip": 2.0}, {"gradient_accumulation_steps": 3, "global_clipnorm": 2.0})
EVERYTHING = (
    {"clip": 2.0, "weight_decay": 0.3, "ema": 0.8},
    {"global_clipnorm": 2.0, "weight_decay": 0.3, "use_ema": True, "ema_momentum": 0.8},
)


@pytest.mark.parametrize(
    ("name", "ours", "theirs"),
    [*((name, *EVERYTHING) for name in ("rmsprop", "adam", "adamw", "sgd")), ("adam", *ACCUMULATED), ("adamw", {}, {})],
)
def test_ten_steps_are_keras_s(name, ours, theirs):
    import keras

    makers = {"rmsprop": "RMSprop", "adam": "Adam", "adamw": "AdamW", "sgd": "SGD"}
    oracle = getattr(keras.optimizers, makers[name])(0.01, **theirs)
    start = draw(100)
    variables = {path: keras.Variable(value) for path, value in start.items()}
    if "weight_decay" in ours:  # Keras decays every variable unless told
        oracle.exclude_from_weight_decay([variables[p] for p in ("backbone/bn/scale", "head/dense/bias")])
    oracle.build(list(variables.values()))
    values, inner = [v.value for v in variables.values()], [v.value for v in oracle.variables]
    apply = jax.jit(oracle.stateless_apply, compiler_options=QUICK)
    for k in range(10):
        values, inner = apply(inner, list(draw(k).values()), values)
    for variable, value in zip([*variables.values(), *oracle.variables], [*values, *inner], strict=True):
        variable.assign(value)
    params, state = run(make_optimizer(name, 0.01, **ours), {p: jnp.asarray(x) for p, x in start.items()}, 0, 10)
    for path, variable in variables.items():
        # Keras accumulates a sum and loses digits: 2e-5 from the same steps in float64, where we are 4e-7 from them.
        assert np.allclose(params[path], variable.value, rtol=1e-4, atol=5e-5), path
        assert not np.allclose(params[path], start[path], atol=1e-3), path
    if "ema" in ours:
        for path, theirs in zip(SHAPES, oracle._model_variables_moving_average, strict=True):
            assert np.allclose(averaged(state)[path], theirs.value, rtol=1e-4, atol=1e-5), path
            assert not np.allclose(averaged(state)[path], params[path], atol=1e-3), path


@pytest.mark.parametrize("size", [1e-2, 1e-4, 1e-6])
@pytest.mark.parametrize("name", ["rmsprop", "adam", "adamw", "sgd"])
def test_epsilon_stands_where_keras_has_it(name, size):
    """Small gradients show it: each step's own movement, with Keras's defaults on both sides."""
    import keras

    oracle = getattr(keras.optimizers, {"rmsprop": "RMSprop", "adam": "Adam", "adamw": "AdamW", "sgd": "SGD"}[name])()
    gradients = [size * np.random.default_rng(k).normal(1, 0.3, 50).astype(np.float32) for k in range(6)]
    variable = keras.Variable(np.zeros(50, np.float32))  # so that a small movement loses no digits
    oracle.build([variable])
    optimizer = make_optimizer(name)
    params = {"w": jnp.zeros(50)}
    state = optimizer.init(params)
    for k, g in enumerate(gradients):
        before = np.asarray(variable.value), np.asarray(params["w"])
        oracle.apply([g])
        updates, state = optimizer.update({"w": jnp.asarray(g)}, state, params)
        params = optax.apply_updates(params, updates)
        theirs, ours = np.asarray(variable.value) - before[0], np.asarray(params["w"]) - before[1]
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6 * np.abs(theirs).max(), err_msg=f"step {k}")


def test_adam_s_first_step_is_the_formula_s():
    """(1 - b1) g alpha / (sqrt((1 - b2) g^2) + epsilon), by hand, for a gradient of epsilon's size."""
    g = 1e-6
    expected = 1e-3 * (1 - 0.999) ** 0.5 * g / ((1 - 0.999) ** 0.5 * g + 1e-7)
    params, _ = run(make_optimizer("adam"), {"w": jnp.zeros(3)}, 0, 1, gradient={"w": np.full(3, g, np.float32)})
    np.testing.assert_allclose(params["w"], -expected, rtol=2e-5)


def test_a_warmed_cosine_is_keras_s():
    import keras

    theirs = keras.optimizers.schedules.CosineDecay(1 / 6, decay_steps=15, alpha=0.1, warmup_target=1.0, warmup_steps=5)
    ours = warmup_cosine(20, 5, end=0.1)
    assert np.allclose([ours(k) for k in range(25)], [theirs(k) for k in range(25)], atol=1e-6)


def test_a_schedule_is_a_factor_of_the_rate():
    import keras

    oracle = keras.optimizers.SGD(keras.optimizers.schedules.CosineDecay(0.02, decay_steps=10))
    variable = keras.Variable(np.ones(3, np.float32))
    oracle.build([variable])
    for _ in range(6):
        oracle.apply([np.ones(3, np.float32)])
    tx = make_optimizer("sgd", 0.02, schedule=warmup_cosine(10, 0))
    params, _ = run(tx, {"w": jnp.ones(3)}, 0, 6, gradient={"w": np.ones(3, np.float32)})
    assert np.allclose(params["w"], variable.value, rtol=1e-6)


def test_adam_with_a_count_for_each_leaf_is_optax_s():
    params = {p: jnp.asarray(x) for p, x in draw(100).items()}
    ours, _ = run(make_optimizer("adam", 0.01), params, 0, 10)
    theirs, _ = run(optax.adam(jnp.float32(0.01), eps=1e-7), params, 0, 10)
    for path in params:
        # Their epsilon stands elsewhere: of gradients of 0.01 a first step of 0.01 differs by 3e-6.
        assert np.allclose(ours[path], theirs[path], rtol=1e-6, atol=1e-5), path
