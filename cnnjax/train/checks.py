"""What tasks check: names, numbers, targets, and the outputs of a model."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np


def as_matrix(targets: Any, names: Sequence[str], what: str) -> np.ndarray:
    """Targets f64[N, K] of K names; [N] of one name is a column.

    Raises:
        ValueError: they have another shape, or are no numbers.
    """
    found = np.asarray(targets)
    if found.ndim == 1 and len(names) == 1:
        found = found[:, None]
    if found.ndim != 2 or found.shape[1] != len(names) or found.dtype.kind not in "biuf":
        raise ValueError(
            f"{what}: expected numbers [N, {len(names)}], a column for each of {', '.join(names[:5])}"
            + (", ..." if len(names) > 5 else "")
            + f"; found {found.dtype}{list(found.shape)}"
        )
    return found.astype(np.float64)


def checked_names(names: Any, what: str) -> tuple[str, ...]:
    """Distinct texts.

    Raises:
        ValueError: they are something else.
    """
    if isinstance(names, str) or not isinstance(names, Sequence) or not all(isinstance(n, str) and n for n in names):
        raise ValueError(f"{what}: expected a list of texts, found {names!r}")
    if twice := sorted({n for n in names if list(names).count(n) > 1}):
        raise ValueError(f"{what}: {', '.join(map(repr, twice))} given more than once")
    return tuple(names)


def checked_numbers(what: str, values: Any, count: int | None, low: float = -np.inf) -> tuple[float, ...]:
    """Finite numbers, one for each of `count` names, none below `low`.

    Raises:
        ValueError: they are something else.
    """
    try:
        found = tuple(float(x) for x in values)
    except (TypeError, ValueError):
        raise ValueError(f"{what}: expected numbers, found {values!r}") from None
    if (count is not None and len(found) != count) or not all(np.isfinite(x) and x >= low for x in found):
        size = "" if count is None else f"{count} "
        least = "" if low == -np.inf else f", none below {low:g}"
        raise ValueError(f"{what}: expected {size}finite numbers{least}, found {list(found)}")
    return found


def check_logits(outputs: Any, batch: int, wanted: tuple[int, ...] | None, why: str) -> int:
    """The number of a model's outputs for an example; a model that gives anything but [N, outputs] is refused.

    Args:
        outputs: shapes of what it gives for `batch` examples.
        batch: how many.
        wanted: which numbers fit; None where any does.
        why: what they are, for the message.

    Raises:
        ValueError: they do not fit.
    """
    if getattr(outputs, "ndim", 0) != 2 or outputs.shape[0] != batch:
        found = jax.tree.map(lambda x: list(x.shape), outputs)
        raise ValueError(f"the model must give logits [N, classes] for images [N, H, W, 3]; for {batch}: {found}")
    if wanted is not None and outputs.shape[1] not in wanted:
        raise ValueError(f"{why} need {' or '.join(map(str, wanted))} outputs, the model gives {outputs.shape[1]}")
    return outputs.shape[1]
