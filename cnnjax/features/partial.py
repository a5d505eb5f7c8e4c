"""Half-made features on disk: what is counted as done outlives the process that made it, and a loss of power.

Beside the rows of a feature that is being made (`NAME.partial`) stands how many of them are done (`NAME.count`). Rows
are written and synced first, and counted afterwards, so a count never promises what the disk does not hold. A lock on
the rows keeps other processes out until the process that makes them ends, however it ends.
"""

import io
import json
import math
import os
import secrets
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np

from cnnjax.files.digests import digest
from cnnjax.files.writing import sync, write_whole
from cnnjax.runtime import preemption

SAVE_SECONDS = 5.0
"""Between two counts of the rows that are done: what a kill costs, at most."""

WAIT_SECONDS = 0.1
"""Between two looks at a feature that another process is making."""

STALE_SECONDS = 3600.0
"""A file that was not written to for so long is nobody's, where no lock can tell."""


def mapped(path: Path, dtype: Any, shape: tuple[int, ...]) -> np.ndarray:
    """A file's array, read as it is asked for.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it holds something else, or is cut short.
    """
    header = _header(dtype, shape)
    with path.open("rb") as file:
        if file.read(len(header)) != header or os.fstat(file.fileno()).st_size != _size(dtype, shape):
            raise ValueError(f"{path}: expected an array {np.dtype(dtype)}{list(shape)}, found another file")
    return np.memmap(path, dtype, "r", len(header), shape)


class PartialFile:
    """A feature that this process is making.

    Attributes:
        rows: how many of its rows are done; 0 if the file or the count is not as it was left.
        made_by: what made them.
        published: whether it has its finished file's name.
    """

    def __init__(self, target: Path, dtype: Any, shape: tuple[int, ...], path: Path, file: IO[bytes]):
        self.rows, self.made_by, self.published = 0, "", False
        self._target, self._path, self._count, self._file = target, path, _count(path), file
        self._header, self._size, self._wanted = _header(dtype, shape), _size(dtype, shape), shape[0]
        with suppress(ValueError, OSError, KeyError, TypeError):  # a damaged file costs a pass, never a wrong number
            told = json.loads(self._count.read_bytes())
            mapped(path, dtype, shape)
            if told["check"] == self._check(told["rows"], told["made_by"]):
                self.rows, self.made_by = told["rows"], told["made_by"]

    @property
    def whole(self) -> bool:
        """Whether all rows are done."""
        return bool(self.made_by) and self.rows == self._wanted

    def begin(self, rows: int, made_by: str) -> None:
        """Keep the first `rows` rows, and be ready for the next."""
        if not rows:
            # First of all, and for good: a count left from before must not stand beside a new file.
            self._count.unlink(missing_ok=True)
            sync(self._path.parent)
            with _named(self._path):
                self._file.truncate(0)
                self._file.seek(0)
                self._file.write(self._header)
                self._file.flush()
                _reserve(self._file.fileno(), self._size)
        elif rows != self.rows:
            self.save(rows)
        self.rows, self.made_by = rows, made_by

    def write(self, row: int, values: np.ndarray) -> None:
        """Write rows from number `row` on; they count as done once they are saved."""
        with _named(self._path):
            self._file.seek(len(self._header) + row * values[:1].nbytes)
            self._file.write(np.ascontiguousarray(values).reshape(-1).view(np.uint8))
            self._file.flush()

    def sync(self) -> None:
        """Have the disk hold what was written."""
        with _named(self._path):
            os.fsync(self._file.fileno())

    def save(self, rows: int) -> None:
        """Count the first `rows` rows as done; `sync` has been called since they were written."""
        told = {"rows": rows, "made_by": self.made_by, "check": self._check(rows, self.made_by)}
        write_whole(self._count, json.dumps(told), synced=True)
        self.rows = rows

    def publish(self) -> None:
        """Give the finished file its name."""
        self._path.replace(self._target)
        self.published = True
        self._count.unlink(missing_ok=True)

    def _check(self, rows: int, made_by: str) -> str:
        # A number that is damaged and still a number must not be believed either.
        return digest(self._target.name, str(rows), made_by)[:16]


@contextmanager
def claimed(
    target: Path, dtype: Any, shape: tuple[int, ...], waiting: Callable[[int], None] = lambda rows: None
) -> Generator[PartialFile]:
    """The half-made feature of a finished file's name, kept from all other processes.

    Waits while another process makes it: two that make the same rows only share the machine's cores, and the system
    frees the lock of one that dies, so that who waited goes on where it stopped. Where there are no locks, or the
    file is another user's, the feature is made in a file of its own, which is begun anew by who comes next.

    Args:
        target: the finished file.
        dtype: of its rows.
        shape: `[N, ...]`.
        waiting: called again and again with the rows that the other process counts as done.

    Raises:
        Preempted: this process was asked to end while it waited.
    """
    path = target.with_suffix(".partial")
    while (file := _claim(path)) is None:
        preemption.check()
        waiting(_told(_count(path)))
        time.sleep(WAIT_SECONDS)
    path = Path(file.name)
    with file:
        for left in path.parent.glob(f"{_count(path).name}.*"):  # by a process killed while it wrote its count
            left.unlink(missing_ok=True)
        half = PartialFile(target, dtype, shape, path, file)
        try:
            yield half
        finally:
            if not half.published and not _count(path).exists():  # nothing that could be gone on with
                path.unlink(missing_ok=True)


def discard(path: Path) -> bool:
    """Remove a half-made file and its count, unless a process is making it; returns whether it is gone."""
    try:
        with _open(path) as file:
            if not _locked(file, path):
                return False
            _remove(path)
    except OSError:  # it is gone, there are no locks, or it is another user's
        if resting(path) > STALE_SECONDS:
            with suppress(OSError):
                _remove(path)
    return not path.exists()


def clear(root: Path) -> None:
    """Remove what no process can go on with: files without a count, counts without a file, names of older versions."""
    for path in (*root.glob("*.partial"), *root.glob("*.count")):
        other = _count(path) if path.suffix == ".partial" else path.with_suffix(".partial")
        if not other.exists() and resting(path) > STALE_SECONDS:
            discard(path)


def resting(path: Path) -> float:
    """Seconds since a file was last written to; 0 for one that has just gone."""
    try:
        return time.time() - path.stat().st_mtime
    except OSError:
        return 0.0


class DiskWriter:
    """Writes the rows of features that one pass makes together; their lowest count is where it goes on.

    In a `with` block: at its end the features are finished; if it is left because the process was asked to end, what
    is done is saved. After an error the rows that were saved before stay.

    Attributes:
        done: how many rows of each are written.
    """

    def __init__(self, halves: Sequence[PartialFile], made_by: str):
        self.done = min(half.rows if half.made_by == made_by else 0 for half in halves)
        self._halves = halves
        for half in halves:
            half.begin(self.done, made_by)
        self._beside, self._saving = ThreadPoolExecutor(1), Future[None]()
        self._saving.set_result(None)
        self._saved_at = time.monotonic()

    def append(self, values: Sequence[np.ndarray]) -> None:
        """Write the next rows of every feature."""
        for half, rows in zip(self._halves, values, strict=True):
            half.write(self.done, rows)
        self.done += len(values[0])
        if time.monotonic() - self._saved_at >= SAVE_SECONDS and self._saving.done():
            self._saving.result()
            # In a thread: the next batches are made while the disk takes these.
            self._saving = self._beside.submit(self._save, self.done)
            self._saved_at = time.monotonic()

    def __enter__(self) -> "DiskWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._beside.shutdown()
        if kind is None or not issubclass(kind, Exception):
            self._saving.result()
            if self.done:
                self._save(self.done)
        if kind is None:
            for half in self._halves:
                half.publish()

    def _save(self, rows: int) -> None:
        for half in self._halves:
            half.sync()
        for half in self._halves:
            half.save(rows)


class MemoryWriter:
    """The same for features that are kept in memory; after an error nothing of them stays."""

    def __init__(self, arrays: Sequence[np.ndarray], publish: Callable[[Sequence[np.ndarray]], None]):
        self.done, self._arrays, self._publish = 0, arrays, publish

    def append(self, values: Sequence[np.ndarray]) -> None:
        """Write the next rows of every feature."""
        for array, rows in zip(self._arrays, values, strict=True):
            array[self.done : self.done + len(rows)] = rows
        self.done += len(values[0])

    def __enter__(self) -> "MemoryWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._publish(self._arrays)


def _claim(path: Path) -> IO[bytes] | None:
    """The file, made if it is not there, and locked; None while another process has it.

    A file of a name of its own where that cannot be.
    """
    with ExitStack() as closing:
        try:
            file = closing.enter_context(_open(path, os.O_CREAT))
            if not _locked(file, path):
                return None
        except OSError:
            return _open(path.with_suffix(f".{secrets.token_hex(4)}.partial"), os.O_CREAT | os.O_EXCL)
        closing.pop_all()
        return file


def _locked(file: IO[bytes], path: Path) -> bool:
    """Whether the file's lock was free, and is this process's now, and the file still has its name.

    Raises:
        OSError: there are no locks here.
    """
    try:
        import fcntl
    except ImportError as error:
        raise OSError("this platform has no such locks") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except (BlockingIOError, FileNotFoundError):
        return False


def _open(path: Path, flags: int = 0) -> IO[bytes]:
    return open(path, "r+b", opener=lambda name, mode: os.open(name, mode | flags, 0o666))


def _remove(path: Path) -> None:
    # The count first: it must not stand beside a file that was made anew.
    _count(path).unlink(missing_ok=True)
    path.unlink(missing_ok=True)


def _count(path: Path) -> Path:
    return path.with_suffix(".count")


def _told(count: Path) -> int:
    """The rows that another process counts as done; for show."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        return int(json.loads(count.read_bytes())["rows"])
    return 0


def _header(dtype: Any, shape: tuple[int, ...]) -> bytes:
    """How an array's file in NumPy's format begins (bfloat16 as plain bytes)."""
    header = io.BytesIO()
    described = np.lib.format.dtype_to_descr(np.dtype(dtype))
    np.lib.format.write_array_header_1_0(header, {"descr": described, "fortran_order": False, "shape": shape})
    return header.getvalue()


def _size(dtype: Any, shape: tuple[int, ...]) -> int:
    return len(_header(dtype, shape)) + math.prod(shape) * np.dtype(dtype).itemsize


def _reserve(file: int, nbytes: int) -> None:
    """Take the disk's space now: a full disk is then an error here, and not after hours."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, nbytes)
    else:
        os.truncate(file, nbytes)


@contextmanager
def _named(path: Path) -> Generator[None]:
    """Errors of an open file do not say which it was."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise
