"""What is packed into which record files, written down so that a kill costs little and nothing is mixed."""

import json
import os
import re
import shutil
import stat
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cnnjax.data.entries import BESIDE, Entries, load_entries, path_beside
from cnnjax.data.folder import Folder
from cnnjax.data.listing import shown
from cnnjax.data.source import map_threaded
from cnnjax.files.writing import write_whole, write_whole_arrays

KEYS = ("image", "label", "file_name")
"""The features of a packed data set; the first two are its supervised keys."""

SHARD_BYTES = 128 << 20
"""How large a record file is made: what a kill costs at most."""

MOST_SHARDS = 256
"""How many record files there are about at most, however large they get: readers keep all of them open."""

METADATA = "metadata"
"""The folder in which what TFDS reads is made, beside what is written down here."""

_SHOWN = 20


class Part(NamedTuple):
    """A record file: which `rows` of which split's files it takes."""

    split: str
    path: Path
    rows: range

    def entries(self) -> Entries | None:
        """What the finished record file holds; None while it is not finished."""
        if not self.path.exists():
            return None
        return load_entries(path_beside(self.path), KEYS, (self.path.stat().st_size, -1))

    @property
    def bad_path(self) -> Path:
        """Where the files that are left out are written down."""
        return path_beside(self.path).with_suffix(".bad.json")

    def bad(self) -> dict[int, str]:
        """The files that the finished record file leaves out, by row, and why."""
        if not self.bad_path.exists():
            return {}
        return {int(row): reason for row, reason in json.loads(self.bad_path.read_text()).items()}


@contextmanager
def claimed(target: Path) -> Generator[None]:
    """Keeps other processes out of `target`, until the block or this process ends, however it ends.

    Raises:
        ValueError: another process is in, or `target` holds something else than a pack.
        OSError: it cannot be written.
    """
    if target.exists() and not target.is_dir():
        raise NotADirectoryError(f"--out {target} is a file; give another --out")
    if target.is_dir() and (held := os.listdir(target)) and BESIDE not in held:
        raise ValueError(f"{target} is not empty and holds no pack; give another --out")
    try:
        (target / BESIDE).mkdir(parents=True, exist_ok=True)
        lock = (target / BESIDE / ".lock").open("w")
    except OSError as error:
        raise OSError(f"cannot write to {target} ({error.strerror}); give another --out") from error
    with lock:
        try:
            import fcntl

            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:  # a platform without such locks
            pass
        except OSError as error:
            raise ValueError(f"another process is packing into {target}; wait, or give another --out") from error
        yield


def file_state(path: str) -> tuple[int, int]:
    """Returns a regular file's size and time of change (ns); (-1, 0) for anything else."""
    try:
        status = os.stat(path)
    except OSError:
        return -1, 0
    return (status.st_size, status.st_mtime_ns) if stat.S_ISREG(status.st_mode) else (-1, 0)


def list_states(source: Folder) -> np.ndarray:
    """Returns the `file_state` of every file as i64[N, 2]."""
    states = map_threaded(lambda index: file_state(source.path(index)), range(len(source)))
    return np.array(states, np.int64).reshape(-1, 2)


def begin(target: Path, root: Path, sources: Mapping[str, Folder], states: Mapping[str, np.ndarray]) -> list[Part]:
    """Writes down what is packed into which files, or checks that it is what was begun; returns the files.

    Raises:
        ValueError: `target` was begun for another folder or with another scale, or `root` has changed since; every
            change is named (up to 20, and their number).
    """
    plan, listing = target / BESIDE / "pack.json", target / BESIDE / "listing.npz"
    scale = next(iter(sources.values())).scale
    if not plan.exists():
        _write_listing(listing, sources, states)
        whole = sum(int(state[:, 0].clip(0).sum()) for state in states.values())
        most = max(SHARD_BYTES, whole / MOST_SHARDS)
        begun: dict[str, Any] = {
            "folder": str(root),
            "name": re.sub("[^a-z0-9]+", "_", f"packed_{root.name}".lower()).strip("_"),
            "parts": {split: cuts(state[:, 0].clip(0), most) for split, state in states.items()},
        } | ({} if scale is None else {"scale": list(scale)})
        write_whole(plan, json.dumps(begun, indent=1), synced=True)
    else:
        begun = json.loads(plan.read_text())
        if begun["folder"] != str(root):
            raise ValueError(
                f"{target} holds a pack of {begun['folder']}, not of {root}; give another --out, or delete it"
            )
        if begun.get("scale") != (None if scale is None else list(scale)):
            raise ValueError(
                f"{target} was begun with the scale {begun.get('scale')}, not {scale}; give another --out, or delete it"
            )
        _check_unchanged(target, root, _read_listing(listing), sources, states)
    for left in (*target.glob("*.partial"), *(target / BESIDE).glob("*.partial")):
        left.unlink()
    shutil.rmtree(target / BESIDE / METADATA, ignore_errors=True)
    return [
        Part(split, target / f"{begun['name']}-{split}.array_record-{k:05d}-of-{len(ends) - 1:05d}", range(start, stop))
        for split, ends in begun["parts"].items()
        for k, (start, stop) in enumerate(pairwise(ends))
    ]


def cuts(sizes: np.ndarray, most: float) -> list[int]:
    """Cuts files into runs of about equal size, of `most` bytes or less and a file: where they start, and the end.

    >>> cuts(np.array([5, 5, 5, 5, 5]), 10), cuts(np.array([5, 5]), 99), cuts(np.array([50, 1]), 10)
    ([0, 2, 4, 5], [0, 2], [0, 1, 2])
    """
    ends = np.cumsum(sizes)
    count = max(1, int(np.ceil(ends[-1] / most)))
    inner = np.searchsorted(ends, ends[-1] * np.arange(1, count) / count) + 1
    return np.unique([0, *inner.tolist(), len(sizes)]).tolist()


def _write_listing(path: Path, sources: Mapping[str, Folder], states: Mapping[str, np.ndarray]) -> None:
    arrays = {f"states {split}": state for split, state in states.items()}
    for split, source in sources.items():
        # No file's name holds a zero byte.
        arrays[f"names {split}"] = np.frombuffer(os.fsencode("\0".join(source.names)), np.uint8)
    write_whole_arrays(path, **arrays)


def _read_listing(path: Path) -> dict[str, tuple[tuple[str, ...], np.ndarray]]:
    with np.load(path) as found:
        splits = [key.removeprefix("names ") for key in found if key.startswith("names ")]
        return {
            split: (tuple(os.fsdecode(found[f"names {split}"].tobytes()).split("\0")), found[f"states {split}"])
            for split in splits
        }


def _check_unchanged(
    target: Path,
    root: Path,
    before: Mapping[str, tuple[tuple[str, ...], np.ndarray]],
    sources: Mapping[str, Folder],
    states: Mapping[str, np.ndarray],
) -> None:
    changes: list[str] = []
    for split in dict.fromkeys([*before, *sources]):
        old_names, old_states = before.get(split, ((), np.zeros((0, 2), np.int64)))
        names, now = (sources[split].names, states[split]) if split in sources else ((), old_states[:0])
        if old_names == names and np.array_equal(old_states, now):
            continue
        old = dict(zip(old_names, old_states.tolist(), strict=True))
        new = dict(zip(names, now.tolist(), strict=True))
        changes += [
            f"{split}, {shown(name)}: {_change(old.get(name), new.get(name))}"
            for name in sorted(old.keys() | new.keys())
            if old.get(name) != new.get(name)
        ]
    if changes:
        more = f"\n  ... and {len(changes) - _SHOWN} more" if len(changes) > _SHOWN else ""
        raise ValueError(
            f"{root} is not what it was when {target} was begun; delete that and pack it anew:\n  "
            + "\n  ".join(changes[:_SHOWN])
            + more
        )


def _change(old: Sequence[int] | None, new: Sequence[int] | None) -> str:
    if old is None or new is None:
        return "is new" if old is None else "is gone"
    return "was written to" if old[0] == new[0] else f"had {old[0]} bytes, has {new[0]}"
