"""TFDS data sets by name, and packed folders, as sources; TensorFlow is not needed."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from cnnjax.data.pixels import Resizing
from cnnjax.data.prepared import described, open_builder, prepared_folder
from cnnjax.data.records import Records
from cnnjax.data.splitting import FRACTIONS, OnError, by_class, draw_splits
from cnnjax.runtime import Progress

SPLITS = ("train", "validation", "test")
_OTHER_NAMES = {"val": "validation", "valid": "validation", "dev": "validation"}


def open_tfds(
    name: str | os.PathLike[str],
    splits: Mapping[str, str] | None = None,
    image_size: Sequence[int] = (160, 160),
    data_dir: str | os.PathLike[str] | None = None,
    on_error: OnError = "refuse",
    resizing: Resizing = "bilinear",
    progress: Progress | None = None,
    scale: str | Sequence[float] | None = None,
) -> dict[str, Records]:
    """Opens a TFDS data set, or a folder packed by `cnnjax pack`; prepares it first where that is needed.

    Without `splits` they are the data set's own: "train", "validation" (also "val", "valid", "dev") and "test".
    Where there is no "test", the validation split is the test split, as is usual for ImageNet. Where one split is
    all there is, it is split by chance into 70 % train, 15 % validation and 15 % test, each class in the same
    proportions: a packed folder CLASS/FILE just as `split_by_fraction` splits the folder.

    Args:
        name: "tfds:NAME", "tfds:NAME:CONFIG", "tfds:NAME:VERSION", "tfds:NAME:CONFIG:VERSION" (TFDS's own
            "NAME/CONFIG:VERSION" too), or the path of a folder that holds a prepared data set.
        splits: a split or slice in TFDS's syntax for "train", "validation" and "test":
            `{"train": "train[:80%]", "validation": "train[80%:]", "test": "test"}`. They must not overlap.
        image_size: as for `Records`.
        data_dir: where TFDS keeps its data sets; `$TFDS_DATA_DIR` or `~/tensorflow_datasets` by default.
        on_error: as for `Records`.
        resizing: as for `Records`.
        progress: as for `Records`, anew for each split.
        scale: as for `Records`.

    Raises:
        LookupError: no such data set or configuration; the message names the nearest.
        ValueError: an unknown split or slice, splits that share images, or as `Records`.
        OSError: the data set cannot be prepared here; the message gives the command that prepares it elsewhere.

    >>> import tempfile; from PIL import Image; from cnnjax.data import pack_folder
    >>> place = tempfile.TemporaryDirectory()
    >>> for i, name in enumerate(["cat", "dog"] * 5):
    ...     os.makedirs(f"{place.name}/pets/{name}", exist_ok=True)
    ...     Image.new("RGB", (9, 7), (i, 0, 0)).save(f"{place.name}/pets/{name}/{i}.png")
    >>> packed = pack_folder(f"{place.name}/pets").out
    >>> {key: len(source) for key, source in open_tfds(packed).items()}
    {'train': 6, 'validation': 2, 'test': 2}
    >>> found = open_tfds(packed, {"train": "train[:80%]", "test": "train[80%:]"}, image_size=(7, 9))
    >>> found["test"].names, found["test"].read([0, 1])[:, 0, 0, 0].tolist()
    (('dog/7.png', 'dog/9.png'), [7.0, 9.0])
    >>> place.cleanup()
    """
    directory = prepared_folder(os.fspath(name), data_dir)
    if splits is None:
        chosen, by_chance = _own_splits(directory)
    else:
        chosen, by_chance = dict(splits), False
        if not chosen or set(chosen) - set(SPLITS):
            raise ValueError(f"splits: expected some of {', '.join(SPLITS)}, found {', '.join(chosen) or 'none'}")
    if by_chance:
        whole = Records(directory, chosen["train"], image_size, "refuse", resizing, progress, scale)
        found = split_records(whole)
        if on_error == "skip":
            for part in found.values():
                part.skip_undecodable()
        return found
    found = {
        key: Records(directory, chosen[key], image_size, on_error, resizing, progress, scale)
        for key in SPLITS
        if key in chosen
    }
    for i, one in enumerate(found):
        for other in list(found)[i + 1 :]:
            if shared := len(np.intersect1d(found[one].places, found[other].places)):
                raise ValueError(
                    f"{one} ({chosen[one]!r}) and {other} ({chosen[other]!r}) of {directory} share {shared} images"
                )
    return found


def _own_splits(directory: Path) -> tuple[dict[str, str], bool]:
    """Returns which of the data set's splits serve as which, and whether "train" has to be split by chance."""
    builder = open_builder(directory)
    held = [name for name, info in builder.info.splits.items() if info.num_examples]
    if len(held) == 1:
        return {"train": held[0]}, True
    chosen: dict[str, str] = {}
    for name in held:
        key = _OTHER_NAMES.get(name, name)
        if key in SPLITS:
            chosen.setdefault(key, name)
    if "test" not in chosen and "validation" in chosen:
        chosen["test"] = chosen.pop("validation")
    if "train" not in chosen or "test" not in chosen:
        raise ValueError(
            f"{directory} has no train split beside a test or validation split; say which are which, as in "
            f"splits={{'train': ..., 'test': ...}}: the splits are {described(builder)}"
        )
    return chosen, False


def split_records(whole: Records, fractions: Mapping[str, float] = FRACTIONS, seed: int = 0) -> dict[str, Records]:
    """Splits by chance, each class in the same proportions, as `split_by_fraction` splits a folder.

    Args:
        whole: all images.
        fractions: the share of every split; they sum to 1.
        seed: of the draw.

    Raises:
        ValueError: a class with fewer images than splits.
    """
    drawn = draw_splits(by_class(whole.labels, whole.class_names), fractions, seed, whole.directory)
    return {key: whole.take(rows) for key, rows in drawn.items()}
