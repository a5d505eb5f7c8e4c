"""Files that are there whole or not at all."""

import io
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from cnnjax.files.digests import Bytes


@contextmanager
def whole_file(path: Path, *, synced: bool = False) -> Generator[Path]:
    """Give a path to write to, which becomes `path` when the block ends; nothing is left of it where the block raises.

    Args:
        path: The file; until then what it was before.
        synced: Whether it is whole also after a loss of power: the disk holds it before it gets its name.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = Path(folder) / "note.txt"
    ...     with whole_file(file) as partial:
    ...         _ = partial.write_text("whole")
    ...     file.read_text(), len(list(Path(folder).iterdir()))
    ('whole', 1)
    """
    # Its own name: two processes may write the same file at once.
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        if synced:
            sync(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_whole(path: Path, content: str | Bytes, *, synced: bool = False) -> None:
    """Write a file of a text in UTF-8 or of bytes; see `whole_file`."""
    with whole_file(path, synced=synced) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)


def write_whole_arrays(path: Path, **arrays: np.ndarray) -> None:
    """Write an `.npz` file that is whole also after a loss of power."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # ty: ignore[invalid-argument-type]
    write_whole(path, buffer.getbuffer(), synced=True)


def sync(path: Path) -> None:
    """Have the disk itself hold a file, or the names of what is in a folder."""
    if os.name != "posix" and path.is_dir():  # elsewhere a folder cannot be opened
        return
    # Windows syncs only what is open for writing.
    handle = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
