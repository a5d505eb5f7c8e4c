"""A folder of images packed into a TFDS data set on disk: the same bytes, in a few large files.

Measured on 2026-11-23 with 2,000 JPEGs of 10 kB, two shared cores, local disk; bytes alone, images a second, medians
of runs in turn. "Evicted" means that the files' pages had left the page cache; directories and inodes had not, so a
cold start from a disk or over a network will gain more than this shows. The first time that a process reads an image
it also hashes it. Decoding and resizing take so much longer that a set in the page cache trains no faster packed, but
where the pixels are kept as well: 1.4 times as fast as the folder decoded, 5 times decoded and resized
(`scripts/benchmark.py data`, two threads, at 160x160).

| | folder | packed, at first | packed, later |
| --- | ---: | ---: | ---: |
| cached, random order | 59,400 | 28,100 | 71,000 |
| cached, in order | 50,200 | 25,300 | 71,100 |
| evicted, random order | 13,000 | 13,400 | 22,400 |
| evicted, in order | 13,900 | 13,400 | 37,100 |
"""

import json
import os
import shutil
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cnnjax.data.decoded import DecodedFormat, has_decoded, write_decoded
from cnnjax.data.entries import BESIDE, Entries, decoder, holds_records, path_beside, save_entries
from cnnjax.data.folder import Folder, OnError, open_splits, splits
from cnnjax.data.listing import Account, account, existing_folder, shown
from cnnjax.data.pack_plan import KEYS, METADATA, Part, begin, claimed, file_state, list_states
from cnnjax.data.pixels import ImageError, checked_scale, decode, read_bytes
from cnnjax.data.source import map_threaded
from cnnjax.files.digests import content_digest
from cnnjax.files.writing import whole_file, write_whole
from cnnjax.runtime import Progress

_CHUNK_BYTES, _CHUNK_FILES = 64 << 20, 512
_SHOWN = 20


class Packed(NamedTuple):
    """What `pack_folder` did: the data set's folder, and what became of every file."""

    out: Path
    account: Account


def pack_folder(
    folder: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    on_error: OnError = "refuse",
    progress: Progress | None = None,
    *,
    decoded: DecodedFormat | None = None,
    scale: str | Sequence[float] | None = None,
) -> Packed:
    """Packs SPLIT/CLASS/FILE or CLASS/FILE (one split, "train") into a TFDS data set of ArrayRecord files.

    Classes, files and their order are `Folder`'s; every image's bytes are stored as they are, with its label and
    its name below the split's folder. Every image is decoded once, to know that it can be: those that cannot are
    left out, as are all other files; `skipped.csv` lists each with its reason.

    Killed at any time, the same call finishes what was begun and gives the same bytes: a record file gets its name
    when it is whole, and is not written again. TFDS and `open_tfds` take the folder for a data set only when all is
    there. The listing of `folder` (names, sizes, times of change) is kept: another folder, or this one after a
    change, is refused.

    Args:
        folder: of the images.
        out: the folder that is written; `folder` with "-packed" by default.
        on_error: "refuse" raises for images that cannot be decoded when all are seen (the others are packed by
            then, so the same call with "skip" is short); "skip" leaves them out.
        progress: called with (images done, all).
        decoded: also keep every image's pixels beside the records: `DecodedFormat()` as they are decoded,
            `DecodedFormat((160, 160))` resized (see `cnnjax.data.decoded`); may be added later.
        scale: which values of 16-bit files become 0 and 255, as for `Folder`: decides which files can be decoded, and
            the pixels that are kept. Open the data set with the same one.

    Raises:
        ImageError: names the images that cannot be decoded (up to 20, and their number), with reasons.
        ValueError: `out` holds another folder's pack or something else, `folder` changed since it was begun, or
            it holds splits or classes that `open_splits` and `Folder` refuse.
        OSError: a folder that cannot be read or written.

    >>> import tempfile; from PIL import Image
    >>> place = tempfile.TemporaryDirectory()
    >>> for name in ("cat", "dog"):
    ...     os.makedirs(f"{place.name}/pets/{name}")
    ...     Image.new("RGB", (9, 7), "red").save(f"{place.name}/pets/{name}/1.png")
    >>> packed = pack_folder(f"{place.name}/pets")
    >>> packed.out.name, str(packed.account)
    ('pets-packed', '2 files: 2 train; 0 skipped, 0 other files')
    >>> place.cleanup()
    """
    if on_error not in ("refuse", "skip"):
        raise ValueError(f"on_error: expected 'refuse' or 'skip', found {on_error!r}")
    root = existing_folder(Path(folder)).resolve()
    target = Path(out).resolve() if out is not None else root.with_name(f"{root.name}-packed")
    if target.is_relative_to(root) or root.is_relative_to(target):
        raise ValueError(f"{target} and {root} lie in one another; give another --out")
    sources: dict[str, Folder] = (
        dict(open_splits(root, scale=scale)) if splits(root) else {"train": Folder(root, scale=scale)}
    )
    class_names = next(iter(sources.values())).class_names
    if bad := [name for name in class_names if shown(name) != name or name.strip() != name]:
        raise ValueError(
            f"{root}: TFDS keeps the names of classes as lines of text, which cannot hold "
            f"{', '.join(map(repr, bad))}; rename these folders"
        )
    with claimed(target):
        states = {split: list_states(source) for split, source in sources.items()}
        parts = begin(target, root, sources, states)
        done, total = 0, sum(map(len, sources.values()))
        for part in parts:
            if part.entries() is None:
                for count in _write_part(part, sources[part.split], states[part.split]):
                    if progress:
                        progress(done + count, total)
            done += len(part.rows)
            if progress:
                progress(done, total)
        found = _finish(target, root, sources, parts, on_error)
        if decoded is not None:
            _add_decoded(parts, sources, decoded._replace(scale=checked_scale(scale)), progress)
        return Packed(target, found)


def _add_decoded(
    parts: Sequence[Part], sources: Mapping[str, Folder], kept: DecodedFormat, progress: Progress | None
) -> None:
    """Writes the pixels of every record file that has none yet."""
    done, total = 0, sum(len(part.rows) for part in parts)
    for part in parts:
        entries = part.entries()
        assert entries is not None
        if not has_decoded(part.path, entries.hashes, kept):
            source, bad = sources[part.split], part.bad()
            paths = [source.path(row) for row in part.rows if row not in bad]
            for count in write_decoded(part.path, paths, entries.hashes, kept):
                if progress:
                    progress(done + count, total)
        done += len(part.rows)
        if progress:
            progress(done, total)


def _write_part(part: Part, source: Folder, states: np.ndarray) -> Generator[int]:
    """Writes a record file and what it holds; yields how many of its files are done."""
    from array_record.python.array_record_module import ArrayRecordWriter  # ty: ignore[import-not-found]

    from cnnjax.data.prepared import make_record  # imports TFDS

    def read(row: int) -> tuple[bytes, bytes, str]:
        path, content, reason = source.path(row), b"", ""
        try:
            content = read_bytes(path)
            decode(content, source.scale)
        except ImageError as error:
            reason = str(error)
        if file_state(path) != tuple(states[row].tolist()) or (content and len(content) != states[row, 0]):
            raise ValueError(f"{shown(path)} was changed while its folder was packed; pack it when it is at rest")
        return content, content_digest(content), reason

    bad: dict[int, str] = {}
    kept: list[int] = []
    hashes: list[bytes] = []
    with whole_file(part.path, synced=True) as partial:
        # Images are compressed already. One record a group, since they are read one by one.
        writer = ArrayRecordWriter(os.fspath(partial), "group_size:1,uncompressed")
        for rows in _chunks(part.rows, states):
            for row, (content, digest, reason) in zip(rows, map_threaded(read, rows), strict=True):
                if reason:
                    bad[row] = reason
                    continue
                with _told():
                    writer.write(make_record(content, int(source.labels[row]), source.names[row], KEYS))
                kept.append(row)
                hashes.append(digest)
            yield rows.stop - part.rows.start
        with _told():
            writer.close()
    if bad:
        write_whole(part.bad_path, json.dumps(bad), synced=True)
    entries = Entries(
        source.labels[kept].astype(np.int64),
        np.frombuffer(b"".join(hashes), np.uint8).reshape(-1, 32),
        tuple(source.names[row] for row in kept),
        decoder(source.scale),
    )
    # Last: it says that the record file is finished.
    save_entries(path_beside(part.path), KEYS, (part.path.stat().st_size, -1), entries)


@contextmanager
def _told() -> Generator[None]:
    try:
        yield
    except RuntimeError as error:  # the record writer's for a full disk
        raise OSError(f"{error}; the same command goes on when that is mended") from error


def _chunks(rows: range, states: np.ndarray) -> Generator[range]:
    """Cuts rows into runs that are held in memory at once."""
    start, size = rows.start, 0
    for row in rows:
        size += max(int(states[row, 0]), 0)
        if size >= _CHUNK_BYTES or row + 1 - start >= _CHUNK_FILES or row + 1 == rows.stop:
            yield range(start, row + 1)
            start, size = row + 1, 0


def _finish(
    target: Path, root: Path, sources: Mapping[str, Folder], parts: Sequence[Part], on_error: OnError
) -> Account:
    """Accounts for every file, and makes a data set of the record files."""
    used: dict[str, Folder] = {}
    lengths: dict[str, list[int]] = {split: [] for split in sources}
    for split, source in sources.items():
        bad: dict[int, str] = {}
        for part in parts:
            if part.split == split:
                entries = part.entries()
                if entries is None:
                    raise OSError(f"{part.path} was written and cannot be read; pack again")
                bad |= part.bad()
                lengths[split].append(len(entries.labels))
        used[split] = source.take(np.delete(np.arange(len(source)), sorted(bad)))
        used[split].selection = replace(used[split].selection, skipped=bad)
    found = account(used)
    if on_error == "refuse" and found.skipped:
        lines = [f"{shown(row.path)}: {shown(row.reason)}" for row in found.skipped]
        more = f"\n  ... and {len(lines) - _SHOWN} more" if len(lines) > _SHOWN else ""
        raise ImageError(
            f"{len(lines)} of {found.found} files of {root} cannot be decoded; --on-error skip leaves such out (what "
            f"is packed so far is kept), or mend them, delete {target} and pack anew:\n  "
            + "\n  ".join(lines[:_SHOWN])
            + more
        )
    for source in used.values():
        counts = np.bincount(source.labels, minlength=len(source.class_names))
        if lost := [source.class_names[label] for label in np.flatnonzero(counts == 0)]:
            raise ImageError(f"no image of class {', '.join(map(repr, lost))} in {source.root} can be decoded")
    found.write(target / "skipped.csv")
    if not holds_records(target):
        _write_metadata(target, root, parts, lengths, next(iter(sources.values())).class_names)
    return found


def _write_metadata(
    target: Path, root: Path, parts: Sequence[Part], lengths: Mapping[str, list[int]], class_names: Sequence[str]
) -> None:
    """Writes the files that make a TFDS data set of record files; the one that TFDS looks for comes last."""
    import tensorflow_datasets as tfds

    name = parts[0].path.name.partition("-")[0]
    version = tfds.core.Version("1.0.0")
    place = target / BESIDE / METADATA
    place.mkdir()
    identity = tfds.core.dataset_info.DatasetIdentity(name, version, os.fspath(place), module_name="")
    features = (tfds.features.Image(), tfds.features.ClassLabel(names=class_names), tfds.features.Text())
    info = tfds.core.DatasetInfo(
        builder=identity,
        description=f"{sum(map(sum, lengths.values()))} images of the folder {shown(root.name)}, packed by cnnjax.",
        features=tfds.features.FeaturesDict(dict(zip(KEYS, features, strict=True))),
        supervised_keys=KEYS[:2],
        disable_shuffling=True,
    )
    info.set_file_format(tfds.core.FileFormat.ARRAY_RECORD)
    template = tfds.core.ShardedFileTemplate(dataset_name=name, data_dir=place, filetype_suffix="array_record")
    info.set_splits(
        tfds.core.splits.SplitDict(
            [
                tfds.core.SplitInfo(
                    name=split,
                    shard_lengths=count,
                    num_bytes=sum(part.path.stat().st_size for part in parts if part.split == split),
                    filename_template=template.replace(split=split),
                )
                for split, count in lengths.items()
            ]
        )
    )
    info.write_to_directory(place)
    for file in sorted(place.iterdir(), key=lambda file: file.name == "dataset_info.json"):
        write_whole(target / file.name, file.read_bytes(), synced=True)
    shutil.rmtree(place)
