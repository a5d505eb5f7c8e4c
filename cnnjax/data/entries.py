"""What record files hold, kept beside them or in the cache, so that they are read through only once."""

import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cnnjax.data.pixels import FORMATS, MAX_PIXELS, PIXEL_CHOICES, Scale, scale_choice
from cnnjax.files.digests import digest, joined_digest
from cnnjax.files.writing import write_whole_arrays
from cnnjax.runtime.cache import cache_folder

BESIDE = "cnnjax-pack"
"""The folder beside packed record files that says what they hold."""


class Entries(NamedTuple):
    """What one record file holds, record by record.

    Attributes:
        labels: i64[N], as they are stored; -1 stands for none.
        hashes: u8[N, 32], SHA-256 of every image's bytes.
        names: N names, or none at all where the records carry no names.
        decoder: the `decoder` that all images were decoded with, "" if they were not.
    """

    labels: np.ndarray
    hashes: np.ndarray
    names: tuple[str, ...]
    decoder: str = ""


def decoder(scale: Scale | None = None) -> str:
    """What decides whether an image can be decoded here, by a scale of 16-bit files."""
    import PIL

    choices = f"{PIXEL_CHOICES}{scale_choice(scale) or '; 16 bit: no dark ones'}"
    return f"Pillow {PIL.__version__}; {choices}; {', '.join(FORMATS)}; {MAX_PIXELS} pixels"


def holds_records(folder: str | os.PathLike[str]) -> bool:
    """Says whether `folder` is a whole TFDS data set: TFDS and `pack_folder` write this file last."""
    return os.path.isfile(os.path.join(folder, "dataset_info.json"))


def records_cache() -> Path:
    """Where entries and the marks of verified images are kept."""
    return cache_folder() / "records"


def verified_mark(hashes: np.ndarray, scale: Scale | None = None) -> Path:
    """The file in the cache that says that all images with these hashes, u8[N, 32], can be decoded here."""
    return records_cache() / "verified" / joined_digest(decoder(scale), [np.ascontiguousarray(hashes)])[:32]


def path_beside(file: str | os.PathLike[str]) -> Path:
    """Where a packed record file's entries lie."""
    file = Path(file)
    return file.parent / BESIDE / f"{file.name}.npz"


def find_entries(file: str | os.PathLike[str], keys: Sequence[str], count: int) -> Entries | None:
    """Returns the entries of a record file as they were kept, None if it has to be read through.

    Entries count as those of the file if its size is the same, and from the cache also its time of change. A
    source compares every image that it reads with its entry besides, so a file that was exchanged in spite
    of that is found out and never read under another one's digest.
    """
    status = os.stat(file)
    for path, state in (
        (path_beside(file), (status.st_size, -1)),
        (_cached(file), (status.st_size, status.st_mtime_ns)),
    ):
        entries = load_entries(path, keys, state)
        if entries is not None and len(entries.labels) == count:
            return entries
    return None


def keep_entries(file: str | os.PathLike[str], keys: Sequence[str], entries: Entries) -> None:
    """Keeps the entries of a record file in the cache."""
    status = os.stat(file)
    path = _cached(file)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_entries(path, keys, (status.st_size, status.st_mtime_ns), entries)


def save_entries(path: Path, keys: Sequence[str], state: tuple[int, int], entries: Entries) -> None:
    """Writes entries, whole or not at all; the same entries are the same bytes.

    Args:
        path: the file to write.
        keys: names of the features that were read.
        state: the record file's size in bytes and its time of change in ns, -1 for any.
        entries: what it holds.
    """
    names = [os.fsencode(name) for name in entries.names]
    write_whole_arrays(
        path,
        keys=np.array(keys),
        decoder=np.array(entries.decoder),
        state=np.array(state, np.int64),
        labels=entries.labels,
        hashes=entries.hashes,
        lengths=np.array([len(name) for name in names], np.int32),
        names=np.frombuffer(b"".join(names), np.uint8),
    )


def load_entries(path: Path, keys: Sequence[str], state: tuple[int, int] | None = None) -> Entries | None:
    """Reads what `save_entries` wrote; None if it is not there, damaged, or of other keys or another state."""
    try:
        with np.load(path) as found:
            if found["keys"].tolist() != list(keys) or (state and tuple(found["state"].tolist()) != state):
                return None
            text, ends = found["names"].tobytes(), np.cumsum(found["lengths"], dtype=np.int64)
            names = tuple(os.fsdecode(text[a:b]) for a, b in zip([0, *ends[:-1].tolist()], ends.tolist(), strict=False))
            entries = Entries(found["labels"], found["hashes"], names, str(found["decoder"]))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    if entries.hashes.shape != (len(entries.labels), 32) or len(names) not in (0, len(entries.labels)):
        return None
    return entries


def _cached(file: str | os.PathLike[str]) -> Path:
    return records_cache() / f"{digest(os.fsencode(os.path.realpath(file)))[:32]}.npz"
