"""What makes it fast, counted rather than timed: page faults, compilations, operations."""

import json
import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import cnnjax
from cnnjax import Classifier, Freeze, Trainer, lecture_cnn, linear_head, ops
from cnnjax.data import InMemory
from cnnjax.runtime.compiling import compile_seconds

NHWC = ("NHWC", "HWIO", "NHWC")
_FAULTS = """
import os
before = dict(os.environ)
import cnnjax
assert dict(os.environ) == before
if "UNTUNED" not in before:
    cnnjax.tune_cpu()
import json, resource
import jax
step = jax.jit(lambda x: (jax.numpy.sin(x)[:, ::-1] + x, x.sum()))
faults = []
for _ in range(10):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    x = jax.numpy.ones((5000, 5000)) * 2  # 95 MiB, and as much for each of what is made of it
    jax.block_until_ready(step(x))
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
huge = [line.split()[1] for line in open("/proc/self/smaps_rollup") if line.startswith("AnonHugePages")]
print(json.dumps([faults, int(huge[0]) << 10]))
"""
_ON_REQUEST = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's malloc is Linux's")
def test_memory_that_was_used_once_is_not_asked_for_again():
    def faults(**own):
        flags = {"XLA_FLAGS": "--xla_backend_optimization_level=0"}  # compiles sooner; it is memory that counts
        words = [sys.executable, "-c", _FAULTS]
        return json.loads(subprocess.run(words, capture_output=True, check=True, env=os.environ | flags | own).stdout)

    array = 5000 * 5000 * 4
    pages = array // os.sysconf("SC_PAGE_SIZE")
    (kept, huge), (asked, small) = faults(), faults(MALLOC_TRIM_THRESHOLD_="131072")  # the user's own is left alone
    (imported, _) = faults(UNTUNED="1")  # `import cnnjax` alone changes nothing
    assert min(asked[1:]) > pages and min(imported[1:]) > pages and 10 * min(kept[1:]) < pages, (kept, asked, imported)
    # Elsewhere the kernel gives huge pages to all, or to none.
    if _ON_REQUEST.exists() and "[madvise]" in _ON_REQUEST.read_text():
        assert huge > 2 * array > 10 * small, (huge, small)


def trained(model, freeze, size, **options):
    return Trainer(model, freeze.resolve(model, "backbone"), (size, size), **options)


def images(count, size, seed):
    random = np.random.default_rng(seed)
    return InMemory(random.integers(0, 256, (count, size, size, 3), np.uint8), np.arange(count) % 2, ("a", "b"))


@pytest.fixture(scope="module")
def model():
    backbone = lecture_cnn((32, 32, 3), (4, 8), include_top=False, rngs=nnx.Rngs(0))
    return Classifier(backbone, linear_head(backbone.output_shape(), 2, rngs=nnx.Rngs(1)), "unit")


def test_sources_that_want_the_same_features_share_a_compiled_pass(model):
    trainer = trained(model, Freeze.all(), 32)
    trainer.rows(images(40, 32, 0))
    before = compile_seconds()
    assert before > 0
    for seed in (1, 2):
        trainer.rows(images(40, 32, seed))
    assert compile_seconds() == before and len(trainer.store.passes) == 3


def test_compilation_is_told_apart_from_running(model):
    trainer = trained(model, Freeze.none(), 32)
    _, log = trainer.fit(trainer.init(), trainer.rows(images(40, 32, 0)), epochs=3)
    first, *later = [record["compile_seconds"] for record in log]
    assert 0 < first < log[0]["seconds"] and later == [0, 0]


def test_many_channels_take_half_the_operations_forwards_and_backwards():
    """16 products for four outputs instead of 36, and what goes before and after them."""
    x, k, g = jnp.zeros((4, 32, 32, 256)), jnp.zeros((3, 3, 256, 256)), jnp.zeros((4, 32, 32, 256))
    options = dict(window_strides=(1, 1), padding="SAME", dimension_numbers=NHWC)

    def counted(convolution, of):
        def both(x, k, g):
            y, pull = jax.vjp(partial(convolution, **options), x, k)
            return (y, *pull(g))[of]

        with ops.use_onednn(False):  # whose operations XLA does not count
            return jax.jit(both).lower(x, k, g).cost_analysis()["flops"]

    for of in range(3):
        assert 16 / 36 < counted(ops.conv_general_dilated, of) / counted(jax.lax.conv_general_dilated, of) < 0.55


def test_normalisation_by_the_batch_keeps_nothing_but_its_input():
    """Forwards and backwards in one program, as in a step: no array of the batch's size but arguments and results."""
    x, scale = jnp.zeros((16, 40, 40, 64)), jnp.ones(64)

    def temporary(norm):
        def both(x, scale, g):
            y, pull = jax.vjp(norm, x, scale)
            return y, *pull(g)

        return jax.jit(both).lower(x, scale, x).compile().memory_analysis().temp_size_in_bytes

    assert temporary(lambda x, scale: ops.batch_norm(x, scale, scale)[0]) < x.nbytes / 4


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_accelerators_get_plain_convolutions_of_many_channels_too(platform):
    x, k = jnp.zeros((16, 28, 28, 128)), jnp.zeros((3, 3, 128, 256))

    def gradients(x, k):
        return jax.vjp(lambda x, k: ops.conv_general_dilated(x, k, (1, 1), "SAME", dimension_numbers=NHWC), x, k)

    def both(x, k):
        y, pull = gradients(x, k)
        return y, pull(y)

    text = jax.export.export(jax.jit(both), platforms=[platform])(x, k).mlir_module()
    operations = re.findall(r"\bstablehlo\.(\w+)", text)
    assert operations.count("convolution") == 3 and not {"while", "dot_general"} & set(operations)


def test_the_frozen_part_and_its_optimizer_cost_a_step_nothing():
    """Depth by depth: optimizer bytes of what trains alone, and no equation of what does not."""
    backbone = cnnjax.mobilenet(0.25, (32, 32, 3), include_top=False, rngs=nnx.Rngs(0))
    model = Classifier(backbone, linear_head(backbone.output_shape(), 2, rngs=nnx.Rngs(1)), "tf")
    sizes = []
    for freeze in (Freeze.none(), Freeze.through("conv_pw_12_relu"), Freeze.all()):
        trainer = trained(model, freeze, 32, optimizer="adam")
        state = trainer.abstract_state()
        moments = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state.optimizer))
        assert moments == pytest.approx(2 * 4 * trainer.trainable_parameters, abs=1024)  # and counts, and the rate
        sizes.append((moments, len(trainer.staged.program.late_eqns)))
    assert sizes == sorted(sizes, reverse=True) and sizes[-1][1] < sizes[0][1] / 10
