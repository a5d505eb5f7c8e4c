"""Whatever `--data` names, opened: a folder, a packed folder, a TFDS data set."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cnnjax.data.entries import BESIDE, holds_records
from cnnjax.data.folder import OnError, open_splits, split_by_fraction, splits
from cnnjax.data.pixels import Resizing


def open_data(
    data: str | os.PathLike[str],
    image_size: Sequence[int] = (160, 160),
    *,
    parts: Mapping[str, str] | None = None,
    on_error: OnError = "refuse",
    resizing: Resizing = "bilinear",
) -> dict[str, Any]:
    """Open pictures, and split them if they are not split yet.

    Args:
        data: A folder SPLIT/CLASS/FILE or CLASS/FILE, what `cnnjax pack` made of one, or "tfds:NAME[:CONFIG]".
        image_size: Height and width that `read` gives.
        parts: Slices of a TFDS data set in its own syntax: `{"train": "train[:80%]", "test": "train[80%:]"}`.
        on_error: "refuse" raises for a picture that cannot be decoded, "skip" leaves it out and lists it.
        resizing: As for `Folder`.

    Returns:
        Sources by split: "train" and "test" at least.

    Raises:
        ValueError: There is no train or no test split, or `parts` were given for a plain folder.
        As `open_splits`, `split_by_fraction` or `open_tfds` otherwise.

    >>> import tempfile; from PIL import Image
    >>> root = tempfile.TemporaryDirectory()
    >>> for name in ("cat", "dog"):
    ...     os.makedirs(f"{root.name}/{name}")
    ...     for k in range(4):
    ...         Image.new("RGB", (9, 7), "red").save(f"{root.name}/{name}/{k}.png")
    >>> {name: len(source) for name, source in open_data(root.name, (8, 8)).items()}
    {'train': 4, 'validation': 2, 'test': 2}
    >>> root.cleanup()
    """
    name = os.fspath(data)
    if (
        name.startswith("tfds:") or holds_records(name) or (Path(name) / BESIDE).is_dir()
    ):  # half a pack is told how it is finished
        from cnnjax.data.tfds_source import open_tfds

        sources: dict[str, Any] = dict(open_tfds(name, parts, image_size, on_error=on_error, resizing=resizing))
    elif parts:
        raise ValueError(f"slices are of TFDS data sets; {name} is a folder, whose subfolders are its splits")
    else:
        opened = open_splits if splits(name) else split_by_fraction
        sources = dict(opened(name, image_size=image_size, on_error=on_error, resizing=resizing))
    if missing := [split for split in ("train", "test") if split not in sources]:
        raise ValueError(f"{name} has no {' and no '.join(missing)} split; found {', '.join(sources)}")
    return sources
