"""oneDNN's convolutions and products, which jaxlib's CPU backend holds from 0.11 on, asked for one at a time.

XLA has two ways to oneDNN. Its own rewriter, switched on by a flag for every program of the process, replaces
convolutions and products along with whatever follows them, and takes any vector that is as long as the channels for a
bias: `conv(x, k) + v[:, None, None, None]` comes out wrong where images and channels are as many. So that flag is never
set. Instead an operation here is the custom call that the rewriter would have made, for one convolution or one product
of known layout, and nothing else: what comes before and after it stays XLA's. Bias and rectifier too, since oneDNN's
rectifier gives 0 for NaN, which would hide a run that diverged.

A program with such calls cannot be written to a compilation cache (jaxlib 0.11 and 0.12: `std::bad_alloc`).
"""

import json
import math
import os
import platform
from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache, partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from cnnjax.ops.shifts import Pads, Pair, out_size

# Between these the call's target and configuration are known. A wrong one would end the process, so no guess is made.
_FIRST, _BEYOND = (0, 11), (0, 13)
# Without the first three oneDNN refuses bfloat16, and XLA ends the process. Without the last it has it, but takes 800
# times as long for a product as XLA (4096x256x256, Xeon with AVX-512 alone: 9.5 s and 12 ms; 3x3 convolution of
# 8x40x40x64: 127 and 11 ms), and says so for each on stderr.
_BFLOAT16_NEEDS = {"avx512bw", "avx512vl", "avx512dq", "avx512_bf16"}
# Smaller products are XLA's: a call costs some microseconds.
_LEAST_PRODUCT = 1 << 17
NHWC = ("NHWC", "HWIO", "NHWC")

_WANTED: ContextVar[bool] = ContextVar("onednn", default=True)


@contextmanager
def use_onednn(wanted: bool) -> Generator[None]:
    """In this block, what is traced asks oneDNN for its convolutions and products, or leaves all of them to XLA.

    It is asked by default, on CPUs whose jaxlib has it. `CNNJAX_ONEDNN=0` in the environment leaves it out altogether:
    programs then can be kept on disk (see `cnnjax.keep_programs`).

    >>> with use_onednn(False):
    ...     takes(jnp.float32)
    False
    """
    token = _WANTED.set(wanted)
    try:
        yield
    finally:
        _WANTED.reset(token)


def takes(dtype: DTypeLike) -> bool:
    """Whether convolutions and products of this type are asked of oneDNN where a program runs on CPU."""
    if not _WANTED.get() or os.environ.get("CNNJAX_ONEDNN") == "0" or not _is_there():
        return False
    kind = jnp.dtype(dtype)
    return kind == jnp.float32 or (kind == jnp.bfloat16 and _has_bfloat16())


@cache
def _is_there() -> bool:
    try:
        jaxlib = tuple(int(part) for part in version("jaxlib").split(".")[:2])
    except (PackageNotFoundError, ValueError):
        return False
    known = _FIRST <= jaxlib < _BEYOND and (platform.system(), platform.machine()) == ("Linux", "x86_64")
    return known and jax.default_backend() == "cpu" and _answers()


def _answers() -> bool:
    """Whether it computes what XLA computes: a build of jaxlib may lack it."""
    with jax.ensure_compile_time_eval():
        x, k = jnp.arange(16.0).reshape(1, 2, 2, 4), jnp.arange(8.0).reshape(1, 1, 4, 2)
        try:
            found = jax.jit(partial(_convolution, strides=(1, 1), pads=((0, 0), (0, 0)), groups=1))(x, k)
        except jax.errors.JaxRuntimeError:
            return False
        return bool(jnp.allclose(found, jnp.einsum("nhwc,cd->nhwd", x, k[0, 0])))


@cache
def _has_bfloat16() -> bool:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return False
    flags = next((line for line in lines if line.startswith("flags")), "")
    return set(flags.split()) >= _BFLOAT16_NEEDS


def fits(x: jax.Array, k: jax.Array, strides: Pair, pads: Pads, groups: int) -> bool:
    """Whether oneDNN has the convolution of `[N, H, W, C]` with `[h, w, C / groups, D]`: no part of it is empty, and
    each output reads at least one input."""
    window = k.shape[:2]
    inside = all(0 <= p < w for pair, w in zip(pads, window, strict=True) for p in pair)
    whole = x.shape[3] == groups * k.shape[2] and k.shape[3] % groups == 0
    return inside and whole and 0 not in (*x.shape, *k.shape) and min(out_size(x.shape[1:3], window, strides, pads)) > 0


def convolution(x: jax.Array, k: jax.Array, strides: Pair, pads: Pads, groups: int = 1) -> jax.Array:
    """`lax.conv_general_dilated` of images NHWC and a kernel HWIO that `fits`, in the type of both, on CPU only.

    Reverse mode takes XLA's gradients.
    """
    return _asked(
        partial(_convolution, strides=strides, pads=pads, groups=groups),
        partial(
            lax.conv_general_dilated, window_strides=strides, padding=pads, dimension_numbers=NHWC,
            feature_group_count=groups,
        ),
        x, k,
    )  # fmt: skip


def product(a: jax.Array, b: jax.Array, *, transpose: tuple[bool, bool] = (False, False)) -> jax.Array:
    """The product of two matrices, either of them transposed first, on CPU only; XLA's own where it is small."""

    def plain(a: jax.Array, b: jax.Array) -> jax.Array:
        contracted = (0 if transpose[0] else 1,), (1 if transpose[1] else 0,)
        return lax.dot_general(a, b, (contracted, ((), ())))

    rows, columns = a.shape[transpose[0]], b.shape[1 - transpose[1]]
    if rows * columns * a.shape[1 - transpose[0]] < _LEAST_PRODUCT:
        return plain(a, b)
    return _asked(partial(_product, transpose=transpose), plain, a, b)


def _asked(call: Callable[..., jax.Array], plain: Callable[..., jax.Array], *operands: jax.Array) -> jax.Array:
    """`call(*operands)`; where it is differentiated or mapped over, `plain` speaks for it."""

    @jax.custom_batching.custom_vmap
    def mapped(*operands: jax.Array) -> jax.Array:
        return call(*operands)

    @mapped.def_vmap
    def _(size: int, batched: list[bool], *operands: jax.Array) -> tuple[jax.Array, bool]:
        return jax.vmap(plain, [0 if b else None for b in batched])(*operands), True

    @jax.custom_vjp
    def asked(*operands: jax.Array) -> jax.Array:
        return mapped(*operands)

    asked.defvjp(lambda *operands: (asked(*operands), operands), lambda operands, g: jax.vjp(plain, *operands)[1](g))
    return asked(*operands)


def _convolution(x: jax.Array, k: jax.Array, *, strides: Pair, pads: Pads, groups: int) -> jax.Array:
    images = {"dims": "0", "data": {"batch_dim": "0", "feature_dim": "3", "spatial_dims": ["1", "2"]}}
    kernel = {
        "input_feature_dim": "2", "output_feature_dim": "3", "spatial_dims": ["0", "1"],
        "shape": list(map(str, k.shape)),
    }  # fmt: skip
    window = {
        "size": [], "strides": list(map(str, strides)), "window_dilations": ["1", "1"],
        "pad_left": [str(low) for low, _ in pads], "pad_right": [str(high) for _, high in pads],
    }  # fmt: skip
    config = {
        "dims": "4", "feature_groups": str(groups), "input": images, "output": images,
        "kernel": {"dims": "0", "filter": kernel}, "window": window, "optimization_config": _OPTIONS,
    }  # fmt: skip
    size = out_size(x.shape[1:3], k.shape[:2], strides, pads)
    return _call("convolution", {"onednn_conv_config": config}, (x.shape[0], *size, k.shape[3]), x, k)


def _product(a: jax.Array, b: jax.Array, *, transpose: tuple[bool, bool]) -> jax.Array:
    config = {"transpose_a": transpose[0], "transpose_b": transpose[1], "optimization_config": _OPTIONS}
    shape = a.shape[transpose[0]], b.shape[1 - transpose[1]]
    return _call("matmul", {"onednn_matmul_config": config}, shape, a, b)


_OPTIONS = {"bias_broadcast": False, "user_scratchpad": False, "weights_prepacked": False}


def _call(target: str, config: dict[str, Any], shape: tuple[int, ...], *operands: jax.Array) -> jax.Array:
    # The form in which XLA's rewriter writes it: an old kind of custom call, whose configuration is JSON.
    text = json.dumps(config | {"outer_dimension_partitions": []}, sort_keys=True)
    made = jax.ShapeDtypeStruct(shape, operands[0].dtype)
    assert math.prod(shape)
    return jax.ffi.ffi_call(
        f"__onednn${target}", made, custom_call_api_version=2, legacy_backend_config=text
    )(*operands)  # fmt: skip
