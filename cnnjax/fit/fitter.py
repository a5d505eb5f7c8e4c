"""Trains a model by a recipe, phase after phase, and keeps what was best."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import optax
from flax import nnx

from cnnjax.data.order import epoch_steps
from cnnjax.data.source import targets_of
from cnnjax.features import FeatureStore, Progress
from cnnjax.fit.recipe import Phase, Recipe, phases
from cnnjax.fit.run import CheckpointConfig, Record, Run
from cnnjax.freeze import layer_names
from cnnjax.functional import Leaves, lasting_leaves, names_of
from cnnjax.metrics import Journal
from cnnjax.optim import by_depth, by_groups, make_optimizer
from cnnjax.order import Example
from cnnjax.runtime.precision import Precision
from cnnjax.train.dataset import FeatureDataset, LabelledImages
from cnnjax.train.tasks import Classification, Task
from cnnjax.train.trainer import Trainer

if TYPE_CHECKING:
    from cnnjax.runtime.devices import Devices

Report = Callable[[str], Progress]
"""Gives a progress function (done, all) for what is begun under a name."""


class Fitted(NamedTuple):
    """A trained model.

    Attributes:
        leaves: every leaf by path, random keys left out.
        history: one record an epoch: phase, epoch, train_loss, train_accuracy, validation_loss, validation_accuracy
            (or whatever metrics the task has), learning_rate (the phase's, before schedule and factors), seconds
            (training alone), compile_seconds (of those), images_per_second.
        seconds: wall-clock time by what took it: "features", "training", "evaluation".
        best: the epoch whose weights the last phase ended with; of an earlier phase where none of its own was better.
        task: what was minimised, with what it took from the training targets (balanced weights, a scale), and without
            the recipe's smoothing.
    """

    leaves: Leaves
    history: list[Record]
    seconds: dict[str, float]
    best: int
    task: Task


def silent(name: str) -> Progress:
    """Shows no progress."""
    return lambda done, total: None


class Fitter:
    """Trains one model by one recipe, for any number of seeds: programs and features are made once.

    Args:
        model: any NNX module from images to logits, or to what the task takes; it is not changed.
        recipe: how to train.
        example: height and width of the images (or a sound's samples), as `image_size` of `Trainer`.
        store: where features are kept; in memory if not given.
        within: the part of the model that the recipe freezes.
        workers: processes that read images.
        stream: read the images anew in every epoch, as `Trainer` does with it.
        precision: what is computed with, as for `Trainer`.
        devices: what the batches are spread over; one device if not given.
        task: what is minimised and reported, as for `Trainer`; `label_smoothing` of the recipe is added to it.

    Attributes:
        task: the same; once there are training targets, with what it takes from them.
        phases: what is trained after what.
        store: where features are kept; `store.passes` tells what was computed.

    Raises:
        ValueError: the recipe does not fit the model.

    >>> import numpy as np
    >>> from cnnjax import Classifier, lecture_cnn, linear_head
    >>> from cnnjax.data import InMemory
    >>> rngs = nnx.Rngs(0)
    >>> backbone = lecture_cnn((32, 32, 3), (4, 8), include_top=False, rngs=rngs)
    >>> model = Classifier(backbone, linear_head(backbone.output_shape(), 2, rngs=rngs), "unit")
    >>> images = np.random.default_rng(0).integers(0, 255, (20, 32, 32, 3), np.uint8)
    >>> data = InMemory(images, np.arange(20) % 2, ("a", "b"))
    >>> fitter = Fitter(model, Recipe("finetune", unfreeze_from="conv2d_2", epochs=2, tune_epochs=1), (32, 32))
    >>> [(record["phase"], record["epoch"]) for record in fitter.fit(data).history]
    [('head', 0), ('head', 1), ('tune', 2)]
    """

    def __init__(
        self,
        model: nnx.Module,
        recipe: Recipe,
        example: tuple[int, ...],
        *,
        store: FeatureStore | None = None,
        within: str = "backbone",
        workers: int = 0,
        stream: bool = False,
        precision: Precision = "auto",
        devices: "Devices | None" = None,
        task: Task | None = None,
    ):
        self._asked = task or Classification()
        self.task = self._asked.smoothed(recipe.label_smoothing)
        self.devices, self._stream, self._precision = devices, stream, precision
        self.recipe, self.store, self._model = recipe, store or FeatureStore(), model
        self.phases = phases(recipe, model, within, example)
        self._example, self._workers = example, workers
        self._factors = _factors(recipe, model, example)
        self._trainers: dict[tuple[int, int, Task], Trainer] = {}
        self._rows: dict[tuple[int, int, bool], tuple[LabelledImages, FeatureDataset]] = {}

    def resolve(self, train: LabelledImages) -> None:
        """Take from the training targets what the task needs of them; `fit` does it."""
        self._known = self._asked.resolved(targets_of(train))
        self.task = self._known.smoothed(self.recipe.label_smoothing)

    def trainer(self, phase: int, images: int) -> Trainer:
        """The trainer of a phase, for a training set of this many images; made once."""
        recipe, found = self.recipe, self.phases[phase]
        batches = epoch_steps(images, recipe.batch_size, recipe.last_batch)
        if (phase, batches, self.task) not in self._trainers:
            optimizer = make_optimizer(
                recipe.optimizer, found.learning_rate, schedule=_schedule(recipe, found, batches), clip=recipe.clip,
                weight_decay=recipe.weight_decay, accumulate=recipe.accumulate, ema=recipe.ema, factors=self._factors,
            )  # fmt: skip
            self._trainers[phase, batches, self.task] = Trainer(
                self._model, found.frozen, self._example, batch_size=recipe.batch_size, optimizer=optimizer,
                store=self.store, augment=recipe.augmentation, views=recipe.views, workers=self._workers,
                task=self.task, not_finite=recipe.not_finite, stream=self._stream,
                precision=self._precision, devices=self.devices, last_batch=recipe.last_batch,
            )  # fmt: skip
        return self._trainers[phase, batches, self.task]

    def rate(self, phase: int, step: int, batches: int) -> float:
        """The learning rate of a phase's step, counted from 0, before factors of single leaves."""
        schedule = _schedule(self.recipe, self.phases[phase], batches)
        factor = 1.0 if schedule is None else float(np.asarray(schedule(step // self.recipe.accumulate)))
        return self.phases[phase].learning_rate * factor

    def check(self, images: int, *, validated: bool) -> None:
        """Refuse, before anything is trained, what the recipe cannot do with so many training images.

        Args:
            images: their number.
            validated: whether there are validation images.

        Raises:
            ValueError: it goes by validation images and there are none, a phase would not have a step, batches cannot
                be spread over the devices, or views are to be stored and nothing is.
        """
        if self.devices is not None:
            self.devices.check_batch(self.recipe.batch_size)
        if self._stream and self.recipe.views:
            raise ValueError("views are stored, and stream stores nothing: give one of them")
        if not validated and (self.recipe.patience is not None or self.recipe.keep == "best"):
            raise ValueError("patience and keep='best' go by the validation loss: give validation images as well")
        batches = epoch_steps(images, self.recipe.batch_size, self.recipe.last_batch)
        for phase in self.phases:
            _schedule(self.recipe, phase, batches)

    def fit(
        self,
        train: LabelledImages,
        validation: LabelledImages | None = None,
        *,
        leaves: Leaves | None = None,
        seed: int = 0,
        journal: Journal | None = None,
        report: Report = silent,
        checkpointing: CheckpointConfig | None = None,
    ) -> Fitted:
        """Train.

        Args:
            train: labelled images.
            validation: others, evaluated after each epoch.
            leaves: values to start from where they differ from the model's (another seed's head, say); only of
                leaves that train in the first phase.
            seed: of the order of the images, dropout and augmentation.
            journal: takes each epoch's record as it ends.
            report: shows progress.
            checkpointing: checkpoints; a run that finds one of its own goes on from there, and ends as if it had never
                been interrupted: the same weights, records and optimizer state to the last bit.

        Raises:
            NotFinite: a loss was NaN or infinite: step, rate and files are named.
            CorruptCheckpoint: the newest checkpoint is damaged, and `keeping` does not say to fall back.
            ValueError: the recipe needs validation images and there are none, images do not fit the model, or
                leaves differ that are frozen at first.
        """
        if seed < 0:
            raise ValueError(f"seed: expected a whole number from 0 on, found {seed}")
        self.check(len(train), validated=validation is not None)
        self.resolve(train)
        fixed = self.trainer(0, len(train)).fixed
        if lost := [p for p, x in (leaves or {}).items() if p in fixed and not np.array_equal(x, fixed[p])]:
            raise ValueError(
                f"leaves: {lost[0]} and {len(lost) - 1} others are frozen in the first phase, where the model's own "
                "values count; make the Fitter with a model that has these"
            )
        # Rows of other sources, such as another seed's subset, make room.
        self._rows = {key: kept for key, kept in self._rows.items() if kept[0] is train or kept[0] is validation}
        run = Run(self, train, validation, seed, journal, report, checkpointing)
        own = run.all_phases(dict(leaves or {}))
        return Fitted({**lasting_leaves(self._model), **own}, run.at.history, run.at.seconds, run.at.best, self._known)

    def outputs(self, fitted: Fitted, source: LabelledImages, images: int, report: Report = silent) -> Any:
        """The outputs, such as logits f32[N, 1 or classes], of a source, from features of what the last phase froze.

        Args:
            fitted: from `fit`.
            source: images.
            images: how many the training set had.
            report: shows progress.
        """
        last = len(self.phases) - 1
        trainer = self.trainer(last, images)
        rows = self.rows(trainer, last, source, False, report)
        return trainer.predict(trainer.init(fitted.leaves), rows)[1]

    def rows(self, trainer: Trainer, phase: int, source: LabelledImages, train: bool, report: Report) -> FeatureDataset:
        """Features of a source for a phase, kept for other seeds."""
        key = (phase, id(source), train)
        if key not in self._rows:
            kind = "training" if train else "validation"
            rows = trainer.rows(source, train=train, progress=report(f"features ({self.phases[phase].name}, {kind})"))
            self._rows[key] = source, rows  # the source is kept too, so that its id stays its own
        return self._rows[key][1]


def _factors(recipe: Recipe, model: nnx.Module, example: Example) -> Callable[[str], float] | None:
    lasting = lasting_leaves(model)
    names = {path: every for path, every in names_of(model).items() if path in lasting}
    if recipe.learning_rate_groups:
        return by_groups(recipe.learning_rate_groups, names)
    if recipe.layer_factor == 1:
        return None
    order = _in_order(model, names, example)
    places, factor = {name: place for place, name in enumerate(order)}, by_depth(order, recipe.layer_factor)
    # A leaf that layers share learns with the first of them, where it would be frozen too.
    first = {path: min(every, key=lambda name: places.get(name, len(order))) for path, every in names.items()}
    return lambda path: factor(first.get(path, path))


def _in_order(model: nnx.Module, names: Mapping[str, Sequence[str]], example: Example) -> list[str]:
    """Leaf paths, layer by layer; those of what is shared stand in every layer that has it."""
    layers = [name for part in ("backbone", "head") for name in _layers(model, part, example)]
    every = [name for alike in names.values() for name in alike]
    layers = layers or list(layer_names(model, example=example))
    return [name for layer in layers for name in every if f"{name}/".startswith(f"{layer}/")]


def _layers(model: nnx.Module, part: str, example: Example) -> list[str]:
    if not isinstance(getattr(model, part, None), nnx.Module):
        return []
    return [f"{part}/{name}" for name in layer_names(model, part, example=example)]


def _schedule(recipe: Recipe, phase: Phase, batches: int) -> optax.Schedule | None:
    """The schedule over a phase with so many batches an epoch."""
    if 0 < batches * phase.epochs < recipe.accumulate:
        raise ValueError(
            f"accumulate: {recipe.accumulate} batches make a step, and the phase {phase.name!r} has "
            f"{batches * phase.epochs} in all: nothing would train; give at most {batches}, an epoch's"
        )
    steps = max(1, batches * phase.epochs // recipe.accumulate)
    return recipe.scheduled(steps, round(recipe.warmup * steps))
