"""The loop over compiled steps: epochs, their steps, and who is told of them."""

import time
from collections.abc import Callable, Generator, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cnnjax.data.loader import Batch
from cnnjax.features import Progress
from cnnjax.functional import Leaves
from cnnjax.runtime.compiling import compile_seconds
from cnnjax.train.callbacks import Callbacks, EpochEnd, StepEnd
from cnnjax.train.dataset import FeatureDataset
from cnnjax.train.state import State
from cnnjax.train.task import Metrics
from cnnjax.train.trains import Trains

_AHEAD = 8  # steps by which the host may run ahead of the device before it looks at losses


@jax.jit
def _finite(leaves: Leaves) -> jax.Array:
    return jnp.stack([jnp.isfinite(x).all() for x in leaves.values()]).all()


class NotFinite(ValueError):
    """A loss was NaN or infinite, or the weights became so by a step whose loss was finite.

    Attributes:
        epoch: of which epoch, counted from 0.
        step: which step of it, from 0.
        examples: i32[B], the batch's examples in the source.
        what: "loss", or "gradient".
    """

    def __init__(self, epoch: int, step: int, examples: np.ndarray, what: str = "loss"):
        super().__init__(f"the {what} of step {step} of epoch {epoch} (both from 0) is not finite")
        self.epoch, self.step, self.examples, self.what = epoch, step, examples, what


class Loop:
    """One call of `Trainer.fit`, whose arguments these are.

    Args:
        trainer: holds the programs.
        rows: what is trained on.
        seed: of order and randomness.
        step_by_step: whether an epoch is never one program.
        callbacks: who is told of steps and epochs.
        on_step_end: who is told before them, once an epoch where that is one program.
        on_epoch_end: who is told before them.
    """

    def __init__(
        self, trainer: Trains, rows: FeatureDataset, seed: int, step_by_step: bool = False,
        callbacks: Callbacks | None = None, on_step_end: StepEnd | None = None, on_epoch_end: EpochEnd | None = None,
    ):  # fmt: skip
        self.trainer, self.rows, self.seed = trainer, rows, np.uint32(seed)
        self.callbacks = callbacks or Callbacks()
        self.on_step_end, self.on_epoch_end = on_step_end, on_epoch_end
        self._report: Callable[[int], None] = lambda step: None
        in_loop = trainer.programs.in_loop and not step_by_step and not self.callbacks.steps
        # The frozen part may hold convolutions too, where it runs in the step.
        self._in_loop = in_loop and rows.on_device and not (rows.decoded and jax.default_backend() == "cpu")
        self._steps = trainer.steps_per_epoch(len(rows))

    def fit(
        self, state: State, epochs: int, running: Metrics, progress: Progress
    ) -> tuple[State, list[dict[str, Any]]]:
        """Train from where the state stands; `running` are the sums of an epoch that it stands in."""
        trainer, steps, log = self.trainer, self._steps, []
        # A state that was trained before goes on with the next step, or with what comes after an epoch's last.
        first, done = divmod(int(state.step), steps)
        if not done and running.begun:
            first, done = first - 1, steps
        self._report = lambda step: progress(step - first * steps, epochs * steps)
        loader = trainer.feed.loader(self.rows, int(self.seed), first, first + epochs, done)
        stream = trainer.feed.stream(loader)
        state = trainer.feed.entered(state)
        try:
            for epoch in range(first, first + epochs):
                start, compiled = time.perf_counter(), compile_seconds()
                state, metrics, unread = self.epoch(state, epoch, stream, done, running)
                self._check(unread, epoch, steps)
                self._check_weights(state, epoch)
                record = metrics.summary() | {"epoch": epoch, "steps": steps}
                spent = {"seconds": time.perf_counter() - start, "compile_seconds": compile_seconds() - compiled}
                log.append(record | spent)
                ended = self.on_epoch_end is not None and self.on_epoch_end(trainer, state, log[-1])
                if self.callbacks.on_epoch_end(trainer, state, log[-1]) or ended:
                    break
                done, running = 0, trainer.no_metrics()
        finally:
            if loader:
                loader.close()
        return state, log

    def epoch(
        self, state: State, epoch: int, stream: Iterator[Batch] | None, done: int, total: Metrics
    ) -> tuple[State, Metrics, list[Any]]:
        """The rest of an epoch; returns the losses of its last steps too, which nobody has looked at yet."""
        trainer, rows = self.trainer, self.rows
        if self._in_loop and not done:
            order = trainer.feed.order(rows, int(self.seed), epoch)
            masked = trainer.masks(len(rows))
            batches = trainer.feed.spread(tuple(order), axis=1)
            state, total, unread = trainer.programs.epoch(
                state, trainer.context(rows), rows.arrays, rows.labelled, *batches, self.seed, decoded=rows.decoded,
                masked=masked,
            )  # fmt: skip
            jax.block_until_ready(unread)
            self._tell(state, total, (epoch + 1) * self._steps)
            return state, total, [unread]
        losses: list[Any] = []
        for k, step in enumerate(self.steps(state, epoch, stream, done), done):
            state, metrics = step
            total = total.plus(metrics)
            losses.append(metrics.loss)
            if len(losses) == 2 * _AHEAD:  # the host may run ahead of the device by a few steps, not by an epoch
                self._check(losses[:_AHEAD], epoch, k + 1 - _AHEAD)
                del losses[:_AHEAD]
            self._tell(state, total, epoch * self._steps + k + 1)
        return state, total, losses

    def steps(
        self, state: State, epoch: int, stream: Iterator[Batch] | None, first: int = 0
    ) -> Generator[tuple[State, Metrics], State | None]:
        """The steps of an epoch from step `first` on; see `Trainer.steps`."""
        trainer, rows = self.trainer, self.rows
        context, how = trainer.context(rows), {"decoded": rows.decoded, "masked": trainer.masks(len(rows))}
        program = trainer.programs.taking_step if rows.on_device else trainer.programs.step
        for given in trainer.feed.inputs(rows, trainer.feed.order(rows, int(self.seed), epoch), stream, first):
            state, metrics = program(state, context, *given, self.seed, **how)
            sent = yield state, metrics
            state = state if sent is None else trainer.feed.entered(sent)

    def _tell(self, state: State, running: Metrics, step: int) -> None:
        if self.on_step_end:
            self.on_step_end(self.trainer, state, running, step)
        self.callbacks.on_step_end(self.trainer, state, running, step)
        self._report(step)

    def _check_weights(self, state: State, epoch: int) -> None:
        """Refuses weights that an epoch's last step has made NaN: no later loss would tell of it."""
        if self.trainer.not_finite == "stop" and state.trainable and not bool(_finite(state.trainable)):
            last = self._steps - 1
            examples = self.trainer.feed.order(self.rows, int(self.seed), epoch).index[last]
            raise NotFinite(epoch, last, examples, "gradient")

    def _check(self, losses: list[Any], epoch: int, stop: int) -> None:
        """Waits for the losses of the steps before `stop`, and refuses to go on where one is not finite."""
        found = np.concatenate([np.ravel(x) for x in jax.device_get(losses)]) if losses else np.zeros(0)
        if self.trainer.not_finite == "stop" and not np.isfinite(found).all():
            bad = stop - len(found) + int(np.argmin(np.isfinite(found)))
            raise NotFinite(epoch, bad, self.trainer.feed.order(self.rows, int(self.seed), epoch).index[bad])
