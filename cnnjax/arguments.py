"""Options that several commands have, declared once: one name, one default, one meaning.

A network's own options are made of the architectures' entries (`cnnjax.models.registry`) when a command line is read.
"""

import inspect
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from operator import getitem
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from cnnjax.data.folder import OnError
from cnnjax.data.pixels import Resizing
from cnnjax.models import registry


def _constructor() -> Callable[..., dict[str, Any]]:
    """A function whose arguments are the options of all architectures, and which returns those that are given."""

    def options(backbone_options: tuple[str, ...] = (), **given: Any) -> dict[str, Any]:
        found = {name: value for name, value in given.items() if value is not None}
        for name, value in map(_pair, backbone_options):
            if name in found:
                raise ValueError(f"--backbone-options: {name} is given twice")
            found[name] = value
        return found

    owners: dict[str, list[tuple[str, registry.Option]]] = {}
    for entry in registry.entries().values():
        for option in entry.options.values():
            owners.setdefault(option.name, []).append((entry.name, option))
    parameters = [_parameter(name, having) for name, having in sorted(owners.items())]
    said = tyro.conf.arg(help="KEY=VALUE ...: of a network of your own, for its function.", metavar="KEY=VALUE")
    own: Any = getitem(Annotated, (tuple[str, ...], said))
    parameters.append(inspect.Parameter("backbone_options", inspect.Parameter.KEYWORD_ONLY, default=(), annotation=own))
    vars(options)["__signature__"] = inspect.Signature(parameters)
    options.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return options


def _pair(text: str) -> tuple[str, Any]:
    """A name and a value as JSON has it, or a text.

    >>> _pair("depth=3"), _pair("widths=[4, 8]"), _pair("norm=group")
    (('depth', 3), ('widths', [4, 8]), ('norm', 'group'))
    """
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise ValueError(f"--backbone-options: expected KEY=VALUE, such as depth=3, found {text!r}")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _parameter(name: str, having: list[tuple[str, registry.Option]]) -> inspect.Parameter:
    """An option of one or several architectures."""
    texts = dict.fromkeys(option.help for _, option in having)
    told = [(", ".join(o for o, option in having if option.help == text), text) for text in texts]
    text = " ".join(f"Of {owner}: {text[:1].lower()}{text[1:]}" for owner, text in told)
    defaults = ", ".join(f"{_shown(option.default)} in {owner}" for owner, option in having)
    choices = tuple(dict.fromkeys(choice for _, option in having for choice in option.choices))
    free = any(not option.choices for _, option in having)
    kind: Any = having[0][1].kind if free else getitem(Literal, choices)
    said = tyro.conf.arg(help=text, help_behavior_hint=f"(default: {defaults})")
    annotation: Any = getitem(Annotated, (kind | None, said))
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _shown(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


ImageSize = Annotated[int | tuple[int, int], tyro.conf.arg(metavar="PIXELS|HEIGHT WIDTH")]
"""The type of an option that gives images a size."""
IMAGE_SIZE = (
    "Height and width of the images in pixels, one number for both. If not given: the network's own; of pack the "
    "files' own; of show augment 224."
)
OwnImageSize = Annotated[ImageSize | None, tyro.conf.arg(help=IMAGE_SIZE)]
"""The same, with a default that the network decides."""
_NETWORK = (
    f"The network: {', '.join(registry.entries())}; or the import path of a function that builds one of your own, "
    "package.module:function or file.py:function."
)
BackboneName = Annotated[str, tyro.conf.arg(metavar="NAME", help=_NETWORK)]
"""The type of an option that names an architecture."""
BackboneOptions = Annotated[dict[str, Any], tyro.conf.arg(name="", constructor_factory=_constructor)]
"""The type of a field that holds an architecture's own options, each of which is an option of the command."""
_DATA = (
    "Folder of images, SPLIT/CLASS/FILE or CLASS/FILE, packed or not; tfds:NAME[:CONFIG]; or the import path of a "
    "function that gives sources of your own (see cnnjax.data.open_data)."
)
Data = Annotated[str, tyro.conf.arg(metavar="DATA", help=_DATA)]
"""The type of an option that names a data set."""
_FREEZE = (
    "What is frozen: none, all, a number of layers, a layer's name (up to and including), [start:stop] as in Keras, or "
    "a pattern. fit takes it with the method finetune, ablate compares several."
)
Frozen = Annotated[str, tyro.conf.arg(metavar="FREEZE", help=_FREEZE)]
"""The type of an option that says what is frozen."""
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
class Architecture:
    """Which network, of images of which size."""

    backbone: BackboneName = "mobilenet"
    """The network."""
    backbone_options: BackboneOptions = field(default_factory=dict)
    """Its own options."""
    image_size: OwnImageSize = None

    def check_backbone(self, *, include_top: bool) -> None:
        """Hold the network's own options as its function takes them.

        Raises:
            LookupError: There is no such network.
            ValueError: It has no such option, or a value is of another kind.
        """
        own = registry.entry_or_own(self.backbone).checked(self.backbone_options, include_top=include_top)
        object.__setattr__(self, "backbone_options", own)


@dataclass(frozen=True, kw_only=True)
class Network(Architecture):
    """A network with its weights."""

    weights: Path | None = None
    """Keras HDF5 file (.h5) with the network's pretrained weights, .safetensors of a network of your own; random numbers
    if not given."""
    preprocessing: str | None = None
    """tf, caffe, torch, unit or none; what the network's published weights expect if not given, unit without any."""

    def check_weights(self) -> None:
        """Raise `FileNotFoundError` where there is no such file."""
        if self.weights is not None and not self.weights.is_file():
            raise FileNotFoundError(f"no weights file {self.weights}")


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
    """Slices of a TFDS data set: train 'train[:80%]' validation 'train[80%:]' test test. Its own splits if not given."""


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
