"""The sweep over frozen depth: how deep should I freeze?"""

import sys
from collections.abc import Generator
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from cnnjax.data import account
from cnnjax.data.order import epoch_steps
from cnnjax.features import GIB, FeatureStore
from cnnjax.files.runs import RunFolder, path_name
from cnnjax.functional import leaves_of
from cnnjax.models import Classifier, SoundClassifier
from cnnjax.models.own import is_path
from cnnjax.order import program_digest
from cnnjax.runtime.cache import cache_folder, keep_programs
from cnnjax.runtime.precision import resolved
from cnnjax.runtime.preemption import watching
from cnnjax.runtime.progress import Bars
from cnnjax.show import depth
from cnnjax.staging.trace import digest
from cnnjax.sweep.bench import Bench, make_head
from cnnjax.sweep.grid import Cell, cells, groups, subset
from cnnjax.sweep.options import Ablation
from cnnjax.sweep.processes import run_in_processes
from cnnjax.sweep.task import Task, open_task


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
    config = replace(config, precision=resolved(config.precision))  # the cells of a run are not told apart by machine
    assert config.image_size and config.epochs and config.optimizer
    model = task.classifier(make_head(config, task, config.first_seed))
    wanted = cells(config, model, task.example)
    for size in config.sizes:
        subset(np.asarray(task.splits["train"].labels), size)  # raises before anything is trained
    for size in config.sizes or (len(task.splits["train"]),):
        epoch_steps(size, config.batch_size, config.last_batch)  # as well
    identity = _identity(config, task)
    out = (
        config.out or Path("runs") / f"ablate-{path_name(config.backbone)}-{digest(repr(sorted(identity.items())))[:8]}"
    )
    run = RunFolder(out, identity)
    store = config.store or cache_folder() / "features"
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
    store: Path,
    console: Console,
) -> None:
    """Run the cells that the folder has no line for, one depth after the other, or in several processes."""
    done = {line["cell"] for line in run.results}
    if done:
        console.print(f"{len(done & {cell.name for cell in wanted})} of {len(wanted)} cells are in {run.path} already")
    missing = [group for group in groups(wanted) if any(cell.name not in done for cell in group)]
    with Bars(console) as bars:
        overall = bars.bar("cells", "cells")
        overall(len(done), len(wanted))
        if config.processes > 1 and missing:
            records = run_in_processes(config, task, missing, done, store, bars)
        else:
            records = _run_here(config, task, missing, model, store, bars)
        # Closed at once where writing fails: processes end with it.
        with closing(records):
            for record in records:
                # A group that was begun is run whole again: its numbers are those of the group.
                if record["cell"] not in done:
                    run.append(record)
                    done.add(record["cell"])
                    overall(len(done), len(wanted))
                    console.print(
                        f"{record['cell']}: test accuracy {100 * record['test_accuracy']:.2f} %, "
                        f"{record['seconds']:.1f} s"
                    )


def _run_here(
    config: Ablation, task: Task, missing: list[list[Cell]], model: Classifier | SoundClassifier, store: Path,
    bars: Bars,
) -> Generator[dict[str, Any]]:  # fmt: skip
    bench = Bench(config, task, model, FeatureStore(store, int(config.store_gib * GIB)), bars.bar)
    bench.prepare([cell for group in missing for cell in group])
    for group in missing:
        yield from bench.run(group)


def _identity(config: Ablation, task: Task) -> dict[str, Any]:
    options = {
        k: v for k, v in asdict(config).items() if k not in ("out", "store", "store_gib", "workers", "processes")
    }
    options |= {k: str(v) for k, v in options.items() if isinstance(v, Path)}
    options = {k: v for k, v in options.items() if v is not None or k not in ("scale", "preprocessing")}
    pictures = {
        f"{name}_pictures": digest(source.digest, np.asarray(source.labels), *source.class_names)
        for name, source in task.splits.items()
    }
    own = {"program": program_digest(task.backbone, task.image_shape)} if is_path(config.backbone) else {}
    return {**options, **pictures, **own, **task.identity, "weights_digest": digest(*leaves_of(task.backbone).values())}


def ablate(config: Ablation) -> Path:
    """The command: open what the options name, sweep, show the table."""
    keep_programs()
    console = Console(width=None if sys.stdout.isatty() else 120)
    with watching():
        if config.data is None:
            from cnnjax.sweep.pretraining import embedded

            config, task = embedded(config, console)
        else:
            config = replace(config, image_size=config.image_size or 160, epochs=config.epochs or 30)
            config = replace(config, optimizer=config.optimizer or "rmsprop")
            task = open_task(config, console)
        return sweep(config, task, console)
