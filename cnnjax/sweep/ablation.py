"""The sweep over frozen depth: how deep should I freeze?"""

import sys
from collections.abc import Generator
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from cnnjax.data import account
from cnnjax.data.order import epoch_steps
from cnnjax.data.source import image_shape
from cnnjax.features import GIB, FeatureStore
from cnnjax.files.digests import digest
from cnnjax.files.importing import named
from cnnjax.files.runs import RunFolder, path_name
from cnnjax.fit.recipe import code_digests
from cnnjax.functional import leaves_of
from cnnjax.models import Classifier, SoundClassifier
from cnnjax.models.layer_order import program_digest
from cnnjax.models.own import is_path
from cnnjax.ops.onednn import takes
from cnnjax.runtime.cache import cache_folder, keep_programs
from cnnjax.runtime.precision import resolved
from cnnjax.runtime.preemption import watching
from cnnjax.runtime.progress import Bars
from cnnjax.show import depth
from cnnjax.sweep.data import SweepData, open_sweep_data
from cnnjax.sweep.grid import Cell, cells, groups
from cnnjax.sweep.options import Ablation
from cnnjax.sweep.processes import run_in_processes
from cnnjax.sweep.runner import SweepRunner, chosen, make_head
from cnnjax.train.dataset import digest_of
from cnnjax.train.worth import onednn_for


def sweep(config: Ablation, data: SweepData, console: Console | None = None) -> Path:
    """Run every cell that is not in the run folder yet, and write table and plot.

    Args:
        config: the options.
        data: images and backbone.
        console: where the table goes.

    Returns:
        The run folder: `config.json`, `results.jsonl`, `table.csv`, `accuracy.png` (named after what is compared).
    """
    console = console or Console()
    config = replace(config, precision=resolved(config.precision))  # the cells of a run are not told apart by machine
    assert data.task
    model = data.classifier(make_head(config, data, config.first_seed))
    wanted = cells(config, model, data.example, pretrained=data.pretrained)
    for size in config.sizes:
        chosen(data, size)  # raises before anything is trained
    for size in config.sizes or (len(data.splits["train"]),):
        epoch_steps(size, config.batch_size, config.last_batch)  # as well
    identity = _identity(config, data)
    out = (
        config.out or Path("runs") / f"ablate-{path_name(config.backbone)}-{digest(repr(sorted(identity.items())))[:8]}"
    )
    run = RunFolder(out, identity)
    store = config.store or cache_folder() / "features"
    within = sum(cell.freeze != "all" for cell in wanted)
    asked = onednn_for(
        model, image_shape(data.example), max(config.sizes or (len(data.splits["train"]),)), config.epochs * within,
        frozen=not within, programs=len({cell.program for cell in wanted}), choice=config.onednn,
    )  # fmt: skip
    with run.locked(), asked:
        config = replace(config, onednn="always" if takes("float32") else "never")  # in other processes as well
        _run_missing(config, data, run, wanted, model, store, console)
    if any(getattr(source, "skipped", ()) for source in data.splits.values()):
        account(data.splits).write(run.path / "skipped.csv")
    measure = data.task.headline
    unit, image = data.task.unit(measure), f"{measure}.png"
    table = depth.rows(run.results, measure)
    depth.write_csv(table, run.path / "table.csv", measure)
    depth.plot(table, run.path / image, data.title, measure, unit)
    console.print(depth.terminal(table, data.title, measure, unit))
    console.print(f"written to {run.path}: config.json, results.jsonl, table.csv, {image}", highlight=False)
    return run.path


def _run_missing(
    config: Ablation,
    data: SweepData,
    run: RunFolder,
    wanted: list[Cell],
    model: Classifier | SoundClassifier,
    store: Path,
    console: Console,
) -> None:
    """Run the cells that the folder has no line for, one depth after the other, or in several processes."""
    task, done = data.task, {line["cell"] for line in run.results}
    assert task is not None
    if done:
        console.print(f"{len(done & {cell.name for cell in wanted})} of {len(wanted)} cells are in {run.path} already")
    missing = [group for group in groups(wanted) if any(cell.name not in done for cell in group)]
    with Bars(console) as bars:
        overall = bars.bar("cells", "cells")
        overall(len(done), len(wanted))
        if config.processes > 1 and missing:
            records = run_in_processes(config, data, missing, done, store, bars)
        else:
            records = _run_here(config, data, missing, model, store, bars)
        # Closed at once where writing fails: processes end with it.
        with closing(records):
            for record in records:
                # A group that was begun is run whole again: its numbers are those of the group.
                if record["cell"] not in done:
                    run.append(record)
                    done.add(record["cell"])
                    overall(len(done), len(wanted))
                    found = record[f"test_{task.headline}"]
                    shown = f"{100 * found:.2f} %" if task.unit(task.headline) == "%" else f"{found:.5g}"
                    console.print(f"{record['cell']}: test {task.headline} {shown}, {record['seconds']:.1f} s")


def _run_here(
    config: Ablation, data: SweepData, missing: list[list[Cell]], model: Classifier | SoundClassifier, store: Path,
    bars: Bars,
) -> Generator[dict[str, Any]]:  # fmt: skip
    runner = SweepRunner(config, data, model, FeatureStore(store, int(config.store_gib * GIB)), bars.bar)
    runner.prepare([cell for group in missing for cell in group])
    for group in missing:
        yield from runner.run(group)


def _identity(config: Ablation, data: SweepData) -> dict[str, Any]:
    options = {
        k: v
        for k, v in asdict(config).items()
        if k not in ("out", "onednn", "store", "store_gib", "workers", "processes", "target", "image_size", "augment")
    } | config.target.changed()
    options |= {"image_size": list(config.size), "augment": [named(x) if callable(x) else x for x in config.augment]}
    options |= code_digests(config.code)
    options |= {k: str(v) for k, v in options.items() if isinstance(v, Path)}
    options = {k: v for k, v in options.items() if v is not None or k not in ("scale", "preprocessing")}
    images = {f"{name}_images": digest_of(source) for name, source in data.splits.items()}
    own = {"program": program_digest(data.backbone, data.image_shape)} if is_path(config.backbone) else {}
    return {**options, **images, **own, **data.identity, "weights_digest": digest(*leaves_of(data.backbone).values())}


def ablate(config: Ablation) -> Path:
    """The command: open what the options name, sweep, show the table."""
    keep_programs()
    console = Console(width=None if sys.stdout.isatty() else 120)
    with watching():
        if config.data is None:
            from cnnjax.sweep.pretraining import embedded

            config, data = embedded(config, console)
        else:
            data = open_sweep_data(config, console)
        return sweep(config, data, console)
