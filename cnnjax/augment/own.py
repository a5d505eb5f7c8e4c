"""Any function as an augmentation: what it is called with, what it may give, and how it is told from another."""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from cnnjax.staging.identity import NoIdentity, expression_digest

AugmentFn = Callable[..., Any]
"""`f(key, images)` gives images; `f(key, images, targets)` gives images, or images and targets. All of a batch at once,
f32[N, H, W, C], inside the compiled step. `cnnjax.augment.Augmentation` is one."""


def takes_targets(augment: AugmentFn) -> bool:
    """Whether an augmentation is called with targets: it says so itself, or has a third argument without a default.

    >>> takes_targets(lambda key, images: images), takes_targets(lambda key, images, targets: (images, targets))
    (False, True)
    """
    told = getattr(augment, "takes_targets", None)
    if isinstance(told, bool):
        return told
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    try:
        known = inspect.signature(augment).parameters.values()
    except (TypeError, ValueError):  # what is not written in Python has no signature
        return False
    return sum(p.kind in kinds and p.default is p.empty for p in known) >= 3


def augmented(
    augment: AugmentFn, key: jax.Array, images: jax.Array, targets: Any, mixable: Callable[[bool], Any]
) -> tuple[jax.Array, Any]:
    """Images and targets of a batch after an augmentation.

    Args:
        augment: the function.
        key: a JAX random key. One without targets gets `jax.random.split(key)[0]`.
        images: f32[N, H, W, C].
        targets: of the batch, as the task takes them.
        mixable: gives the targets as floats that can be mixed (classes as probabilities) if told that they are to be.

    Raises:
        ValueError: it gives something else than images (and targets) of the same number and size.
    """
    if not takes_targets(augment):
        found, kept = augment(jax.random.split(key)[0], images), mixable(False)
    else:
        given = mixable(True)
        found = augment(key, images, given)
        found, kept = found if isinstance(found, tuple) and len(found) == 2 else (found, targets)
        if jax.tree.structure(kept) != jax.tree.structure(given) and kept is not targets:
            raise ValueError(
                f"augment: expected targets as they were given, {jax.tree.structure(given)}, "
                f"found {jax.tree.structure(kept)}"
            )
    return _checked(found, images), _checked_targets(kept, len(images))


def digest_of(augment: AugmentFn, image: jax.ShapeDtypeStruct) -> str:
    """What tells an augmentation from every other, for the keys of stored views: its `digest`, or its program's.

    Args:
        augment: the function, without targets.
        image: shape and type of one image.

    Raises:
        ValueError: it takes targets, which are mixed anew in every step; or its program calls back into Python, which
            nothing tells from another that does.
    """
    if takes_targets(augment):
        raise ValueError(
            "an augmentation that takes targets (mixup and cutmix do) mixes images anew in every step; they cannot be "
            "stored as views: leave `views` out"
        )
    own = getattr(augment, "digest", None)
    if isinstance(own, str) and own:
        return own
    images = jax.ShapeDtypeStruct((1, *image.shape), image.dtype)
    try:
        return "function 1: " + expression_digest(augment, jax.random.key(0), images)
    except NoIdentity as error:
        raise ValueError(
            f"the views of this augmentation cannot be stored: {error}. Leave `views` out, or give the function a text "
            "`digest` that changes whenever it does"
        ) from None


def _checked(found: Any, images: jax.Array) -> jax.Array:
    if not hasattr(found, "shape") or found.shape != images.shape:
        shape = list(found.shape) if hasattr(found, "shape") else f"a {type(found).__name__}"
        raise ValueError(f"augment: expected images {list(images.shape)}, as they were given, found {shape}")
    return jnp.asarray(found, images.dtype)


def _checked_targets(targets: Any, count: int) -> Any:
    if wrong := [x for x in jax.tree.leaves(targets) if jnp.shape(x)[:1] != (count,)]:
        raise ValueError(f"augment: expected targets of {count} examples, found an array {list(jnp.shape(wrong[0]))}")
    return targets
