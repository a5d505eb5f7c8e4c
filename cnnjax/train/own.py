"""Losses, metrics and whole tasks of the user's, named by their import paths."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cnnjax.files.importing import called, check_call, imported, named
from cnnjax.train.classification import Classification
from cnnjax.train.multilabel import MultiLabel
from cnnjax.train.regression import Regression
from cnnjax.train.task import RESERVED, PerExample, Task

_CALL = "(outputs, targets)"


@dataclass(frozen=True)
class TaskCode:
    """A loss and metrics of the user's.

    Attributes:
        loss: The import path of the loss; "" for the task's own.
        metrics: Import paths of metrics, by name.
        functions: The functions themselves, by path; imported if not given.
    """

    loss: str = ""
    metrics: tuple[tuple[str, str], ...] = ()
    functions: tuple[tuple[str, PerExample], ...] = field(default=(), repr=False)

    def function(self, path: str) -> PerExample:
        """The function at a path.

        Raises:
            ValueError: There is none that takes outputs and targets.
        """
        return dict(self.functions)[path]

    @property
    def paths(self) -> tuple[str, ...]:
        """All import paths."""
        return tuple(dict.fromkeys(([self.loss] if self.loss else []) + [path for _, path in self.metrics]))


class _WithCode(Task):
    """What a task with code of the user's does; its other half is a task by name."""

    code: TaskCode

    def loss(self, outputs: Any, targets: Any) -> jax.Array:
        """The user's loss of each example, or the task's own."""
        return (
            self.code.function(self.code.loss)(outputs, targets) if self.code.loss else super().loss(outputs, targets)
        )

    def evaluation_loss(self, outputs: Any, targets: Any) -> jax.Array:
        """The same."""
        return self.loss(outputs, targets) if self.code.loss else super().evaluation_loss(outputs, targets)

    def metrics(self, outputs: Any, targets: Any) -> dict[str, jax.Array]:
        """The task's own metrics, and the user's."""
        own = {name: self.code.function(path)(outputs, targets) for name, path in self.code.metrics}
        return super().metrics(outputs, targets) | own

    @property
    def metric_names(self) -> tuple[str, ...]:
        """The names of both."""
        return (*super().metric_names, *(name for name, _ in self.code.metrics))

    def unit(self, name: str) -> str:
        """Of the user's metrics none."""
        return "" if name in dict(self.code.metrics) else super().unit(name)

    def smoothed(self, smoothing: float) -> Any:
        """The same task; a loss of the user's has no smoothing."""
        if smoothing and self.code.loss:
            raise ValueError(f"label_smoothing is of the task's own loss, and {self.code.loss} stands for it")
        return super().smoothed(smoothing)

    def report(
        self, outputs: Any, targets: Any, *, weights: np.ndarray | None = None, samples: int = 0, seed: int = 0
    ) -> Any:
        """The task's report, with the means of the user's loss and metrics beside its measures."""
        found = super().report(outputs, targets, weights=weights, samples=samples, seed=seed)
        loss, each = self.scores(jax.tree.map(jnp.asarray, outputs), jax.tree.map(jnp.asarray, targets), train=False)
        own = ({self.code.loss.rpartition(":")[2]: loss} if self.code.loss else {}) | {
            name: each[name] for name, _ in self.code.metrics
        }
        means = {name: float(np.average(np.asarray(x, np.float64), weights=weights)) for name, x in own.items()}
        return replace(found, own=means)

    def to_config(self) -> dict[str, Any]:
        """Plain values; of functions their import paths."""
        return super().to_config() | {"code": {"loss": self.code.loss, "metrics": dict(self.code.metrics)}}


@dataclass(frozen=True)
class ClassificationWithCode(_WithCode, Classification):
    """A classification with a loss or metrics of the user's."""

    code: TaskCode = field(default_factory=TaskCode)  # ty: ignore[incompatible-attribute-override]  # frozen


@dataclass(frozen=True)
class MultiLabelWithCode(_WithCode, MultiLabel):
    """Several labels, with a loss or metrics of the user's."""

    code: TaskCode = field(default_factory=TaskCode)  # ty: ignore[incompatible-attribute-override]  # frozen


@dataclass(frozen=True)
class RegressionWithCode(_WithCode, Regression):
    """Numbers, with a loss or metrics of the user's; these take the standardised outputs and the targets in units."""

    code: TaskCode = field(default_factory=TaskCode)  # ty: ignore[incompatible-attribute-override]  # frozen


_WITH: dict[type[Task], Any] = {
    Classification: ClassificationWithCode, MultiLabel: MultiLabelWithCode, Regression: RegressionWithCode,
}  # fmt: skip


def with_code(task: Task, loss: str | PerExample | None = None, metrics: Sequence[str | PerExample] = ()) -> Task:
    """A task by name with a loss or metrics of the user's.

    Args:
        task: `Classification`, `MultiLabel` or `Regression`.
        loss: A function of (outputs, targets) that gives a number an example, or its import path; the task's own if not
            given.
        metrics: Such functions, or import paths of some; each is called by its function's name.

    Raises:
        ValueError: There is no such function, it takes other arguments, a name is taken, or the task's own loss is
            asked for in some way as well.

    >>> task = with_code(Classification(("cat", "dog")), metrics=["optax:sigmoid_binary_cross_entropy"])
    >>> task.metric_names
    ('accuracy', 'sigmoid_binary_cross_entropy')
    """
    if not loss and not metrics:
        return task
    if isinstance(metrics, str):
        raise ValueError(f"metrics: expected a list of functions or import paths, found {metrics!r}")
    functions: dict[str, PerExample] = {}
    for given in (*([loss] if loss else []), *metrics):
        functions[_path(given)] = _per_example(given)
    if type(task) not in _WITH:
        raise ValueError(f"loss and metrics are added to a task by name; a {type(task).__name__} has its own")
    own = {"class_weights": None, "focal": None, "pos_weight": None}
    if loss and (set_ := [name for name, off in own.items() if getattr(task, name, off) != off]):
        raise ValueError(f"{set_[0]} is of the task's own loss, and {_path(loss)} stands for it: give one")
    measures: dict[str, str] = {}
    for path in map(_path, metrics):
        name = path.rpartition(":")[2].rpartition(".")[2]
        if name in (*task.metric_names, *measures, *RESERVED):
            raise ValueError(f"metric: {path} is called {name}, and so is another measure; give it another name")
        measures[name] = path
    code = TaskCode(_path(loss) if loss else "", tuple(measures.items()), tuple(functions.items()))
    given: Any = task
    values = {field.name: getattr(given, field.name) for field in fields(given)}
    return _WITH[type(task)](**values, code=code)


def changed_task(
    own: Task, task: Task | None, loss: str | PerExample | None, metrics: Sequence[str | PerExample]
) -> Task:
    """The task of a model that is given another one, or a loss or metrics of the user's; its own if nothing is given.

    Raises:
        ValueError: It is for another number of outputs.
    """
    if task is None and loss is None and not metrics:
        return own
    wanted = with_code(own if task is None else task, loss, metrics)
    if wanted.outputs != own.outputs:
        raise ValueError(
            f"task: it needs {wanted.outputs} outputs, and the classifier was made with {own.outputs}: make "
            "one with this task"
        )
    return wanted


def _path(given: str | PerExample) -> str:
    return given if isinstance(given, str) else named(given)


def _per_example(given: str | PerExample) -> PerExample:
    path = _path(given)
    found = imported(path, f"a function of {_CALL}", "losses.py:loss") if isinstance(given, str) else given
    check_call(path, found, _CALL, None, None)
    return found


def own_task(path: str, names: Sequence[str], **values: Any) -> Task:
    """A task that a function of the user's makes.

    Args:
        path: Its import path.
        names: Of the classes, or of the table's columns.
        **values: Further arguments: what the task's `to_config` gave when it was saved.

    Raises:
        ValueError: There is no such function, it takes other arguments, or gives no task.
    """
    function: Callable[..., Any] = imported(path, "a function that gives a cnnjax.Task", "tasks.py:task")
    told = "".join(f", {name}=..." for name in values)
    found = called(
        path, function, f"names=(...){told}", expected=Task, gives="a cnnjax.Task", names=tuple(names), **values
    )
    return found
