"""The images in TFDS record files, read by index."""

import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from cnnjax.data.decoded import Decoded, DecodedFormat, Shard
from cnnjax.data.entries import BESIDE, Entries, decoder, find_entries, keep_entries, records_cache, verified_mark
from cnnjax.data.examples import Examples
from cnnjax.data.listing import shown
from cnnjax.data.pixels import (
    ImageError,
    Resizing,
    checked_resizing,
    checked_scale,
    decode,
    resize,
)
from cnnjax.data.prepared import data_source, described, feature_names, open_builder, parse_record
from cnnjax.data.source import as_indices, as_labels, as_size, map_threaded
from cnnjax.data.splitting import OnError, checked_on_error
from cnnjax.files.digests import content_digest
from cnnjax.runtime import Progress

_OPENING = threading.Lock()
_Result = TypeVar("_Result")


class Records(Examples):
    """The images of a prepared TFDS data set, one split or slice of it, read by index.

    What the record files hold (labels, names, a hash of every image) is found by reading them through once,
    and is then kept in the cache, or beside the files of a packed folder. The first time that a process reads an
    image it is compared with its hash: what is read is what the digest speaks of, also if files were exchanged.

    A image's name is the text that the data set gives it (a feature `file_name`, `image/filename`, `filename` or
    `name`) where that tells the images apart, with its split before it if several are read, as in
    `train+test`; otherwise its split and position, as in `train/17`.

    Args:
        directory: of the prepared data set: it holds `dataset_info.json`.
        split: a split or slice in TFDS's syntax: "train", "train[:80%]", "train[10:20]+test".
        image_size: height and width that `read` resizes to.
        on_error: "refuse" raises `ImageError` for images that cannot be decoded; "skip" decodes all of them
            here, leaves such out and lists them in `skipped`.
        resizing: see `cnnjax.data.pixels.resize`.
        progress: called with (images done, all) while record files are read through.
        scale: which values of 16-bit images become 0 and 255, as for `Folder`.

    Attributes:
        directory: of the data set.
        split: as given.
        places: i64[N], where each image stands among all of the data set.

    Raises:
        ValueError: no such split, a slice without images, images without labels, or features that do not
            say which is the image and which the label.
        OSError: `directory` holds no data set, or a damaged one.

    >>> import tempfile; from PIL import Image; from cnnjax.data import pack_folder
    >>> place = tempfile.TemporaryDirectory()
    >>> os.makedirs(f"{place.name}/pets/cat")
    >>> for i in range(4):
    ...     Image.new("RGB", (9, 7), (i, 0, 0)).save(f"{place.name}/pets/cat/{i}.png")
    >>> source = Records(pack_folder(f"{place.name}/pets").out, "train[2:]", image_size=(4, 4))
    >>> source.names, source.read([1]).shape
    (('cat/2.png', 'cat/3.png'), (1, 4, 4, 3))
    >>> place.cleanup()
    """

    _by_row = ("labels", "_hashes", "_rows", "places", "_spans")
    _hashes: np.ndarray

    def __init__(
        self,
        directory: str | os.PathLike[str],
        split: str = "train",
        image_size: Sequence[int] = (160, 160),
        on_error: OnError = "refuse",
        resizing: Resizing = "bilinear",
        progress: Progress | None = None,
        scale: str | Sequence[float] | None = None,
    ) -> None:
        checked_on_error(on_error)
        self.directory, self.split = Path(directory).absolute(), split
        self.image_size, self.resizing = as_size(image_size), checked_resizing(resizing)
        self.scale = checked_scale(scale)
        self._opened: tuple[int, Any] | None = None
        builder = open_builder(self.directory)
        self._keys = feature_names(builder)
        self.class_names: tuple[str, ...] = tuple(builder.info.features[self._keys[1]].names)
        self._decoded = self._resized = Decoded([])
        labels, self._hashes, self.places, self.names = self._list(builder, progress)
        if unlabelled := int((labels < 0).sum()):
            raise ValueError(
                f"{unlabelled} of {len(labels)} images of {split!r} in {self.directory} have no label; choose others "
                f"of the splits {described(builder)}"
            )
        self.labels = as_labels(labels, len(labels), len(self.class_names))
        self._rows = np.arange(len(labels))
        self._spans = _unseen(len(labels))
        if on_error == "skip":
            self.skip_undecodable()

    def __repr__(self) -> str:
        shape = f"{len(self)} images, {len(self.class_names)} classes, {self.image_size}"
        return f"Records({str(self.directory)!r}, {self.split!r}, {shape})"

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_opened": None, "_spans": _unseen(len(self))}

    def read(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Returns the images at `indices` as f32[n, H, W, 3] in 0..255, decoded by a few threads.

        Raises:
            IndexError: an index outside 0..N-1.
            ImageError: names every image among them that cannot be decoded, with the reason.
            OSError: a record that cannot be read, or is not the one that was listed.
        """
        wanted, size = as_indices(indices, len(self)), as_size(self.image_size)
        images = np.empty((len(wanted), *self.image_size, 3), np.float32)

        def one(slot: int) -> str | None:
            index = int(wanted[slot])
            place, digest = int(self.places[index]), self._hashes[index].tobytes()
            if (resized := self._resized.get(place, digest)) is not None:
                images[slot] = resized
                return None
            pixels = self._decoded.get(place, digest)
            try:
                if pixels is None:
                    pixels = decode(self._image(self._records(), index), self.scale)
                images[slot] = resize(pixels, size, self.resizing)
            except ImageError as error:
                return str(error)
            return None

        self._refuse(_reasons(wanted, map_threaded(one, range(len(wanted)))))
        return images

    @property
    def _where(self) -> str:
        return f"of {self.split!r} in {self.directory}"

    def _read_hashes(self) -> np.ndarray:
        return self._hashes

    def content(self, index: int) -> bytes:
        """Returns an image's bytes as they are stored.

        Raises:
            OSError: the record cannot be read, or is not the one that was listed.
        """
        found: list[bytes] = []
        self._each(as_indices([index], len(self)), lambda _, content: found.append(content))
        return found[0]

    def _each(self, wanted: np.ndarray, use: Callable[[int, bytes], object]) -> dict[int, str]:
        """Calls `use` with every wanted image's place and bytes; returns by index why it could not use one."""
        records = self._records()

        def one(slot: int) -> str | None:
            index = int(wanted[slot])
            content = self._image(records, index)
            try:
                use(slot, content)
            except ImageError as error:
                return str(error)
            return None

        return _reasons(wanted, map_threaded(one, range(len(wanted))))

    def _image(self, records: Any, index: int) -> bytes:
        """A image's bytes: at first by parsing its record and comparing, later from the same place in it."""
        row, (start, end) = int(self._rows[index]), self._spans[index].tolist()
        if end:
            return self._use(records, row, lambda record: record[start:end])
        record, content, label, _ = self._use(
            records, row, lambda record: (record, *parse_record(record, self._keys[:2]))
        )
        if content_digest(content) != self._hashes[index].tobytes() or label != self.labels[index]:
            raise OSError(
                f"{self.directory}: {shown(self.names[index])!r} is not what it was when the record files were "
                f"listed; delete {self.directory / BESIDE} and {records_cache()}, and they are listed anew"
            )
        start = record.index(content)
        self._spans[index] = start, start + len(content)
        return content

    def _records(self) -> Any:
        # A forked child cannot use its parent's reader: it has threads.
        with _OPENING:
            if self._opened is None or self._opened[0] != os.getpid():
                self._opened = os.getpid(), data_source(open_builder(self.directory), self.split)
            return self._opened[1]

    def _use(self, records: Any, position: int, function: Callable[[bytes], _Result]) -> _Result:
        try:
            return function(records[position])
        # What the record reader and the parser raise for a damaged file is not specified; the reader may also
        # give None.
        except Exception as error:
            raise OSError(
                f"damaged data set in {self.directory}, record {position} of {self.split!r}: {error}; "
                "prepare or pack it anew"
            ) from error

    def _list(
        self, builder: Any, progress: Progress | None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, tuple[str, ...]]:
        """Returns the labels i64[N], hashes u8[N, 32], places i64[N] and names of the split's images."""
        instructions = self._instructions(builder)
        shards: dict[str, tuple[str, str, int, int, int]] = {}
        start = 0
        for split, info in builder.info.splits.items():
            first = 0
            for path, count in zip(info.filepaths, info.shard_lengths, strict=True):
                shards[os.path.basename(path)] = os.fspath(path), split, first, start + first, count
                first += count
            start += first
        held = [Shard(path, before, count) for path, _, _, before, count in shards.values()]
        self._decoded = Decoded(held, DecodedFormat(scale=self.scale))
        self._resized = Decoded(held, DecodedFormat(as_size(self.image_size), self.resizing, self.scale))
        total, done = sum(part.examples_in_shard for part in instructions), 0
        several = len({shards[os.path.basename(part.filename)][1] for part in instructions}) > 1
        labels, hashes, places, decoders = [], [], [], set[str]()
        named, numbers = list[str](), list[tuple[str, range]]()
        for part in instructions:
            path, split, first, before, count = shards[os.path.basename(part.filename)]
            entries = self._entries(builder, path, split, first, count)
            end = part.skip + part.take
            decoders.add(entries.decoder)
            labels.append(entries.labels[part.skip : end])
            hashes.append(entries.hashes[part.skip : end])
            places.append(before + np.arange(part.skip, end))
            named += [f"{split}/{name}" if several else name for name in entries.names[part.skip : end]]
            numbers.append((split, range(first + part.skip, first + end)))
            done += count
            if progress:
                progress(done, total)
        if decoders == {decoder(self.scale)}:
            self._faults = {}
        place = np.concatenate(places)
        if len(np.unique(place)) < len(place):
            raise ValueError(f"{self.split!r} takes some images of {self.directory} twice")
        if len(set(named)) < len(place):
            named = [f"{split}/{i}" for split, chosen in numbers for i in chosen]
        return np.concatenate(labels), np.concatenate(hashes), place, tuple(named)

    def _instructions(self, builder: Any) -> Sequence[Any]:
        """Which records of which files the split is, as TFDS says."""
        try:
            found = builder.info.splits[self.split].file_instructions
        except (ValueError, KeyError, TypeError) as error:
            reason = str(error).strip().splitlines()[-1]
            raise ValueError(
                f"no split {self.split!r} in {self.directory} ({reason}); the splits are {described(builder)}"
            ) from error
        if not found:
            raise ValueError(f"{self.split!r} of {self.directory} has no images; the splits are {described(builder)}")
        for part in found:
            if not os.path.isfile(part.filename):
                raise FileNotFoundError(f"damaged data set in {self.directory}: {part.filename} is missing")
        return found

    def _entries(self, builder: Any, path: str, split: str, first: int, count: int) -> Entries:
        """What a record file holds: as it was kept, or else by reading it through."""
        entries = find_entries(path, self._keys, count)
        if entries is None:
            whole = data_source(builder, f"{split}[{first}:{first + count}]")

            def look(position: int) -> tuple[int, bytes, str]:
                content, label, name = self._use(whole, position, lambda record: parse_record(record, self._keys))
                return label, content_digest(content), name

            seen = map_threaded(look, range(count))
            hashes = np.frombuffer(b"".join(digest for _, digest, _ in seen), np.uint8).reshape(-1, 32)
            labels = np.array([label for label, _, _ in seen], np.int64)
            entries = Entries(labels, hashes, tuple(name for *_, name in seen) if self._keys[2:] else ())
            keep_entries(path, self._keys, entries)
        return entries

    def _inspect(self) -> dict[int, str]:
        # That all can be decoded is noted in the cache, under a hash of their bytes and Pillow's version.
        if self._faults is None:
            faults: dict[int, str] = {}
            mark = verified_mark(self._hashes, self.scale)
            if not mark.exists():
                faults = self._each(np.arange(len(self)), lambda _, content: decode(content, self.scale))
                if not faults:
                    mark.parent.mkdir(parents=True, exist_ok=True)
                    mark.touch()
            self._faults = faults
        return self._faults


def _reasons(wanted: np.ndarray, found: Sequence[str | None]) -> dict[int, str]:
    return {int(wanted[slot]): reason for slot, reason in enumerate(found) if reason is not None}


def _unseen(count: int) -> np.ndarray:
    """Where each image starts and ends in its record, i32[count, 2]; 0 and 0 until it was compared with its hash."""
    return np.zeros((count, 2), np.int32)
