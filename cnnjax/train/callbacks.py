"""What training calls after each step and each epoch."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from cnnjax.train.state import State
from cnnjax.train.task import Metrics
from cnnjax.train.trains import Trains

Record = dict[str, Any]
StepEnd = Callable[[Trains, State, Metrics, int], Any]
EpochEnd = Callable[[Trains, State, Record], bool | None]


class Callback:
    """Called after each step and each epoch of training; override what you want. Nothing needs to be inherited.

    `Trainer.fit`, `Fitter.fit` and `ImageClassifier.fit` take `callbacks=[...]`: each is such an object, any other one
    with either method, or a plain function, which is called as `on_epoch_end`.

    The state's arrays are used up by the next step: copy what is to stay. The order is that of the list.

    A callback that has `on_step_end` makes the steps run one by one, also where a whole epoch is one program otherwise.

    A run that goes on from a checkpoint (see `cnnjax.fit.CheckpointConfig`) calls nothing for a step or an epoch
    that this checkpoint counts as done: callbacks were called for it before it was saved. Steps that a killed run did
    after its last checkpoint are done again, and callbacks are called for them again, with the same values.

    >>> class Best(Callback):
    ...     def __init__(self):
    ...         self.loss = float("inf")
    ...     def on_epoch_end(self, trainer, state, record):
    ...         self.loss = min(self.loss, record["loss"])
    """

    def on_step_end(self, trainer: Trains, state: State, running_metrics: Metrics, step: int) -> None:
        """Called after each step.

        Args:
            trainer: what trains.
            state: after the step.
            running_metrics: sums of the epoch so far; `running_metrics.summary()` has the means, and waits for the
                device.
            step: the number of steps done, those before this run included.
        """

    def on_epoch_end(self, trainer: Trains, state: State, record: Record) -> bool | None:
        """Called after each epoch, once it was evaluated.

        Args:
            trainer: what trains; in a `Fitter` the phase's own.
            state: after the epoch.
            record: what is known of the epoch. In `Trainer.fit` loss, the task's metrics, epoch, steps and seconds; in
                `Fitter.fit` the line of the history: phase, epoch, train_loss, validation_loss, ... Numbers and texts
                that are added to it become part of the log or history.

        Returns:
            True to end training after this epoch: in `Fitter.fit` the phases after it are left out too.
        """


class Callbacks:
    """The functions of several callbacks.

    Args:
        callbacks: objects with `on_step_end`, `on_epoch_end` or both; or functions, called as the latter.

    Attributes:
        steps: what is called after each step.
        epochs: what is called after each epoch.

    Raises:
        ValueError: one is none of these.

    >>> found = Callbacks([Callback(), lambda trainer, state, record: None])
    >>> len(found.steps), len(found.epochs)
    (0, 1)
    """

    def __init__(self, callbacks: Sequence[Any] = ()):
        if callable(callbacks) or not isinstance(callbacks, Sequence):
            raise ValueError(f"callbacks: expected a list of them, found {callbacks!r}")
        self.steps: list[StepEnd] = []
        self.epochs: list[EpochEnd] = []
        for callback in callbacks:
            step, epoch = (_own(callback, name) for name in ("on_step_end", "on_epoch_end"))
            if step is None and epoch is None and not isinstance(callback, Callback):
                if not callable(callback) or isinstance(callback, type):
                    raise ValueError(
                        f"callbacks: expected functions, or objects with on_step_end or on_epoch_end, found "
                        f"{callback!r}"
                    )
                epoch = callback
            self.steps += [step] if step else []
            self.epochs += [epoch] if epoch else []

    def on_step_end(self, trainer: Trains, state: State, running_metrics: Metrics, step: int) -> None:
        """Call those that are called after each step."""
        for call in self.steps:
            call(trainer, state, running_metrics, step)

    def on_epoch_end(self, trainer: Trains, state: State, record: Record) -> bool:
        """Call all that are called after each epoch; whether one of them ends training.

        Raises:
            ValueError: something other than numbers and texts was added to the record.
        """
        ends = [call(trainer, state, record) for call in self.epochs]  # all of them, whatever one says
        for name, value in list(record.items()):
            if getattr(value, "ndim", None) == 0:  # a number of NumPy's or JAX's
                value = record[name] = value.item()
            if not isinstance(name, str) or not isinstance(value, int | float | str | type(None)):
                raise ValueError(f"a callback added {name!r} to the record: expected a number or text, found {value!r}")
        return any(end is True or (getattr(end, "dtype", None) == np.bool_ and bool(end)) for end in ends)


def _own(callback: object, name: str) -> Callable[..., Any] | None:
    """A callback's method, if it is one that does something."""
    if isinstance(callback, type):
        return None
    method = getattr(callback, name, None)
    if method is None or getattr(method, "__func__", None) is getattr(Callback, name):
        return None
    return method
