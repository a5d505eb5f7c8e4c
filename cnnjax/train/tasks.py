"""The tasks, by the kind that a saved folder and the command line call them."""

from collections.abc import Mapping
from typing import Any

from cnnjax.train.classification import Classification
from cnnjax.train.multilabel import MultiLabel
from cnnjax.train.regression import Regression
from cnnjax.train.task import Task

__all__ = ["KINDS", "Classification", "MultiLabel", "Regression", "Task", "task_from_config"]

KINDS: dict[str, Any] = {"classification": Classification, "multilabel": MultiLabel, "regression": Regression}
"""Kind to class."""


def task_from_config(values: Mapping[str, Any]) -> Task:
    """The task of which `to_config` gave `values`; nothing is executed.

    Raises:
        ValueError: They are of no task, or of one made of functions, which cannot be kept.

    >>> task = MultiLabel(("sky", "sea"), thresholds=(0.4, 0.6))
    >>> task_from_config(task.to_config()) == task
    True
    """
    kind, own = values.get("kind"), {name: value for name, value in values.items() if name != "kind"}
    if kind == "own":
        raise ValueError("the task is made of functions, which are not saved: give it again as `task`")
    if kind not in KINDS:
        raise ValueError(f"task: expected the kind {', '.join(KINDS)} or own, found {kind!r}")
    known = KINDS[kind].__dataclass_fields__
    if unknown := [name for name in own if name not in known]:
        raise ValueError(f"task: a {kind} has no {unknown[0]!r}; there are {', '.join(known)}")
    plain = {name: tuple(value) if isinstance(value, list) else value for name, value in own.items()}
    return KINDS[kind](**plain)
