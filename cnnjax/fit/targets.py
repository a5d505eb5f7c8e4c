"""What commands are asked to learn: classes of a folder, or the columns of a table beside it."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from cnnjax.data import open_data
from cnnjax.data.labels import TaskKind, open_labels
from cnnjax.train.regression import RegressionLoss
from cnnjax.train.tasks import Classification, MultiLabel, Regression, Task

_OF = {
    "class_weights": "classification", "focal": "classification", "pos_weight": "multilabel", "units": "regression",
    "error": "regression",
}  # fmt: skip


@dataclass(frozen=True)
class TaskOptions:
    """What is learned, as options of a command."""

    labels: Path | None = None
    """CSV file with a line an image of --data: file (its path in the folder), split (if not by chance), and targets."""
    task: TaskKind = "classification"
    """classification; or of the table's columns: multilabel (each 0 or 1), regression (numbers)."""
    targets: tuple[str, ...] = ()
    """Which columns of the table are learned; all but file and split if not given."""
    units: tuple[str, ...] = ()
    """regression: the unit of each target, to be shown with it."""
    error: RegressionLoss = "mse"
    """regression: what is minimised, mse, mae or huber, of standardised targets."""
    class_weights: Literal["balanced"] | None = None
    """classification: balanced gives each class the same part in the loss."""
    focal: float | None = None
    """classification: gamma of the focal loss, in place of cross-entropy."""
    pos_weight: Literal["balanced"] | None = None
    """multilabel: balanced gives a label's positive examples the same part in the loss as its negative ones."""

    def __post_init__(self) -> None:
        for name, task in _OF.items():
            if getattr(self, name) != self.__dataclass_fields__[name].default and task != self.task:
                raise ValueError(f"{name} is of the task {task}; this is {self.task!r}")
        if self.labels is None and (self.task != "classification" or self.targets):
            raise ValueError(f"{self.task} takes its targets from a table: give --labels FILE.csv as well")

    def changed(self) -> dict[str, Any]:
        """The options that are not as they are by default, as plain values."""
        plain = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}
        return {name: str(value) if isinstance(value, Path) else value for name, value in plain.items()}

    def open(
        self, data: str | os.PathLike[str], size: Sequence[int], *, parts: Mapping[str, str] | None = None,
        **choices: Any,
    ) -> dict[str, Any]:  # fmt: skip
        """Sources by split, "train" and "test" at least; `choices` are those of `Folder`.

        Raises:
            ValueError: there is no train or no test split, or as `open_data` and `open_labels`.
        """
        if self.labels is None:
            return open_data(data, size, parts=parts, **choices)
        if parts:
            raise ValueError("slices are of TFDS data sets; a table of labels has a column split")
        sources: dict[str, Any] = dict(
            open_labels(data, self.labels, self.task, self.targets, image_size=size, **choices)
        )
        if missing := [split for split in ("train", "test") if split not in sources]:
            raise ValueError(f"{self.labels} has no {' and no '.join(missing)} split; found {', '.join(sources)}")
        return sources

    def make(self, sources: Mapping[str, Any]) -> Task:
        """The task that these sources are for."""
        train = sources["train"]
        if self.task == "multilabel":
            return MultiLabel(train.target_names, self.pos_weight)
        if self.task == "regression":
            return Regression(train.target_names, self.units, self.error)
        return Classification(train.class_names, class_weights=self.class_weights, focal=self.focal)
