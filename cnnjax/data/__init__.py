"""Sources of labelled images and sounds: folders, TFDS data sets, arrays, and a data set drawn on the spot."""

import importlib
from typing import TYPE_CHECKING, Any

from cnnjax.data.entries import holds_records
from cnnjax.data.folder import Folder, open_splits, split_by_fraction, splits
from cnnjax.data.labels import LabelFileError, open_labels
from cnnjax.data.listing import Account, account
from cnnjax.data.loader import Batch, Loader
from cnnjax.data.opening import open_data, open_sounds
from cnnjax.data.pixels import ImageError, Resizing, decode, resize
from cnnjax.data.sound import Recording, SoundError, SoundFolder, decode_sound, recordings, split_by_group
from cnnjax.data.source import InMemory, Source, in_memory

if TYPE_CHECKING:
    from cnnjax.data.decoded import DecodedFormat
    from cnnjax.data.pack import pack_folder
    from cnnjax.data.records import Records
    from cnnjax.data.shapes import open_shapes
    from cnnjax.data.tfds_source import open_tfds
    from cnnjax.data.views import Views

__all__ = [
    "Account",
    "Batch",
    "DecodedFormat",
    "Folder",
    "ImageError",
    "InMemory",
    "LabelFileError",
    "Loader",
    "Recording",
    "Records",
    "Resizing",
    "SoundError",
    "SoundFolder",
    "Source",
    "Views",
    "account",
    "decode",
    "decode_sound",
    "holds_records",
    "in_memory",
    "open_data",
    "open_labels",
    "open_shapes",
    "open_sounds",
    "open_splits",
    "open_tfds",
    "pack_folder",
    "recordings",
    "resize",
    "split_by_fraction",
    "split_by_group",
    "splits",
]


# TFDS takes a second to import, and views need JAX.
_LATER = {
    "DecodedFormat": "cnnjax.data.decoded",
    "Records": "cnnjax.data.records",
    "Views": "cnnjax.data.views",
    "open_shapes": "cnnjax.data.shapes",
    "open_tfds": "cnnjax.data.tfds_source",
    "pack_folder": "cnnjax.data.pack",
}


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return getattr(importlib.import_module(_LATER[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
