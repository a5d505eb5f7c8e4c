"""What runs the cells of a sweep: trainers, features and replicas, each made once."""

import gc
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from cnnjax.features import FeatureStore, Pass
from cnnjax.fit.recipe import augmentation
from cnnjax.freeze import Freeze
from cnnjax.functional import Leaves, leaves_of
from cnnjax.models import Classifier, SoundClassifier
from cnnjax.models.layer_order import output_shape
from cnnjax.models.own import build_head
from cnnjax.optim import make_optimizer
from cnnjax.runtime.progress import Bar
from cnnjax.sweep.data import SweepData
from cnnjax.sweep.grid import Cell, first_trainable, subset, tunes
from cnnjax.sweep.options import Ablation
from cnnjax.train.dataset import FeatureDataset, LabelledImages
from cnnjax.train.replicas import Replicas
from cnnjax.train.state import State
from cnnjax.train.tasks import Classification, Task
from cnnjax.train.trainer import Trainer


class SweepRunner:
    """Runs groups of cells; a trainer and its features serve all groups of one depth and augmentation.

    Args:
        config: the options.
        data: images and backbone.
        model: the whole model.
        store: where features are kept.
        bar: makes a bar of a description and a unit, as `Bars.bar`.
    """

    def __init__(
        self, config: Ablation, data: SweepData, model: Classifier | SoundClassifier, store: FeatureStore, bar: Bar
    ):
        self.config, self.data, self.model, self.store, self.bar = config, data, model, store, bar
        self._trainer: Trainer | None = None
        self._replicas: Replicas | None = None
        self._program: tuple[str, str] | None = None
        self._rows: dict[str, Any] = {}
        self._costs: dict[str, Any] = {}
        self._heads: dict[tuple[Any, ...], tuple[State, float]] = {}
        self._made: dict[tuple[str, str], list[Pass]] = {}

    def prepare(self, wanted: Sequence[Cell]) -> None:
        """Where cells begin with trained heads: all depths' features, in the order of the cells, then those heads."""
        first = [cell for cell in wanted if cell.method == "lp-ft"]
        if not first:
            return
        for cell in {cell.program: cell for cell in wanted}.values():
            self.open(cell)
        frozen = Freeze.all().resolve(self.model, "backbone")
        for augment, size in dict.fromkeys((cell.augment, cell.size) for cell in first):
            chosen = {(c.head_rate, c.seed): c for c in first if (c.augment, c.size) == (augment, size)}
            group = [replace(cell, freeze="all", frozen=frozen) for cell in chosen.values()]
            trainer = self.open(group[0])
            states = [trainer.init(self._head(cell.seed), cell.head_rate) for cell in group]
            states, logs = self._train(trainer, states, group, "head")
            for cell, state, log in zip(group, states, logs, strict=True):
                self._heads[_head_key(cell)] = state, sum(record["seconds"] for record in log)

    def run(self, group: Sequence[Cell]) -> list[dict[str, Any]]:
        """Train cells that differ in rate and seed; returns a record of each."""
        cell, trainer = group[0], self.open(group[0])
        if cell.method == "lp-ft":
            begun = [self._heads[_head_key(cell)][0] for cell in group]
            states = [
                # Steps are counted on, so that the order and dropout are drawn anew.
                trainer.init(dict(head.trainable), cell.learning_rate)._replace(step=jnp.array(head.step))
                for head, cell in zip(begun, group, strict=True)
            ]
        else:
            states = [trainer.init(self._head(cell.seed), cell.learning_rate) for cell in group]
        states, logs = self._train(trainer, states, group, cell.freeze)
        return [self._record(cell, trainer, state, log) for cell, state, log in zip(group, states, logs, strict=True)]

    def _train(self, trainer: Trainer, states: list[Any], group: Sequence[Cell], name: str) -> tuple[list, list]:
        """As many together as fit."""
        rows, replicas = self._part(group[0]), self._together(trainer)
        most, done, logs = replicas.most() if replicas.together else len(group), [], []
        for start in range(0, len(group), most):
            some = group[start : start + most]
            label = some[0].name if len(some) == 1 else f"{name}, {len(some)} replicas"
            found, log = replicas.fit(
                states[start : start + most], rows, epochs=self.config.epochs, seeds=[cell.seed for cell in some],
                progress=self.bar(label, "steps"),
            )  # fmt: skip
            done, logs = done + found, logs + log
        return done, logs

    def _together(self, trainer: Trainer) -> Replicas:
        """The trainer's replicas, made once: each maker of them compiles a program of its own."""
        if self._replicas is None or self._replicas.trainer is not trainer:
            self._replicas = Replicas(trainer)
        return self._replicas

    def open(self, cell: Cell) -> Trainer:
        """The trainer of a cell, with the features of all splits at hand."""
        if self._program == cell.program and self._trainer is not None:
            return self._trainer
        passes = len(self.store.passes)
        self._rows.clear()  # the last depth's features leave memory before the next one's come
        self.store.release()
        # A trainer's programs hold the trainer: only the collector frees it, and commands call it rarely.
        self._trainer = self._replicas = None
        gc.collect()
        augment = augmentation(cell.augment)
        self._trainer, self._program = (
            Trainer(
                self.model, cell.frozen, self.data.example, batch_size=self.config.batch_size,
                optimizer=make_optimizer(self.config.optimizer), store=self.store, augment=augment,
                views=self.config.views if augment else 0, workers=self.config.workers,
                precision=self.config.precision, last_batch=self.config.last_batch,
                task=self.data.task, not_finite="keep",  # a cell that diverges is a result: the others go on
            ),
            cell.program,
        )  # fmt: skip
        for name in ("train", "validation", "test"):
            if name in self.data.splits:
                source: LabelledImages = self.data.splits[name]
                progress = self.bar(f"features {cell.freeze}, {name}", "images")
                self._rows[name] = self._trainer.rows(source, train=name == "train", progress=progress)
        # What `prepare` made for this program is its cost as well.
        made = self._made.setdefault(cell.program, [])
        made += self.store.passes[passes:]
        self._costs = {
            "features_reused": not made,
            "feature_seconds": sum(p.seconds for p in made),
            "backbone_passes": sum(p.equations > 0 for p in made),
            "decoded_images": sum(p.images for p in made if p.decoded),
        }
        return self._trainer

    def _part(self, cell: Cell) -> FeatureDataset:
        rows = self._rows["train"]
        return rows if cell.size is None else rows.part(chosen(self.data, cell.size))

    def _head(self, seed: int) -> Leaves:
        return {f"head/{path}": x for path, x in leaves_of(make_head(self.config, self.data, seed)).items()}

    def _record(self, cell: Cell, trainer: Trainer, state: Any, log: Sequence[Mapping[str, float]]) -> dict[str, Any]:
        later = [r["seconds"] / r["steps"] for r in log[1:]] or [log[0]["seconds"] / log[0]["steps"]]
        scores: dict[str, Any] = {}
        for name in ("validation", "test"):
            if name in self._rows:
                found = trainer.evaluate(state, self._rows[name])
                scores |= {f"{name}_{measure}": value for measure, value in found.items()}
        head = {"head_seconds": self._heads[_head_key(cell)][1]} if cell.method == "lp-ft" else {}
        return {
            "cell": cell.name,
            "freeze": cell.freeze,
            **{axis: getattr(cell, axis) for axis in cell.axes},
            "frozen_layers": len(cell.frozen.layers),
            "first_trainable": first_trainable(self.model, cell.frozen, self.data.example),
            "seed": cell.seed,
            "learning_rate": cell.head_rate,
            "backbone_learning_rate": cell.learning_rate if tunes(self.model.backbone, cell.frozen) else None,
            "trainable_parameters": trainer.trainable_parameters,
            **scores,
            "train_loss": [r["loss"] for r in log],
            **{f"train_{name}": [r[name] for r in log] for name in trainer.task.metric_names},
            "epoch_seconds": [r["seconds"] for r in log],
            "seconds_per_step": statistics.median(later),
            "seconds": sum(r["seconds"] for r in log) + sum(head.values()),
            "compile_seconds": sum(r["compile_seconds"] for r in log),
            **head,
            **self._costs,
            "stored_bytes_per_image": trainer.staged.bytes_per_image,
        }


def _head_key(cell: Cell) -> tuple[Any, ...]:
    return cell.augment, cell.size, cell.head_rate, cell.seed


def make_head(config: Ablation, data: SweepData, seed: int) -> nnx.Module:
    """A head as the options ask for, filled by a seed."""
    task = _task(data)
    if task.outputs is None:
        raise ValueError("the task does not say how many outputs a head needs: give it names, or outputs=")
    return build_head(config.head, output_shape(data.backbone, data.image_shape), task.outputs, nnx.Rngs(seed))


def _task(data: SweepData) -> Task:
    assert data.task is not None
    return data.task


def chosen(data: SweepData, size: int) -> np.ndarray:
    """Places of `size` training images: of classes as many of each; a smaller choice is part of a larger one."""
    train = data.splits["train"]
    if isinstance(data.task, Classification):
        return subset(np.asarray(train.labels), size)
    return subset(np.zeros(len(train), np.int32), size)
