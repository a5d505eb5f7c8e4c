"""What is minimised and what is reported."""

from math import nan
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax


class Metrics(NamedTuple):
    """Sums over examples; `count` of them; and how many steps were left out since their numbers were not finite."""

    loss: jax.Array | np.ndarray | float
    correct: jax.Array | np.ndarray | float
    count: jax.Array | np.ndarray | float
    skipped: jax.Array | np.ndarray | float = 0.0

    @property
    def begun(self) -> bool:
        """Whether any step is in the sums."""
        return bool(float(self.count) or float(self.skipped))

    def summary(self) -> dict[str, float]:
        """Means, as Python numbers."""
        loss, correct, count, skipped = (float(x) for x in jax.device_get(self))
        means = (
            {"loss": loss / count, "accuracy": correct / count} if count else dict.fromkeys(("loss", "accuracy"), nan)
        )
        return means | ({"skipped_steps": skipped} if skipped else {})


ZERO = Metrics(0.0, 0.0, 0.0)


def losses(logits: jax.Array, labels: jax.Array, smoothing: float = 0.0) -> tuple[jax.Array, jax.Array]:
    """Cross-entropy and correctness of each example.

    Args:
        logits: f32[N, 1] for two classes (binary cross-entropy), f32[N, K] for K (softmax).
        labels: i32[N], or f32 targets of the logits' shape: probabilities, as mixed pictures have them.
        smoothing: how much of the probability is spread evenly over all classes, as `label_smoothing` of Keras's
            losses; correctness is that of the labels as they were.

    Returns:
        (f32[N] losses in nats, f32[N] 1 where the prediction is right: the likeliest class, of mixed ones too).

    >>> losses(jnp.zeros((1, 4)), jnp.array([2]))[0]
    Array([1.3862944], dtype=float32)
    """
    if smoothing:
        classes = max(logits.shape[-1], 2)
        wanted = labels if labels.ndim == 2 else targets(labels, logits.shape[-1])
        return losses(logits, wanted * (1 - smoothing) + smoothing / classes)
    if logits.shape[-1] == 1:
        target = labels.reshape(-1).astype(logits.dtype)
        loss = optax.sigmoid_binary_cross_entropy(logits[:, 0], target)
        return loss, ((logits[:, 0] > 0) == (target > 0.5)).astype(jnp.float32)
    if labels.ndim == 2:
        loss = optax.softmax_cross_entropy(logits, labels.astype(logits.dtype))
        return loss, (jnp.argmax(logits, -1) == jnp.argmax(labels, -1)).astype(jnp.float32)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return loss, (jnp.argmax(logits, -1) == labels).astype(jnp.float32)


def targets(labels: jax.Array, outputs: int) -> jax.Array:
    """Labels i32[N] as probabilities f32[N, outputs]: one-hot, or for one output the second class's.

    >>> targets(jnp.array([0, 1]), 1).tolist()
    [[0.0], [1.0]]
    """
    if outputs == 1:
        return (labels > 0).astype(jnp.float32)[:, None]
    return jax.nn.one_hot(labels, outputs)


def count_logits(out: Any, batch: int) -> int:
    """Number of logits that a model gives; a model that gives anything else is refused.

    Args:
        out: what it gives for `batch` images, or its shape.
        batch: how many.

    Raises:
        ValueError: it is no array [batch, classes].
    """
    if getattr(out, "ndim", 0) != 2 or out.shape[0] != batch:
        found = jax.tree.map(lambda x: list(x.shape), out)
        raise ValueError(f"the model must give logits [N, classes] for images [N, H, W, 3]; for {batch}: {found}")
    return out.shape[1]
