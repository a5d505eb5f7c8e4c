"""What a run asks of the fitter that started it."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from cnnjax.fit.recipe import Phase, Recipe
from cnnjax.runtime import Progress
from cnnjax.train.dataset import FeatureDataset, LabelledImages
from cnnjax.train.trainer import Trainer

if TYPE_CHECKING:
    from cnnjax.runtime.devices import Devices

Report = Callable[[str], Progress]
"""Gives a progress function (done, all) for what is begun under a name."""


class Plan(Protocol):
    """A recipe on a model: its phases, and for each of them a trainer and the features that it reads.

    Attributes:
        recipe: How to train.
        phases: What is trained after what.
        devices: What the batches are spread over; one device if None.
    """

    recipe: Recipe
    phases: tuple[Phase, ...]
    devices: "Devices | None"

    @property
    def own_optimizer(self) -> bool:
        """Whether the optimizer is the caller's own, whose learning rate is not known here."""
        ...

    def trainer(self, phase: int, images: int, /) -> Trainer:
        """The trainer of a phase, for a training set of so many images."""
        ...

    def rows(
        self, trainer: Trainer, phase: int, source: LabelledImages, train: bool, report: Report, /
    ) -> FeatureDataset:
        """The features of a source for a phase."""
        ...

    def rate(self, phase: int, step: int, batches: int, /) -> float:
        """The learning rate of a phase's step, counted from 0."""
        ...
