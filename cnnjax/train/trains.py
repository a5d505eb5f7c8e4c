"""What the loop asks of the trainer that started it, and what callbacks may: `Trainer` is one."""

from typing import Any, Protocol

from flax import nnx

from cnnjax.functional import Leaves
from cnnjax.train.dataset import FeatureDataset
from cnnjax.train.feed import Feed
from cnnjax.train.programs import Programs
from cnnjax.train.state import State
from cnnjax.train.step import NotFiniteChoice
from cnnjax.train.task import Metrics, Task


class Trains(Protocol):
    """A trainer; its attributes and methods are described at `cnnjax.Trainer`."""

    task: Task
    programs: Programs
    feed: Feed
    not_finite: NotFiniteChoice
    batch_size: int

    def steps_per_epoch(self, examples: int) -> int: ...

    def masks(self, examples: int) -> bool: ...

    def no_metrics(self) -> Metrics: ...

    def context(self, rows: FeatureDataset) -> Any: ...

    def leaves(self, state: State) -> Leaves: ...

    def model(self, state: State) -> nnx.Module: ...

    def evaluate(self, state: State, rows: FeatureDataset) -> dict[str, float]: ...

    def predict(self, state: State, rows: FeatureDataset) -> tuple[dict[str, float], Any]: ...
