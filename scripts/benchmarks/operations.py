"""Each of `cnnjax.ops` beside XLA's own, layer by layer, forward and each gradient: the table of `cnnjax/ops`."""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from cnnjax import ops

BATCH = 16
_SAME, _VALID = "SAME", "VALID"
# Height and width, channels, filters, stride, padding.
DEPTHWISE = [(80, 32, 1), (80, 64, 2), (40, 128, 1), (20, 256, 1), (10, 512, 1), (5, 1024, 1)]
POINTWISE = [(80, 32, 64), (40, 128, 128), (20, 256, 256), (10, 512, 512), (5, 1024, 1024)]
SPATIAL = [
    (150, 3, 32, _VALID), (74, 32, 64, _VALID), (36, 64, 128, _VALID), (17, 128, 128, _VALID),
    (180, 64, 64, _SAME), (90, 64, 128, _SAME), (90, 128, 128, _SAME), (45, 256, 256, _SAME), (22, 512, 512, _SAME),
    (11, 512, 512, _SAME), (2, 512, 512, _SAME),
]  # fmt: skip


def _native_pool(x: jax.Array) -> jax.Array:
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")


def _flax_norm(x: jax.Array, scale: jax.Array) -> jax.Array:
    norm = nnx.BatchNorm(x.shape[-1], epsilon=1e-3, use_running_average=False, rngs=nnx.Rngs(0))
    norm.scale[...] = scale
    return norm(x)


def layers() -> Iterator[tuple[str, Callable[..., Any], Callable[..., Any], tuple[jax.Array, ...]]]:
    """A name, ours, XLA's own, and the arguments."""
    random = np.random.default_rng(0)

    def normal(*shape: int) -> jax.Array:
        return jnp.asarray(random.normal(size=shape), jnp.float32)

    def both(**options: Any) -> tuple[Callable[..., Any], Callable[..., Any]]:
        given = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")} | options
        return partial(ops.conv_general_dilated, **given), partial(lax.conv_general_dilated, **given)

    for size, channels, stride in DEPTHWISE:
        pair = both(window_strides=(stride, stride), padding=_SAME, feature_group_count=channels)
        name = f"depthwise 3x3, {size}x{size}x{channels}, stride {stride}"
        yield name, *pair, (normal(BATCH, size, size, channels), normal(3, 3, 1, channels))
    for size, channels, filters in POINTWISE:
        pair = both(window_strides=(1, 1), padding=_SAME)
        name = f"1x1, {size}x{size}x{channels} to {filters}"
        yield name, *pair, (normal(BATCH, size, size, channels), normal(1, 1, channels, filters))
    for size, channels, filters, padding in SPATIAL:
        pair = both(window_strides=(1, 1), padding=padding)
        name = f"3x3, {size}x{size}x{channels} to {filters}"
        yield name, *pair, (normal(BATCH, size, size, channels), normal(3, 3, channels, filters))
    yield (
        "max pooling 2x2, 148x148x32",
        partial(ops.max_pool, window=(2, 2)),
        _native_pool,
        (normal(BATCH, 148, 148, 32),),
    )
    yield (
        "batch normalisation, 80x80x64 (beside Flax's)",
        lambda x, scale: ops.batch_norm(x, scale, jnp.zeros_like(scale))[0],
        _flax_norm,
        (normal(BATCH, 80, 80, 64), normal(64)),
    )


def _directions(f: Callable[..., Any], args: tuple[jax.Array, ...]) -> list[Callable[..., Any]]:
    """Forward, the input's gradient, that of the weights if there are any, each compiled by itself."""

    def gradient(place: int, g: jax.Array, *args: jax.Array) -> jax.Array:
        return jax.vjp(f, *args)[1](g)[place]

    g = jax.block_until_ready(jax.jit(f)(*args))
    return [jax.jit(f), *(partial(jax.jit(partial(gradient, k)), g) for k in range(len(args)))]


def run(options: argparse.Namespace) -> None:
    """The command `ops`."""
    print(f"Times as fast as XLA's own, batches of {BATCH}, float32; in brackets our milliseconds\n")
    print("| layer | forward | input gradient | weight gradient |\n| --- | ---: | ---: | ---: |")
    for name, ours, theirs, args in layers():
        cells = []
        for mine, other in zip(_directions(ours, args), _directions(theirs, args), strict=True):
            seconds: dict[int, list[float]] = {0: [], 1: []}
            for turn in range(options.repeats + 1):
                for k, f in enumerate((mine, other)):
                    start = time.perf_counter()
                    jax.block_until_ready(f(*args))
                    if turn:
                        seconds[k].append(time.perf_counter() - start)
            found, native = (statistics.median(seconds[k]) for k in (0, 1))
            cells.append(f"{native / found:.2g} ({1e3 * found:.2g})")
        print(f"| {name} | {' | '.join(cells + ['-'] * (3 - len(cells)))} |", flush=True)
