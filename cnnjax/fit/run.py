"""One run of a recipe: phase after phase, step after step, kept in checkpoints, and gone on with from them."""

import math
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cnnjax.data.order import epoch_steps
from cnnjax.fit.progress import CheckpointConfig, Record, TrainingProgress
from cnnjax.fit.recipe import Phase
from cnnjax.functional import Leaves
from cnnjax.metrics import Journal
from cnnjax.optim import averaged, transfer_optimizer_state, with_rate
from cnnjax.optim.average import with_average
from cnnjax.runtime import preemption
from cnnjax.train.callbacks import Callbacks
from cnnjax.train.dataset import FeatureDataset, LabelledImages
from cnnjax.train.state import State
from cnnjax.train.task import Metrics
from cnnjax.train.trainer import NotFinite, Trainer
from cnnjax.train.trains import Trains

if TYPE_CHECKING:
    from cnnjax.fit.plan import Plan, Report

_TIMES = ("seconds", "compile_seconds", "images_per_second")
_TOGETHER = 8  # steps between two agreements of all hosts


class _Latest(NamedTuple):
    """The newest state that no step has taken yet, its epoch's sums, the steps done, and at its end how good it is."""

    state: State
    running_metrics: Metrics
    step: int
    metric: float | None = None


class Run:
    """One call of `Fitter.fit`."""

    def __init__(
        self, fitter: "Plan", train: LabelledImages, validation: LabelledImages | None, seed: int,
        journal: Journal | None, report: "Report", checkpointing: CheckpointConfig | None, callbacks: Callbacks,
    ) -> None:  # fmt: skip
        self.fitter, self.train, self.validation, self.seed = fitter, train, validation, seed
        self.journal, self.report, self.checkpointing, self.callbacks = journal, report, checkpointing, callbacks
        self.at = TrainingProgress()
        self._best: Leaves | None = None
        self._latest: _Latest | None = None
        self._saved = time.monotonic()
        self._stored: tuple[int, int] | None = None
        self._keeps_best = fitter.recipe.keep == "best" or fitter.recipe.patience is not None

    def all_phases(self, leaves: Leaves) -> Leaves:
        """Train from `leaves`, or go on from the newest checkpoint; returns what trained."""
        resumed = self._found()
        before: tuple[State, Leaves] | None = None
        for number in range(self.at.phase, len(self.fitter.phases)):
            before = self._phase(number, leaves, before, resumed)
            leaves, resumed = before[1], None
            if self.at.ended:
                break
        if self.checkpointing:
            self._guarded(self.checkpointing.checkpoints.wait)
        return leaves

    # One phase.

    def _phase(
        self, number: int, leaves: Leaves, before: tuple[State, Leaves] | None, resumed: tuple[State, Metrics] | None
    ) -> tuple[State, Leaves]:
        """Train one phase; returns its state and its leaves that train, as they are to be kept."""
        phase = self.fitter.phases[number]
        trainer = self.fitter.trainer(number, len(self.train))
        steps = self._steps
        if resumed is None:
            state, running_metrics = self._start(trainer, phase, leaves, before), trainer.no_metrics()
            self.at.phase, self.at.begun, self.at.since = number, int(state.step) // steps, 0
            if self._keeps_best and before is not None:
                # The best of the phase before, with the loss and epoch they have there, and what trains only now.
                self._best = _copied(state)
            else:
                self._best, self.at.best_loss = None, None
        else:
            state, running_metrics = resumed
        done = int(state.step)
        self._latest = _Latest(state, running_metrics, done)
        rows, held_out = self._rows(trainer, number)
        first = done // steps - (1 if done % steps == 0 and running_metrics.begun else 0)
        if not self._stopped() and (epochs := self.at.begun + phase.epochs - first) > 0:
            state = self._train(trainer, state, rows, held_out, epochs, running_metrics)
        self._save(wait=False)
        kept = self._best
        if kept is None:
            kept, self.at.best = _copied(evaluated(state)), self.at.history[-1]["epoch"]
        return state, kept

    def _train(
        self,
        trainer: Trainer,
        state: State,
        rows: FeatureDataset,
        held_out: FeatureDataset | None,
        epochs: int,
        running_metrics: Metrics,
    ) -> State:
        phase = self.fitter.phases[self.at.phase]

        def on_epoch_end(_: Trains, state: State, record: dict[str, Any]) -> bool:
            self._end_epoch(trainer, phase, state, record, held_out)
            return self._stopped()

        try:
            return trainer.fit(
                state, rows, epochs=epochs, seed=self.seed, progress=self.report(phase.name),
                on_epoch_end=on_epoch_end, on_step_end=self._on_step_end, running_metrics=running_metrics,
                step_by_step=bool(self.callbacks.steps),
            )[0]  # fmt: skip
        except preemption.Preempted:
            if self.checkpointing is not None and not self._save(wait=True):
                raise preemption.Preempted(saved=False) from None
            raise
        except NotFinite as error:
            raise self._explained(error) from None

    def _end_epoch(
        self, trainer: Trainer, phase: Phase, state: State, record: dict[str, float], held_out: FeatureDataset | None
    ) -> None:
        """Evaluate, and write the epoch's line."""
        at = self.at
        line: Record = {
            "phase": phase.name, "epoch": int(record["epoch"]), "train_loss": record["loss"],
            **{f"train_{name}": record[name] for name in trainer.task.metric_names},
            "learning_rate": phase.learning_rate,
            "seconds": record["seconds"], "compile_seconds": record["compile_seconds"],
            "images_per_second": min(len(self.train), self._steps * trainer.batch_size) / record["seconds"],
        }  # fmt: skip
        if "skipped_steps" in record:
            line["skipped_steps"] = int(record["skipped_steps"])
        if math.isnan(record["loss"]) and line.get("skipped_steps"):
            raise ValueError(
                f"no step of epoch {line['epoch']} had finite numbers: all {line['skipped_steps']} were left out. "
                "A lower learning rate or clip=1.0 often helps"
            )
        improved = False
        if held_out is not None:
            begun = time.perf_counter()
            found = trainer.evaluate(evaluated(state), held_out)
            line |= {f"validation_{name}": value for name, value in found.items()}
            at.seconds["evaluation"] += time.perf_counter() - begun
            improved = at.best_loss is None or math.isnan(at.best_loss) or found["loss"] < at.best_loss
        validation_loss = line.get("validation_loss")
        # Before anything says that the epoch is done: what is saved while they run has them called again.
        at.ended = self._agreed(self.callbacks.on_epoch_end(trainer, state, line))[0]
        at.since += held_out is not None
        if improved:
            at.best_loss, at.since, at.best = validation_loss, 0, line["epoch"]
            self._best = _copied(evaluated(state)) if self._keeps_best else None
        at.seconds["training"] += record["seconds"]
        at.history.append(line)
        if self.journal:
            self.journal.write(_untimed(line))
        assert self._latest is not None
        self._latest = _Latest(state, trainer.no_metrics(), self._latest.step, validation_loss)
        asked = self._hosts > 1 and preemption.requested()
        asked, due = self._agreed(asked, self._due(1.0 if not improved else 0.1))
        if asked:
            raise preemption.Preempted
        if due:
            self._save(wait=False)

    def _stopped(self) -> bool:
        """Whether the recipe does not wait any longer for a lower validation loss, or a callback ended training."""
        patience = self.fitter.recipe.patience
        return self.at.ended or (patience is not None and self.at.since >= patience)

    def _rows(self, trainer: Trainer, number: int) -> tuple[FeatureDataset, FeatureDataset | None]:
        start = time.perf_counter()
        rows = self.fitter.rows(trainer, number, self.train, True, self.report)
        held_out = None
        if self.validation is not None:
            held_out = self.fitter.rows(trainer, number, self.validation, False, self.report)
        self.at.seconds["features"] += time.perf_counter() - start
        return rows, held_out

    def _start(self, trainer: Trainer, phase: Phase, leaves: Leaves, before: tuple[State, Leaves] | None) -> State:
        """The state before a phase: leaves of the last one; its optimizer too where the phase carries it on."""
        state = trainer.init(leaves)
        if before is None:
            return state
        if phase.keeps_optimizer:
            moved, _ = transfer_optimizer_state(
                before[0].optimizer, before[0].trainable, trainer.optimizer, state.trainable, restart=True
            )
            if not self.fitter.own_optimizer:
                moved = with_rate(with_average(moved, state.trainable), phase.learning_rate)
            state = state._replace(optimizer=moved)
        # Epochs are counted on, so that each phase draws orders and augmentations of its own.
        return state._replace(step=jnp.array(before[0].step))

    def _explained(self, error: NotFinite) -> NotFinite:
        """What a bad loss came from: the step, its rate, the batch's files."""
        names = getattr(self.train, "names", None)
        steps = self._steps
        step = error.epoch * steps + error.step
        rate = self.fitter.rate(self.at.phase, step - self.at.begun * steps, steps)
        shown = [str(names[i]) if names else str(i) for i in dict.fromkeys(error.examples.tolist())]
        kept = self.checkpointing.checkpoints.latest() if self.checkpointing else None
        error.args = (
            f"the {error.what} of step {step} (step {error.step} of epoch {error.epoch}) is not finite; the learning "
            f"rate was {rate:.3g}, the batch {', '.join(shown)}. "
            + ("" if kept is None else f"The last good checkpoint is that of step {kept}. ")
            + "A lower learning rate or clip=1.0 often helps; not_finite='skip' leaves such steps out and counts them",
        )
        return error

    # Checkpoints.

    def _on_step_end(self, trainer: Trains, state: State, running_metrics: Metrics, step: int) -> None:
        self._latest = _Latest(state, running_metrics, step)
        self.callbacks.on_step_end(trainer, state, running_metrics, step)
        if self._hosts > 1 and step % self._steps and step % _TOGETHER:
            return
        asked, due = self._agreed(self._hosts > 1 and preemption.requested(), self._due())
        if asked:
            raise preemption.Preempted  # on all hosts after the same step
        # At its end the epoch is evaluated first.
        if due and step % self._steps:
            self._save(wait=False)

    @property
    def _steps(self) -> int:
        """Steps of an epoch."""
        recipe = self.fitter.recipe
        return epoch_steps(len(self.train), recipe.batch_size, recipe.last_batch)

    @property
    def _hosts(self) -> int:
        return 1 if self.fitter.devices is None else self.fitter.devices.hosts

    def _agreed(self, *flags: bool) -> tuple[bool, ...]:
        """The flags of all hosts: what one of them wants, all do."""
        return flags if self.fitter.devices is None else self.fitter.devices.agree(*flags)

    def _due(self, share: float = 1.0) -> bool:
        return self.checkpointing is not None and time.monotonic() - self._saved >= share * self.checkpointing.every

    def _save(self, *, wait: bool) -> bool:
        """Save the latest state; whether it is saved."""
        if self.checkpointing is None or self._latest is None:
            return False
        state, running_metrics, step, metric = self._latest
        if not bool(_finite([running_metrics.loss, *state.trainable.values()])):
            return False  # the loop will say so; what was good stays the newest
        checkpoints, metadata = (
            self.checkpointing.checkpoints,
            {**self.checkpointing.metadata, "progress": asdict(self.at)},
        )
        # What failed in the background before must not keep this one from being tried.
        self._guarded(checkpoints.wait)
        place = (step, len(self.at.history))
        if place == self._stored:
            return True
        tree = {"state": state, "running_metrics": _as_arrays(running_metrics), "key": self._key()}
        if self._best is not None:
            tree["best"] = self._best
        # One that was saved before the epoch's evaluation gives way to one with it.
        saved = self._guarded(lambda: checkpoints.save(step, tree, metadata, metric=metric, wait=wait, replace=True))
        self._saved, self._stored = time.monotonic(), place if saved else None
        return saved

    def _guarded(self, action: Callable[[], Any]) -> bool:
        """Does what may fail for want of room: the run goes on, says so, and tries again later."""
        from cnnjax.checkpoints import SaveFailed

        assert self.checkpointing is not None
        try:
            action()
        except SaveFailed as error:
            self._stored = None
            self.checkpointing.tell(f"not saved: {error}")
            return False
        return True

    def _found(self) -> tuple[State, Metrics] | None:
        """State and sums to go on from; takes over where the run stood there."""
        if self.checkpointing is None:
            return None
        if not (steps := self.checkpointing.checkpoints.steps()):
            if self.journal:  # an attempt that ended before its first checkpoint may have written lines
                self.journal.restart([])
            return None
        from cnnjax.checkpoints import CorruptCheckpoint

        for step in reversed(steps):
            try:
                self.at = TrainingProgress(**self.checkpointing.checkpoints.metadata(step)["progress"])
                found = self._restore(self.fitter.trainer(self.at.phase, len(self.train)), step)
            except CorruptCheckpoint as error:
                if not self.checkpointing.fall_back or step == steps[0]:
                    raise
                self.checkpointing.tell(f"passed over: {error}")
                continue
            self._stored = (step, len(self.at.history))
            if step != steps[-1]:
                self.checkpointing.checkpoints.rewind(step)  # saves count upwards
            if self.journal:
                self.journal.restart([_untimed(line) for line in self.at.history])
            self.checkpointing.tell(f"goes on from the run's own checkpoint of step {step}")
            return found
        return None

    def _restore(self, trainer: Trainer, step: int) -> tuple[State, Metrics]:
        assert self.checkpointing is not None
        state = trainer.abstract_state()
        like: dict[str, Any] = {"state": state, "running_metrics": _as_arrays(trainer.no_metrics()), "key": self._key()}
        if self._keeps_best and self.at.best_loss is not None:
            like["best"] = {**state.trainable, **state.statistics}
        if self.fitter.devices is not None:
            devices = self.fitter.devices
            like |= {
                name: jax.tree.map(
                    lambda x, lies: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=lies), part, devices.shardings(part)
                )
                for name, part in like.items()
                if name in ("state", "best")
            }
        found = self.checkpointing.checkpoints.restore(like, step)
        if not np.array_equal(found["key"], self._key()):
            raise ValueError(f"the checkpoint of step {step} has another seed's random key")
        self._best = found.get("best")
        return found["state"], found["running_metrics"]

    def _key(self) -> np.ndarray:
        return np.asarray(jax.random.key_data(jax.random.key(np.uint32(self.seed))))


def evaluated(state: State) -> State:
    """The state with the averaged weights, where the optimizer keeps an average."""
    average = averaged(state.optimizer)
    return state if average is None else state._replace(trainable=average)


def _copied(state: State) -> Leaves:
    """What trains, and live statistics, out of reach of the next step, which takes the state's arrays."""
    return jax.tree.map(jnp.array, {**state.trainable, **state.statistics})


def _as_arrays(metrics: Metrics) -> Metrics:
    """On the host: of several hosts all have them."""
    return jax.tree.map(lambda x: np.asarray(x, np.float32), metrics)


@jax.jit
def _finite(arrays: list[Any]) -> jax.Array:
    return jnp.stack([jnp.isfinite(x).all() for x in arrays]).all()


def _untimed(line: Record) -> Record:
    """What is the same however often the run was interrupted."""
    return {name: value for name, value in line.items() if name not in _TIMES}
