"""Images whose targets stand in a table: a CSV file beside a folder."""

import csv
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np

from cnnjax.data.folder import Folder
from cnnjax.data.listing import Listing, existing_folder, shown, some
from cnnjax.data.pixels import Resizing, checked_resizing, checked_scale
from cnnjax.data.source import as_size
from cnnjax.data.splitting import FRACTIONS, SPLIT_NAMES, OnError, by_class, checked_on_error, draw_splits
from cnnjax.runtime.nearest import unknown

TaskKind = Literal["classification", "multilabel", "regression"]
FILE, SPLIT, WEIGHT = "file", "split", "sample_weight"
_SHOWN = 20


class LabelFileError(ValueError):
    """A table of targets has faults; all of them are named."""


class LabelledFolder(Folder):
    """The images of a folder that a table names, with what it says of them; made by `open_labels`.

    Attributes:
        labels: i32[N], classes; or f32[N, K], what stands in K columns.
        targets: the same where they are no classes, None where they are.
        target_names: the columns that the targets come from.
    """

    target_names: tuple[str, ...]
    _weights: np.ndarray | None = None  # of all rows of the listing

    def __init__(
        self, listing: Listing, class_names: tuple[str, ...], target_names: tuple[str, ...], image_size: Sequence[int],
        on_error: OnError, resizing: Resizing, scale: str | Sequence[float] | None, weights: np.ndarray | None = None,
    ) -> None:  # fmt: skip
        self._weights = weights
        self.image_size = as_size(image_size)
        self.resizing, self.scale, self.target_names = checked_resizing(resizing), checked_scale(scale), target_names
        self._hold(listing, class_names, on_error)

    @property
    def weights(self) -> np.ndarray | None:
        """f32[N], how much each image counts in losses, metrics and reports; None where all count the same."""
        return None if self._weights is None else self._weights[self.selection.rows]

    @property
    def targets(self) -> np.ndarray | None:
        """f32[N, K]; None where the labels are classes."""
        return None if self.class_names else self.labels


class _Table(NamedTuple):
    """What a table says: each image's path in the folder, its split ("" without that column), and its cells."""

    files: tuple[str, ...]
    splits: tuple[str, ...]
    cells: tuple[tuple[str, ...], ...]
    lines: tuple[int, ...]
    columns: tuple[str, ...]
    weights: tuple[float, ...] | None


def open_labels(
    folder: str | os.PathLike[str],
    table: str | os.PathLike[str],
    kind: TaskKind = "classification",
    columns: Sequence[str] = (),
    *,
    classes: Sequence[str] | None = None,
    whole: bool = False,
    image_size: Sequence[int] = (160, 160),
    on_error: OnError = "refuse",
    resizing: Resizing = "bilinear",
    scale: str | Sequence[float] | None = None,
) -> dict[str, LabelledFolder]:
    """Open the images that a CSV file names.

    Its first line names the columns: `file`, the path of an image in the folder; `split` (train, validation or test),
    if the images are not to be split by chance, 70 : 15 : 15, by their names alone; `sample_weight`, how much an image
    counts in losses, metrics and reports, if they do not all count the same; and what is to be learned. Spaces around a
    cell do not count.

    Args:
        folder: Holds the images.
        table: The CSV file, UTF-8.
        kind: "classification": one column of class names. "multilabel": columns of 0 and 1. "regression": of numbers.
        columns: What is to be learned; all other columns if not given.
        classes: The classes, in their order; those of the table, sorted, if not given.
        whole: Whether all images are one source, "all", whatever split the table gives them.
        image_size: As for `Folder`, like `on_error`, `resizing` and `scale`.
        on_error: As for `Folder`.
        resizing: As for `Folder`.
        scale: As for `Folder`.

    Returns:
        Sources by split.

    Raises:
        LabelFileError: The table has faults; each is named with its line.
        FileNotFoundError: There is no such folder or file.

    >>> import tempfile; from PIL import Image
    >>> root = tempfile.TemporaryDirectory()
    >>> for k in range(2):
    ...     Image.new("RGB", (8, 8)).save(f"{root.name}/{k}.png")
    >>> _ = Path(f"{root.name}/ages.csv").write_text("file,split,age\\n0.png,train,31\\n1.png,test,4.5\\n")
    >>> found = open_labels(root.name, f"{root.name}/ages.csv", "regression")
    >>> found["test"].names, found["test"].targets.tolist(), found["train"].target_names
    (('1.png',), [[4.5]], ('age',))
    >>> root.cleanup()
    """
    checked_on_error(on_error)
    if kind not in get_args(TaskKind):
        raise ValueError(f"task: expected one of {', '.join(get_args(TaskKind))}, found {kind!r}")
    root, path = existing_folder(Path(folder)), Path(table)
    if not path.is_file():
        raise FileNotFoundError(f"no file {shown(path)} with labels")
    read = _read(path, root, tuple(columns))
    if kind == "classification":
        names, labels = _classes(path, read, classes)
    else:
        names, labels = (), _numbers(path, read, kind)
    listing = _listing(root, path, read, labels)
    weights = None if read.weights is None else np.array(read.weights, np.float32)
    source = LabelledFolder(listing, names, read.columns, image_size, "refuse", resizing, scale, weights)
    parts = {"all": np.arange(len(source))} if whole else _parts(path, read, source)
    found: dict[str, LabelledFolder] = {kind: source.take(rows) for kind, rows in parts.items()}
    if names and classes is None and "train" in found:
        lost = [name for k, name in enumerate(names) if not (found["train"].labels == k).any()]
        if lost:
            raise LabelFileError(f"{shown(path)}: no training image of class {some(lost)}")
    if on_error == "skip":
        for part in found.values():
            part.skip_undecodable()
    return found


def _read(path: Path, root: Path, wanted: tuple[str, ...]) -> _Table:
    """The table's cells; faults of all lines together."""
    faults: list[tuple[int, str]] = []
    files, splits, cells, lines = list[str](), list[str](), list[tuple[str, ...]](), list[int]()
    weights: list[float] = []
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, strict=True)
            header = [cell.strip() for cell in next(reader, [])]
            columns = _columns(path, header, wanted)
            places = [header.index(name) for name in columns]
            where, split = header.index(FILE), header.index(SPLIT) if SPLIT in header else None
            weighs = header.index(WEIGHT) if WEIGHT in header else None
            real, seen = os.path.realpath(root), dict[str, int]()
            for row in reader:
                line = reader.line_num
                if not row:
                    continue
                if len(row) != len(header):
                    faults.append((line, f"{len(row)} cells, the header has {len(header)}"))
                    continue
                own = [cell.strip() for cell in row]
                if fault := _file_fault(own[where], root, real, seen):
                    faults.append((line, fault))
                seen.setdefault(os.path.normpath(own[where]), line)
                said = "" if split is None else own[split]
                kind = "" if split is None else SPLIT_NAMES.get(said.lower(), "?")
                if kind == "?":
                    faults.append((line, f"split: expected train, validation or test, found {shown(said)!r}"))
                faults += [(line, f"{shown(header[k])} is empty") for k in places if not own[k]]
                weight = 1.0 if weighs is None else _number(own[weighs])
                if weight is None or weight < 0:
                    faults.append((line, f"{WEIGHT}: expected a number from 0 on, found {shown(own[weighs or 0])!r}"))
                weights.append(weight or 0.0)
                files.append(own[where])
                splits.append(kind)
                cells.append(tuple(own[k] for k in places))
                lines.append(line)
    except (UnicodeDecodeError, csv.Error) as error:
        raise LabelFileError(f"{shown(path)} is no CSV file in UTF-8: {error}") from error
    _refuse(path, faults)
    if not files:
        raise LabelFileError(f"{shown(path)} names no images")
    return _Table(tuple(os.path.normpath(f).replace(os.sep, "/") for f in files), tuple(splits), tuple(cells),
                  tuple(lines), columns, tuple(weights) if WEIGHT in header else None)  # fmt: skip


def _columns(path: Path, header: list[str], wanted: tuple[str, ...]) -> tuple[str, ...]:
    if FILE not in header:
        raise LabelFileError(f"{shown(path)}, line 1: no column {FILE!r} with the images' paths; found {some(header)}")
    if twice := sorted({name for name in header if header.count(name) > 1}):
        raise LabelFileError(f"{shown(path)}, line 1: column {some(twice)} stands there more than once")
    others = [name for name in header if name not in (FILE, SPLIT, WEIGHT)]
    for name in wanted:
        if name not in others:
            raise LabelFileError(f"{shown(path)}, line 1: {unknown('column', name, others, 'of targets')}")
    if len(set(wanted)) != len(wanted):
        raise LabelFileError(f"targets: {some(wanted)} names a column more than once")
    if not others or "" in others:
        raise LabelFileError(f"{shown(path)}, line 1: a column without a name, or none but {some(header)}")
    return wanted or tuple(others)


def _file_fault(name: str, root: Path, real: str, seen: dict[str, int]) -> str:
    plain = os.path.normpath(name)
    if not name:
        return f"{FILE} is empty"
    if os.path.isabs(plain) or plain.startswith(".."):
        return f"{shown(name)} lies outside of {shown(root)}; paths are relative to it"
    if plain in seen:
        return f"{shown(name)} stands in line {seen[plain]} already"
    if not os.path.isfile(os.path.join(real, plain)):
        return f"no file {shown(name)} in {shown(root)}"
    return ""


def _classes(path: Path, read: _Table, classes: Sequence[str] | None) -> tuple[tuple[str, ...], np.ndarray]:
    if len(read.columns) != 1:
        raise LabelFileError(
            f"{shown(path)}: a classification has one column of class names, found {some(read.columns)}; name it as "
            "targets, or give the task multilabel or regression"
        )
    values = [cells[0] for cells in read.cells]
    names = tuple(sorted(set(values)) if classes is None else classes)
    _refuse(
        path,
        [
            (line, f"{read.columns[0]}: {shown(value)!r} is none of the classes {some(names)}")
            for line, value in zip(read.lines, values, strict=True)
            if value not in names
        ],
    )
    if strange := [name for name in names if shown(name) != name]:
        raise LabelFileError(f"{shown(path)}: a class's name must be printable text; rename {some(strange)}")
    if len(names) < 2:
        raise LabelFileError(f"{shown(path)}: a classification needs two classes or more, found {some(names)}")
    places = {name: place for place, name in enumerate(names)}
    return names, np.array([places[value] for value in values], np.int32)


def _numbers(path: Path, read: _Table, kind: str) -> np.ndarray:
    found, faults = np.zeros((len(read.cells), len(read.columns)), np.float64), list[tuple[int, str]]()
    number: Callable[[str], float | None] = _flag if kind == "multilabel" else _number
    expected = "0 or 1" if kind == "multilabel" else "a finite number, with a point"
    for row, (line, cells) in enumerate(zip(read.lines, read.cells, strict=True)):
        for column, text in enumerate(cells):
            value = number(text)
            if value is None:
                faults.append((line, f"{shown(read.columns[column])}: expected {expected}, found {shown(text)!r}"))
            else:
                found[row, column] = value
    _refuse(path, faults)
    return found.astype(np.float32)


def _flag(text: str) -> float | None:
    return {"0": 0.0, "1": 1.0, "0.0": 0.0, "1.0": 1.0}.get(text)


def _number(text: str) -> float | None:
    try:
        value = math.nan if "_" in text else float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) and abs(value) <= float(np.finfo(np.float32).max) else None


def _listing(root: Path, path: Path, read: _Table, labels: np.ndarray) -> Listing:
    """What lies in the folder, and which of it the table names."""
    wanted, others = set(read.files), dict[str, str]()
    for below, folders, files in os.walk(root):
        folders.sort()
        for name in files:
            relative = os.path.relpath(os.path.join(below, name), root).replace(os.sep, "/")
            if relative not in wanted:
                others[relative] = f"not named in {path.name}"
    return Listing(root, root, read.files, labels, others, len(read.files) + len(others))


def _parts(path: Path, read: _Table, source: LabelledFolder) -> dict[str, np.ndarray]:
    """Rows of each split, those of the table or drawn."""
    kinds = np.array(read.splits)
    if read.splits[0]:
        return {kind: np.flatnonzero(kinds == kind) for kind in FRACTIONS if (kinds == kind).any()}
    # By the names alone, each class in the same proportions: the order of the lines does not matter.
    order = np.array(sorted(range(len(read.files)), key=lambda k: read.files[k]))
    groups: dict[str, np.ndarray] = {"": order}
    if source.class_names:
        groups = {name: order[rows] for name, rows in by_class(source.labels[order], source.class_names).items()}
    return draw_splits(groups, FRACTIONS, 0, shown(path), LabelFileError)


def _refuse(path: Path, faults: Sequence[tuple[int, str]]) -> None:
    if faults:
        listed = [f"\n  line {line}: {reason}" for line, reason in faults[:_SHOWN]]
        more = f"\n  ... and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
        raise LabelFileError(f"{shown(path)} has {len(faults)} fault{'s'[: len(faults) > 1]}:{''.join(listed)}{more}")
