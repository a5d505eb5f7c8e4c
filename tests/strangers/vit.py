"""A small vision transformer, as somebody who has never heard of this library writes it."""

import jax
import jax.numpy as jnp
from flax import nnx


class Block(nnx.Module):
    def __init__(self, dim: int, heads: int, rngs: nnx.Rngs):
        self.mlp = nnx.Sequential(nnx.Linear(dim, 2 * dim, rngs=rngs), nnx.gelu, nnx.Linear(2 * dim, dim, rngs=rngs))
        self.norm2 = nnx.LayerNorm(dim, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(heads, dim, decode=False, rngs=rngs)
        self.norm1 = nnx.LayerNorm(dim, rngs=rngs)
        self.scale = nnx.Param(jnp.full(dim, 0.5))

    def __call__(self, x):
        x = x + self.scale * self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ViT(nnx.Module):
    """Images f32[N, H, W, C] to the class token f32[N, dim], or to all tokens."""

    def __init__(self, input_shape, depth=2, dim=8, heads=2, patch=8, pool="token", *, rngs: nnx.Rngs):
        height, width, channels = input_shape
        tokens = (height // patch) * (width // patch) + 1
        self.norm = nnx.LayerNorm(dim, rngs=rngs)
        self.blocks = nnx.List([Block(dim, heads, rngs) for _ in range(depth)])
        self.position = nnx.Param(0.02 * jax.random.normal(rngs.params(), (1, tokens, dim)))
        self.token = nnx.Param(jnp.zeros((1, 1, dim)))
        self.embed = nnx.Conv(channels, dim, (patch, patch), strides=patch, padding="VALID", rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)
        self.pool = pool

    def __call__(self, x):
        x = self.embed(x)
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        token = jnp.broadcast_to(self.token[...], (x.shape[0], 1, x.shape[-1]))
        x = self.dropout(jnp.concatenate([token, x], axis=1) + self.position)
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        return x[:, 0] if self.pool == "token" else x


def model(input_shape, rngs, **options):
    return ViT(input_shape, rngs=rngs, **options)
