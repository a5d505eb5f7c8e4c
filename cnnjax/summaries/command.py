"""The command `cnnjax summary`."""

import shutil
import sys
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import tyro
from flax import nnx

from cnnjax.pretrained import open_backbone
from cnnjax.summaries.summary import summary


@dataclass(frozen=True)
class Summarise:
    """The table of a network: names, shapes, parameters; with --wide what each layer costs and sees."""

    name: Annotated[str, tyro.conf.Positional]
    """mobilenet, vgg16, lecture_cnn or cifar_cnn."""
    image_size: int | None = None
    """Height and width of the images; the network's own if not given."""
    alpha: float | None = None
    """Width of MobileNet (1.0 if not given)."""
    pooling: Literal["flatten", "max"] | None = None
    """What joins maps and dense layers in cifar_cnn: Flatten, or global max pooling."""
    widths: tuple[int, ...] | None = None
    """Filters of lecture_cnn's convolutions."""
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
        for option, owner in (("pooling", "cifar_cnn"), ("widths", "lecture_cnn")):
            if getattr(self, option) is not None and self.name != owner:
                raise ValueError(f"--{option} is an option of {owner}; {self.name} has none")


def summarise(config: Summarise) -> None:
    """Print the table."""
    given = {k: getattr(config, k) for k in ("pooling", "widths", "classes")}
    options: dict[str, Any] = {k: v for k, v in given.items() if v is not None}

    def build() -> nnx.Module:
        return open_backbone(
            config.name,
            image_size=config.image_size,
            alpha=config.alpha,
            include_top=config.include_top,
            **options,
        )[0]

    # Shapes are enough: no weight is drawn.
    found = summary(nnx.eval_shape(build), freeze=config.freeze)
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    shown = {
        "text": lambda: found.text(wide=config.wide, width=width),
        "markdown": lambda: found.markdown(wide=config.wide),
        "json": found.json,
    }
    print(shown[config.format]())
