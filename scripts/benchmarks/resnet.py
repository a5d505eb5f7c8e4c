"""ResNet-50 (He et al. 2015, strides in the 3x3 as in version 1.5), written in Flax with cnnjax's operations."""

import jax
from flax import nnx

from cnnjax import ops

STAGES = ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2))  # width, blocks, stride of the first


class _Normed(nnx.Module):
    def __init__(self, size: int, ins: int, outs: int, stride: int, rngs: nnx.Rngs):
        pads = [(size // 2, size // 2)] * 2
        self.conv = nnx.Conv(
            ins, outs, (size, size), strides=stride, padding=pads, use_bias=False,
            conv_general_dilated=ops.conv_general_dilated, rngs=rngs,
        )  # fmt: skip
        self.norm = nnx.BatchNorm(outs, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.norm(self.conv(x))


class _Bottleneck(nnx.Module):
    def __init__(self, ins: int, width: int, stride: int, rngs: nnx.Rngs):
        self.reduce = _Normed(1, ins, width, 1, rngs)
        self.inner = _Normed(3, width, width, stride, rngs)
        self.expand = _Normed(1, width, 4 * width, 1, rngs)
        self.shortcut = _Normed(1, ins, 4 * width, stride, rngs) if ins != 4 * width or stride > 1 else None

    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.expand(jax.nn.relu(self.inner(jax.nn.relu(self.reduce(x)))))
        return jax.nn.relu(y + (self.shortcut(x) if self.shortcut else x))


class ResNet50(nnx.Module):
    """Pictures in 0..255 to one logit."""

    def __init__(self, rngs: nnx.Rngs):
        self.stem, ins, blocks = _Normed(7, 3, 64, 2, rngs), 64, []
        for width, count, stride in STAGES:
            for k in range(count):
                blocks.append(_Bottleneck(ins, width, stride if k == 0 else 1, rngs))
                ins = 4 * width
        self.blocks, self.out = nnx.List(blocks), nnx.Linear(ins, 1, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = nnx.max_pool(jax.nn.relu(self.stem(x / 127.5 - 1)), (3, 3), (2, 2), [(1, 1), (1, 1)])
        for block in self.blocks:
            x = block(x)
        return self.out(x.mean((1, 2)))
