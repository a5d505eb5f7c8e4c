"""Trains a model by a recipe, phase after phase, and keeps what was best."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
import optax
from flax import nnx

from cnnjax.augment import AugmentFn
from cnnjax.data.order import epoch_steps
from cnnjax.data.source import targets_of
from cnnjax.features import FeatureStore
from cnnjax.files.importing import imported
from cnnjax.fit.plan import Report
from cnnjax.fit.progress import CheckpointConfig, Record
from cnnjax.fit.recipe import Phase, Recipe, phases
from cnnjax.fit.run import Run
from cnnjax.freeze import layer_names
from cnnjax.functional import Functional, Leaves, functionalize, lasting_leaves, names_of
from cnnjax.metrics import Journal
from cnnjax.models.layer_order import Example
from cnnjax.optim import by_depth, by_groups, make_optimizer
from cnnjax.runtime import Progress
from cnnjax.runtime.precision import Precision
from cnnjax.train.callbacks import Callbacks
from cnnjax.train.dataset import FeatureDataset, LabelledImages
from cnnjax.train.step import GradientFn
from cnnjax.train.tasks import Classification, Task
from cnnjax.train.trainer import Trainer

if TYPE_CHECKING:
    from cnnjax.runtime.devices import Devices


OptimizerFn = Callable[[optax.Schedule], optax.GradientTransformation]
"""From a learning rate for each step to an optimizer: optax's own functions are such ones."""


@dataclass(frozen=True)
class Fitted:
    """A trained model, and how it was trained.

    Attributes:
        leaves: every leaf by path, random keys left out.
        history: one record an epoch: phase, epoch, train_loss, train_accuracy, validation_loss, validation_accuracy
            (or whatever metrics the task has), learning_rate (the phase's, before schedule and factors), seconds
            (training alone), compile_seconds (of those), images_per_second.
        seconds: wall-clock time by what took it: "features", "training", "evaluation".
        best: the epoch whose weights the last phase ended with; of an earlier phase where none of its own was better.
        task: what was minimised, with what it took from the training targets (balanced weights, a scale), and without
            the recipe's smoothing.
        functional: the model as pure functions of its leaves.
    """

    leaves: Leaves
    history: list[Record]
    seconds: dict[str, float]
    best: int
    task: Task
    functional: Functional = field(repr=False)

    @cached_property
    def model(self) -> nnx.Module:
        """The trained model in inference mode: call it with a batch of images; all its leaves are its own."""
        random = self.functional.random_leaves(jax.random.key(0))
        return self.functional.module({**self.leaves, **random}, train=False)


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
        optimizer: in place of the recipe's: a function from a learning rate for each step (an `optax.Schedule`) to an
            optax optimizer, such as `optax.lion` or `lambda rate: optax.chain(optax.clip(1.0), optax.adam(rate))`. It
            is called for each phase, with the phase's learning rate under the recipe's schedule. Weight decay,
            clipping, accumulation, averages and factors are then its own affair.
        schedule: in place of the recipe's: a function from a phase's number of optimizer steps to a schedule of
            factors of the phase's learning rate, such as `lambda steps: optax.cosine_onecycle_schedule(steps, 1.0)`.
        augment: in place of the recipe's, as for `Trainer`.
        gradient_fn: makes the gradients, as for `Trainer`.

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
        optimizer: OptimizerFn | None = None,
        schedule: Callable[[int], optax.Schedule] | None = None,
        augment: AugmentFn | None = None,
        gradient_fn: GradientFn | None = None,
    ):
        self._asked = task or Classification()
        self.task = self._asked.smoothed(recipe.label_smoothing)
        self.devices, self._stream, self._precision = devices, stream, precision
        self.recipe, self.store, self._model = recipe, store or FeatureStore(), model
        self.phases = phases(recipe, model, within, example)
        self._example, self._workers = example, workers
        self._optimizer, self._schedule = optimizer, schedule
        if recipe.gradient_fn is not None:
            if gradient_fn is not None:
                raise ValueError("gradient_fn: the recipe has one of its own: give one of them")
            gradient_fn = imported(recipe.gradient_fn)
        self._gradient_fn = gradient_fn
        self._augment = recipe.augmentation if augment is None else augment
        self._check_own()
        self._factors = _factors(recipe, model, example)
        self._trainers: dict[tuple[int, int, Task], Trainer] = {}
        self._rows: dict[tuple[int, int, bool], tuple[LabelledImages, FeatureDataset]] = {}

    @property
    def own_optimizer(self) -> bool:
        """Whether the optimizer is not the recipe's."""
        return self._optimizer is not None

    def resolve(self, train: LabelledImages) -> None:
        """Take from the training targets what the task needs of them; `fit` does it."""
        self._known = self._asked.resolved(targets_of(train))
        self.task = self._known.smoothed(self.recipe.label_smoothing)

    def trainer(self, phase: int, images: int) -> Trainer:
        """The trainer of a phase, for a training set of this many images; made once."""
        recipe, found = self.recipe, self.phases[phase]
        batches = epoch_steps(images, recipe.batch_size, recipe.last_batch)
        if (phase, batches, self.task) not in self._trainers:
            self._trainers[phase, batches, self.task] = Trainer(
                self._model, found.frozen, self._example, batch_size=recipe.batch_size,
                optimizer=self._made(found, batches), store=self.store, augment=self._augment, views=recipe.views,
                workers=self._workers, task=self.task, gradient_fn=self._gradient_fn, not_finite=recipe.not_finite,
                stream=self._stream, precision=self._precision, devices=self.devices, last_batch=recipe.last_batch,
            )  # fmt: skip
        return self._trainers[phase, batches, self.task]

    def _made(self, phase: Phase, batches: int) -> optax.GradientTransformation:
        """The optimizer of a phase with so many batches an epoch."""
        recipe, schedule = self.recipe, self._factor(phase, batches)
        if self._optimizer is None:
            return make_optimizer(
                recipe.optimizer, phase.learning_rate, schedule=schedule, clip=recipe.clip,
                weight_decay=recipe.weight_decay, accumulate=recipe.accumulate, ema=recipe.ema, factors=self._factors,
            )  # fmt: skip
        rate = phase.learning_rate
        made = self._optimizer(lambda step: rate * (1.0 if schedule is None else schedule(step)))
        if not isinstance(made, optax.GradientTransformation):
            raise ValueError(f"optimizer: expected a function that gives an optax optimizer, found {made!r} from it")
        return made

    def _factor(self, phase: Phase, batches: int) -> optax.Schedule | None:
        """The factor of a phase's learning rate in each optimizer step."""
        if self._schedule is None:
            return _schedule(self.recipe, phase, batches)
        return self._schedule(max(1, batches * phase.epochs // self.recipe.accumulate))

    def _check_own(self) -> None:
        """Refuse options of the recipe that what was given in their place would pass over."""
        recipe = self.recipe
        if self._schedule is not None and (recipe.schedule != "constant" or recipe.warmup):
            raise ValueError("schedule: the recipe has a schedule or a warmup of its own: give one of them")
        if self._optimizer is None:
            return
        if not callable(self._optimizer):
            raise ValueError(
                "optimizer: expected a function from a learning rate schedule to an optax optimizer, such as "
                f"optax.adam, found {type(self._optimizer).__name__}: write `lambda rate: ...`"
            )
        own = {
            name: getattr(recipe, name)
            for name in ("weight_decay", "clip", "accumulate", "ema", "learning_rate_groups")
        }
        own["layer_factor"] = recipe.layer_factor
        if given := [name for name, value in own.items() if value != Recipe.__dataclass_fields__[name].default]:
            raise ValueError(f"optimizer: make {', '.join(given)} part of it, or leave them out of the recipe")
        state = jax.eval_shape(self._made(self.phases[0], 1).init, {"weight": np.zeros(1, np.float32)})
        nodes = jax.tree.leaves(state, is_leaf=lambda node: hasattr(node, "hyperparams"))
        if any(phase.keeps_optimizer for phase in self.phases) and any(hasattr(node, "hyperparams") for node in nodes):
            raise ValueError(
                f"optimizer: {recipe.method} goes on with the optimizer's state, in which optax.inject_hyperparams "
                "would keep the learning rate of the phase before: give the optimizer without it"
            )

    def rate(self, phase: int, step: int, batches: int) -> float:
        """The learning rate of a phase's step, counted from 0, before factors of single leaves."""
        schedule = self._factor(self.phases[phase], batches)
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
        callbacks: Sequence[Any] = (),
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
            callbacks: called after each step and each epoch; see `cnnjax.Callback`, also for what they are told where a
                run goes on from a checkpoint.

        Raises:
            NotFinite: a loss was NaN or infinite: step, rate and files are named.
            CorruptCheckpoint: the newest checkpoint is damaged, and `checkpointing` does not say to fall back.
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
        run = Run(self, train, validation, seed, journal, report, checkpointing, Callbacks(callbacks))
        own = run.all_phases(dict(leaves or {}))
        leaves, at = {**lasting_leaves(self._model), **own}, run.at
        return Fitted(leaves, at.history, at.seconds, at.best, self._known, functionalize(self._model))

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
