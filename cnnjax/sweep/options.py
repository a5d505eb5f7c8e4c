"""What a sweep is asked for."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from cnnjax.commands.network import Augmentations, Computing, Depths, HeadName, Network
from cnnjax.commands.options import AnyData, Out, Resized, Splits
from cnnjax.files.importing import is_path
from cnnjax.fit.recipe import Steps, checked_augment, own_code
from cnnjax.fit.targets import TaskOptions
from cnnjax.freeze import Freeze
from cnnjax.models.sizes import sides
from cnnjax.optim import make_optimizer

DRAWN = {"backbone": "lecture_cnn", "image_size": 64, "epochs": 12, "optimizer": "adam"}
"""What a sweep over the images that it draws itself has in place of other defaults."""


@dataclass(frozen=True, kw_only=True)
class Ablation(Network, Resized, Splits, Computing, Steps):
    """Train the same model with its backbone frozen to several depths, and compare.

    Without --data it draws its own images of 64 pixels, pretrains the lecture's network on some classes and sweeps the
    frozen depth on others, with Adam for 12 epochs.
    """

    data: AnyData = None
    target: Annotated[TaskOptions, tyro.conf.arg(name="")] = field(default_factory=TaskOptions)
    freeze: Depths = ()
    head: HeadName = "lecture"
    seeds: int = 3
    """Number of seeds; each makes a head of its own and an order of the images."""
    first_seed: int = 0
    """The first seed; the others follow it."""
    learning_rates: tuple[float, ...] = (1e-3,)
    """Every depth is trained at every learning rate."""
    sample_rate: int | None = None
    """For sounds, SPLIT/CLASS/FILE: read at this many samples a second, and made log-mel images in the step."""
    seconds: float = 1.0
    """For sounds: how long each is, cut or followed by silence."""
    augment: Augmentations = ("none",)
    methods: tuple[Literal["direct", "lp-ft"], ...] = ("direct",)
    """direct: what is not frozen trains from the start. lp-ft: the head alone first, at its own learning rate."""
    sizes: tuple[int, ...] = ()
    """Numbers of training images to compare, as many of each class; all of them if not given."""
    processes: int = 1
    """Processes that train cells beside each other, each with its share of the cores and its own memory; on CPU."""
    out: Out = None

    def __post_init__(self) -> None:
        self.check_backbone(include_top=False)
        self.check_weights()
        if self.data is None and (
            self.weights is not None or self.backbone != DRAWN["backbone"] or self.backbone_options
        ):
            raise ValueError(
                "give --data FOLDER as well: without it the built-in default is run, which takes no backbone "
                "(Ablation.drawn() has its options)"
            )
        if self.image_size is not None:
            sides(self.image_size)  # raises
        self.check_steps()
        if self.seeds < 1:
            raise ValueError(f"seeds must be at least 1, not {self.seeds}")
        if not self.learning_rates or not all(rate > 0 for rate in self.learning_rates):
            raise ValueError(f"learning rates must be positive, not {self.learning_rates}")
        for name in ("augment", "methods", "sizes"):
            found = getattr(self, name)
            values = (found,) if isinstance(found, str | int) or callable(found) else tuple(dict.fromkeys(found))
            if not values and name != "sizes":
                raise ValueError(f"{name}: expected at least one")
            object.__setattr__(self, name, values)
        if any(size < 1 for size in self.sizes):
            raise ValueError(f"sizes must be at least 1 image, found {self.sizes}")
        for name in self.augment:
            checked_augment(name)
        augmented = any(name != "none" for name in self.augment)
        if self.data is None and (self.splits or augmented or self.resizing != "bilinear" or self.scale):
            raise ValueError("splits, augment, resizing and scale are for images of your own: give --data as well")
        if self.views < 0 or (self.views and not augmented):
            raise ValueError(f"views: expected 0 or more, and --augment to draw them with, found {self.views}")
        if self.target.changed() and (self.data is None or self.sample_rate is not None):
            raise ValueError(f"{', '.join(self.target.changed())}: for images of your own; give --data as well")
        if self.sample_rate is not None and (self.data is None or self.splits or augmented):
            raise ValueError("sample_rate is for a folder of sounds, which have no TFDS splits and no augmentation")
        self.check_workers()
        if self.processes < 1:
            raise ValueError(f"processes: expected 1 or more, found {self.processes}")
        if self.first_seed < 0:
            raise ValueError(f"first_seed must be at least 0, not {self.first_seed}")
        make_optimizer(self.optimizer)
        for text in self.freeze:
            Freeze.parse(text)

    @classmethod
    def drawn(cls, **options: Any) -> "Ablation":
        """The sweep over images that it draws itself, with its own defaults.

        >>> Ablation.drawn(seeds=1).epochs
        12
        """
        given: dict[str, Any] = {**DRAWN, **options}
        return cls(**given)

    @classmethod
    def preset(cls, given: Sequence[str]) -> "Ablation | None":
        """What the command's options default to where these are given: the drawn images' own, where no data is."""
        return None if {"--data", "--help", "-h"} & set(given) else cls.drawn()

    @property
    def code(self) -> dict[str, Any]:
        """The user's functions that it names, by what they are for."""
        found = own_code(
            optimizer=self.optimizer, head=self.head, loss=self.target.loss or "", task=self.target.task,
            **{f"augment_{k}": name for k, name in enumerate(self.augment)},
            **{f"metric_{k}": path for k, path in enumerate(self.target.metrics)},
        )  # fmt: skip
        return found

    @property
    def paths(self) -> tuple[str, ...]:
        """Import paths of all code of the user's that a process has to know."""
        every = (
            self.backbone, self.head, self.optimizer, self.target.loss, self.target.task, self.data or "",
            *self.augment, *self.target.metrics,
        )  # fmt: skip
        return tuple(p for p in every if isinstance(p, str) and is_path(p) and not Path(p).is_dir())


def seeds_text(config: Ablation) -> str:
    """`3 seeds`, `1 seed`."""
    return f"{config.seeds} seed{'s' if config.seeds > 1 else ''}"
