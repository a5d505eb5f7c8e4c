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


def code_of(values: Mapping[str, Any]) -> dict[str, str]:
    """Import paths of the user's code that a task of these plain values is made of, by what they are for.

    >>> code_of({"kind": "own", "code": "tasks.py:age"})
    {'task': 'tasks.py:age'}
    """
    code = values.get("code")
    if values.get("kind") == "own":
        return {"task": code} if isinstance(code, str) else {}
    if code is None:
        return {}
    metrics = code.get("metrics", {}) if isinstance(code, Mapping) else None
    if not isinstance(metrics, Mapping) or not isinstance(code.get("loss", ""), str):
        raise ValueError(f"task: its code must name a loss and metrics, found {code!r}")
    if strange := [path for path in metrics.values() if not isinstance(path, str)]:
        raise ValueError(f"task: expected import paths of metrics, found {strange[0]!r}")
    loss = {"loss": code["loss"]} if code.get("loss") else {}
    return loss | {f"metric {name}": path for name, path in metrics.items()}


def task_from_config(values: Mapping[str, Any], run: Mapping[str, str] | None = None) -> Task:
    """The task of which `to_config` gave `values`.

    Args:
        values: Plain values.
        run: What `code_of` names -> the import path that is run for it; nothing is executed if not given.

    Raises:
        ValueError: They are of no task, or of one made of functions, which cannot be kept.

    >>> task = MultiLabel(("sky", "sea"), thresholds=(0.4, 0.6))
    >>> task_from_config(task.to_config()) == task
    True
    """
    kind, own = values.get("kind"), {name: value for name, value in values.items() if name != "kind"}
    code = code_of(values)
    if kind == "own" and code and run:
        from cnnjax.train.own import own_task

        given = {name: value for name, value in own.items() if name not in ("code", "names")}
        return own_task(run["task"], tuple(own.get("names", ())), **given)
    if kind == "own":
        raise ValueError("the task is made of functions, which are not saved: give it again as `task`")
    if kind not in KINDS:
        raise ValueError(f"task: expected the kind {', '.join(KINDS)} or own, found {kind!r}")
    if code and not run:
        raise ValueError(
            f"the task has code of its own, {', '.join(code.values())}, which is not run unless it is named"
        )
    own.pop("code", None)
    known = KINDS[kind].__dataclass_fields__
    if unknown := [name for name in own if name not in known]:
        raise ValueError(f"task: a {kind} has no {unknown[0]!r}; there are {', '.join(known)}")
    plain = {name: tuple(value) if isinstance(value, list) else value for name, value in own.items()}
    made = KINDS[kind](**plain)
    if not code or not run:
        return made
    from cnnjax.train.own import with_code

    return with_code(made, run.get("loss"), [run[name] for name in code if name.startswith("metric ")])
