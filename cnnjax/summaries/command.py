"""The command `cnnjax summary`."""

import shutil
import sys
from dataclasses import dataclass
from typing import Annotated

import tyro
from flax import nnx

from cnnjax.commands.network import Architecture, BackboneName, Frozen
from cnnjax.commands.options import Channels, Format
from cnnjax.models.own import is_path
from cnnjax.summaries.summary import summary
from cnnjax.weights.pretrained import open_backbone


@dataclass(frozen=True, kw_only=True)
class Summarise(Architecture, Channels):
    """The table of a network: names, shapes, parameters; with --wide what each layer costs and sees."""

    backbone: Annotated[BackboneName, tyro.conf.Positional]
    classes: int | None = None
    """Classes of the top."""
    include_top: bool = True
    """Whether the classification layers are part of it."""
    freeze: Frozen = None
    wide: bool = False
    """Also multiplications, receptive field, jump (stride to the input) and centre of the first cell, what
    trains, and what is computed once and cached."""
    format: Format = "text"

    def __post_init__(self) -> None:
        self.check_backbone(include_top=self.include_top)


def summarise(config: Summarise) -> None:
    """Print the table."""

    def build() -> nnx.Module:
        return open_backbone(
            config.backbone,
            image_size=config.image_size,
            channels=config.channels,
            include_top=config.include_top,
            classes=config.classes,
            **config.backbone_options,
        )[0]

    # Shapes are enough: no weight is drawn.
    shape = (*config.size, config.channels or 3) if is_path(config.backbone) else None
    found = summary(nnx.eval_shape(build), input_shape=shape, freeze=config.freeze or "none")
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    shown = {
        "text": lambda: found.text(wide=config.wide, width=width),
        "markdown": lambda: found.markdown(wide=config.wide),
        "json": found.json,
    }
    print(shown[config.format]())
