"""Seeds and rates trained together: the same as one after another, in one program, on one device or eight."""

import json
import os
import subprocess
import sys
import textwrap

import jax
import numpy as np
import pytest
from flax import nnx

from cnnjax import Classifier, Freeze, Trainer
from cnnjax.data import InMemory
from cnnjax.functional import leaves_of
from cnnjax.models import lecture_cnn, linear_head
from cnnjax.train import replicas
from cnnjax.train.replicas import Replicas

SIZE = (32, 32)
pytestmark = pytest.mark.usefixtures("compiled_fast")


def model(seed=0):
    rngs = nnx.Rngs(seed)
    backbone = lecture_cnn((*SIZE, 3), (4, 8), include_top=False, rngs=rngs)
    return Classifier(backbone, linear_head(backbone.output_shape(), 2, rngs=rngs), "unit")


def setting(freeze, devices=None, count=5):
    """A replica trainer, its rows, and states that differ in head and rate."""
    rng = np.random.default_rng(0)
    data = InMemory(rng.integers(0, 255, (26, *SIZE, 3), np.uint8), np.arange(26) % 2, ("a", "b"))
    own = model()
    trainer = Trainer(own, Freeze.parse(freeze).resolve(own, "backbone"), SIZE, batch_size=8, optimizer="adam")
    heads = [{f"head/{p}": x for p, x in leaves_of(model(k).head).items()} for k in range(count)]
    states = [trainer.init(head, 1e-3 * (k + 1)) for k, head in enumerate(heads)]
    return Replicas(trainer, devices), trainer.rows(data), states


def in_turn(trainer, rows, states, epochs):
    return [trainer.fit(state, rows, epochs=epochs, seed=k) for k, state in enumerate(states)]


@pytest.mark.parametrize("freeze", ["all", "1"])
def test_replicas_are_what_each_would_be_alone(freeze):
    """Heads go together in one program, parts with convolutions take turns; records and weights are the same."""
    together, rows, states = setting(freeze)
    assert together.together == (freeze == "all")
    other, other_rows, other_states = setting(freeze)
    alone = in_turn(other.trainer, other_rows, other_states, 2)
    found, logs = together.fit(states, rows, epochs=2, seeds=range(5))
    for state, log, (theirs, their_log) in zip(found, logs, alone, strict=True):
        assert int(state.step) == int(theirs.step) == 8
        for path, value in theirs.trainable.items():
            np.testing.assert_allclose(state.trainable[path], value, rtol=2e-4, atol=1e-6, err_msg=path)
        for mine, his in zip(log, their_log, strict=True):
            assert mine["loss"] == pytest.approx(his["loss"], rel=1e-4) and mine["epoch"] == his["epoch"]
    assert len({log[0]["loss"] for log in logs}) == 5
    more, _ = together.fit(found, rows, epochs=1, seeds=range(5))  # goes on, by the same program
    assert int(more[0].step) == 12
    traced = together.trainer.traces
    assert traced["replicas"] <= 1 and traced["step"] + traced["epoch"] <= 1


def test_a_rate_is_a_number_and_a_seed_is_too():
    """Other rates and seeds compile nothing."""
    together, rows, states = setting("all")
    together.fit(states, rows, epochs=1, seeds=range(5))
    states = [together.trainer.init(learning_rate=0.1) for _ in range(5)]
    together.fit(states, rows, epochs=1, seeds=range(7, 12))
    assert together.trainer.traces["replicas"] == 1


def test_what_does_not_fit_is_said(monkeypatch):
    together, rows, states = setting("all")
    each = 4 * sum(x.nbytes for x in jax.tree.leaves(states[0]))
    monkeypatch.setattr(replicas, "free_bytes", lambda: 2 * 3 * each)
    assert together.most() == 3
    with pytest.raises(
        ValueError, match=r"5 replicas of 9 trainable parameters do not fit .* train at most 3 together"
    ):
        together.fit(states, rows, epochs=1, seeds=range(5))
    with pytest.raises(ValueError, match="expected a seed for each state, found 5 states and 2 seeds"):
        together.fit(states, rows, epochs=1, seeds=(0, 1))


@pytest.mark.slow
def test_eight_devices_share_the_replicas():
    """In a process with eight devices: heads (more than devices, and not a multiple) and a part with convolutions."""
    program = """
        import json, jax, numpy as np, test_replicas as t
        found = {}
        for freeze, count in (("all", 9), ("1", 3)):
            many, rows, states = t.setting(freeze, count=count)
            program, seen = many._program, []
            many._program = lambda *args, **how: seen.append((out := program(*args, **how))[0]) or out
            spread, _ = many.fit(states, rows, epochs=1, seeds=range(count))
            one, rows, states = t.setting(freeze, devices=jax.devices()[:1], count=count)
            alone = t.in_turn(one.trainer, rows, states, 1)
            worst = max(
                float(np.abs(np.asarray(a.trainable[p]) - np.asarray(b.trainable[p])).max())
                for a, (b, _) in zip(spread, alone, strict=True) for p in b.trainable
            )
            found[freeze] = [worst, len(seen[0].trainable["head/dense/kernel"].sharding.device_set)]
        print(json.dumps(found))
    """
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8", "PYTHONPATH": os.path.dirname(__file__),
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    for worst, devices in found.values():
        assert worst < 1e-5 and devices == 8
