"""What trains: a model cut at the frontier, its compiled programs, and the loop over them.

A `Trainer` takes a model and what is frozen, cuts the model at the frontier, and trains what is left on
stored features. It knows no data set: images come from anything with `digest`, `labels`, `len` and `read`.
"""

from collections.abc import Generator, Iterator, Sequence
from functools import partial
from typing import Any, get_args

import jax
import numpy as np
import optax
from flax import nnx

from cnnjax.augment.own import AugmentFn
from cnnjax.data.order import LastBatch
from cnnjax.data.views import Views
from cnnjax.features import FeatureStore, Progress, ahead
from cnnjax.freeze import Frozen
from cnnjax.functional import Leaves
from cnnjax.optim import make_optimizer
from cnnjax.runtime import preemption
from cnnjax.runtime.devices import Devices
from cnnjax.runtime.precision import Precision
from cnnjax.train.callbacks import Callbacks, EpochEnd, StepEnd
from cnnjax.train.classification import Classification
from cnnjax.train.dataset import FeatureDataset, LabelledImages, checked_labelled, feature_rows, image_rows
from cnnjax.train.feed import Feed
from cnnjax.train.loop import Loop, NotFinite
from cnnjax.train.programs import Programs
from cnnjax.train.staged_model import StagedModel
from cnnjax.train.state import State, checked_leaves, fresh_state
from cnnjax.train.step import BatchResult, GradientFn, NotFiniteChoice, Objective, Step, TrainingBatch
from cnnjax.train.task import Metrics, Task

__all__ = ["NotFinite", "Trainer"]


class Trainer:
    """Trains what is not frozen, on features of what is.

    Args:
        model: any NNX module from a batch of images to logits, or to what the task takes. It is not changed.
        frozen: `Freeze(...).resolve(model)`.
        image_size: height and width of the images; one number, or three, are the shape of an example that is
            no RGB image (a sound's samples).
        batch_size: examples a step.
        optimizer: a name from `cnnjax.optim.OPTIMIZERS`, or an optax transform.
        gradient_fn: makes the gradients that the optimizer gets: from (objective, state) to (gradients, result), where
            `objective` is the batch's mean loss as a function of the trainable parameters. The loss's gradient if not
            given, `jax.grad(objective, has_aux=True)(state.trainable)`. See `cnnjax.train` for SAM.
        store: where features are kept; in memory if not given.
        augment: what happens to the images before training sees them: a `cnnjax.augment.Augmentation`, or any jittable
            `f(key, images)` that gives images, or `f(key, images, targets)` that gives images and targets. Those
            targets are floats that can be mixed: of a classification probabilities.
        views: with `augment`: 0 augments in every step, with the frozen part inside (the lecture's Method 2);
            K draws K views of each image once, stores their features, and shows a random one in each epoch.
        workers: processes that read images; 0 reads in threads of this one.
        stream: read the images anew in every epoch, and keep neither them nor features: for sets that nothing holds.
        task: what is minimised and reported: `Classification`, `MultiLabel`, `Regression`, or a `Task` of your own. A
            classification into as many classes as there are logits (two share one) if not given.
        not_finite: what happens where a loss is NaN or infinite: "stop" raises `NotFinite`, "skip" leaves the step out
            (also where only a gradient is) and counts it, "keep" goes on.
        precision: "float32" or "bfloat16" to compute with; parameters, statistics and the loss stay float32. "auto" is
            bfloat16 where the hardware is made for it (TPUs, GPUs from NVIDIA's Ampere on).
        devices: what to spread batches over, which these must divide; one device if not given. With several hosts each
            makes the features for itself, or finds them in its store, and reads its own part of what is read anew.
        last_batch: what becomes of an epoch's short last batch in training. "pad" fills it up with rows that count in
            no loss, no metric and no statistics of BatchNorm: the numbers are those of the short batch, as in Keras.
            "drop" leaves it out, for models whose normalisation over the batch is not `nnx.BatchNorm`'s or not by the
            first axis, where rows that fill up would be seen. Evaluation is of all examples.

    Attributes:
        traces: how often each program was traced; 1 each after any number of epochs, seeds and learning rates.
        programs: the compiled programs, which the loop, `Replicas` and `cnnjax.train.lowering` share.
        feed: what hands rows to them.
        staged: the training program, cut at the frontier; `inference` the one of evaluation.
        functional: the model as pure functions.
        fixed: the frozen leaves by path.
        outputs: shapes of the model's outputs for a batch.

    Example:
        >>> from cnnjax.data import InMemory
        >>> from cnnjax.freeze import Freeze
        >>> model = nnx.Sequential(nnx.Conv(3, 4, (3, 3), rngs=nnx.Rngs(0)), lambda x: x.mean((1, 2)),
        ...                        nnx.Linear(4, 1, rngs=nnx.Rngs(1)))
        >>> images = np.random.default_rng(0).integers(0, 255, (20, 8, 8, 3), np.uint8)
        >>> data = InMemory(images, np.arange(20) % 2, ("a", "b"))
        >>> trainer = Trainer(model, Freeze.depth(1).resolve(model), (8, 8), batch_size=8)
        >>> state, log = trainer.fit(trainer.init(), trainer.rows(data), epochs=2)
        >>> len(log), int(state.step), sorted(state.trainable)
        (2, 6, ['layers/2/bias', 'layers/2/kernel'])
    """

    def __init__(
        self,
        model: nnx.Module,
        frozen: Frozen,
        image_size: tuple[int, ...],
        *,
        batch_size: int = 32,
        optimizer: str | optax.GradientTransformation = "rmsprop",
        store: FeatureStore | None = None,
        augment: AugmentFn | None = None,
        views: int = 0,
        workers: int = 0,
        stream: bool = False,
        task: Task | None = None,
        gradient_fn: GradientFn | None = None,
        not_finite: NotFiniteChoice = "stop",
        precision: Precision = "auto",
        devices: Devices | None = None,
        last_batch: LastBatch = "pad",
    ):
        if views < 0 or (views and not augment):
            raise ValueError(f"views: expected 0 or more, and an augmentation to draw them with, found {views}")
        if views and stream:
            raise ValueError("views are stored, and stream stores nothing: give one of them")
        for name, value, known in (("last_batch", last_batch, LastBatch), ("not_finite", not_finite, NotFiniteChoice)):
            if value not in get_args(known):
                raise ValueError(f"{name}: expected one of {', '.join(get_args(known))}, found {value!r}")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size}")
        if devices is not None:
            devices.check_batch(batch_size)
        for name, value in (("augment", augment), ("gradient_fn", gradient_fn)):
            if value and not callable(value):
                raise ValueError(f"{name}: expected a function, found {value!r}")
        self.task = Classification() if task is None else task
        if self.task.pending:
            raise ValueError(f"the task needs {self.task.pending}: give task.resolved(training targets)")
        self.frozen, self.batch_size, self.image_size = frozen, batch_size, tuple(image_size)
        self.optimizer = make_optimizer(optimizer) if isinstance(optimizer, str) else optimizer
        self.augment = augment or None
        self.not_finite, self.devices, self.last_batch = not_finite, devices, last_batch
        self.store, self.views, self.workers, self.stream = store or FeatureStore(), views, workers, stream
        self.staged_model = staged = StagedModel(model, frozen, image_size, batch_size, precision, devices)
        self.task.check_outputs(staged.outputs, batch_size)
        self.precision, self.functional, self.fixed = staged.precision, staged.functional, staged.fixed
        self.staged, self.inference, self.example, self.outputs = (
            staged.training, staged.inference, staged.example, staged.outputs,
        )  # fmt: skip
        self.constants, self.inference_constants = staged.constants, staged.inference_constants
        self.programs = Programs(
            Step(staged, self.task, self.optimizer, self.augment, gradient_fn, not_finite == "skip")
        )
        self.traces = self.programs.traces
        self.feed = Feed(batch_size, last_batch, devices, workers)

    # The state.

    @property
    def trainable_parameters(self) -> int:
        """Number of trainable parameters."""
        return self.staged_model.trainable_parameters

    def init(self, leaves: Leaves | None = None, learning_rate: float | None = None) -> State:
        """A fresh state.

        Args:
            leaves: values to start from, by path (those of another seed's head, say); the model's own
                where a path is absent. Structure, shape and type may not change.
            learning_rate: the optimizer's own if not given.

        Raises:
            ValueError: if a leaf is unknown or of another shape or type, or the optimizer has no rate to set.
        """
        staged = self.staged_model
        given = checked_leaves(leaves or {}, staged.live, (*staged.fixed, *self.functional.random()))
        state = fresh_state({**staged.live, **given}, staged.trainable, self.optimizer, learning_rate)
        if self.devices is None:
            return state
        self.devices.check_same(state, "the weights to start from")
        return self.devices.place(state)

    def abstract_state(self) -> State:
        """Shapes and types of a state."""
        staged = self.staged_model
        return jax.eval_shape(lambda: fresh_state(staged.live, staged.trainable, self.optimizer))

    def leaves(self, state: State) -> Leaves:
        """Every leaf of the trained model, frozen ones included, random streams left out; on one device of this host.

        Every host must call it.
        """
        return self.staged_model.leaves({**state.trainable, **state.statistics})

    def model(self, state: State) -> nnx.Module:
        """The trained model, in inference mode."""
        return self.staged_model.module({**state.trainable, **state.statistics})

    # The loop.

    def steps_per_epoch(self, examples: int) -> int:
        """Steps of an epoch of so many examples.

        Raises:
            ValueError: the only batch is short, and such ones are left out.
        """
        return self.feed.steps_per_epoch(examples)

    def masks(self, examples: int) -> bool:
        """Whether the steps of epochs of so many examples are told which rows of the batch count.

        They are where BatchNorm follows the batch and the last one is filled up.

        Raises:
            ValueError: it cannot be told which numbers of a BatchNorm's input belong to which row.
        """
        return self.last_batch == "pad" and self.staged_model.masks(examples)

    def no_metrics(self) -> Metrics:
        """Sums over no examples."""
        return Metrics.zero(self.task.metric_names)

    def context(self, rows: FeatureDataset) -> Any:
        """What all training steps on these rows read of the frozen part."""
        return self.feed.shared(self.constants, self.fixed if rows.decoded else None)

    def rows(self, source: LabelledImages, *, train: bool = True, progress: Progress | None = None) -> FeatureDataset:
        """The features of a source, from the store or made now.

        Args:
            source: the images.
            train: for training (dropout may lie before the frontier) or for evaluation.
            progress: called with (images done, images in all) if there is a pass to make.
        """
        labelled = checked_labelled(source, self.image_size, self.task, self.outputs)
        self.programs.functions.check_scores(labelled)
        if self.stream:
            return FeatureDataset("source", labelled, source=source)
        augment = self.augment if train else None
        if augment and not self.views:
            return image_rows(source, labelled, self.example.shape, self.devices)
        staged, views = (self.staged, self.views if augment else 1) if train else (self.inference, 1)
        # Views are drawn on the device, which worker processes have no part in.
        images, workers = (Views(source, augment, views), 0) if augment else (source, self.workers)
        get = partial(self.store.get, staged, self.fixed, images, progress=progress, workers=workers)
        return feature_rows(get, source, labelled, views, self.devices)

    def fit(
        self, state: State, rows: FeatureDataset, *, epochs: int, seed: int = 0, progress: Progress | None = None,
        callbacks: Sequence[Any] = (), on_step_end: StepEnd | None = None, on_epoch_end: EpochEnd | None = None,
        running_metrics: Metrics | None = None, step_by_step: bool = False,
    ) -> tuple[State, list[dict[str, Any]]]:  # fmt: skip
        """Train.

        Args:
            state: from `init`; it is used up (its arrays are donated).
            rows: from `rows(source)`.
            epochs: passes over the rows; one that the state stands in the middle of is the first of them.
            seed: of the order of the examples, and of dropout.
            progress: called with (steps done, steps in all).
            callbacks: called after each step and each epoch; see `cnnjax.Callback`.
            on_step_end: called before the callbacks, as `Callback.on_step_end` is, but once an epoch where its steps
                are one program. State and running metrics together are where to go on from.
            on_epoch_end: called before the callbacks, as `Callback.on_epoch_end` is.
            running_metrics: those sums, of a state that stands in the middle of an epoch, or at its end before
                `on_epoch_end`.
            step_by_step: run the steps one by one, also where an epoch could be one program.

        Returns:
            The new state, and one record an epoch: loss, the task's metrics, steps, seconds, those that compiled.

        Raises:
            NotFinite: a loss is NaN or infinite, and `not_finite` says to stop.
        """
        return Loop(self, rows, seed, step_by_step, Callbacks(callbacks), on_step_end, on_epoch_end).fit(
            state, epochs, running_metrics or self.no_metrics(), progress or (lambda done, total: None)
        )

    def steps(
        self, state: State, rows: FeatureDataset, *, seed: int = 0, epoch: int = 0
    ) -> Generator[tuple[State, Metrics], State | None]:
        """Train one epoch step by step, for those who watch or steer each step.

        Args:
            state: used up by the first step, as each state given is by the next; `generator.send(state)` goes on from
                another one (with another learning rate, say).
            rows: from `rows(source)`.
            seed: as for `fit`.
            epoch: which one: decides the order.
        """
        stream = self.feed.stream(self.feed.loader(rows, seed, epoch, epoch + 1))
        return Loop(self, rows, seed).steps(self.feed.entered(state), epoch, stream)

    # A loop of your own: `cnnjax.train` has examples.

    def batches(self, rows: FeatureDataset, *, seed: int = 0, epoch: int = 0) -> Iterator[TrainingBatch]:
        """What each step of an epoch takes, in the order of `fit`.

        Args:
            rows: from `rows(source)`.
            seed: as for `fit`.
            epoch: which one: decides the order.
        """
        context, masked, key = self.context(rows), self.masks(len(rows)), np.uint32(seed)
        loader = self.feed.loader(rows, seed, epoch, epoch + 1)
        try:
            for given in self.feed.inputs(rows, self.feed.order(rows, seed, epoch), self.feed.stream(loader)):
                if rows.on_device:
                    arrays, labelled, index, counts, views = given
                    values, labelled = self.programs.take(arrays, labelled, index, views)
                else:
                    values, labelled, counts = given
                yield TrainingBatch(context, values, labelled, counts, key, rows.decoded, masked)
        finally:
            if loader:
                loader.close()

    def objective(self, state: State, batch: TrainingBatch) -> Objective:
        """The mean loss of a batch as a pure function of the trainable parameters, for `jax.grad` and its kind.

        Freezing, stored features, augmentation, dropout, the task, the examples' weights and the rows that BatchNorm
        leaves out are taken care of. Augmentation is drawn once and the frozen part is run once, here; the function
        may be called as often as you like, and draws the same dropout each time.

        Args:
            state: its `step` decides augmentation and dropout, with the batch's seed.
            batch: one of `batches`.

        Returns:
            From a dictionary like `state.trainable` to (loss, `BatchResult`): take its gradient with `has_aux=True`.
        """
        return self.programs.functions.objective(state, batch)

    def apply_gradients(self, state: State, gradients: Leaves, result: BatchResult) -> tuple[State, Metrics]:
        """One step of the optimizer.

        Args:
            state: before.
            gradients: one for each of `state.trainable`.
            result: what the objective gave beside the loss; running statistics are taken from it.

        Returns:
            The state after the step, and `Metrics` of the batch. Whether the loss is finite is yours to look at, but
            with `not_finite="skip"`, which leaves the step out and counts it.

        Raises:
            ValueError: gradients are of other leaves, or have other shapes.
        """
        return self.programs.functions.apply_gradients(state, gradients, result)

    # Evaluation.

    def evaluate(self, state: State, rows: FeatureDataset) -> dict[str, float]:
        """Loss and the task's measures over all rows of `rows(source, train=False)`, exact to the last short batch."""
        return self.predict(state, rows)[0]

    def predict(self, state: State, rows: FeatureDataset) -> tuple[dict[str, float], Any]:
        """Loss and the task's measures, and the model's outputs of every row: logits f32[N, 1 or classes]."""
        context = self.feed.shared(self.inference_constants, self.fixed if rows.decoded else None)
        state = self.feed.entered(state)
        total, outputs = self.no_metrics(), []
        labelled = jax.tree.map(np.asarray, rows.labelled)
        starts = range(0, len(rows), self.batch_size)
        batches = [np.minimum(np.arange(k, k + self.batch_size), len(rows) - 1) for k in starts]
        taken = ahead(partial(self.feed.taken, rows), batches)  # read while the device works on the batch before
        for start, index, values in zip(starts, batches, taken, strict=True):
            preemption.check()
            weights = (np.arange(start, start + self.batch_size) < len(rows)).astype(np.float32)
            batch = self.feed.spread((labelled.take(index), weights))
            metrics, out = self.programs.evaluate(state, context, values, *batch, decoded=rows.decoded)
            total = total.plus(metrics)
            outputs.append(jax.tree.map(np.asarray, out))
        whole = jax.tree.map(lambda *parts: np.concatenate(parts)[: len(rows)], *outputs)
        return total.summary() | self.task.overall(whole, *labelled), whole
