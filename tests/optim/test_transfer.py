"""What the state keeps when other leaves train: by what training does next, and array by array."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from optim.steps import draw, run

from cnnjax.data import InMemory
from cnnjax.freeze import Freeze
from cnnjax.optim import averaged, make_optimizer, transfer_optimizer_state, warmup_linear, with_rate
from cnnjax.train.trainer import Trainer

SHAPES = {"aux/kernel": (2, 3), "head/kernel": (4, 3), "head/bias": (3,), "block5/conv/kernel": (3, 3, 2, 2)}
HEAD = ("head/kernel", "head/bias")


def momentum():
    """SGD with momentum, put together of optax's parts, accumulating."""
    rate = optax.inject_hyperparams(optax.scale_by_learning_rate)(learning_rate=0.01)
    return optax.MultiSteps(optax.chain(optax.trace(0.9), rate), 2).gradient_transformation()


EVERYTHING = dict(schedule=warmup_linear(30, 5), weight_decay=0.1, accumulate=2, ema=0.9, factors={"head": 0.5})
OPTIMIZERS = {
    "sgd": make_optimizer("sgd"),
    "adam": make_optimizer("adam"),
    "rmsprop, all": make_optimizer("rmsprop", **EVERYTHING),
    "adamw, all": make_optimizer("adamw", **EVERYTHING),
    "momentum": momentum(),
}


def some(*paths):
    return {p: jnp.asarray(draw(50, SHAPES)[p]) for p in paths}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_leaves_that_stay_go_on_as_if_nothing_had_happened(name):
    tx, head = OPTIMIZERS[name], some(*HEAD)
    expected, expected_state = run(tx, head, 0, 9)
    params, state = run(tx, {**head, **some("aux/kernel")}, 0, 3)  # an odd step: in the middle of an accumulation
    after = {p: params[p] for p in HEAD} | some("block5/conv/kernel")
    moving, moved = transfer_optimizer_state(state, params, tx, after)
    assert moved == (tuple(sorted(HEAD)), ("block5/conv/kernel",), ("aux/kernel",))
    last, last_state = run(tx, after, 3, 9, moving)
    for path in HEAD:
        assert np.array_equal(last[path], expected[path]), path
    if averages := averaged(expected_state):
        assert all(np.array_equal(averaged(last_state)[p], x) for p, x in averages.items())


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_array_is_kept_fresh_or_dropped(name):
    tx = OPTIMIZERS[name]
    params, state = run(tx, {**some(*HEAD), **some("aux/kernel")}, 0, 5)
    state = with_rate(state, 0.123)
    after = {p: params[p] for p in HEAD} | some("block5/conv/kernel")
    moved_state, _ = transfer_optimizer_state(state, params, tx, after)
    init = tx.init(after)
    assert jax.tree.structure(moved_state) == jax.tree.structure(init)
    old, new, fresh = (
        {jax.tree_util.keystr(k): x for k, x in jax.tree_util.tree_leaves_with_path(s)}
        for s in (state, moved_state, init)
    )
    for key, x in new.items():
        source = fresh if "block5" in key else old
        assert x.dtype == source[key].dtype and np.array_equal(x, source[key]), key
        assert x is not source[key]
    assert {key for key in old if key not in new} == {key for key in old if "aux" in key}
    assert [x for key, x in new.items() if "learning_rate" in key] == [np.float32(0.123)]


@pytest.mark.parametrize("name", ["rmsprop", "adam"])
def test_a_late_leaf_trains_as_under_a_new_optimizer(name):
    # One step count for all would make Adam's first steps of a late leaf several times too long.
    tx, block = make_optimizer(name, weight_decay=0.1), some("block5/conv/kernel")
    params, state = run(tx, some(*HEAD), 0, 40)
    state, _ = transfer_optimizer_state(state, params, tx, {**params, **block})
    late, _ = run(tx, {**params, **block}, 40, 46, state)
    alone, _ = run(tx, block, 40, 46)
    assert np.array_equal(late["block5/conv/kernel"], alone["block5/conv/kernel"])


def test_the_average_of_a_late_leaf_starts_at_its_value():
    tx, block = make_optimizer("sgd", ema=0.9), some("block5/conv/kernel")
    params, state = run(tx, some(*HEAD), 0, 3)
    state, _ = transfer_optimizer_state(state, params, tx, {**params, **block})
    after, state = run(tx, {**params, **block}, 3, 4, state)
    path = "block5/conv/kernel"
    assert np.allclose(averaged(state)[path], 0.9 * block[path] + 0.1 * after[path], rtol=1e-6)


@pytest.mark.parametrize("restart", [False, True])
def test_a_schedule_goes_on_or_starts_again(restart):
    schedule = warmup_linear(20, 4)
    tx, ones = make_optimizer("sgd", 1.0, schedule=schedule), {"head/bias": np.ones(3, np.float32)}
    params, state = run(tx, some("head/bias"), 0, 3, gradient=ones)
    state, _ = transfer_optimizer_state(state, params, tx, params, restart=restart)
    after, _ = run(tx, params, 0, 1, state, ones)
    assert np.allclose(params["head/bias"] - after["head/bias"], schedule(0 if restart else 3), atol=1e-6)


def test_options_without_arrays_may_change_on_the_way():
    tx, other = (
        make_optimizer("adam", 0.1),
        make_optimizer("adam", 0.7, clip=1.0, weight_decay=0.1, factors={"head": 1}),
    )
    params, state = run(tx, some(*HEAD), 0, 3)
    moved_state, moved = transfer_optimizer_state(state, params, other, params)
    assert moved == (tuple(sorted(HEAD)), (), ())
    assert moved_state.hyperparams["learning_rate"] == np.float32(0.1)
    run(other, params, 3, 4, moved_state)


def test_under_a_mask_over_the_whole_tree_masked_leaves_do_not_train():
    model = nnx.Dict({n: nnx.Linear(2, 2, rngs=nnx.Rngs(k)) for k, n in enumerate(("first", "second", "third"))})
    params = {f"{n}/{leaf}": jnp.ones((2, 2)[: 1 + (leaf == "kernel")]) for n in model for leaf in ("bias", "kernel")}
    before, after = (Freeze.match(*names).resolve(model) for names in (("first", "second"), ("first", "third")))
    tx = make_optimizer("adam", **{**EVERYTHING, "factors": None})
    params, state = run(before.optimizer(tx), params, 0, 3)
    moved_state, moved = transfer_optimizer_state(state, params, after.optimizer(tx), params)
    assert moved.kept == ()
    assert set(moved.fresh) == {"second/bias", "second/kernel"}
    assert set(moved.dropped) == {"third/bias", "third/kernel"}
    last, _ = run(after.optimizer(tx), params, 3, 5, moved_state)
    assert np.array_equal(last["third/kernel"], params["third/kernel"])
    assert not np.array_equal(last["second/kernel"], params["second/kernel"])


def test_a_trainer_goes_on_from_a_carried_state_and_compiles_once():
    rng = np.random.default_rng(0)
    data = InMemory(rng.integers(0, 255, (16, 8, 8, 3), np.uint8), np.arange(16) % 2, ("a", "b"))
    dense = [nnx.Linear(*sizes, rngs=nnx.Rngs(0)) for sizes in ((3, 4), (4, 4), (4, 1))]
    model = nnx.Sequential(lambda x: x.mean((1, 2)), *dense)
    tx = make_optimizer("rmsprop", ema=0.9, schedule=warmup_linear(40, 4))
    head, deep = (Trainer(model, Freeze.depth(k).resolve(model), (8, 8), batch_size=8, optimizer=tx) for k in (2, 1))
    state, _ = head.fit(head.init(), head.rows(data), epochs=1)
    fresh = deep.init(state.trainable)
    optimizer, moved = transfer_optimizer_state(state.optimizer, state.trainable, tx, fresh.trainable)
    assert moved.fresh == ("layers/2/bias", "layers/2/kernel") and len(moved.kept) == 2
    rows = deep.rows(data)
    deep.fit(deep.init(), rows, epochs=1)
    last, _ = deep.fit(fresh._replace(optimizer=optimizer), rows, epochs=1)
    assert set(deep.traces.values()) == {1}
    assert averaged(last.optimizer).keys() == fresh.trainable.keys()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("sgd", "momentum", "another optimizer's: at state it holds InjectStatefulHyperparamsState"),
        ("sgd", "rmsprop, all", "the new one MultiStepsState; go on with the same optimizer, or begin with"),
    ],
)
def test_another_optimizer_is_refused(old, new, message):
    params = some(*HEAD)
    with pytest.raises(ValueError, match=message):
        transfer_optimizer_state(OPTIMIZERS[old].init(params), params, OPTIMIZERS[new], params)


def test_another_optimizer_is_refused_also_where_no_leaf_stays():
    old, new = some(*HEAD), some("block5/conv/kernel")
    with pytest.raises(ValueError, match=r"at state\.inner_state\.1 .* the new one ScaleByRmsState"):
        transfer_optimizer_state(make_optimizer("adam").init(old), old, make_optimizer("rmsprop"), new)
    with pytest.raises(ValueError, match="the new one ScaleByRmsState"):
        transfer_optimizer_state(make_optimizer("sgd").init(old), old, make_optimizer("rmsprop"), new)
    with pytest.raises(ValueError, match="AverageState"):
        transfer_optimizer_state(make_optimizer("sgd").init(old), old, make_optimizer("sgd", ema=0.9), new)


def test_a_leaf_of_another_shape_is_named():
    old, tx = some(*HEAD), make_optimizer("adam")
    with pytest.raises(ValueError, match=r"head/bias: float32\[3\] before, float32\[5\] after"):
        transfer_optimizer_state(tx.init(old), old, tx, old | {"head/bias": jnp.zeros(5)})
