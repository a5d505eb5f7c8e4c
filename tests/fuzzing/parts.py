"""Random parts of networks: a convolution or product, and what may follow it, on axes that are mostly equally long."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from cnnjax import ops
from cnnjax.models.layers import BatchNormalization, batch_normalization, conv2d, dense, depthwise_conv2d

KERNELS = ("HWIO", "OIHW", "IHWO", "OHWI")
OUTPUTS = ("NHWC", "NHWC", "NCHW", "CHWN", "NWHC")
OTHERS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": jax.nn.gelu,
    "tanh": jnp.tanh,
    "sigmoid": jax.nn.sigmoid,
    "silu": jax.nn.silu,
    "softplus": jax.nn.softplus,
    "softmax": jax.nn.softmax,
    "x * x / 4": lambda x: x * x / 4,
}
RECTIFIERS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "jax.nn.relu": jax.nn.relu,
    "maximum(x, 0)": lambda x: jnp.maximum(x, 0),
    "jax.nn.relu6": jax.nn.relu6,
    "clip(x, 0, 6)": lambda x: jnp.clip(x, 0, 6),
    "ops.relu": ops.relu,
    "ops.relu6": lambda x: ops.relu(x, 6.0),
    "leaky_relu": jax.nn.leaky_relu,
    "elu": jax.nn.elu,
    "abs": jnp.abs,
}
ACTIVATIONS = OTHERS | RECTIFIERS


class Step(nnx.Module):
    """One operation with its learned arrays, or one layer."""

    def __init__(self, text: str, run: Callable[..., jax.Array], leaves: dict[str, np.ndarray], layer: Any = None):
        self.text, self.run, self.names = text, run, tuple(leaves)
        for name, value in leaves.items():
            setattr(self, name, nnx.Param(jnp.asarray(value)))
        if layer is not None:
            self.layer = layer

    def __call__(self, x: jax.Array, seen: Sequence[jax.Array]) -> jax.Array:
        given = (self.layer,) if hasattr(self, "layer") else tuple(getattr(self, n)[...] for n in self.names)
        return self.run(x, seen, *given)


class Part(nnx.Module):
    """Steps one after another; each sees all values before it."""

    def __init__(self, steps: list[Step]):
        self.steps = nnx.List(steps)

    def __call__(self, x: jax.Array) -> jax.Array:
        seen = [x]
        for step in self.steps:
            seen.append(step(seen[-1], seen))
        return seen[-1]

    @property
    def text(self) -> str:
        return "; ".join(step.text for step in self.steps)


class Builder:
    """Draws a part, step by step.

    Args:
        rng: what draws.
        shape: of the input, `[N, H, W, C]`.
        free: whether images may be mixed, and learned vectors lie along them: not in a network that is trained.
    """

    def __init__(self, rng: np.random.Generator, shape: tuple[int, ...], *, free: bool):
        self.rng, self.free = rng, free
        self.batch = 0  # the axis of the images
        self.steps: list[Step] = []
        self._seen = [jax.ShapeDtypeStruct(shape, jnp.float32)]
        self._batches = [0]  # of each of them

    @property
    def shape(self) -> tuple[int, ...]:
        return self._seen[-1].shape

    def build(self) -> Part:
        first = self._weighted({self.convolve: 4, self.layer: 4, self.multiply: 2, self.multiply_layer: 1})
        first()
        if self._chance(0.5):
            self.vector()
        for _ in range(int(self.rng.integers(0, 4))):
            self._weighted({
                self.vector: 8, self.activate: 5, self.residual: 2, self.reduce: 1, self.turn: 1, self.pool: 0.5,
                self.normalize: 0.7, self.convolve: 1, self.layer: 1.2, self.multiply: 0.7, self.pair: 0.5,
                self.multiply_layer: 0.3,
            })()  # fmt: skip
        return Part(self.steps)

    def logit(self) -> None:
        """One number for each image."""
        others = [a for a in range(len(self.shape)) if a != self.batch]
        left = [a for k, a in enumerate(others) if k == len(others) - 1] if self._chance(0.5) else others
        gone = tuple(a for a in others if a not in left)
        weights = self._normal(*(self.shape[a] for a in left)) / np.sqrt(np.prod([self.shape[a] for a in left]))
        batch = sum(a < self.batch for a in others if a in left)

        def run(x: jax.Array, _: Any, w: jax.Array) -> jax.Array:
            x = jnp.moveaxis(x.mean(gone) if gone else x, batch, 0)
            return jnp.tensordot(x, w, w.ndim)[:, None]

        self._add(f"mean over {gone}, product with all the rest", run, {"w": weights}, batch=0)

    # Convolutions and products.

    def convolve(self) -> None:
        if len(self.shape) != 4:
            return self.multiply()
        order = list(self.rng.permutation(4)) if self._chance(0.4) else list(range(4))
        source = "".join("NHWC"[a] for a in order)
        if not self.free and source[self.batch] != "N":
            at = source.index("N")
            letters = list(source)
            letters[at], letters[self.batch] = letters[self.batch], letters[at]
            source = "".join(letters)
        kernel, out = (str(self.rng.choice(s)) if self._chance(0.5) else s[0] for s in (KERNELS, OUTPUTS))
        ours, usual = self._chance(0.6), self._chance(0.7)  # what `ops` takes up
        if usual and (source == "NHWC" or ours):
            self._batch_first()
            source, kernel, out = "NHWC", "HWIO", "NHWC"
        channels, size = self.shape[source.index("C")], [self.shape[source.index(a)] for a in "HW"]
        groups = int(self.rng.choice([1, 1, 1, 1, channels, channels, *(g for g in (2, 3, 5) if channels % g == 0)]))
        filters = channels * int(self.rng.choice([1, 1, 1, 2])) if groups > 1 else self._width(wide=0.15)
        window = self._window(size)
        strides = tuple(int(s) for s in self.rng.choice([1, 1, 1, 2], 2))
        dilation = (1, 1) if usual or self._chance(0.8) else (2, 1)
        spread = (1, 1) if usual or self._chance(0.9) else (1, 2)
        fitting = all((w - 1) * d < s for w, d, s in zip(window, dilation, size, strict=True))
        padding: Any = self._choice(["SAME", "SAME", "VALID", ((1, 0), (0, 1)), ((1, 1), (1, 1))])
        if spread != (1, 1):  # for which words for paddings have no meaning
            padding = ((1, 1), (2, 1))
        if padding == "VALID" and not fitting:
            padding = "SAME"
        of = dict(zip("HWIO", (*window, channels // groups, filters), strict=True))
        values = self._normal(*(of[a] for a in kernel)) / np.sqrt(np.prod(window) * channels / groups)
        call = ops.conv_general_dilated if ours else lax.conv_general_dilated

        def run(x: jax.Array, _: Any, k: jax.Array) -> jax.Array:
            return call(
                x, k, strides, padding, lhs_dilation=spread, rhs_dilation=dilation,
                dimension_numbers=(source, kernel, out), feature_group_count=groups,
            )  # fmt: skip

        text = f"{'ops' if ours else 'lax'}.conv {source} {kernel} {out} {window} strides {strides} {padding}"
        text += f" dilated {spread} {dilation}" if (*spread, *dilation) != (1, 1, 1, 1) else ""
        self._add(f"{text} groups {groups} to {filters}", run, {"k": values}, batch=out.index("N"))

    def layer(self) -> None:
        if len(self.shape) != 4:
            return self.multiply_layer()
        self._batch_first()
        channels, window = self.shape[3], self._window(self.shape[1:3])
        strides = (2, 2) if self._chance(0.2) else (1, 1)
        padding, filters, bias = self._choice(["SAME", "SAME", "VALID"]), self._width(wide=0.15), self._chance(0.6)
        activation = self._choice(["linear", "relu", "relu", "sigmoid"])
        kind = self._choice(["conv2d", "conv2d", "depthwise_conv2d", "nnx.Conv", "nnx.Conv by ops"])
        if kind == "conv2d":
            options = dict(padding=padding, use_bias=bias, activation=activation)
            made = self._made(lambda: conv2d(channels, filters, window, strides, **options, rngs=nnx.Rngs(0)))
        elif kind == "depthwise_conv2d":
            options = dict(padding=padding, use_bias=bias)
            made = self._made(lambda: depthwise_conv2d(channels, window, strides, **options, rngs=nnx.Rngs(0)))
        else:
            options = dict(padding=padding, use_bias=bias)
            if kind != "nnx.Conv":
                options["conv_general_dilated"] = ops.conv_general_dilated
            made = self._made(lambda: nnx.Conv(channels, filters, window, strides, **options, rngs=nnx.Rngs(0)))
        texts = [f"{k}={v}" for k, v in options.items() if k != "conv_general_dilated"]
        self._add(f"{kind} {window} {strides} to {filters} {' '.join(texts)}", _called, {}, made)

    def multiply_layer(self) -> None:
        last, width = self.shape[-1], self._width(wide=0.2)
        if len(self.shape) < 2 or (not self.free and self.batch == len(self.shape) - 1):
            return
        if self._chance(0.5):
            activation = self._choice(["linear", "relu", "relu"])
            made = self._made(lambda: dense(last, width, activation=activation, rngs=nnx.Rngs(0)))
            return self._add(f"dense {activation} to {width}", _called, {}, made)
        made = self._made(lambda: nnx.Linear(last, width, use_bias=self._chance(0.5), rngs=nnx.Rngs(0)))
        self._add(f"nnx.Linear to {width}", _called, {}, made)

    def multiply(self) -> None:
        """A product with a learned array over one or two axes, some of the others batched."""
        axes = [a for a in range(len(self.shape)) if self.free or a != self.batch]
        if not axes:
            return
        self.rng.shuffle(axes)
        over = axes[: 2 if len(axes) > 2 and self._chance(0.2) else 1]
        along = axes[len(over) : len(over) + 1] if self._chance(0.25) else []
        x = "abcd"[: len(self.shape)]
        k = "".join(x[a] for a in (*along, *over)) + "z"
        k = "".join(self.rng.permutation(list(k)))
        width = self._width(wide=0.15)
        values = self._normal(*(width if c == "z" else self.shape[x.index(c)] for c in k))
        values /= np.sqrt(np.prod([self.shape[a] for a in over]))
        rest = [c for c in x if x.index(c) not in over]
        if self._chance(0.5):
            rows = "".join(x[a] for a in along)
            out = rows + "".join(c for c in rest if c not in rows) + "z"
            contracted = (tuple(over), tuple(k.index(x[a]) for a in over))
            batched = (tuple(along), tuple(k.index(x[a]) for a in along))

            def run(x: jax.Array, _: Any, k: jax.Array) -> jax.Array:
                return lax.dot_general(x, k, (contracted, batched))

            text = f"dot_general {contracted} batched {batched}"
        else:
            out = "".join(self.rng.permutation([*rest, "z"])) if self._chance(0.6) else "".join([*rest, "z"])
            spec = f"{x},{k}->{out}"
            text = f"einsum {spec}"

            def run(x: jax.Array, _: Any, k: jax.Array) -> jax.Array:
                return jnp.einsum(spec, x, k)

        batch = out.find(x[self.batch])
        self._add(f"{text} to {width}", run, {"k": values}, batch=max(batch, 0))

    def pair(self) -> None:
        """A product of two computed values."""
        axes = [a for a in range(len(self.shape)) if self.free or a != self.batch]
        if len(axes) < 2:
            return
        self.rng.shuffle(axes)
        x, other = "abcd"[: len(self.shape)], list("abcd"[: len(self.shape)])
        over, free = axes[0], axes[1]
        other[free] = "z"
        out = "".join(c for c in x if c != x[over]) + "z"
        at = self._earlier()
        spec, scale = f"{x},{''.join(other)}->{out}", 1 / np.sqrt(self.shape[over])

        def run(x: jax.Array, seen: Sequence[jax.Array]) -> jax.Array:
            return jnp.einsum(spec, x, jnp.sin(seen[at])) * scale

        self._add(f"einsum {spec} with sin of value {at}", run, {}, batch=max(out.find(x[self.batch]), 0))

    # What follows them.

    def vector(self) -> None:
        """A vector (or a smaller array) along some axes is added, subtracted or multiplied."""
        axes = list(range(len(self.shape)))
        count = 2 if len(axes) > 2 and self._chance(0.15) else 1
        along = tuple(sorted(int(a) for a in self.rng.choice(axes, min(count, len(axes)), replace=False)))
        name = self._choice(["+", "+", "+", "+", "-", "*", "reversed -"])
        kind = self._choice(["learned", "learned", "learned", "iota", "mean"])
        if not self.free and self.batch in along and kind == "learned":
            kind = "mean"
        if not self.free and self._chance(0.9):  # rarely what mixes images: nothing after it can be stored
            if kind == "iota" and self.batch in along:
                kind = "mean"
            if kind == "mean" and self.batch not in along:
                along = tuple(sorted((self.batch, along[0])))
        sizes = tuple(n if a in along else 1 for a, n in enumerate(self.shape))
        others = tuple(a for a in axes if a not in along)

        def join(x: jax.Array, v: jax.Array) -> jax.Array:
            if name == "*":
                return x * (v + 2) / 2
            return x + v if name == "+" else x - v if name == "-" else v - x

        def learned(x: jax.Array, _: Any, v: jax.Array) -> jax.Array:
            return join(x, v.reshape(sizes))

        def counted(x: jax.Array, _: Any) -> jax.Array:
            n = int(np.prod([x.shape[a] for a in along]))
            numbers = jnp.arange(n, dtype=jnp.float32) / n
            return join(x, numbers.astype(x.dtype).reshape([m if a in along else 1 for a, m in enumerate(x.shape)]))

        def computed(x: jax.Array, _: Any) -> jax.Array:
            return join(x, x.mean(others, keepdims=True))

        leaves = {"v": self._normal(*(self.shape[a] for a in along))} if kind == "learned" else {}
        run = {"learned": learned, "iota": counted, "mean": computed}[kind]
        self._add(f"{name} {kind} vector along {along}", run, leaves)

    def activate(self) -> None:
        name = self._choice([*RECTIFIERS, *RECTIFIERS, *OTHERS])
        of = ACTIVATIONS[name]
        if name == "softmax" and not self.free and self.batch == len(self.shape) - 1:
            return
        self._add(name, lambda x, _: of(x), {})

    def residual(self) -> None:
        at = self._earlier()
        if at == len(self._seen) - 1:  # nothing of its shape but itself
            return self._add("+ learned array", lambda x, _, v: x + v, {"v": self._normal(*self._per_image())})
        self._add(f"+ value {at}", lambda x, seen: x + seen[at], {})

    def reduce(self) -> None:
        axes = [a for a in range(len(self.shape)) if self.free or a != self.batch]
        if len(self.shape) < 3:
            return
        over = tuple(sorted({int(a) for a in self.rng.choice(axes, self._choice([1, 1, 2]))}))
        name = self._choice(["mean", "sum", "max"])

        def run(x: jax.Array, _: Any) -> jax.Array:
            return getattr(jnp, name)(x, over)

        self._add(f"{name} over {over}", run, {}, batch=self.batch - sum(a < self.batch for a in over))

    def turn(self) -> None:
        order = tuple(int(a) for a in self.rng.permutation(len(self.shape)))
        self._add(f"transpose {order}", lambda x, _: x.transpose(order), {}, batch=order.index(self.batch))

    def pool(self) -> None:
        if len(self.shape) != 4:
            return self.activate()
        self._batch_first()
        if min(self.shape[1:3]) < 2:
            return None
        self._add("ops.max_pool 2x2", lambda x, _: ops.max_pool(x, (2, 2), (2, 2), "VALID"), {})

    def normalize(self) -> None:
        if len(self.shape) != 4:
            return self.activate()
        self._batch_first()
        made = self._made(lambda: batch_normalization(self.shape[3], rngs=nnx.Rngs(0)))
        self._add("batch_normalization", lambda x, _, layer: layer(x).astype(x.dtype), {}, made)

    # Draws.

    def _add(self, text: str, run: Any, leaves: dict[str, Any], layer: Any = None, batch: int | None = None) -> None:
        step = Step(text, run, leaves, layer)
        if isinstance(layer, BatchNormalization):
            found = self._seen[-1]
        else:
            found = jax.eval_shape(lambda x, seen: step(x, seen), self._seen[-1], self._seen)
        if found.ndim and min(found.shape) > 0:
            self.batch = self.batch if batch is None else batch
            self.steps.append(step)
            self._seen.append(found)
            self._batches.append(self.batch)

    def _made(self, make: Callable[[], Any]) -> Any:
        """A layer with values from NumPy: JAX would compile a generator for every shape."""
        graph, state = nnx.split(nnx.eval_shape(make))
        values = []
        for path, v in nnx.to_flat_state(state):
            shape = v.get_value().shape
            drawn = self._normal(*shape) / max(np.sqrt(np.prod(shape[:-1])), 1)
            if path[-1] in ("var", "scale"):
                drawn = 1 + 0.5 * np.tanh(drawn)
            values.append((path, v.replace(jnp.asarray(drawn, v.get_value().dtype))))
        return nnx.merge(graph, nnx.from_flat_state(values))

    def _batch_first(self) -> None:
        if self.batch:
            order = (self.batch, *(a for a in range(len(self.shape)) if a != self.batch))
            self._add(f"transpose {order}", lambda x, _: x.transpose(order), {}, batch=0)

    def _per_image(self) -> tuple[int, ...]:
        return tuple(1 if a == self.batch and not self.free else n for a, n in enumerate(self.shape))

    def _earlier(self) -> int:
        """An earlier value of this one's shape, or this one."""
        fits = [v.shape == self.shape for v in self._seen]
        images = [self.free or batch == self.batch for batch in self._batches]
        return self._choice([k for k in range(len(fits)) if fits[k] and images[k]][-4:])

    def _width(self, wide: float) -> int:
        return 32 if self._chance(wide) else length(self.rng, self._seen[0].shape[0])

    def _window(self, size: Sequence[int]) -> tuple[int, int]:
        return min(self._choice([(3, 3), (3, 3), (1, 1), (1, 3), (2, 2), (5, 3)]), tuple(size))

    def _normal(self, *shape: int) -> np.ndarray:
        return self.rng.normal(size=shape).astype(np.float32)

    def _chance(self, p: float) -> bool:
        return bool(self.rng.random() < p)

    def _choice(self, of: Sequence[Any]) -> Any:
        return of[int(self.rng.integers(len(of)))]

    def _weighted(self, of: dict[Callable[[], None], float]) -> Callable[[], None]:
        weights = np.array(list(of.values()), np.float64)
        return list(of)[int(self.rng.choice(len(of), p=weights / weights.sum()))]


def length(rng: np.random.Generator, usual: int) -> int:
    """An axis of 7 to 10, mostly the usual one."""
    return usual if rng.random() < 0.7 else int(rng.integers(7, 11))


def _called(x: jax.Array, _: Any, layer: Any) -> jax.Array:
    return layer(x)
