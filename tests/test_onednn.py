"""XLA is asked for oneDNN's convolutions, answers, and is left as it was found."""

import json
import os
import platform
import subprocess
import sys
from importlib.metadata import version
from importlib.util import find_spec

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

import cnnjax
from cnnjax import onednn, ops

_SAYS = """
import json, os
{before}
import cnnjax
asked = os.environ.get("XLA_FLAGS")
{between}
from cnnjax import onednn, ops
print(json.dumps([asked, os.environ.get("XLA_FLAGS"), onednn.answers()]))
"""
HERE = (platform.system(), platform.machine()) == ("Linux", "x86_64")
ALONE = os.environ.get("JAX_PLATFORMS", "") == "cpu" or not any(map(find_spec, onednn._PLUGINS))
HAS = HERE and ALONE and tuple(map(int, version("jaxlib").split(".")[:2])) >= (0, 11)


def _process(before="", flags=None, between=""):
    own = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"} | ({} if flags is None else {"XLA_FLAGS": flags})
    words = [sys.executable, "-c", _SAYS.format(before=before, between=between)]
    return json.loads(subprocess.run(words, capture_output=True, check=True, env=own).stdout)


@pytest.mark.parametrize("flags", [None, "--xla_force_host_platform_device_count=2"])
def test_xla_is_asked_and_its_flags_are_as_they_were(flags):
    asked, after, answers = _process(flags=flags)
    assert after == flags and answers == HAS
    assert not HAS or (asked.startswith(flags or "--xla_cpu") and "onednn" in asked)


def test_flags_of_the_users_own_are_left_alone():
    flags = "--xla_cpu_experimental_onednn_custom_call=false"
    assert _process(flags=flags) == [flags, flags, False]


def test_flags_that_are_set_later_are_read_and_stay():
    flags = "--xla_force_host_platform_device_count=2"
    assert _process(between=f"os.environ['XLA_FLAGS'] = '{flags}'")[1:] == [flags, False]


def test_a_process_that_has_computed_before_goes_without():
    asked, after, answers = _process("import jax; jax.numpy.ones(2) + 1")
    assert after is None and not answers


@pytest.mark.parametrize("jaxlib, machine, platforms, plugin, asks", [
    ("0.12.0.1", "x86_64", None, None, True), ("0.11.2", "x86_64", "cpu", None, True),
    ("0.10.2", "x86_64", None, None, False), ("0.13.0", "x86_64", None, None, False),
    ("0.12.0", "aarch64", None, None, False), ("unknown", "x86_64", None, None, False),
    ("0.12.0", "x86_64", "cuda,cpu", None, False), ("0.12.0", "x86_64", None, "libtpu", False),
    ("0.12.0", "x86_64", "cpu", "libtpu", True),
])  # fmt: skip
def test_it_is_asked_of_versions_that_know_the_flags(monkeypatch, jaxlib, machine, platforms, plugin, asks):
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    if platforms:
        monkeypatch.setenv("JAX_PLATFORMS", platforms)
    monkeypatch.setattr(onednn, "find_spec", lambda name: object() if name == plugin else None)
    monkeypatch.setattr(onednn, "version", lambda name: jaxlib)
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(onednn, "_written", None)
    assert onednn.ask() is asks and ("XLA_FLAGS" in os.environ) is asks
    onednn.settle()
    assert "XLA_FLAGS" not in os.environ


@pytest.fixture
def convolutions():
    """What a compiled program of the CPU has of oneDNN's: convolutions, and what each adds to its sums."""
    if not onednn.answers():
        pytest.skip("this process's XLA was not asked for oneDNN")

    def count(f, *args):
        text = jax.jit(f).lower(*args).compile().as_text()
        calls = [line for line in text.splitlines() if 'custom_call_target="__onednn$convolution"' in line]
        fused = [line.split('"ops":[')[1].split("]")[0] if '"ops":[' in line else "" for line in calls]
        return fused, sum(" convolution(" in line for line in text.splitlines())

    return count


def test_a_training_step_of_the_lectures_network_is_oneDNNs_but_for_kernel_gradients(convolutions):
    model = cnnjax.lecture_cnn((150, 150, 3), rngs=nnx.Rngs(0))
    graph, weights, rest = nnx.split(model, nnx.Param, ...)

    def loss(weights, images):
        return (nnx.merge(graph, weights, rest)(images) ** 2).sum()

    fused, others = convolutions(jax.grad(loss), weights, jnp.zeros((32, 150, 150, 3)))
    # Three input gradients and the first layer's patches, and four layers.
    assert sorted(fused) == sorted([""] * 4 + ['"BIAS","RELU"'] * 4), fused
    assert others >= 2  # kernel gradients, in parts


@pytest.mark.parametrize("channels, kernel, groups", [(16, (3, 3, 1, 16), 16), (16, (3, 3, 16, 32), 1)])
def test_bias_and_rectifier_belong_to_the_convolution(convolutions, channels, kernel, groups):
    def layer(x, k, b):
        options = dict(dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups)
        return ops.relu(ops.conv_general_dilated(x, k, (1, 1), "SAME", **options) + b, 6.0)

    args = jnp.zeros((2, 20, 20, channels)), jnp.zeros(kernel), jnp.zeros(kernel[3])
    assert convolutions(layer, *args) == (['"BIAS","RELU6"'], 0)


def test_pooling_leaves_convolutions_to_onednn(convolutions):
    """YNNPACK, which has XLA's maxima, would take the convolutions before and after along."""

    def layers(x, k):
        def convolve(x):
            return ops.conv_general_dilated(x, k, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

        return convolve(ops.max_pool(convolve(x), (2, 2)))

    assert convolutions(layers, jnp.zeros((2, 20, 20, 8)), jnp.zeros((3, 3, 8, 8))) == (["", ""], 0)
