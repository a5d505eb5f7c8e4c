"""A residual network that is not ours, written as Flax's documentation writes them."""

import jax
import jax.numpy as jnp
from flax import nnx


class Block(nnx.Module):
    def __init__(self, channels: int, rngs: nnx.Rngs):
        self.conv1 = nnx.Conv(channels, channels, (3, 3), use_bias=False, rngs=rngs)
        self.norm1 = nnx.BatchNorm(channels, rngs=rngs)
        self.conv2 = nnx.Conv(channels, channels, (3, 3), use_bias=False, rngs=rngs)
        self.norm2 = nnx.BatchNorm(channels, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        h = jax.nn.relu(self.norm1(self.conv1(x)))
        return jax.nn.relu(x + self.norm2(self.conv2(h)))


class ResNet(nnx.Module):
    """Stem, three residual blocks with a dropout after the first, average pooling, dropout, a linear layer."""

    input_shape = (16, 16, 3)

    def __init__(self, classes: int = 1, channels: int = 8, inner_dropout: float = 0.0, *, rngs: nnx.Rngs):
        self.stem = nnx.Conv(3, channels, (3, 3), strides=2, rngs=rngs)
        self.norm = nnx.BatchNorm(channels, rngs=rngs)
        self.blocks = nnx.List([Block(channels, rngs) for _ in range(3)])
        self.inner = nnx.Dropout(inner_dropout, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.out = nnx.Linear(channels, classes, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        x = jax.nn.relu(self.norm(self.stem(images / 127.5 - 1)))
        for k, block in enumerate(self.blocks):
            x = block(x)
            x = self.inner(x) if k == 0 else x
        return self.out(self.dropout(jnp.mean(x, axis=(1, 2))))


def randomized(model: nnx.Module, seed: int = 0) -> nnx.Module:
    """The model with statistics as after training, so that BatchNorm is not the identity."""
    key = jax.random.key(seed)
    for index, (path, variable) in enumerate(nnx.to_flat_state(nnx.state(model, nnx.BatchStat))):
        noise = jax.random.uniform(jax.random.fold_in(key, index), variable.get_value().shape)
        target = model
        for step in path[:-1]:
            target = target[step] if isinstance(step, int) else getattr(target, step)
        getattr(target, path[-1])[...] = noise + (0.5 if path[-1] == "var" else -0.5)
    return model
