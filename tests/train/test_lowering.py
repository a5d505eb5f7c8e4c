"""Every train step, lowered for platforms that this machine has not got."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cnnjax.augment import Augmentation
from cnnjax.data import InMemory
from cnnjax.freeze import Freeze, num_weighted_layers
from cnnjax.models import Classifier, create, linear_head
from cnnjax.models.layers import Conv2D, MaxPooling2D
from cnnjax.models.registry import entry
from cnnjax.ops import use_onednn
from cnnjax.train.lowering import PROGRAMS, Traffic, collectives, program
from cnnjax.train.trainer import Trainer

# Chains, branches, depthwise convolutions and pooling; the other families are made of the same layers.
LOWERED = ("cifar_cnn", "lecture_cnn", "mobilenet", "resnet", "vgg16")
PLATFORMS = ("cpu", "cuda", "tpu")
# JAX's own random numbers, where its CUDA plugin is installed; nothing else may be bound to a platform.
ALLOWED = {"cpu": set(), "cuda": {"cu_threefry2x32_ffi"}, "tpu": set()}
CHOSEN = {"none": ("step", "source"), "some": ("epoch", "images"), "all": ("taking_step", "features")}


@pytest.fixture(scope="module", autouse=True)
def without_onednn():
    """Whose calls cannot be exported."""
    with use_onednn(False):
        yield


@pytest.fixture(scope="module")
def models():
    """Full of zeros: drawing weights takes longer than lowering them."""

    def small(name):
        backbone = create(name, **entry(name).small, include_top=False, rngs=nnx.Rngs(0))
        return Classifier(backbone, linear_head(backbone.output_shape(), 2, rngs=nnx.Rngs(0)), "unit")

    def filled(x):
        is_key = jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
        return jax.random.key(0) if is_key else jnp.asarray(np.zeros(x.shape, x.dtype))

    found = {name: nnx.split(nnx.eval_shape(lambda name=name: small(name))) for name in LOWERED}
    return {name: nnx.merge(graph, jax.tree.map(filled, state)) for name, (graph, state) in found.items()}


def trainer_of(model, kind, **options):
    """Of a batch size that `Staged` looks at anyway: one trace less."""
    frozen = frozen_part(model, kind).resolve(model, "backbone")
    return Trainer(model, frozen, model.backbone.input_shape[:2], batch_size=5, optimizer="adam", **options)


def frozen_part(model, kind):
    """Of some: all but the last four layers with a kernel, if that leaves one."""
    return Freeze.depth(max(1, num_weighted_layers(model.backbone) - 4)) if kind == "some" else Freeze.parse(kind)


def exported(trainer, which, rows, platform):
    """The operations of a module for one platform, those that leave StableHLO apart."""
    found = program(trainer, which, rows, examples=7)
    module = jax.export.export(found.function, platforms=[platform])(*found.arguments, **found.how)
    assert module.platforms == (platform,)
    text = module.mlir_module()
    targets = set(re.findall(r"custom_call @([\w.$]+)", text)) | set(re.findall(r'call_target_name = "([^"]+)"', text))
    assert targets <= ALLOWED[platform], targets
    return re.findall(r"\bstablehlo\.(\w+)", text)


def expected(model, kind, which, rows):
    """Convolutions and pooling gradients of a step: each trained convolution runs three times.

    Forward, and the gradients of its kernel and of its input; the latter only behind something that trains.
    """
    backbone = model.backbone
    frozen = set(frozen_part(model, kind).resolve(backbone).layers)
    moving, found, pools = set(), 0, 0  # layers whose output a trained number changes
    for layer, reads in zip(backbone.layer_names, backbone.layer_inputs, strict=True):
        module, behind = getattr(backbone, layer), not moving.isdisjoint(reads)
        trained = layer not in frozen and bool(nnx.to_flat_state(nnx.state(module, nnx.Param)))
        if isinstance(module, Conv2D) and (trained or rows != "features"):
            found += 1 if which == "evaluate" else 1 + trained + behind
        pools += isinstance(module, MaxPooling2D) and behind and which != "evaluate"
        moving |= {layer} if trained or behind else set()
    return found, pools


@pytest.mark.parametrize("kind", CHOSEN)
@pytest.mark.parametrize("name", LOWERED)
def test_accelerators_get_plain_convolutions_and_the_cpu_its_own(models, name, kind):
    model, (which, rows) = models[name], CHOSEN[kind]
    augment = Augmentation(flip=True, rotation=0.1) if kind == "none" else None
    trainer = trainer_of(model, kind, augment=augment)
    found = {platform: exported(trainer, which, rows, platform) for platform in PLATFORMS}
    convolutions, pools = expected(model, kind, which, rows)
    for platform in ("cuda", "tpu"):
        assert found[platform].count("convolution") == convolutions
        assert found[platform].count("select_and_scatter") == pools
        assert found[platform].count("while") == (which == "epoch")
    assert found["cpu"].count("select_and_scatter") == 0
    if name == "mobilenet":  # shifts and matrix products instead; the first convolution is neither deep- nor pointwise
        assert found["cpu"].count("convolution") == {"none": 2, "some": 1, "all": 0}[kind]
        assert kind == "all" or found["cpu"].count("slice") > 9 * 13
    assert trainer.traces.total() == 1  # one program for all platforms


@pytest.mark.parametrize(("which", "rows"), [(which, rows) for which, kinds in PROGRAMS.items() for rows in kinds])
def test_every_program_is_lowered_for_every_platform(models, programs, which, rows):
    model = models["lecture_cnn"]
    convolutions, pools = expected(model, "some", which, rows)
    for platform in PLATFORMS:
        found = exported(programs, which, rows, platform)
        assert found.count("convolution") == convolutions
        assert found.count("select_and_scatter") == (0 if platform == "cpu" else pools)


@pytest.fixture(scope="module")
def programs(models):
    return trainer_of(models["lecture_cnn"], "some", not_finite="skip", precision="bfloat16")


def test_the_abstract_arguments_are_those_of_training():
    """JAX traces a function once for each combination of types: what was lowered is what runs."""
    model = nnx.Sequential(
        lambda x: x.mean((1, 2)) / 255, nnx.Linear(3, 4, rngs=nnx.Rngs(0)), nnx.BatchNorm(4, rngs=nnx.Rngs(0)),
        nnx.Dropout(0.5, rngs=nnx.Rngs(0)), nnx.Linear(4, 1, rngs=nnx.Rngs(1)),
    )  # fmt: skip
    data = InMemory(np.zeros((6, 8, 8, 3), np.uint8), np.arange(6) % 2, ("a", "b"))
    head = Freeze.depth(1).resolve(model)

    def trainer_after(*programs, **options):
        trainer = Trainer(model, head, (8, 8), batch_size=5, optimizer="adam", **options)
        for which, rows in programs:
            program(trainer, which, rows, examples=6).lower("cpu")
        assert trainer.traces.total() == len(programs)
        return trainer, trainer.traces.copy()

    streaming, before = trainer_after(("step", "source"), ("evaluate", "source"), stream=True)
    state, _ = streaming.fit(streaming.init(), streaming.rows(data), epochs=1)
    streaming.evaluate(state, streaming.rows(data, train=False))
    assert streaming.traces == before

    stored, before = trainer_after(("epoch", "features"), ("step", "features"), ("evaluate", "features"))
    rows = stored.rows(data)
    state, _ = stored.fit(stored.init(), rows, epochs=1)
    stored.evaluate(state, stored.rows(data, train=False))
    on_disk = replace(rows, on_device=False, arrays=tuple(map(np.asarray, rows.arrays)))
    next(stored.steps(stored.init(), on_disk))
    assert stored.traces == before

    augmented, before = trainer_after(("taking_step", "images"), augment=Augmentation(brightness=0.1))
    next(augmented.steps(augmented.init(), augmented.rows(data)))
    assert augmented.traces == before

    views, _ = trainer_after(augment=Augmentation(brightness=0.1), views=3)
    stored, labels = program(views, "taking_step", "features", examples=6).arguments[2:4]
    assert [len(x) for x in (*stored, labels.targets)] == [3 * 6, 6]


def test_a_program_or_rows_that_are_not_there_are_refused(models):
    trainer = trainer_of(models["lecture_cnn"], "all")
    with pytest.raises(LookupError, match="no program 'epochs'; did you mean 'epoch'"):
        program(trainer, "epochs")
    with pytest.raises(ValueError, match="epoch runs on rows of kind images or features, found 'source'"):
        program(trainer, "epoch")


_SPREAD = """
import json, jax, numpy as np
from flax import nnx
from cnnjax import Freeze, Trainer
from cnnjax.runtime.devices import Devices
from cnnjax.train.lowering import collectives, program
model = nnx.Sequential(lambda x: x.reshape(len(x), -1), nnx.Linear(192, 512, rngs=nnx.Rngs(0)), nnx.relu,
                       nnx.Linear(512, 4, rngs=nnx.Rngs(1)))
trainer = Trainer(model, Freeze.none().resolve(model), (8, 8), batch_size=16, optimizer="adam")
found = {}
for which, rows in (("step", "source"), ("epoch", "images"), ("evaluate", "source")):
    for shard in (False, True):
        spread = program(trainer, which, rows, examples=20).on(Devices.all(shard_parameters=shard))
        compiled = spread.lower("cpu").compile()
        kernel = compiled.input_shardings[0][0].trainable["layers/1/kernel"]
        out = compiled.output_shardings[0].trainable["layers/1/kernel"] if spread.trains else kernel
        found[f"{which} {shard}"] = [list(kernel.spec), list(out.spec), collectives(compiled.as_text()),
                                      compiled.memory_analysis().argument_size_in_bytes]
try:
    program(Trainer(model, Freeze.none().resolve(model), (8, 8), batch_size=6)).on(Devices.all())
except ValueError as error:
    found["refused"] = str(error)
print(json.dumps(found))
"""


def test_on_several_devices_the_gradient_is_added_up():
    flags = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"}
    run = subprocess.run([sys.executable, "-c", _SPREAD], env=flags, capture_output=True, text=True, check=True)
    found = json.loads(run.stdout)
    gradient = 4 * (192 * 512 + 512 + 512 * 4 + 4)
    metrics = 3 * 4  # sums of loss, right answers and weights
    for which in ("step", "epoch"):
        whole, after, messages, memory = found[f"{which} False"]
        assert whole == after == [] and list(messages) == ["all-reduce"]
        assert gradient <= messages["all-reduce"][1] <= gradient + 2 * metrics
        cut, after, _, less = found[f"{which} True"]
        assert cut == after == [None, "data"]  # 512 of 192 x 512, and 4 divides it
        assert memory - less == 3 * 192 * 512 * 4 * 3 / 4  # of parameters and two moments, three quarters elsewhere
    assert "all-gather" in found["evaluate False"][2]  # the logits
    assert found["refused"] == (
        "a batch of 6 cannot be spread evenly over 4 devices: batch_size 4 or 8 can; or take fewer devices"
    )


def test_bytes_of_messages_are_those_of_their_arrays():
    text = """
      %p = f32[4,8]{1,0} parameter(0)
      %b = bf16[16]{0:T(256)(128)(2,1)S(1)} bitcast(%p)
      %s = (f32[4,8]{1,0}, f32[16,8]{1,0}) all-gather-start(%p), channel_id=1, dimensions={0}
      %d = f32[16,8]{1,0} all-gather-done(%s)
      %t = (f32[4,8]{1,0:T(8,128)}, bf16[16]{0}) all-reduce(%p, /*index=1*/%b), channel_id=2, to_apply=%add
      %x = f32[1,8]{1,0} reduce-scatter(%p), channel_id=3, dimensions={0}
      ROOT %c = (f32[4,8]{1,0}, f32[4,8]{1,0}, u32[], u32[]) collective-permute-start(%p), channel_id=4
    """
    assert collectives(text) == {
        "all-gather": Traffic(1, 16 * 8 * 4),
        "all-reduce": Traffic(1, 4 * 8 * 4 + 16 * 2),
        "reduce-scatter": Traffic(1, 4 * 8 * 4),
        "collective-permute": Traffic(1, 4 * 8 * 4),
    }
