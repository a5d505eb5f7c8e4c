"""Random frozen models, of which some choose by the batch size what they compute."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

SIDE, CHANNELS = 6, 4
_KERNEL = np.random.default_rng(0).normal(size=(3, 3, CHANNELS, CHANNELS)).astype(np.float32) / 6
_SQUARE = np.random.default_rng(1).normal(size=(CHANNELS, CHANNELS)).astype(np.float32) / 2


def _pooled(x, padding, window=3, pool=nnx.max_pool):
    return pool(x, (window, window), (1, 1), padding)


def _convolved(x, strides=(1, 1), dilation=(1, 1)):
    numbers = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, _KERNEL, strides, "SAME", None, dilation, numbers)


def _windowed(x, window):
    """Sums over a window, as a reduction that JAX knows no name of."""
    return lax.reduce_window(x, 0.0, lambda a, b: a + 1.0 * b, (1, window, 1, 1), (1, 1, 1, 1), "SAME")


def _repeated(x, times):
    """Frozen weights that a loop makes."""
    return x @ lax.fori_loop(0, times, lambda k, w: jnp.tanh(w @ w + k), jnp.asarray(_SQUARE))


def _summed_ones(x, count):
    return x * lax.fori_loop(0, 3, lambda k, c: c + jnp.ones(count).sum() / 8, jnp.float32(0))


def _grouped(x, groups):
    y = x.reshape(groups, -1, *x.shape[1:])
    return (y - y.mean((1, 2, 3), keepdims=True)).reshape(x.shape)


def _looked_up(x, axis):
    best = jnp.argmax(x.mean((1, 2)), -1)[:, None, None, None] % min(x.shape[axis], CHANNELS)
    return x + jnp.take_along_axis(x, best, axis)


# Each is one thing at 0 and another at 1; all keep f32[N, H, W, C], H and W perhaps changed.
APART: dict[str, Callable[[Any, int], Any]] = {
    "padding": lambda x, k: _pooled(x, ((2, 0), (2, 0)) if k else ((0, 2), (0, 2))),
    "mean's padding": lambda x, k: _pooled(x, ((2, 0), (1, 1)) if k else ((1, 1), (2, 0)), pool=nnx.avg_pool),
    "window": lambda x, k: _pooled(x, "SAME", 2 + k),
    "window of a reduction": lambda x, k: _windowed(x, 2 + k),
    "reversal": lambda x, k: x + jnp.flip(x, 1 + k),
    "reduction": lambda x, k: x - x.mean(1 + k, keepdims=True),
    "maximum": lambda x, k: x - x.max(1 + k, keepdims=True),
    "sum without its axis": lambda x, k: jnp.tanh(x.sum(1 + k))[:, None] + 0 * x,
    "constant": lambda x, k: x * (1.0 + k),
    "array": lambda x, k: x * np.arange(1 + k, 5 + k, dtype=np.float32),
    "transpose": lambda x, k: x * 0.5 + (x.transpose(0, 2, 1, 3) if k else x.transpose(0, 1, 2, 3)) ** 2,
    "roll": lambda x, k: x + jnp.roll(x, 1, 1 + k),
    "running sum": lambda x, k: jnp.cumsum(x, 1 + k) / 4,
    "sort": lambda x, k: jnp.sort(x, 1 + k),
    "softmax": lambda x, k: jax.nn.softmax(x, 1 + k),
    "power": lambda x, k: jnp.tanh(x) ** (2 + k),
    "slice": lambda x, k: x - x[:, k : k + 1],
    "dynamic slice": lambda x, k: x - lax.dynamic_slice_in_dim(x, k, 1, 2),
    "gather": lambda x, k: x - x[:, jnp.array([k, 3])].mean(1, keepdims=True),
    "order of a concatenation": lambda x, k: jnp.concatenate([x[:, :3], 2 * x[:, 3:]][:: 1 - 2 * k], 1),
    "type": lambda x, k: x.astype(jnp.bfloat16 if k else jnp.float16).astype(jnp.float32),
    "precision": lambda x, k: lax.reduce_precision(x, 8, 3 + k),
    "dilation": lambda x, k: _convolved(x, dilation=(1 + k, 1)),
    "convolution": lambda x, k: x @ _SQUARE + _convolved(x) * (1 - k),
    "wiring": lambda x, k: jnp.sin(x) - jnp.cos(x) if k else jnp.cos(x) - jnp.sin(x),
    "operation": lambda x, k: jnp.sin(x) if k else jnp.cos(x),
    "length": lambda x, k: x + jnp.sin(x) if k else x,
    "loop over weights": lambda x, k: _repeated(x, 2 + k),
    "reshape": lambda x, k: x.transpose(0, 1, 3, 2).reshape(x.shape) if k else x.reshape(len(x), -1).reshape(x.shape),
    "pixels as rows": lambda x, k: (x.reshape(-1, CHANNELS) @ (_SQUARE.T if k else _SQUARE)).reshape(x.shape),
}
# These follow the batch size without a threshold, mix images, or are not known to keep them apart.
MIXED: dict[str, Callable[[Any, int], Any]] = {
    "look-up": lambda x, k: _looked_up(x, -1 - k),
    "batch mean": lambda x, k: x - x.mean(0),
    "batch rolled": lambda x, k: x + jnp.roll(x, 1, 0),
    "divided by N": lambda x, k: x / len(x),
    "power of N": lambda x, k: jnp.tanh(x) ** len(x),
    "loops of N": lambda x, k: _repeated(x, len(x) % 5),
    "ones of N in a loop": lambda x, k: _summed_ones(x, len(x)),
    "ones of N": lambda x, k: x * jnp.ones(len(x)).sum() / 8,
    "halves": lambda x, k: _grouped(x, 2 if len(x) % 2 == 0 else 1),
    "fours": lambda x, k: _grouped(x, len(x) // 4 if len(x) % 4 == 0 else 1),
    "pairs or nothing": lambda x, k: _grouped(x, len(x) // 2) if len(x) > 1 else x,
    "rows of N": lambda x, k: x + jnp.arange(len(x), dtype=jnp.float32)[:, None, None, None] / 8,
    "noise": lambda x, k: x * jax.random.normal(jax.random.key(0), x.shape),
}


def _custom_jvp(f):
    rule = jax.custom_jvp(f)
    rule.defjvps(lambda t, out, x: t)
    return rule


def _custom_vjp(f):
    rule = jax.custom_vjp(f)
    rule.defvjp(lambda x: (f(x), None), lambda kept, g: (g,))
    return rule


WRAPPERS: dict[str, Callable[[Callable[..., Any]], Callable[..., Any]]] = {
    "plain": lambda f: f,
    "jit": jax.jit,
    "checkpoint": jax.checkpoint,
    "custom_jvp": _custom_jvp,
    "custom_vjp": _custom_vjp,
    "cond": lambda f: lambda x: lax.cond(jnp.asarray(_SQUARE).sum() > 1e3, lambda y: y + 1, f, x),
    "platform": lambda f: lambda x: lax.platform_dependent(x, cpu=f, default=f),
    "jit in custom_jvp": lambda f: _custom_jvp(lambda x: jax.jit(f)(x)),
    "vmap": lambda f: lambda x: jax.vmap(lambda y: f(y[None])[0])(x) if f.keywords["apart"] else f(x),
}
THRESHOLDS: dict[str, Callable[[int], int]] = {
    "never": lambda n: 0,
    "from 2": lambda n: int(n >= 2),
    "from 3": lambda n: int(n >= 3),
    "from 6": lambda n: int(n >= 6),
    "from 8": lambda n: int(n >= 8),
    "from 10": lambda n: int(n >= 10),
    "from 20": lambda n: int(n >= 20),
    "from 33": lambda n: int(n >= 33),
    "even": lambda n: int(n % 2 == 0),
    "multiples of 8": lambda n: int(n % 8 == 0),
}


def _step(name: str, choose: Callable[[int], int], n: int, x: Any, *, apart: bool) -> Any:
    out = {**APART, **MIXED}[name](x, choose(n))
    return out if out.shape == x.shape else out[:, : x.shape[1], : x.shape[2]]


class Chooser(nnx.Module):
    """A frozen backbone of random steps, and a head on what they give."""

    def __init__(self, seed: int):
        draw = np.random.default_rng(seed)
        names = [*draw.choice(list(APART), draw.integers(1, 4)), *draw.choice(list(MIXED), int(draw.random() < 0.25))]
        self.steps = nnx.data(tuple())
        draw.shuffle(names)
        often = draw.random() < 0.7
        chosen = [
            (str(n), str(draw.choice(list(WRAPPERS))), str(draw.choice(list(THRESHOLDS))) if often else "never")
            for n in names
        ]
        self.steps = tuple(chosen)
        self.backbone = nnx.Conv(3, CHANNELS, (1, 1), rngs=nnx.Rngs(seed))
        self.head = nnx.Linear(CHANNELS, 2, rngs=nnx.Rngs(seed + 1))

    def features(self, x):
        n, x = len(x), self.backbone(x / 255)
        for name, wrapper, threshold in self.steps:
            x = WRAPPERS[wrapper](partial(_step, name, THRESHOLDS[threshold], n, apart=name in APART))(x)
        return x.mean((1, 2))

    def __call__(self, x):
        return self.head(self.features(x))
