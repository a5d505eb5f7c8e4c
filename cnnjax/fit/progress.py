"""Where a run stands, and how that is kept."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cnnjax.checkpoints import Checkpoints

Record = dict[str, Any]
"""What is said of an epoch: its loss and metrics, its phase, and the time that it took."""


@dataclass(frozen=True)
class CheckpointConfig:
    """How a run is kept, so that it can be killed at any moment.

    Attributes:
        checkpoints: where.
        every: seconds between two saves; phases save at their end too, and so does whoever is asked to end.
        metadata: what each checkpoint says of the run besides where it stands.
        fall_back: take the checkpoint before a damaged newest one.
        tell: takes what the run has to say.
    """

    checkpoints: "Checkpoints"
    every: float = 60.0
    metadata: Mapping[str, Any] = field(default_factory=dict)
    fall_back: bool = False
    tell: Callable[[str], None] = print


@dataclass
class TrainingProgress:
    """Where a run stands, besides its arrays.

    Attributes:
        phase: which phase, from 0.
        begun: the phase's first epoch.
        since: epochs of this phase since the lowest validation loss.
        best: the epoch with it.
        best_loss: that loss; where the best weights are kept, what the phase started from counts too.
        history: the records of all epochs so far.
        seconds: what took how long.
        ended: whether a callback has ended training.
    """

    phase: int = 0
    begun: int = 0
    since: int = 0
    best: int = 0
    best_loss: float | None = None
    history: list[Record] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=lambda: {"features": 0.0, "training": 0.0, "evaluation": 0.0})
    ended: bool = False
