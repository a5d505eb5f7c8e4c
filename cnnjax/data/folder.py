"""A folder of images as users have it: `root/split/class/*.jpg`."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Self

import numpy as np

from cnnjax.data.examples import Examples
from cnnjax.data.listing import (
    EXTENSIONS,
    Listing,
    Selection,
    existing_folder,
    has_images,
    list_folder,
    some,
    visible_folders,
)
from cnnjax.data.pixels import (
    ImageError,
    Resizing,
    checked_resizing,
    checked_scale,
    decode,
    load,
    read_bytes,
)
from cnnjax.data.source import as_indices, as_size, map_threaded
from cnnjax.data.splitting import FRACTIONS, SPLIT_NAMES, OnError, by_class, checked_on_error, draw_splits
from cnnjax.files.digests import content_digest
from cnnjax.runtime.nearest import nearest


class Folder(Examples):
    """The images of a folder, one subfolder a class, listed and read as by `image_dataset_from_directory`.

    Classes are the visible subfolders, sorted by name. A class's images lie in its folder or anywhere below
    it (links to folders below a class are not followed); order, allowed endings and pixels are Keras's with
    `shuffle=False`.

    With `on_error="skip"` every image is decoded once here, since only then are length and labels known.
    With "refuse" nothing is decoded here, so that a listing stays cheap: call `verify` before long work, for
    a bad image otherwise surfaces in the `read` that meets it.

    Args:
        root: the folder that holds the classes, or the splits if `split` is named.
        split: the name of a subfolder of `root`, as it is spelt there.
        image_size: height and width that `read` resizes to.
        on_error: "refuse" raises `ImageError` for images that cannot be decoded; "skip" leaves them out
            and lists them in `skipped`.
        resizing: how `read` resizes: see `cnnjax.data.pixels.resize`.
        scale: which values of 16-bit files become 0 and 255: "0:4095" or (0, 4095) for 12-bit data; see
            `cnnjax.data.pixels.decode`.

    Attributes:
        selection: which files were found, used and left out, for `cnnjax.data.listing.account`.

    Raises:
        FileNotFoundError, NotADirectoryError, PermissionError: `root` or `split` is not a readable folder.
        ValueError: no class, a class without images, or splits where classes were expected.

    >>> import tempfile; from PIL import Image
    >>> root = tempfile.TemporaryDirectory()
    >>> for name in ("cat", "dog"):
    ...     os.makedirs(f"{root.name}/train/{name}")
    ...     Image.new("RGB", (9, 7), "red").save(f"{root.name}/train/{name}/1.png")
    >>> source = Folder(root.name, "train", image_size=(4, 4))
    >>> source.class_names, source.names, source.read([1])[0, 0, 0].tolist()
    (('cat', 'dog'), ('cat/1.png', 'dog/1.png'), [255.0, 0.0, 0.0])
    >>> root.cleanup()
    """

    # What a source of other files changes (see `SoundFolder`), with `_load` and `_choices`.
    _endings: tuple[str, ...] = EXTENSIONS

    _by_row = ("labels", "_hashes")
    _hashes: np.ndarray | None = None

    def __init__(
        self,
        root: str | os.PathLike[str],
        split: str | None = None,
        image_size: Sequence[int] = (160, 160),
        on_error: OnError = "refuse",
        resizing: Resizing = "bilinear",
        scale: str | Sequence[float] | None = None,
    ) -> None:
        self.image_size: tuple[int, ...] = as_size(image_size)
        self.resizing, self.scale = checked_resizing(resizing), checked_scale(scale)
        self._open(root, split, on_error)

    def _open(self, root: str | os.PathLike[str], split: str | None, on_error: OnError) -> None:
        checked_on_error(on_error)
        folder = _split_folder(Path(root), split)
        classes = tuple(visible_folders(folder))
        self._hold(list_folder(folder, classes, self._endings, data=Path(root)), classes, on_error)

    def _hold(self, listing: Listing, class_names: tuple[str, ...], on_error: OnError) -> None:
        self.root, self.class_names = listing.root, class_names
        self.names, self.labels = listing.names, listing.labels
        self.selection = Selection(listing, np.arange(len(self.names)), {})
        if on_error == "skip":
            self.skip_undecodable()

    def __repr__(self) -> str:
        shape = f"{len(self)} {self._what}s, {len(self.class_names)} classes, {self.image_size}"
        return f"{type(self).__name__}({str(self.root)!r}, {shape})"

    def path(self, index: int) -> str:
        """Returns the path of an image's file."""
        return os.path.join(self.root, self.names[index])

    def read(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Returns the images at `indices` as f32[n, H, W, 3] in 0..255, decoded by a few threads.

        Raises:
            IndexError: an index outside 0..N-1.
            ImageError: names every image among them that cannot be decoded, with the reason.
        """
        wanted = as_indices(indices, len(self))
        examples = np.empty((len(wanted), *self._shape), np.float32)

        def fill(slot: int) -> str | None:
            try:
                examples[slot] = self._load(read_bytes(self.path(wanted[slot])))
            except (ImageError, self._error) as error:
                return str(error)
            return None

        reasons = map_threaded(fill, range(len(wanted)))
        self._refuse({int(wanted[slot]): reason for slot, reason in enumerate(reasons) if reason is not None})
        return examples

    @property
    def _shape(self) -> tuple[int, ...]:
        return (*self.image_size, 3)

    def _load(self, content: bytes) -> np.ndarray:
        return load(content, (self.image_size[0], self.image_size[1]), self.resizing, self.scale)

    def _check(self, content: bytes) -> None:
        decode(content, self.scale)

    def take(self, indices: Sequence[int] | np.ndarray) -> Self:
        part = super().take(indices)
        part.selection = self.selection.take(as_indices(indices, len(self)))
        return part

    def skip_undecodable(self) -> None:
        reasons = {int(self.selection.rows[i]): reason for i, reason in sorted(self._inspect().items())}
        super().skip_undecodable()
        self.selection = replace(self.selection, skipped=reasons)

    @property
    def _where(self) -> str:
        return f"of {self.root}"

    def _name(self, index: int) -> str:
        return self.path(index)

    def _read_hashes(self) -> np.ndarray:
        return self._hash_files(check=False)[0] if self._hashes is None else self._hashes

    def _inspect(self) -> dict[int, str]:
        # The files are read only once: their hashes are kept too.
        if self._faults is None:
            self._hashes, self._faults = self._hash_files(check=True)
        return self._faults

    def _hash_files(self, check: bool) -> tuple[np.ndarray, dict[int, str]]:
        """Returns the files' SHA-256 u8[N, 32], and by index why one cannot be read or (`check`) decoded."""
        hashes = np.zeros((len(self), 32), np.uint8)

        def inspect(index: int) -> str | None:
            try:
                content = read_bytes(self.path(index))
                hashes[index] = np.frombuffer(content_digest(content), np.uint8)
                if check:
                    self._check(content)
            except (ImageError, self._error) as error:
                return str(error)
            return None

        reasons = map_threaded(inspect, range(len(self)))
        faults = {index: reason for index, reason in enumerate(reasons) if reason is not None}
        if not check:
            self._refuse(faults)
        return hashes, faults


def splits(root: str | os.PathLike[str]) -> dict[str, str]:
    """Finds the split folders of `root`: named train, validation (valid, val, dev) or test, with classes in.

    Returns:
        The folders' names by what they are: `{"train": "train", "validation": "val"}`, in that order.

    Raises:
        ValueError: two folders for one split (`val` beside `validation`).
        FileNotFoundError, NotADirectoryError, PermissionError: `root` is not a readable folder.
    """
    root = Path(root)
    found: dict[str, str] = {}
    for name in visible_folders(existing_folder(root)):
        kind = SPLIT_NAMES.get(name.lower())
        if kind is None or not visible_folders(root / name) or has_images(root / name):
            continue
        if kind in found:
            raise ValueError(f"{root}: both {found[kind]!r} and {name!r} look like the {kind} split; keep one")
        found[kind] = name
    return {kind: found[kind] for kind in ("train", "validation", "test") if kind in found}


def open_splits(
    root: str | os.PathLike[str],
    image_size: Sequence[int] = (160, 160),
    on_error: OnError = "refuse",
    resizing: Resizing = "bilinear",
    scale: str | Sequence[float] | None = None,
) -> dict[str, Folder]:
    """Opens every split of `root` (`splits`), keyed "train", "validation", "test"; arguments as for `Folder`.

    Raises:
        ValueError: no split folders, or splits whose classes differ; the message lists the differences.
        As `Folder` otherwise.
    """
    found = splits(root)
    if not found:
        classes = visible_folders(Path(root))
        hint = (
            f"it holds the folders {some(classes)}; "
            f"if those are the classes, split_by_fraction({str(root)!r}) splits them"
            if classes
            else "it holds no folders at all"
        )
        raise ValueError(f"no split folders (train, validation, test) in {root}: {hint}")
    classes = {name: set(visible_folders(Path(root) / name)) for name in found.values()}
    everything = set().union(*classes.values())
    faults = [f"{name!r} lacks {some(sorted(everything - has))}" for name, has in classes.items() if everything - has]
    if faults:
        raise ValueError(f"the splits of {root} must hold the same classes, but " + "; ".join(faults))
    return {kind: Folder(root, name, image_size, on_error, resizing, scale) for kind, name in found.items()}


def split_by_fraction(
    root: str | os.PathLike[str],
    fractions: Mapping[str, float] = FRACTIONS,
    seed: int = 0,
    image_size: Sequence[int] = (160, 160),
    on_error: OnError = "refuse",
    resizing: Resizing = "bilinear",
    scale: str | Sequence[float] | None = None,
) -> dict[str, Folder]:
    """Splits the images of `root/class/*` by chance, each class in the same proportions.

    The split depends on the seed and on the sorted names of each class's images alone, so it is the same on
    every machine; images that are skipped are skipped after it and move no other image.

    Args:
        root: the folder that holds the classes.
        fractions: the share of every split; they sum to 1.
        seed: of the draw.
        image_size: as for `Folder`.
        on_error: as for `Folder`.
        resizing: as for `Folder`.
        scale: as for `Folder`.

    Raises:
        ValueError: fractions that are not positive or do not sum to 1, or a class with fewer images than
            splits.
        As `Folder` otherwise.
    """
    checked_on_error(on_error)
    whole = Folder(root, None, image_size, resizing=resizing, scale=scale)
    drawn = draw_splits(by_class(whole.labels, whole.class_names), fractions, seed, root)
    parted = {kind: whole.take(rows) for kind, rows in drawn.items()}
    if on_error == "skip":
        for part in parted.values():
            part.skip_undecodable()
    return parted


def _split_folder(root: Path, split: str | None) -> Path:
    """Returns the folder that holds the classes; raises the error that names the nearest right answer."""
    root = existing_folder(root)
    found = splits(root)
    if split is None:
        if found and set(found.values()) == set(visible_folders(root)):
            raise ValueError(
                f"{root} holds the splits {some(list(found.values()))}, not classes; name one as split=..."
            )
        return root
    if (root / split).is_dir():
        return existing_folder(root / split)
    if (root / split).exists():
        raise NotADirectoryError(f"expected a folder of classes, found a file: {root / split}")
    folders = visible_folders(root)
    near = found.get(SPLIT_NAMES.get(split.lower(), "")) or nearest(split, folders, 0.6)
    has = (
        f"found {'splits' if found else 'folders'} {some(list(found.values()) or folders)}" if folders else "no folders"
    )
    raise FileNotFoundError(f"no split {split!r} in {root}: {has}" + (f"; did you mean {near!r}?" if near else ""))
