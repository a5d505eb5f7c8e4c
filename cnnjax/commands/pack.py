"""The command `cnnjax pack`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from rich.console import Console
from tyro.conf import Positional, arg

from cnnjax.commands.options import Out, OwnImageSize, Resized
from cnnjax.data.decoded import DecodedFormat, decoded_files
from cnnjax.data.pack import pack_folder
from cnnjax.data.source import as_size
from cnnjax.runtime.progress import Bars


@dataclass(frozen=True, kw_only=True)
class Pack(Resized):
    """Pack a folder of images into one data set on disk that is faster to read.

    The files' bytes are kept as they are, with the names of classes and files. Give the result to --data like a
    folder; plain TFDS reads it too (tfds.builder_from_directory). Kill it and start it again with the same command:
    it goes on where it stopped.
    """

    folder: Annotated[Positional[Path], arg(metavar="FOLDER")]
    """Folder of images, SPLIT/CLASS/FILE or CLASS/FILE."""
    out: Out = None
    decoded: bool = False
    """Also keep the pixels as they are decoded: faster to read, about ten times the size of JPEGs. With --image-size
    they are kept resized: the fastest to read at that size, four bytes a value, slower or no use at others. The same
    command with this option adds them to what is packed already."""
    image_size: OwnImageSize = None

    def __post_init__(self) -> None:
        if self.image_size is not None and not self.decoded:
            raise ValueError(f"image_size: expected --decoded with it, found {self.image_size} alone")
        if self.image_size is not None:
            self.size  # noqa: B018  # raises

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width that are kept; None for the files' own."""
        given = self.image_size
        return None if given is None else as_size((given, given) if isinstance(given, int) else given)


def pack(config: Pack) -> Path:
    """The command: pack, and say what became of every file."""
    console = Console(soft_wrap=True, highlight=False)
    with Bars(console) as bars:
        kept = DecodedFormat(config.size, config.resizing) if config.decoded else None
        packed = pack_folder(
            config.folder,
            config.out,
            config.on_error,
            bars.bar("packing", "images"),
            decoded=kept,
            scale=config.scale,
        )
    files = list(packed.out.glob("*.array_record-*"))
    size, pixels = (sum(file.stat().st_size for file in some) / 1e6 for some in (files, decoded_files(packed.out)))
    console.print(str(packed.account))
    if packed.account.skipped or packed.account.others:
        console.print(f"what is left out, with reasons: {packed.out / 'skipped.csv'}")
    beside = f", {pixels:,.1f} MB of decoded pixels beside them" if pixels else ""
    console.print(f"{size:,.1f} MB in {len(files)} record files{beside}; use them with --data {packed.out}")
    return packed.out
