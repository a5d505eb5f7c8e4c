"""What is computed with, by platform; and that a bfloat16 model is one from end to end."""

import re
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import small
from flax import nnx

import cnnjax
from cnnjax import Classifier, Freeze, Trainer, linear_head
from cnnjax.runtime.precision import resolved
from cnnjax.train.lowering import program


@pytest.mark.parametrize(
    ("platform", "capability", "expected"),
    [("tpu", None, "bfloat16"), ("gpu", "9.0", "bfloat16"), ("gpu", "8.0", "bfloat16"), ("gpu", "7.5", "float32"),
     ("gpu", None, "float32"), ("cpu", None, "float32")],
)  # fmt: skip
def test_the_default_is_the_platforms(monkeypatch, platform, capability, expected):
    device = SimpleNamespace(platform=platform, compute_capability=capability)
    monkeypatch.setattr(jax, "devices", lambda: [device])
    assert resolved("auto") == expected
    assert resolved("float32") == "float32" and resolved("bfloat16") == "bfloat16"
    with pytest.raises(ValueError, match=r"precision: expected one of auto, float32, bfloat16, found 'half'"):
        resolved("half")


@pytest.mark.usefixtures("six_blocks")
def test_every_convolution_and_product_of_a_bfloat16_model_is_of_bfloat16():
    backbone = cnnjax.mobilenet(0.25, (32, 32, 3), include_top=False, rngs=nnx.Rngs(0))
    model = Classifier(backbone, linear_head(backbone.output_shape(), 2, rngs=nnx.Rngs(1)), "tf")
    kinds = {}
    for precision in ("float32", "bfloat16"):
        trainer = Trainer(model, Freeze.none().resolve(model), (32, 32), batch_size=4, precision=precision)
        found = program(trainer, "step", "features", examples=7)
        module = jax.export.export(found.function, platforms=["tpu"])(*found.arguments, **found.how)
        lines = [x for x in module.mlir_module().splitlines() if "stablehlo.convolution" in x or "dot_general" in x]
        assert len(lines) > 13 * 3 - 2
        kinds[precision] = {kind for x in lines for kind in re.findall(r"x(f32|bf16)>", x.rpartition(" : ")[2])}
    assert kinds == {"float32": {"f32"}, "bfloat16": {"bf16"}}


def test_bfloat16_trains_to_nearly_the_same_with_parameters_and_statistics_of_float32():
    losses = {}
    for precision in ("float32", "bfloat16"):
        model = small.make()
        trainer = Trainer(model, Freeze.none().resolve(model), small.SIZE, batch_size=8, precision=precision)
        state, log = trainer.fit(trainer.init(), trainer.rows(small.images(32, 0)), epochs=5)
        assert {x.dtype for x in jax.tree.leaves((state.trainable, state.statistics))} == {np.dtype(np.float32)}
        losses[precision] = [record["loss"] for record in log]
    assert losses["bfloat16"] != losses["float32"] and losses["float32"][-1] < 0.9 * losses["float32"][0]
    np.testing.assert_allclose(losses["bfloat16"], losses["float32"], rtol=0.05)
