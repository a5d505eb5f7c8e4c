"""What commands are asked to learn: classes of a folder, or the columns of a table beside it; by which loss."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from cnnjax.data import open_data
from cnnjax.data.labels import TaskKind, open_labels
from cnnjax.data.own import is_own_data
from cnnjax.data.source import Source
from cnnjax.files.importing import is_path
from cnnjax.runtime.nearest import unknown
from cnnjax.train.own import own_task, with_code
from cnnjax.train.regression import RegressionLoss
from cnnjax.train.tasks import Classification, MultiLabel, Regression, Task

_OF = {
    "class_weights": "classification", "focal": "classification", "pos_weight": "multilabel", "units": "regression",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class TableOptions:
    """Which table says what the images show."""

    labels: Path | None = None
    """CSV file with a line an image of --data: file (its path in the folder), split (if not by chance), sample_weight
    (if not all count the same), and targets."""
    targets: tuple[str, ...] = ()
    """Which columns of the table are learned, or measured; all but file, split and sample_weight if not given."""


@dataclass(frozen=True, kw_only=True)
class TaskOptions(TableOptions):
    """What is learned, as options of a command."""

    task: str = "classification"
    """classification; or of the table's columns: multilabel (each 0 or 1), regression (numbers); or the import path of
    a function of names=... (of the classes or columns) that gives a cnnjax.Task."""
    loss: str | None = None
    """What is minimised in place of the task's own loss: the import path of a function of (outputs, targets) that gives
    a number an example; of a regression also mse (if not given), mae or huber, of standardised targets."""
    metrics: tuple[str, ...] = ()
    """Import paths of functions of (outputs, targets) that give a number an example; their means are reported too."""
    units: tuple[str, ...] = ()
    """regression: the unit of each target, to be shown with it."""
    class_weights: Literal["balanced"] | None = None
    """classification: balanced gives each class the same part in the loss."""
    focal: float | None = None
    """classification: gamma of the focal loss, in place of cross-entropy."""
    pos_weight: Literal["balanced"] | None = None
    """multilabel: balanced gives a label's positive examples the same part in the loss as its negative ones."""

    def __post_init__(self) -> None:
        kinds = get_args(TaskKind)
        if not is_path(self.task) and self.task not in kinds:
            found = unknown("task", self.task, kinds, listed=True)
            raise ValueError(f"{found}, and import paths, file.py:function")
        for name, task in _OF.items():
            if getattr(self, name) != self.__dataclass_fields__[name].default and task != self.task:
                raise ValueError(f"{name} is of the task {task}; this is {self.task!r}")
        for path in self.metrics:
            if not is_path(path):
                raise ValueError(f"metrics: expected import paths, such as metrics.py:{path}, found {path!r}")
        if self.loss is not None and not is_path(self.loss):
            known = get_args(RegressionLoss)
            if self.task != "regression" or self.loss not in known:
                more = f"{', '.join(known)} or " if self.task == "regression" else ""
                raise ValueError(f"loss: expected {more}an import path, such as losses.py:loss, found {self.loss!r}")
        if is_path(self.task) and (self.loss or self.metrics):
            raise ValueError("loss and metric are added to a task by name; one of your own has its own")

    def check(self, own_data: bool) -> None:
        """Refuse a task of a table's columns without a table; a source of one's own brings its targets.

        Raises:
            ValueError: There is none.
        """
        needs = self.task in ("multilabel", "regression") or bool(self.targets)
        if self.labels is None and needs and not own_data:
            raise ValueError(f"{self.task} takes its targets from a table: give --labels FILE.csv as well")
        if self.labels is not None and own_data:
            raise ValueError("labels: a source of your own brings its targets")

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
        self.check(is_own_data(data))
        if self.labels is None:
            return open_data(data, size, parts=parts, **choices)
        if parts:
            raise ValueError("slices are of TFDS data sets; a table of labels has a column split")
        kind: Any = self.task if not is_path(self.task) else "regression"
        sources: dict[str, Any] = dict(open_labels(data, self.labels, kind, self.targets, image_size=size, **choices))
        if missing := [split for split in ("train", "test") if split not in sources]:
            raise ValueError(f"{self.labels} has no {' and no '.join(missing)} split; found {', '.join(sources)}")
        return sources

    def make(self, sources: Mapping[str, Any]) -> Task:
        """The task that these sources are for."""
        train = sources["train"]
        if is_path(self.task):
            return own_task(self.task, tuple(getattr(train, "target_names", ()) or getattr(train, "class_names", ())))
        made = self._named(train)
        return with_code(made, self.loss if self.loss and is_path(self.loss) else None, self.metrics)

    def _named(self, train: Source) -> Task:
        if self.task == "classification":
            return Classification(train.class_names, class_weights=self.class_weights, focal=self.focal)
        names = tuple(getattr(train, "target_names", ())) or self.targets
        if not names:
            raise ValueError(f"a {self.task} needs the names of its targets: the source's target_names, or --targets")
        if self.task == "multilabel":
            return MultiLabel(names, self.pos_weight)
        error: Any = self.loss if self.loss in get_args(RegressionLoss) else "mse"
        return Regression(names, self.units, error)
