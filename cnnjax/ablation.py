"""The sweep over frozen depth: how deep should I freeze?"""

import statistics
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from rich.console import Console

from cnnjax.augment import Augmentation
from cnnjax.cache import cache_folder
from cnnjax.data import account
from cnnjax.features import GIB, FeatureStore
from cnnjax.freeze import Freeze, Frozen, layer_names
from cnnjax.functional import leaves_of
from cnnjax.models import Backbone, Classifier, SoundClassifier
from cnnjax.models.heads import HEADS
from cnnjax.options import Ablation
from cnnjax.progress import Bars
from cnnjax.rows import LabelledPictures
from cnnjax.runs import RunFolder
from cnnjax.show import depth
from cnnjax.staging.trace import digest
from cnnjax.task import Task, open_task
from cnnjax.training import Trainer

_AUGMENTATIONS = {"none": None, "lecture": Augmentation(flip=True, rotation=0.1, zoom=0.2)}


@dataclass(frozen=True)
class Cell:
    """One training run of the sweep."""

    freeze: str
    frozen: Frozen
    learning_rate: float
    seed: int

    @property
    def name(self) -> str:
        """The cell's name in `results.jsonl`."""
        return f"{self.freeze} rate {self.learning_rate:g} seed {self.seed}"


def default_depths(backbone: Backbone, count: int = 6) -> tuple[str, ...]:
    """At most `count` freezing depths, evenly from nothing to everything."""
    kernels = 0
    while True:
        try:
            Freeze.depth(kernels + 1).resolve(backbone)
        except ValueError:
            break
        kernels += 1
    steps = min(kernels, count - 1)
    depths = [round(k * kernels / steps) for k in range(steps)]
    return tuple(str(Freeze.depth(d)) for d in depths) + ("all",)


def cells(config: Ablation, model: Classifier | SoundClassifier) -> list[Cell]:
    """Every cell of the sweep, least frozen first."""
    texts = config.freeze or default_depths(model.backbone)
    faults, resolved = [], {}
    for text in dict.fromkeys(text.strip() for text in texts):
        try:
            resolved[text] = Freeze.parse(text).resolve(model, within="backbone")
        except ValueError as error:
            faults.append(str(error))
    if faults:
        raise ValueError("\n".join(faults))
    ordered = sorted(resolved.items(), key=lambda item: len(item[1].layers))
    seeds = range(config.first_seed, config.first_seed + config.seeds)
    factor = {
        text: config.tuning_factor if first_trainable(model.backbone, frozen) else 1.0 for text, frozen in ordered
    }
    grid = (
        Cell(text, frozen, rate * factor[text], seed)
        for (text, frozen), rate, seed in product(ordered, config.learning_rates, seeds)
    )
    return list({cell.name: cell for cell in grid}.values())


def first_trainable(backbone: Backbone, frozen: Frozen) -> str:
    """Name of the first layer with parameters that trains, "" if there is none."""
    for name in layer_names(backbone):
        if name not in frozen.layers and jax.tree.leaves(nnx.state(getattr(backbone, name), nnx.Param)):
            return name
    return ""


def sweep(config: Ablation, task: Task, console: Console | None = None) -> Path:
    """Run every cell that is not in the run folder yet, and write table and picture.

    Args:
        config: the options.
        task: pictures and backbone.
        console: where the table goes.

    Returns:
        The run folder: `config.json`, `results.jsonl`, `table.csv`, `accuracy.png`.
    """
    console = console or Console()
    assert config.image_size and config.epochs and config.optimizer
    model = task.classifier(_head(config, task, config.first_seed))
    wanted = cells(config, model)
    identity = _identity(config, task)
    out = config.out or Path("runs") / f"ablate-{config.backbone}-{digest(repr(sorted(identity.items())))[:8]}"
    run = RunFolder(out, identity)
    store = FeatureStore(config.store or cache_folder() / "features", int(config.store_gib * GIB))
    with run.locked():
        _run_missing(config, task, run, wanted, model, store, console)
    if any(source.skipped for source in task.splits.values()):
        account(task.splits).write(run.path / "skipped.csv")
    table = depth.rows(run.results)
    depth.write_csv(table, run.path / "table.csv")
    depth.plot(table, run.path / "accuracy.png", task.title)
    console.print(depth.terminal(table, task.title))
    console.print(f"written to {run.path}: config.json, results.jsonl, table.csv, accuracy.png", highlight=False)
    return run.path


def _run_missing(
    config: Ablation,
    task: Task,
    run: RunFolder,
    wanted: list[Cell],
    model: Classifier | SoundClassifier,
    store: FeatureStore,
    console: Console,
) -> None:
    """Run the cells that the folder has no line for, one depth after the other."""
    assert config.optimizer
    done = {line["cell"] for line in run.results}
    if done:
        console.print(f"{len(done)} of {len(wanted)} cells are in {run.path} already; going on")
    with Bars(console) as bars:
        overall = bars.bar("cells", "cells")
        trainer: Trainer | None = None
        prepared: dict[str, Any] = {}
        for number, cell in enumerate(wanted):
            overall(number, len(wanted))
            if cell.name in done:
                continue
            if trainer is None or trainer.frozen is not cell.frozen:
                passes = len(store.passes)
                prepared.clear()  # the last depth's features leave memory before the next one's come
                store.release()
                trainer = Trainer(
                    model, cell.frozen, task.example,
                    batch_size=config.batch_size, optimizer=config.optimizer, store=store,
                    augment=_AUGMENTATIONS[config.augment], views=config.views, workers=config.workers,
                )  # fmt: skip
                prepared = _rows(trainer, task.splits, cell, bars)
                made = store.passes[passes:]
                prepared["seconds"] = sum(p.seconds for p in made)
                prepared["passes"] = sum(p.equations > 0 for p in made)
                prepared["decoded"] = sum(p.images for p in made if p.decoded)
            record = _run(config, task, cell, trainer, prepared, bars)
            run.append(record)
            console.print(
                f"{cell.name}: test accuracy {100 * record['test_accuracy']:.2f} %, {record['seconds']:.1f} s"
            )


def _head(config: Ablation, task: Task, seed: int) -> Backbone:
    return HEADS[config.head](task.backbone.output_shape(), task.classes, rngs=nnx.Rngs(seed))


def _identity(config: Ablation, task: Task) -> dict[str, Any]:
    options = {k: v for k, v in asdict(config).items() if k not in ("out", "store", "store_gib", "workers")}
    options |= {k: str(v) for k, v in options.items() if isinstance(v, Path)}
    pictures = {
        f"{name}_pictures": digest(source.digest, np.asarray(source.labels), *source.class_names)
        for name, source in task.splits.items()
    }
    return {**options, **pictures, **task.identity, "weights_digest": digest(*leaves_of(task.backbone).values())}


def _rows(trainer: Trainer, splits: Mapping[str, Any], cell: Cell, bars: Bars) -> dict[str, Any]:
    def make(name: str, train: bool) -> Any:
        source: LabelledPictures = splits[name]
        return trainer.rows(source, train=train, progress=bars.bar(f"features {cell.freeze}, {name}", "images"))

    found = {"train": make("train", True)}
    return found | {name: make(name, False) for name in ("validation", "test") if name in splits}


def _run(
    config: Ablation, task: Task, cell: Cell, trainer: Trainer, prepared: Mapping[str, Any], bars: Bars
) -> dict[str, Any]:
    assert config.epochs is not None
    head = {f"head/{path}": x for path, x in leaves_of(_head(config, task, cell.seed)).items()}
    state = trainer.init(head, cell.learning_rate)
    state, log = trainer.fit(
        state, prepared["train"], epochs=config.epochs, seed=cell.seed, progress=bars.bar(cell.name, "steps")
    )
    later = [r["seconds"] / r["steps"] for r in log[1:]] or [log[0]["seconds"] / log[0]["steps"]]
    scores: dict[str, Any] = {}
    for name in ("validation", "test"):
        if name in prepared:
            found = trainer.evaluate(state, prepared[name])
            scores |= {f"{name}_accuracy": found["accuracy"], f"{name}_loss": found["loss"]}
    return {
        "cell": cell.name,
        "freeze": cell.freeze,
        "frozen_layers": len(cell.frozen.layers),
        "first_trainable": first_trainable(task.backbone, cell.frozen),
        "seed": cell.seed,
        "learning_rate": cell.learning_rate,
        "trainable_parameters": trainer.trainable_parameters,
        **scores,
        "train_loss": [r["loss"] for r in log],
        "train_accuracy": [r["accuracy"] for r in log],
        "epoch_seconds": [r["seconds"] for r in log],
        "seconds_per_step": statistics.median(later),
        "seconds": sum(r["seconds"] for r in log),
        "features_reused": all(prepared[n].reused for n in ("train", "validation", "test") if n in prepared),
        "feature_seconds": prepared["seconds"],
        "backbone_passes": prepared["passes"],
        "decoded_images": prepared["decoded"],
        "stored_bytes_per_image": trainer.staged.bytes_per_image,
    }


def ablate(config: Ablation) -> Path:
    """The command: open what the options name, sweep, show the table."""
    console = Console(width=None if sys.stdout.isatty() else 120)
    if config.data is None:
        from cnnjax.pretraining import embedded

        config, task = embedded(config, console)
    else:
        config = replace(config, image_size=config.image_size or 160, epochs=config.epochs or 30)
        config = replace(config, optimizer=config.optimizer or "rmsprop")
        task = open_task(config, console)
    return sweep(config, task, console)
