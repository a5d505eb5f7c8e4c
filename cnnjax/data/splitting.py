"""Splits: what they are called, and how examples are drawn for them."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal, get_args

import numpy as np

from cnnjax.files.digests import content_digest

OnError = Literal["refuse", "skip"]

FRACTIONS: Mapping[str, float] = MappingProxyType({"train": 0.7, "validation": 0.15, "test": 0.15})
SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
"""What a split is, by what it is called."""


def checked_on_error(on_error: str) -> None:
    """Raise `ValueError` unless it is "refuse" or "skip"."""
    if on_error not in get_args(OnError):
        raise ValueError(f"on_error: expected 'refuse' or 'skip', found {on_error!r}")


def draw_splits(
    classes: Mapping[str, np.ndarray],
    fractions: Mapping[str, float],
    seed: int,
    where: object,
    error: type[ValueError] = ValueError,
) -> dict[str, np.ndarray]:
    """Split examples by chance, each class in the same proportions and with at least one example a split.

    The draw depends on the seed, the classes' names and the order of their examples alone: adding a class leaves the
    others' split as it was.

    Args:
        classes: By name, the examples of a class, i64[n]; one without any has no part.
        fractions: The share of every split; they sum to 1.
        seed: Of the draw.
        where: What is split, for the error.
        error: What is raised.

    Returns:
        By split, its examples, sorted.

    Raises:
        ValueError: Fractions that are not positive or do not sum to 1; a class with fewer examples than splits.

    >>> draw_splits({"cat": np.arange(10)}, {"train": 0.8, "test": 0.2}, 0, "pets")["test"].tolist()
    [6, 7]
    """
    if not fractions or min(fractions.values()) <= 0 or abs(sum(fractions.values()) - 1) > 1e-6:
        raise ValueError(f"fractions: expected positive numbers that sum to 1, found {dict(fractions)}")
    few = [f"{name!r} has {len(members)}" for name, members in classes.items() if 0 < len(members) < len(fractions)]
    if few:
        raise error(f"{where}: too few images for {len(fractions)} splits: class {', '.join(few)}")
    ends = np.cumsum(list(fractions.values()))[:-1]
    chosen: dict[str, list[np.ndarray]] = {kind: [] for kind in fractions}
    for name, members in classes.items():
        if len(members):
            rng = np.random.default_rng([seed, *content_digest(name.encode())])
            parts = np.split(rng.permutation(members), _cuts(ends, len(members)))
            for kind, part in zip(fractions, parts, strict=True):
                chosen[kind].append(part)
    return {kind: np.sort(np.concatenate(parts)) for kind, parts in chosen.items()}


def by_class(labels: np.ndarray, class_names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """The examples of each class, in order; found once for all classes, whatever their number."""
    ends = np.cumsum(np.bincount(labels, minlength=len(class_names)))
    return dict(zip(class_names, np.split(np.argsort(labels, kind="stable"), ends[:-1]), strict=True))


def _cuts(ends: np.ndarray, count: int) -> list[int]:
    """Rounds the splits' ends to whole examples, at least one a split."""
    cuts: list[int] = []
    for place, end in enumerate(ends):
        low, high = (cuts[-1] if cuts else 0) + 1, count - (len(ends) - place)
        cuts.append(min(max(round(float(end) * count), low), high))
    return cuts
