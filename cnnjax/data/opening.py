"""Whatever `--data` names, opened: a folder, a packed folder, a TFDS data set, a folder of sounds."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cnnjax.data.entries import BESIDE, holds_records
from cnnjax.data.folder import open_splits, split_by_fraction, splits
from cnnjax.data.own import is_own_data, open_own
from cnnjax.data.pixels import Resizing
from cnnjax.data.sound import SoundFolder
from cnnjax.data.splitting import OnError


def open_data(
    data: str | os.PathLike[str],
    image_size: Sequence[int] = (160, 160),
    *,
    parts: Mapping[str, str] | None = None,
    on_error: OnError = "refuse",
    resizing: Resizing = "bilinear",
    scale: str | Sequence[float] | None = None,
) -> dict[str, Any]:
    """Open images, and split them if they are not split yet.

    Args:
        data: A folder SPLIT/CLASS/FILE or CLASS/FILE, what `cnnjax pack` made of one, or "tfds:NAME[:CONFIG]"; or the
            import path of a function of `image_size` that gives sources by split, such as `cnnjax.data.InMemory`: it
            reads and resizes by itself, and the options below do not reach it.
        image_size: Height and width that `read` gives.
        parts: Slices of a TFDS data set in its own syntax: `{"train": "train[:80%]", "test": "train[80%:]"}`.
        on_error: "refuse" raises for an image that cannot be decoded, "skip" leaves it out and lists it.
        resizing: As for `Folder`.
        scale: As for `Folder`.

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
    if is_own_data(name):
        if parts:
            raise ValueError(f"slices are of TFDS data sets; {name} gives its own splits")
        return open_own(name, image_size)
    choices: dict[str, Any] = {"on_error": on_error, "resizing": resizing, "scale": scale}
    if (
        name.startswith("tfds:") or holds_records(name) or (Path(name) / BESIDE).is_dir()
    ):  # half a pack is told how it is finished
        from cnnjax.data.tfds_source import open_tfds

        sources: dict[str, Any] = dict(open_tfds(name, parts, image_size, **choices))
    elif parts:
        raise ValueError(f"slices are of TFDS data sets; {name} is a folder, whose subfolders are its splits")
    else:
        opened = open_splits if splits(name) else split_by_fraction
        sources = dict(opened(name, image_size=image_size, **choices))
    if missing := [split for split in ("train", "test") if split not in sources]:
        raise ValueError(f"{name} has no {' and no '.join(missing)} split; found {', '.join(sources)}")
    return sources


def open_sounds(
    data: str | os.PathLike[str], *, sample_rate: int, seconds: float, on_error: OnError = "refuse"
) -> dict[str, SoundFolder]:
    """Open a folder of sounds, SPLIT/CLASS/FILE.

    It is not split for you: recordings of one speaker or place on both sides would be told apart by that; see
    `split_by_group`.

    Args:
        data: The folder.
        sample_rate: In hertz, as for `SoundFolder`, like `seconds` and `on_error`.
        seconds: Length of a waveform.
        on_error: "refuse" or "skip".

    Raises:
        ValueError: There is no train or no test split, or their classes differ.
        As `SoundFolder` otherwise.
    """
    found = splits(data)
    if missing := [split for split in ("train", "test") if split not in found]:
        raise ValueError(
            f"{os.fspath(data)} has no folder {' and no folder '.join(missing)} of classes of sounds; sounds are not "
            "split for you, since a voice on both sides would flatter the result (cnnjax.data.split_by_group splits)"
        )
    sources = {
        kind: SoundFolder(data, name, sample_rate=sample_rate, seconds=seconds, on_error=on_error)
        for kind, name in found.items()
    }
    classes = {kind: source.class_names for kind, source in sources.items()}
    if len(set(classes.values())) > 1:
        raise ValueError(f"the splits of {os.fspath(data)} must hold the same classes, found {classes}")
    return sources
