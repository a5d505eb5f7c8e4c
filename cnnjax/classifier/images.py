"""Images to be classified: files, folders of them, or arrays, read in batches."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from cnnjax.classifier.config import Config
from cnnjax.classifier.sources import check_source
from cnnjax.data.listing import EXTENSIONS, existing_folder, shown
from cnnjax.data.pixels import ImageError, Resizing, Scale, checked_scale, load, read_bytes
from cnnjax.data.source import InMemory, Source, map_threaded

SEARCHED = (*EXTENSIONS, ".webp")
"""The endings of the files that are picked out of a folder; a file that is named may have any."""

_SHOWN = 20

Paths = str | os.PathLike[str] | Iterable[str | os.PathLike[str]]
Images = Paths | np.ndarray | jax.Array | Source
"""Files, folders that are searched for some, arrays u8 or f32[N, H, W, 3] in 0..255, or a source."""
Scaling = str | Sequence[float] | None


def find_images(paths: Paths) -> list[str]:
    """The files that `paths` name, in that order; folders are searched for images, and give them sorted.

    Hidden files and folders are passed over, and links to folders are not followed.

    Raises:
        FileNotFoundError: There is no such file or folder.
        ValueError: There is no image in a folder, or nothing is named.
        OSError: A folder cannot be listed.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = [(Path(folder) / name).touch() for name in ("b.jpg", "a.PNG", "notes.txt")]
    ...     [os.path.basename(path) for path in find_images(folder)]
    ['a.PNG', 'b.jpg']
    """
    if isinstance(paths, str | os.PathLike):
        paths = [str(paths)]
    named: list[str] = [os.fspath(path) for path in paths]
    if not named:
        raise ValueError("no images given: name files, or folders that hold some")
    found: list[str] = []
    for path in named:
        if os.path.isdir(path):
            found += _searched(path)
        elif os.path.exists(path):
            found.append(path)
        else:
            parent = existing_folder(Path(path).parent)
            raise FileNotFoundError(f"no image {shown(os.path.basename(path))!r} in {shown(parent)}")
    return found


def _searched(folder: str) -> list[str]:
    def refuse(error: OSError) -> None:
        raise type(error)(f"cannot list the folder {shown(str(error.filename))}: {error.strerror}") from None

    found = []
    for below, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [
            os.path.join(below, name) for name in files if name.lower().endswith(SEARCHED) and not name.startswith(".")
        ]
    if not found:
        raise ValueError(f"no images ({', '.join(SEARCHED)}) in {shown(folder)}")
    return sorted(found)


class Files:
    """Images in files, decoded and resized as `cnnjax.data.Folder` does for training.

    Args:
        paths: Their paths.
        size: Height and width.
        resizing: See `cnnjax.data.resize`.
        scale: Of 16-bit files; see `cnnjax.data.Folder`.

    Attributes:
        errors: By position, why an image that was read cannot be decoded.
    """

    def __init__(self, paths: Sequence[str], size: tuple[int, int], resizing: Resizing, scale: Scale | None = None):
        self.paths, self.image_size, self.resizing, self.scale = list(paths), size, resizing, scale
        self.errors: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """The images at `indices` as f32[n, H, W, 3] in 0..255; black for those that go into `errors`."""
        images = np.zeros((len(indices), *self.image_size, 3), np.float32)

        def fill(slot: int) -> None:
            try:
                content = read_bytes(self.paths[indices[slot]])
                images[slot] = load(content, self.image_size, self.resizing, self.scale)
            except ImageError as error:
                self.errors[int(indices[slot])] = str(error)

        map_threaded(fill, range(len(indices)))
        return images

    def refuse(self) -> None:
        """Raise `ImageError` for all images in `errors`, if there are any."""
        if not self.errors:
            return
        listed = [f"\n  {shown(self.paths[i])}: {shown(reason)}" for i, reason in sorted(self.errors.items())]
        more = f"\n  ... and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else ""
        count = "1 image" if len(listed) == 1 else f"{len(listed)} images"
        raise ImageError(
            f"{count} cannot be decoded (on_error='skip' reports such in the result):{''.join(listed[:_SHOWN])}{more}"
        )


def open_images(images: Any, config: Config, scale: Scaling = None) -> Any:
    """What is to be classified as a source of images of the classifier's size.

    Args:
        images: Files, folders, arrays or a source.
        config: The classifier's.
        scale: Which values of arrays, or of 16-bit files, become 0 and 255.

    Raises:
        ValueError: Arrays do not fit, a source is of other images, or there are none.
        FileNotFoundError: There is no such file or folder.
    """
    if isinstance(images, np.ndarray | jax.Array):
        array = np.asarray(images)
        if array.ndim != 4 or array.shape[-1] != 3:
            raise ValueError(f"images: expected shape [N, H, W, 3], found {list(array.shape)}")
        if scale is None and array.dtype == np.uint16:
            scale = config.scale
        if scale is None and array.dtype != np.uint8 and array.size and array.min() >= -0.01 and array.max() <= 255.01:
            array = np.clip(array, 0, 255)  # antialiased resizing rounds to 255.00003
        none = np.zeros(len(array) if array.ndim else 0, np.int32)  # nothing is known of them
        # What has the size is resized already; "center_crop" would crop it once more.
        way = "bilinear" if array.shape[1:3] == config.size else config.resizing
        return InMemory(array, targets=none, image_size=config.size, resizing=way, scale=scale)
    if hasattr(images, "read") and hasattr(images, "image_size"):
        check_source(images, config.size, config.resizing)
        if scale is not None:
            raise ValueError("scale: a source has its own; open it with scale=")
        return images
    own = config.scale if scale is None else checked_scale(scale)
    return Files(find_images(images), config.size, config.resizing, own)
