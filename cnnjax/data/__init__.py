"""Sources of labelled pictures: folders, arrays, and a data set drawn on the spot."""

from typing import TYPE_CHECKING, Any

from cnnjax.data.folder import Folder, open_splits, split_by_fraction, splits
from cnnjax.data.pixels import PictureError, decode, resize
from cnnjax.data.source import InMemory, Source

if TYPE_CHECKING:
    from cnnjax.data.shapes import open_shapes

__all__ = [
    "Folder",
    "InMemory",
    "PictureError",
    "Source",
    "decode",
    "open_shapes",
    "open_splits",
    "resize",
    "split_by_fraction",
    "splits",
]


def __getattr__(name: str) -> Any:
    # TFDS takes a second to import.
    if name == "open_shapes":
        from cnnjax.data.shapes import open_shapes

        return open_shapes
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
