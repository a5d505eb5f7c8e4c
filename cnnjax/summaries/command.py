"""The command `cnnjax summary`."""

import shutil
import sys
from dataclasses import dataclass, field
from typing import Annotated, Literal

import tyro
from flax import nnx

from cnnjax.arguments import BackboneName, BackboneOptions, ImageSize
from cnnjax.models.own import is_path
from cnnjax.models.registry import entry_or_own
from cnnjax.models.sizes import sides
from cnnjax.summaries.summary import summary
from cnnjax.weights.pretrained import open_backbone


@dataclass(frozen=True)
class Summarise:
    """The table of a network: names, shapes, parameters; with --wide what each layer costs and sees."""

    name: Annotated[BackboneName, tyro.conf.Positional]
    """The network."""
    backbone_options: BackboneOptions = field(default_factory=dict)
    """Its own options."""
    image_size: ImageSize | None = None
    """Height and width of the images, one number for both; the network's own if not given."""
    channels: int | None = None
    """Of the images; 3 if not given."""
    classes: int | None = None
    """Classes of the top."""
    include_top: bool = True
    """Whether the classification layers are part of it."""
    freeze: str = "none"
    """What is frozen: none, all, a number of layers, a layer's name (up to and including), [start:stop] as in
    Keras, or a pattern."""
    wide: bool = False
    """Also multiplications, receptive field, jump (stride to the input) and centre of the first cell, what
    trains, and what is computed once."""
    format: Literal["text", "markdown", "json"] = "text"
    """How it is printed."""

    def __post_init__(self) -> None:
        entry_or_own(self.name).checked(self.backbone_options, include_top=self.include_top)


def summarise(config: Summarise) -> None:
    """Print the table."""

    def build() -> nnx.Module:
        return open_backbone(
            config.name,
            image_size=config.image_size,
            channels=config.channels,
            include_top=config.include_top,
            classes=config.classes,
            **config.backbone_options,
        )[0]

    # Shapes are enough: no weight is drawn.
    size = entry_or_own(config.name).image_size if config.image_size is None else config.image_size
    shape = (*sides(size), config.channels or 3) if is_path(config.name) else None
    found = summary(nnx.eval_shape(build), input_shape=shape, freeze=config.freeze)
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    shown = {
        "text": lambda: found.text(wide=config.wide, width=width),
        "markdown": lambda: found.markdown(wide=config.wide),
        "json": found.json,
    }
    print(shown[config.format]())
