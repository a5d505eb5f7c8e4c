"""Images and targets mixed in pairs: mixup and CutMix."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cnnjax.augment.resampling import float_type
from cnnjax.runtime import Tree

_STEPS = 4096  # quantiles of Beta that are tabulated, those between them are interpolated


class Mixing(NamedTuple):
    """What is drawn for a batch.

    Attributes:
        partner: i32[N], the other image of each pair.
        share: f32[N], lambda, in [0, 1]: how much stays of the image itself.
        cut: bool[N], whether a box is cut out (CutMix) or all pixels are blended (mixup).
        centre: f32[N, 2], of the box, in [0, 1): fractions of height and width.
    """

    partner: jax.Array
    share: jax.Array
    cut: jax.Array
    centre: jax.Array


@partial(jax.jit, static_argnums=(1, 2, 3))
def draw_mixing(key: jax.Array, count: int, mixup: float, cutmix: float) -> Mixing:
    """Draw partners and shares: lambda ~ Beta(alpha, alpha), for every image its own.

    Args:
        key: A JAX random key.
        count: Images in the batch.
        mixup: Alpha of mixup (Zhang et al. 2018); 0: off.
        cutmix: Alpha of CutMix (Yun et al. 2019); 0: off. Where both are on, each image draws one of them.

    >>> mixing = draw_mixing(jax.random.key(0), 8, 0.2, 0.0)
    >>> sorted(mixing.partner.tolist()), bool(mixing.cut.any())
    ([0, 1, 2, 3, 4, 5, 6, 7], False)
    """

    def one(index: jax.Array) -> jax.Array:
        return jax.random.uniform(jax.random.fold_in(key, index), (5,))

    u = jax.vmap(one)(jnp.arange(count))
    cut = u[:, 0] < (0.5 if mixup and cutmix else float(bool(cutmix)))
    by_cutmix, by_mixup = (_beta(u[:, 1], alpha) if alpha else jnp.ones(count) for alpha in (cutmix, mixup))
    return Mixing(jnp.argsort(u[:, 4]), jnp.where(cut, by_cutmix, by_mixup), cut, u[:, 2:4])


@jax.jit
def mix(mixing: Mixing, images: jax.Array, targets: Tree) -> tuple[jax.Array, Any]:
    """Mix each image, and its target, with its partner's.

    mixup: lambda x + (1 - lambda) x', targets likewise. CutMix: a box of sides H sqrt(1 - lambda) and
    W sqrt(1 - lambda), cut off at the edge, holds the partner's pixels; the partner's part of the target is
    the box's part of the area, counted in pixels.

    Args:
        mixing: From `draw_mixing`.
        images: f32[N, H, W, C]; integers become float32.
        targets: f32[N, K], one-hot or probabilities; or a tree of f32[N, ...].

    Returns:
        Images and targets of the same shapes.

    >>> mixing = Mixing(jnp.array([1, 0]), jnp.array([0.75, 1.0]), jnp.array([False, False]), jnp.zeros((2, 2)))
    >>> mix(mixing, jnp.zeros((2, 4, 4, 1)), jnp.eye(2))[1].tolist()
    [[0.75, 0.25], [0.0, 1.0]]
    """
    inside = []
    for axis, length in enumerate(images.shape[1:3]):
        side = jnp.floor(length * jnp.sqrt(1 - mixing.share)).astype(jnp.int32)
        low = jnp.floor(length * mixing.centre[:, axis]).astype(jnp.int32) - side // 2
        place = jnp.arange(length)
        inside.append((place >= low[:, None]) & (place < (low + side)[:, None]))
    rows, columns = inside
    area = rows.sum(1) * columns.sum(1) / (images.shape[1] * images.shape[2])
    box = rows[:, :, None] & columns[:, None, :]
    share = mixing.share[:, None, None]
    kept = jnp.where(mixing.cut[:, None, None], jnp.where(box, 0.0, 1.0), share)[..., None]
    label = jnp.where(mixing.cut, 1 - area, mixing.share)
    mixed = kept * images + (1 - kept) * _partners(images, mixing)

    def mixed_target(x: jax.Array) -> jax.Array:
        own = label.reshape(-1, *[1] * (x.ndim - 1))
        return (own * x + (1 - own) * _partners(x, mixing)).astype(x.dtype)

    return mixed.astype(float_type(images)), jax.tree.map(mixed_target, targets)


def _partners(x: jax.Array, mixing: Mixing) -> jax.Array:
    # Partners lie on other devices: where a mesh's axes are explicit, JAX wants to be told where they go.
    return x.at[mixing.partner].get(mode="promise_in_bounds", out_sharding=jax.typeof(x).sharding)


def _beta(u: jax.Array, alpha: float) -> jax.Array:
    """Beta(alpha, alpha) of uniform numbers, through its quantiles.

    `jax.random.beta` draws by rejection: loops that take XLA seconds to compile.
    """
    from scipy.special import betaincinv

    quantiles = jnp.asarray(betaincinv(alpha, alpha, np.linspace(0, 1, _STEPS + 1)), jnp.float32)
    low = jnp.minimum(jnp.floor(u * _STEPS), _STEPS - 1)
    below, above = (quantiles[low.astype(jnp.int32) + k] for k in (0, 1))
    return below + (above - below) * (u * _STEPS - low)
