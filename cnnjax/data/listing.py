"""Which pictures a folder of classes holds, in Keras's order."""

import difflib
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

EXTENSIONS = (".bmp", ".gif", ".jpeg", ".jpg", ".png")
"""The endings Keras lists, in any case; what a file is, its content decides."""


def existing_folder(path: Path) -> Path:
    """Returns `path` if it is a folder; raises the error that names the nearest one otherwise."""
    if path.is_dir():
        return path
    if path.exists():
        raise NotADirectoryError(f"expected a folder, found a file: {path}")
    there = next((parent for parent in path.absolute().parents if parent.is_dir()), Path("/"))
    missing = path.absolute().relative_to(there).parts[0]
    near = difflib.get_close_matches(missing, os.listdir(there), 1)
    hint = f"did you mean {str(there / near[0])!r}?" if near else f"{there} exists, {missing!r} in it does not"
    raise FileNotFoundError(f"no folder {path}; {hint}")


def _scan(folder: str | Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except PermissionError:
        raise PermissionError(f"no permission to list the folder {folder}") from None


def visible_folders(folder: Path) -> list[str]:
    """Returns the names Keras takes for classes: subfolders, links to folders included, hidden ones not."""
    return sorted(entry.name for entry in _scan(folder) if not entry.name.startswith(".") and entry.is_dir())


def has_pictures(folder: Path) -> bool:
    """Says whether pictures lie directly in `folder`."""
    return any(entry.name.lower().endswith(EXTENSIONS) and not entry.is_dir() for entry in _scan(folder))


def list_classes(root: Path, classes: Sequence[str]) -> tuple[tuple[str, ...], np.ndarray]:
    """Returns every picture's name and label i32[N] in Keras's order; raises for an empty class."""
    if not classes:
        loose = sum(not entry.is_dir() for entry in _scan(root))
        raise ValueError(f"no class in {root}: expected one subfolder a class, found none, and {loose} files")
    names: list[str] = []
    counts: list[int] = []
    empty: list[str] = []
    for name in classes:
        pictures, others = _list_class(root, name)
        names += pictures
        counts.append(len(pictures))
        if not pictures:
            seen = ", ".join(f"{count} {ending or 'without ending'}" for ending, count in others.most_common(3))
            empty.append(f"{name!r} (found {seen or 'no files'})")
    if empty:
        raise ValueError(f"no pictures ({', '.join(EXTENSIONS)}) in {root} for class " + ", ".join(empty))
    return tuple(names), np.repeat(np.arange(len(classes), dtype=np.int32), counts)


def _list_class(root: Path, name: str) -> tuple[list[str], Counter[str]]:
    """Returns a class's pictures in Keras's order, and how many other files there are by ending."""
    others: Counter[str] = Counter()
    found: list[str] = []
    # Keras sorts folders by their whole path, then each folder's files by name.
    for folder, files in sorted(_walk(root, name)):
        for file in sorted(files):
            if file.lower().endswith(EXTENSIONS):
                found.append(f"{folder}/{file}")
            else:
                others[os.path.splitext(file)[1].lower()] += 1
    return found, others


def _walk(root: Path, folder: str) -> Iterator[tuple[str, list[str]]]:
    """Yields `root/folder` and every folder below it with its files, like `os.walk`, which hides errors."""
    files: list[str] = []
    for entry in _scan(root / folder):
        if not entry.is_dir():
            files.append(entry.name)
        elif not entry.is_symlink():
            yield from _walk(root, f"{folder}/{entry.name}")
    yield folder, files


def some(names: Sequence[str]) -> str:
    """Lists names for an error, the first few of many."""
    return ", ".join(names[:10]) + (f", ... ({len(names)} in all)" if len(names) > 10 else "")
