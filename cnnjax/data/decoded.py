"""The decoded pixels of a packed data set, beside its record files: an image is decoded once, and never again.

Two files for each record file: the pixels of all its images one after another, and what says where each begins, of
which image it is, and its SHA-256. Pixels are kept as they are decoded, u8[H, W, 3] each at its own size, and resized
while reading; or resized already, f32[*size, 3], and then only copied. Either way they are the very ones that reading
the images themselves gives.
"""

import bisect
import os
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cnnjax.data.entries import BESIDE, path_beside
from cnnjax.data.listing import shown
from cnnjax.data.pixels import PIXEL_CHOICES, RESIZINGS, Resizing, Scale, decode, read_bytes, resize, scale_choice
from cnnjax.data.source import map_threaded
from cnnjax.files.digests import content_digest
from cnnjax.files.writing import whole_file, write_whole_arrays

_CHUNK = 64


class DecodedFormat(NamedTuple):
    """What is kept of each image: its decoded pixels (by a scale of 16-bit files), or (with a size) these resized."""

    size: tuple[int, int] | None = None
    resizing: Resizing = "bilinear"
    scale: Scale | None = None

    @property
    def suffix(self) -> str:
        """Of the file names."""
        scale = "" if self.scale is None else f".{self.scale[0]:g}-to-{self.scale[1]:g}"
        return scale + (".pixels" if self.size is None else f".{self.size[0]}x{self.size[1]}-{self.resizing}.pixels")

    @property
    def dtype(self) -> type:
        """Of the values."""
        return np.uint8 if self.size is None else np.float32

    @property
    def choices(self) -> str:
        """Every choice that decides a value."""
        decoded = PIXEL_CHOICES + scale_choice(self.scale)
        return decoded if self.size is None else f"{decoded + RESIZINGS[self.resizing]}; {self.size}"


class Shard(NamedTuple):
    """A record file: its path, the place of its first image in the whole data set, and how many it holds."""

    path: str
    first: int
    count: int


class Decoded:
    """The decoded pixels of a data set's images, by their places in it.

    The first time that a process reads an image's pixels they are compared with their SHA-256.

    Args:
        shards: the record files, in order; those without pixels beside them are left out.
        kept: which pixels.
    """

    def __init__(self, shards: Sequence[Shard], kept: DecodedFormat = DecodedFormat()):  # noqa: B008
        self._kept = kept
        self._shards = [shard for shard in shards if _pixels_path(shard.path, kept).exists()]
        self._firsts = [shard.first for shard in self._shards]
        self._open: dict[int, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_open": {}}

    def get(self, place: int, digest: bytes) -> np.ndarray | None:
        """The pixels of the image at `place`, None where they are not kept.

        Args:
            place: in the whole data set.
            digest: SHA-256 of the image's bytes: pixels of any other image do not count.

        Raises:
            OSError: the pixels are not those that were written.
        """
        number = bisect.bisect_right(self._firsts, place) - 1
        if number < 0 or place >= self._shards[number].first + self._shards[number].count:
            return None
        if number not in self._open:
            self._open[number] = _OpenShard.open(self._shards[number], self._kept)
        shard = self._open[number]
        return None if shard is None else shard.get(place - self._shards[number].first, digest)


class _OpenShard:
    """One file of pixels. It is read, not mapped into memory: a mapped file that is cut short kills the process."""

    def __init__(self, path: Path, starts: np.ndarray, index: dict[str, np.ndarray], dtype: type):
        self._path, self._starts, self._dtype = path, starts.tolist(), dtype
        self._shapes, self._hashes, self._checks = (index[name] for name in ("shapes", "hashes", "checks"))
        self._seen = np.zeros(len(self._shapes), bool)

    @classmethod
    def open(cls, shard: Shard, kept: DecodedFormat) -> "_OpenShard | None":
        index = _load_index(shard.path, kept)
        if index is None or len(index["shapes"]) != shard.count:
            return None
        starts, path = _starts(index, kept), _pixels_path(shard.path, kept)
        return cls(path, starts, index, kept.dtype) if path.stat().st_size == starts[-1] and starts[-1] else None

    def get(self, position: int, digest: bytes) -> np.ndarray | None:
        if self._hashes[position].tobytes() != digest:
            return None
        start, stop = self._starts[position : position + 2]
        with self._path.open("rb", buffering=0) as file:
            file.seek(start)
            content = file.read(stop - start)
        if not self._seen[position] or len(content) != stop - start:
            if content_digest(content) != self._checks[position].tobytes():
                raise OSError(f"damaged pixels in {self._path}; delete it, and pack with --decoded again")
            self._seen[position] = True
        return np.frombuffer(content, self._dtype).reshape(*self._shapes[position], 3)


def has_decoded(record_file: Path, hashes: np.ndarray, kept: DecodedFormat = DecodedFormat()) -> bool:  # noqa: B008
    """Whether the pixels of a record file's images, with these SHA-256 u8[N, 32], are all there."""
    index, path = _load_index(record_file, kept), _pixels_path(record_file, kept)
    if index is None or not path.exists() or path.stat().st_size != _starts(index, kept)[-1]:
        return False
    return np.array_equal(index["hashes"], hashes)


def decoded_files(folder: Path) -> list[Path]:
    """The files of pixels of a packed data set."""
    return sorted((folder / BESIDE).glob("*.pixels"))


def write_decoded(
    record_file: Path,
    paths: Sequence[str],
    hashes: np.ndarray,
    kept: DecodedFormat = DecodedFormat(),  # noqa: B008
) -> Generator[int]:
    """Decodes the images of a record file and keeps their pixels; yields how many are done.

    Args:
        record_file: whose images they are.
        paths: of the images' files, in its order.
        hashes: u8[N, 32], SHA-256 of their bytes.
        kept: which pixels.

    Raises:
        ValueError: a file is not what was packed.
        ImageError, OSError: as `read_bytes` and `decode`.
    """

    def one(row: int) -> np.ndarray:
        content = read_bytes(paths[row])
        if content_digest(content) != hashes[row].tobytes():
            raise ValueError(f"{shown(paths[row])} is not what was packed; delete the pack and pack it anew")
        pixels = decode(content, kept.scale)
        return np.ascontiguousarray(pixels if kept.size is None else resize(pixels, kept.size, kept.resizing))

    target = _pixels_path(record_file, kept)
    shapes, checks = np.zeros((len(paths), 2), np.int32), np.zeros((len(paths), 32), np.uint8)
    with whole_file(target, synced=True) as partial, partial.open("wb") as file:
        for start in range(0, len(paths), _CHUNK):
            rows = range(start, min(start + _CHUNK, len(paths)))
            for row, pixels in zip(rows, map_threaded(one, rows), strict=True):
                file.write(pixels)
                shapes[row] = pixels.shape[:2]
                checks[row] = np.frombuffer(content_digest(pixels), np.uint8)
            yield rows.stop
    # Last: it says that the pixels are whole.
    write_whole_arrays(
        _index_path(record_file, kept), choices=np.array(kept.choices), shapes=shapes, hashes=hashes, checks=checks
    )


def _pixels_path(record_file: str | os.PathLike[str], kept: DecodedFormat) -> Path:
    beside = path_beside(record_file)
    return beside.with_name(beside.stem + kept.suffix)


def _index_path(record_file: str | os.PathLike[str], kept: DecodedFormat) -> Path:
    pixels = _pixels_path(record_file, kept)
    return pixels.with_name(pixels.name + ".npz")


def _starts(index: dict[str, np.ndarray], kept: DecodedFormat) -> np.ndarray:
    """Where each image's pixels begin, in bytes, and where the last one's end."""
    each = 3 * np.dtype(kept.dtype).itemsize * index["shapes"].astype(np.int64).prod(axis=1)
    return np.concatenate([[0], np.cumsum(each)])


def _load_index(record_file: str | os.PathLike[str], kept: DecodedFormat) -> dict[str, np.ndarray] | None:
    """What `write_decoded` wrote; None if it is not there, damaged, or of other choices of pixels."""
    try:
        with np.load(_index_path(record_file, kept)) as found:
            index = dict(found)
            whole = str(index["choices"]) == kept.choices and len(index["shapes"]) == len(index["hashes"])
    except (OSError, ValueError, KeyError, EOFError):
        return None
    return index if whole and len(index["checks"]) == len(index["shapes"]) else None
