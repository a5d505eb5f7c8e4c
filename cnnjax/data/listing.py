"""Which files a folder of classes holds, in Keras's order, and what became of each of them."""

import csv
import os
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cnnjax.files.writing import whole_file
from cnnjax.runtime.nearest import nearest

EXTENSIONS = (".bmp", ".gif", ".jpeg", ".jpg", ".png")
"""The endings Keras lists, in any case; what a file is, its content decides."""


def shown(name: str | os.PathLike[str]) -> str:
    """Returns a file's name for people to read: what is no printable text appears as its bytes.

    >>> shown("é/two\\nlines.jpg"), shown(os.fsdecode(b"caf\\xe9.jpg"))
    ('é/two\\\\x0alines.jpg', 'caf\\\\xe9.jpg')
    """
    text = os.fspath(name)
    if text.isprintable():
        return text
    # Not all that Python calls unprintable: wide spaces and joiners are part of ordinary words.
    strange = {c for c in text if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp")}
    return text.translate({ord(c): "".join(f"\\x{byte:02x}" for byte in os.fsencode(c)) for c in strange})


def existing_folder(path: Path) -> Path:
    """Returns `path` if it is a folder; raises the error that names the nearest one otherwise."""
    if path.is_dir():
        return path
    if path.exists():
        raise NotADirectoryError(f"expected a folder, found a file: {path}")
    there = next((parent for parent in path.absolute().parents if parent.is_dir()), Path("/"))
    missing = path.absolute().relative_to(there).parts[0]
    near = nearest(missing, os.listdir(there), 0.6)
    hint = f"did you mean {str(there / near)!r}?" if near else f"{there} exists, {missing!r} in it does not"
    raise FileNotFoundError(f"no folder {path}; {hint}")


def _scan(folder: str | Path) -> Iterator[os.DirEntry[str]]:
    # One entry at a time: a million of them at once weigh ten times their names.
    try:
        with os.scandir(folder) as entries:
            yield from entries
    except PermissionError:
        raise PermissionError(f"no permission to list the folder {shown(folder)}") from None
    except OSError as error:
        raise type(error)(f"cannot list the folder {shown(folder)}: {error.strerror or error}") from None


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads in a circle, or where nobody may look
        return False


def visible_folders(folder: Path) -> list[str]:
    """Returns the names Keras takes for classes: subfolders, links to folders included, hidden ones not."""
    return sorted(entry.name for entry in _scan(folder) if not entry.name.startswith(".") and _is_folder(entry))


def has_images(folder: Path) -> bool:
    """Says whether images lie directly in `folder`."""
    return any(entry.name.lower().endswith(EXTENSIONS) and not _is_folder(entry) for entry in _scan(folder))


@dataclass(frozen=True)
class Listing:
    """Everything that lies in a folder of classes.

    Attributes:
        root: the folder.
        data: the folder of the data set: `root`, or the folder that holds it as one of the splits.
        names: the path below `root` of every file with one of the wanted endings, in Keras's order.
        labels: i32[N], the classes of `names`.
        others: what else there is, by its path below `root`, and why it is none of them.
        found: how many files there are, counted as they were met; a folder that was not entered counts as one.
    """

    root: Path
    data: Path
    names: tuple[str, ...]
    labels: np.ndarray
    others: Mapping[str, str]
    found: int


def list_folder(
    root: Path, classes: Sequence[str], endings: tuple[str, ...] = EXTENSIONS, data: Path | None = None
) -> Listing:
    """Lists a folder of classes in Keras's order; links to folders below a class are not followed.

    Args:
        root: the folder that holds the classes.
        classes: names of folders in it.
        endings: of the files that are wanted, in lower case.
        data: the folder of the whole data set, where `root` is one of its splits.

    Raises:
        OSError: a folder that cannot be listed, by name.
        ValueError: no class; a class without such files, with an unprintable name, or that is a link to a
            folder which holds it.
    """
    wanted = set(classes)
    others = {
        entry.name: "a folder that is no class, not entered" if _is_folder(entry) else "lies in no class folder"
        for entry in _scan(root)
        if entry.name not in wanted
    }
    found = len(others)
    if not classes:
        raise ValueError(f"no class in {root}: expected one subfolder a class, found none, and {found} files")
    _check_classes(root, classes)
    names: list[str] = []
    counts: list[int] = []
    empty: list[str] = []
    no_ending = f"ends in none of {', '.join(endings)}"
    for name in classes:
        before, strange = len(names), Counter[str]()
        # Keras sorts folders by their whole path, then each folder's files by name.
        for folder, files, links in sorted(_walk(root, name)):
            found += len(files) + len(links)
            others |= {f"{folder}/{link}": "a link to a folder, not followed" for link in links}
            for file in sorted(files):
                if file.lower().endswith(endings):
                    names.append(f"{folder}/{file}")
                else:
                    others[f"{folder}/{file}"] = no_ending
                    strange[os.path.splitext(file)[1].lower()] += 1
        counts.append(len(names) - before)
        if not counts[-1]:
            seen = ", ".join(f"{count} {shown(end) or 'without ending'}" for end, count in strange.most_common(3))
            empty.append(f"{name!r} (found {seen or 'no files'})")
    if empty:
        raise ValueError(f"no files ({', '.join(endings)}) in {root} for class " + ", ".join(empty))
    labels = np.repeat(np.arange(len(classes), dtype=np.int32), counts)
    return Listing(root, data or root, tuple(names), labels, others, found)


def list_classes(root: Path, classes: Sequence[str]) -> tuple[tuple[str, ...], np.ndarray]:
    """Returns every image's name and label i32[N] in Keras's order; raises as `list_folder`."""
    listing = list_folder(root, classes)
    return listing.names, listing.labels


def _check_classes(root: Path, classes: Sequence[str]) -> None:
    # Class names go into tables, messages and files of one name a line.
    strange = [name for name in classes if shown(name) != name]
    if strange:
        raise ValueError(f"{root}: a class's name must be printable text; rename {some(strange)}")
    real = os.path.realpath(root)
    for name in classes:
        target = os.path.realpath(root / name)
        if real == target or real.startswith(os.path.join(target, "")):
            raise ValueError(f"{root / name} is a link to {target}, a folder that holds it; remove the link")


def _walk(root: Path, top: str) -> Iterator[tuple[str, list[str], list[str]]]:
    """Yields `root/top` and every folder below it with its files and its links to folders.

    Like `os.walk`, which hides errors.
    """
    waiting = [top]
    while waiting:
        folder = waiting.pop()
        files: list[str] = []
        links: list[str] = []
        for entry in _scan(os.path.join(root, folder)):
            if not _is_folder(entry):
                files.append(entry.name)
            elif entry.is_symlink():
                links.append(entry.name)
            else:
                waiting.append(f"{folder}/{entry.name}")
        yield folder, files, links


def some(names: Sequence[str]) -> str:
    """Lists names for an error, the first few of many."""
    return ", ".join(map(shown, names[:10])) + (f", ... ({len(names)} in all)" if len(names) > 10 else "")


@dataclass(frozen=True)
class Selection:
    """Which of a listing's files a source uses.

    Attributes:
        listing: the files.
        rows: i64[N], the source's images as indices into `listing.names`.
        skipped: the reason for each file that was wanted and left out, by its index into `listing.names`.
    """

    listing: Listing
    rows: np.ndarray
    skipped: Mapping[int, str]

    def take(self, indices: np.ndarray) -> "Selection":
        """Returns the selection of a part of the source."""
        return replace(self, rows=self.rows[indices])


class LeftOut(NamedTuple):
    """A file that is not used: the split it was wanted for or lies in ("" for none), its path, and why."""

    split: str
    path: str
    reason: str


@dataclass(frozen=True)
class Account:
    """What became of every file: `found` is the sum of `used`, `skipped` and `others`.

    Attributes:
        found: how many files there are, counted while listing them.
        used: how many of them each split uses; a file that two splits use counts for the first.
        skipped: the images that are left out because they cannot be decoded.
        others: the files that are none of the images: other endings, outside of every class, not chosen. A
            folder that was not entered is one of them.
    """

    found: int
    used: Mapping[str, int]
    skipped: tuple[LeftOut, ...]
    others: tuple[LeftOut, ...]

    def __post_init__(self) -> None:
        listed = sum(self.used.values()) + len(self.skipped) + len(self.others)
        if self.found != listed:
            raise ValueError(f"{self.found} files were found, and {listed} are accounted for: {self}")

    def __str__(self) -> str:
        used = ", ".join(f"{count} {split}" for split, count in self.used.items())
        return f"{self.found} files: {used}; {len(self.skipped)} skipped, {len(self.others)} other files"

    def write(self, path: str | os.PathLike[str]) -> None:
        """Writes what is left out as CSV (split, path, reason), images first; only a header if all is used."""
        with whole_file(Path(path)) as partial, partial.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(LeftOut._fields)
            for rows in (self.skipped, self.others):
                writer.writerows((row.split, shown(row.path), shown(row.reason)) for row in rows)


def account(sources: Mapping[str, Any]) -> Account:
    """Says what became of every file of the folders that `sources` were opened from.

    Args:
        sources: by the names of their splits, as `open_splits` and `split_by_fraction` return them. A source
            with a `selection` is accounted for file by file, any other by its length and `skipped`.

    Raises:
        OSError: the folder that holds the splits cannot be listed any more.

    >>> from cnnjax.data import InMemory
    >>> source = InMemory(np.zeros((2, 4, 4, 3), np.uint8), [0, 1], ("cat", "dog"))
    >>> str(account({"train": source}))
    '2 files: 2 train; 0 skipped, 0 other files'
    """
    found, used, skipped, others = 0, dict.fromkeys(sources, 0), list[LeftOut](), list[LeftOut]()
    splits: dict[int, dict[str, Selection]] = {}
    for split, source in sources.items():
        selection = getattr(source, "selection", None)
        if selection is not None:
            splits.setdefault(id(selection.listing), {})[split] = selection
            continue
        left_out = getattr(source, "skipped", ())
        found, used[split] = found + len(source) + len(left_out), len(source)
        skipped += [LeftOut(split, *line.partition(": ")[::2]) for line in left_out]
    read: dict[Path, set[str]] = {}
    for selections in splits.values():
        listing = next(iter(selections.values())).listing
        found += listing.found
        free = np.ones(len(listing.names), bool)
        for split, selection in selections.items():
            rows = np.unique(selection.rows)
            used[split] = int(free[rows].sum())
            free[rows] = False
        for split, selection in selections.items():
            for row, reason in selection.skipped.items():
                if free[row]:
                    skipped.append(LeftOut(split, os.path.join(listing.root, listing.names[row]), reason))
                    free[row] = False
        # Where several splits share a folder, what lies in it besides belongs to none of them.
        split = next(iter(selections)) if len(selections) == 1 else ""
        left = {listing.names[row]: "not chosen" for row in np.flatnonzero(free)} | dict(listing.others)
        others += [LeftOut(split, os.path.join(listing.root, name), left[name]) for name in sorted(left)]
        if listing.root != listing.data:
            read.setdefault(listing.data, set()).add(listing.root.relative_to(listing.data).parts[0])
    for folder, names in read.items():
        beside = sorted(entry.name for entry in _scan(folder) if entry.name not in names)
        found += len(beside)
        others += [LeftOut("", os.path.join(folder, name), "lies in no split that is read") for name in beside]
    return Account(found, used, tuple(skipped), tuple(others))
