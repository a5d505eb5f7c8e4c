"""When oneDNN is asked: the count of a run's work against the summary's, and the choice that follows."""

import jax.numpy as jnp
import pytest
from flax import nnx

import cnnjax
from cnnjax.ops.onednn import takes
from cnnjax.train.worth import onednn_for, onednn_pays, work_of


@pytest.mark.parametrize("name", ["lecture_cnn", "mobilenet"])
def test_the_work_of_a_model_is_that_of_its_summary(name):
    model = cnnjax.create(name, input_shape=(96, 96, 3), include_top=False, rngs=nnx.Rngs(0))
    multiplications, operations = work_of(model, (96, 96, 3))
    table = cnnjax.summary(model, input_shape=(96, 96, 3))
    assert multiplications == table.multiplications
    assert operations == sum(bool(layer.multiplications) for layer in table.layers)


def test_short_runs_do_without_and_long_ones_ask():
    """MobileNet 0.25 at 96: 7 million multiplications an image, 28 layers; a second start loses 8 s to compiling."""
    assert not onednn_pays(7e6 * 2000 * 3 * 5, operations=28)  # saves about a second
    assert onednn_pays(7e6 * 2000 * 3 * 5000, operations=28)
    assert onednn_pays(0, 28, choice="always") and not onednn_pays(1e18, 28, choice="never")
    with pytest.raises(ValueError, match="onednn: expected auto, always, never, found 'on'"):
        onednn_pays(1, 1, choice="on")  # ty: ignore[invalid-argument-type]


@pytest.mark.skipif(not takes(jnp.float32), reason="this machine has no oneDNN to ask")
def test_what_is_chosen_holds_in_the_block():
    model = nnx.Conv(3, 8, (3, 3), rngs=nnx.Rngs(0))
    for examples, epochs, choice, asked in ((10, 1, "auto", False), (10**9, 99, "auto", True), (10, 1, "always", True)):
        with onednn_for(model, (10, 10, 3), examples, epochs, frozen=False, choice=choice):
            assert takes(jnp.float32) is asked
    assert takes(jnp.float32)
