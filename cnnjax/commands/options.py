"""Options that several commands have, declared once: one name, one default, one meaning. Nothing here needs JAX.

Those that name a network are in `cnnjax.commands.network`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from cnnjax.data.folder import OnError
from cnnjax.data.pixels import Resizing

_IMAGE_SIZE = (
    "Height and width of the images in pixels, one number for both. If not given: the network's own; of pack the "
    "files' own; of show augment 224."
)
OwnImageSize = Annotated[int | tuple[int, int] | None, tyro.conf.arg(metavar="PIXELS|HEIGHT WIDTH", help=_IMAGE_SIZE)]
"""The type of an option that gives images a size."""
_DATA = (
    "Folder of images, SPLIT/CLASS/FILE or CLASS/FILE, packed or not; tfds:NAME[:CONFIG]; or the import path of a "
    "function that gives sources of your own (see cnnjax.data.open_data)."
)
Data = Annotated[str, tyro.conf.arg(metavar="DATA", help=_DATA)]
"""The type of an option that names a data set."""
AnyData = Annotated[str | None, tyro.conf.arg(metavar="DATA", help=_DATA)]
"""The same, where there may be none."""
_OUT = (
    "What is written. If not given: runs/fit-BACKBONE-METHOD-DIGEST or runs/ablate-BACKBONE-DIGEST, so that the same "
    "command goes on where it stopped; FOLDER-packed of pack; a PNG file in the current folder, named after what it "
    "shows, of show; nothing of evaluate, which writes plots (.png) or all numbers (.json)."
)
Out = Annotated[Path | None, tyro.conf.arg(help=_OUT)]
"""The type of an option that names what is written."""
_FORMAT = "How the table is printed."
Format = Annotated[Literal["text", "markdown", "json"], tyro.conf.arg(help=_FORMAT)]
"""The type of an option that says how a table is printed."""
Seed = Annotated[int, tyro.conf.arg(help="Of all random numbers: the head's, the order, dropout, augmentation.")]
"""The type of an option that seeds random numbers."""
Count = Annotated[
    int | None,
    tyro.conf.arg(
        help="How many are shown. If not given: 6 edge detectors, 15 augmented images, of others all there is room for."
    ),
]
"""The type of an option that says how much is shown."""
Image = Annotated[
    Path,
    tyro.conf.arg(
        metavar="IMAGE",
        help="A photograph: BMP, GIF, JPEG, PNG or WebP; or .npy, an array [H, W, C] of 0 to 255. Its middle is used, "
        "in the proportions of what is shown.",
    ),
]
"""The type of an argument that names one image."""


@dataclass(frozen=True, kw_only=True)
class Channels:
    """How many channels the images have."""

    channels: int | None = None
    """Of the images; 3 if not given. A network of one channel sees photographs in grey."""


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How files become images."""

    on_error: OnError = "refuse"
    """What becomes of an image that cannot be decoded: refuse stops and names all of them; skip leaves them out, and
    they are counted and listed (predict says so in their place)."""
    scale: str | None = None
    """LOW:HIGH, the values of 16-bit files that become black and white: 0:4095 for 12-bit data. If not given: a saved
    classifier's own; otherwise 0:65535, and files that would come out nearly black are refused."""


@dataclass(frozen=True, kw_only=True)
class Resized(Decoding):
    """How files become images of one size."""

    resizing: Resizing = "bilinear"
    """How images come to their size: bilinear (as Keras), antialias, crop_to_aspect_ratio or center_crop."""


@dataclass(frozen=True, kw_only=True)
class Splits:
    """Which parts of a data set there are."""

    splits: dict[str, str] | None = None
    """Slices of a TFDS data set: train 'train[:80%]' validation 'train[80%:]' test test; its own splits if not
    given."""


@dataclass(frozen=True, kw_only=True)
class Storage:
    """Where features are kept, and who reads images."""

    workers: int = 0
    """Processes that read images; 0 reads in threads of this one."""
    store: Path | None = None
    """Where features are kept; by default in the user's cache folder, shared by all runs."""
    store_gib: float = 40.0
    """How much the store may hold, in GiB; the oldest features make room."""

    def check_workers(self) -> None:
        """Raise `ValueError` for fewer than no workers."""
        if self.workers < 0:
            raise ValueError(f"workers: expected 0 or more processes, found {self.workers}")


@dataclass(frozen=True, kw_only=True)
class Saved:
    """A saved classifier, and what it may run."""

    classifier: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="CLASSIFIER")]
    """The folder of a saved classifier."""
    code: tuple[str, ...] = ()
    """Of a classifier with code of your own (network, head, loss, metrics, task): the import paths that it names, whose
    code is run then."""
