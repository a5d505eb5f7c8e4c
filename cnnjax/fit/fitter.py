"""Trains a model by a recipe, phase after phase, and keeps what was best."""

import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from cnnjax.features import FeatureStore, Progress
from cnnjax.fit.recipe import Phase, Recipe, phases
from cnnjax.freeze import layer_names
from cnnjax.functional import Leaves, lasting_leaves
from cnnjax.metrics import Journal
from cnnjax.optim import averaged, by_depth, by_groups, carry, make_optimizer, warmup_cosine, warmup_linear, with_rate
from cnnjax.optim.average import with_average
from cnnjax.rows import LabelledPictures, Rows
from cnnjax.state import State
from cnnjax.training import Trainer

Record = dict[str, Any]
Report = Callable[[str], Progress]
"""Gives a progress function (done, all) for what is begun under a name."""


class Fitted(NamedTuple):
    """A trained model.

    Attributes:
        leaves: every leaf by path, random keys left out.
        history: one record an epoch: phase, epoch, train_loss, train_accuracy, validation_loss, validation_accuracy,
            learning_rate (the phase's, before schedule and factors), seconds (training alone), pictures_per_second.
        seconds: wall-clock time by what took it: "features", "training", "evaluation".
        best: the epoch whose weights the last phase ended with.
    """

    leaves: Leaves
    history: list[Record]
    seconds: dict[str, float]
    best: int


def silent(name: str) -> Progress:
    """Shows no progress."""
    return lambda done, total: None


class Fitter:
    """Trains one model by one recipe, for any number of seeds: programs and features are made once.

    Args:
        model: any NNX module from pictures to logits; it is not changed.
        recipe: how to train.
        example: height and width of the pictures (or a sound's samples), as `image_size` of `Trainer`.
        store: where features are kept; in memory if not given.
        within: the part of the model that the recipe freezes.
        workers: processes that read pictures.

    Attributes:
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
    >>> pictures = np.random.default_rng(0).integers(0, 255, (20, 32, 32, 3), np.uint8)
    >>> data = InMemory(pictures, np.arange(20) % 2, ("a", "b"))
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
    ):
        self.recipe, self.store, self._model = recipe, store or FeatureStore(), model
        self.phases = phases(recipe, model, within)
        self._example, self._workers = example, workers
        self._factors = _factors(recipe, model)
        self._trainers: dict[tuple[int, int], Trainer] = {}
        self._rows: dict[tuple[int, int, bool], tuple[LabelledPictures, Rows]] = {}

    def trainer(self, phase: int, pictures: int) -> Trainer:
        """The trainer of a phase, for a training set of this many pictures; made once."""
        recipe, found = self.recipe, self.phases[phase]
        batches = -(-pictures // recipe.batch_size)
        if (phase, batches) not in self._trainers:
            optimizer = make_optimizer(
                recipe.optimizer, found.learning_rate, schedule=_schedule(recipe, found, batches), clip=recipe.clip,
                weight_decay=recipe.weight_decay, accumulate=recipe.accumulate, ema=recipe.ema, factors=self._factors,
            )  # fmt: skip
            self._trainers[phase, batches] = Trainer(
                self._model, found.frozen, self._example, batch_size=recipe.batch_size, optimizer=optimizer,
                store=self.store, augment=recipe.augmentation, views=recipe.views, workers=self._workers,
                label_smoothing=recipe.label_smoothing,
            )  # fmt: skip
        return self._trainers[phase, batches]

    def check(self, pictures: int, *, validated: bool) -> None:
        """Refuse, before anything is trained, what the recipe cannot do with so many training pictures.

        Args:
            pictures: their number.
            validated: whether there are validation pictures.

        Raises:
            ValueError: it goes by validation pictures and there are none, or a phase would not have a step.
        """
        if not validated and (self.recipe.patience is not None or self.recipe.keep == "best"):
            raise ValueError("patience and keep='best' go by the validation loss: give validation pictures as well")
        for phase in self.phases:
            _schedule(self.recipe, phase, -(-pictures // self.recipe.batch_size))

    def fit(
        self,
        train: LabelledPictures,
        validation: LabelledPictures | None = None,
        *,
        leaves: Leaves | None = None,
        seed: int = 0,
        journal: Journal | None = None,
        report: Report = silent,
    ) -> Fitted:
        """Train.

        Args:
            train: labelled pictures.
            validation: others, evaluated after each epoch.
            leaves: values to start from where they differ from the model's (another seed's head, say); only of
                leaves that train in the first phase.
            seed: of the order of the pictures, dropout and augmentation.
            journal: takes each epoch's record as it ends.
            report: shows progress.

        Raises:
            ValueError: the recipe needs validation pictures and there are none, pictures do not fit the model, or
                leaves differ that are frozen at first.
        """
        if seed < 0:
            raise ValueError(f"seed: expected a whole number from 0 on, found {seed}")
        self.check(len(train), validated=validation is not None)
        fixed = self.trainer(0, len(train)).fixed
        if lost := [p for p, x in (leaves or {}).items() if p in fixed and not np.array_equal(x, fixed[p])]:
            raise ValueError(
                f"leaves: {lost[0]} and {len(lost) - 1} others are frozen in the first phase, where the model's own "
                "values count; make the Fitter with a model that has these"
            )
        # Rows of other sources, such as another seed's subset, make room.
        self._rows = {key: kept for key, kept in self._rows.items() if kept[0] is train or kept[0] is validation}
        run = _Run(self, train, validation, seed, journal, report)
        before: tuple[State, Leaves] | None = None
        own = dict(leaves or {})
        for number in range(len(self.phases)):
            before = run.phase(number, own, before)
            own = before[1]
        assert before is not None
        return Fitted({**lasting_leaves(self._model), **own}, run.history, run.seconds, run.best)

    def logits(self, fitted: Fitted, source: LabelledPictures, pictures: int, report: Report = silent) -> np.ndarray:
        """Logits f32[N, 1 or classes] of a source, from features of what the last phase froze.

        Args:
            fitted: from `fit`.
            source: pictures.
            pictures: how many the training set had.
            report: shows progress.
        """
        last = len(self.phases) - 1
        trainer = self.trainer(last, pictures)
        rows = self.rows(trainer, last, source, False, report)
        return trainer.predict(trainer.init(fitted.leaves), rows)[1]

    def rows(self, trainer: Trainer, phase: int, source: LabelledPictures, train: bool, report: Report) -> Rows:
        """Features of a source for a phase, kept for other seeds."""
        key = (phase, id(source), train)
        if key not in self._rows:
            kind = "training" if train else "validation"
            rows = trainer.rows(source, train=train, progress=report(f"features ({self.phases[phase].name}, {kind})"))
            self._rows[key] = source, rows  # the source is kept too, so that its id stays its own
        return self._rows[key][1]


class _Run:
    """One call of `Fitter.fit`."""

    def __init__(
        self, fitter: Fitter, train: Any, validation: Any, seed: int, journal: Journal | None, report: Report
    ) -> None:
        self.fitter, self.train, self.validation, self.seed = fitter, train, validation, seed
        self.journal, self.report = journal, report
        self.history: list[Record] = []
        self.seconds = {"features": 0.0, "training": 0.0, "evaluation": 0.0}
        self.best = 0

    def phase(self, number: int, leaves: Leaves, before: tuple[State, Leaves] | None) -> tuple[State, Leaves]:
        """Train one phase; returns its state and its leaves that train, as they are to be kept."""
        phase, recipe = self.fitter.phases[number], self.fitter.recipe
        trainer = self.fitter.trainer(number, len(self.train))
        start = time.perf_counter()
        rows = self.fitter.rows(trainer, number, self.train, True, self.report)
        held_out = (
            self.fitter.rows(trainer, number, self.validation, False, self.report)
            if self.validation is not None
            else None
        )
        self.seconds["features"] += time.perf_counter() - start
        state = self._start(trainer, phase, leaves, before)
        best: tuple[float, Leaves] | None = None
        since = 0

        def after(state: State, record: dict[str, float]) -> bool:
            nonlocal best, since
            line: Record = {
                "phase": phase.name, "epoch": int(record["epoch"]), "train_loss": record["loss"],
                "train_accuracy": record["accuracy"], "learning_rate": phase.learning_rate,
                "seconds": record["seconds"], "pictures_per_second": len(self.train) / record["seconds"],
            }  # fmt: skip
            self.seconds["training"] += record["seconds"]
            if held_out is not None:
                begun = time.perf_counter()
                found = trainer.evaluate(evaluated(state), held_out)
                line |= {f"validation_{name}": value for name, value in found.items()}
                self.seconds["evaluation"] += time.perf_counter() - begun
                since += 1
                if best is None or math.isnan(best[0]) or found["loss"] < best[0]:
                    best, since = (found["loss"], _copied(evaluated(state))), 0
                    self.best = line["epoch"]
            self.history.append(line)
            if self.journal:
                self.journal.write(line)
            return recipe.patience is not None and since >= recipe.patience

        state, _ = trainer.fit(
            state, rows, epochs=phase.epochs, seed=self.seed, progress=self.report(phase.name), after=after
        )
        if best is not None and (recipe.keep == "best" or recipe.patience is not None):
            return state, best[1]
        self.best = self.history[-1]["epoch"]
        return state, _copied(evaluated(state))

    def _start(self, trainer: Trainer, phase: Phase, leaves: Leaves, before: tuple[State, Leaves] | None) -> State:
        """The state before a phase: leaves of the last one; its optimizer too where the phase carries it on."""
        state = trainer.init(leaves)
        if before is None:
            return state
        if phase.carries:
            moved, _ = carry(before[0].optimizer, before[0].trainable, trainer.optimizer, state.trainable, restart=True)
            state = state._replace(optimizer=with_rate(with_average(moved, state.trainable), phase.learning_rate))
        # Epochs are counted on, so that each phase draws orders and augmentations of its own.
        return state._replace(step=jnp.array(before[0].step))


def evaluated(state: State) -> State:
    """The state with the averaged weights, where the optimizer keeps an average."""
    average = averaged(state.optimizer)
    return state if average is None else state._replace(trainable=average)


def _copied(state: State) -> Leaves:
    """What trains, and live statistics, out of reach of the next step, which takes the state's arrays."""
    return jax.tree.map(jnp.array, {**state.trainable, **state.statistics})


def _factors(recipe: Recipe, model: nnx.Module) -> Callable[[str], float] | None:
    if recipe.rate_groups:
        return by_groups(recipe.rate_groups, lasting_leaves(model))
    return by_depth(_in_order(model), recipe.layer_factor) if recipe.layer_factor < 1 else None


def _in_order(model: nnx.Module) -> list[str]:
    """Leaf paths, layer by layer."""
    leaves = lasting_leaves(model)
    names = [name for part in ("backbone", "head") for name in _layers(model, part)]
    return [leaf for name in names or layer_names(model) for leaf in leaves if leaf.startswith(f"{name}/")]


def _layers(model: nnx.Module, part: str) -> list[str]:
    inner = getattr(model, part, None)
    return [f"{part}/{name}" for name in layer_names(inner)] if isinstance(inner, nnx.Module) else []


def _schedule(recipe: Recipe, phase: Phase, batches: int) -> optax.Schedule | None:
    """The schedule over a phase with so many batches an epoch."""
    if 0 < batches * phase.epochs < recipe.accumulate:
        raise ValueError(
            f"accumulate: {recipe.accumulate} batches make a step, and the phase {phase.name!r} has "
            f"{batches * phase.epochs} in all: nothing would train; give at most {batches}, an epoch's"
        )
    steps = max(1, batches * phase.epochs // recipe.accumulate)
    warmup = round(recipe.warmup * steps)
    if recipe.schedule != "constant":
        return (warmup_cosine if recipe.schedule == "cosine" else warmup_linear)(steps, warmup)
    return optax.linear_schedule(1 / (warmup + 1), 1.0, warmup) if warmup else None
