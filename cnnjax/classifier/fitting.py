"""The command `cnnjax fit`: a classifier for a folder of images, trained by a recipe, measured and saved."""

import json
import sys
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from rich.console import Console

from cnnjax.classifier.classifier import ImageClassifier
from cnnjax.classifier.command import affordable
from cnnjax.classifier.training import Training, TrainingRun
from cnnjax.commands.network import HeadName, Network
from cnnjax.commands.options import Data, Out, Resized, Splits
from cnnjax.data import account
from cnnjax.data.own import is_own_data
from cnnjax.data.source import weights_of
from cnnjax.files.digests import digest
from cnnjax.files.runs import RunFolder, path_name
from cnnjax.files.writing import write_whole
from cnnjax.fit import Fitted, Fitter, Recipe, find_rate
from cnnjax.fit.targets import TaskOptions
from cnnjax.metrics import Journal
from cnnjax.models.own import checked_head, is_path
from cnnjax.runtime.cache import keep_programs
from cnnjax.runtime.preemption import watching
from cnnjax.runtime.progress import Bars
from cnnjax.train.tasks import Classification, Task

if TYPE_CHECKING:
    from cnnjax.runtime.devices import Devices


@dataclass(frozen=True, kw_only=True)
class Fit(Network, Resized, Splits):
    """Train a classifier of your own images on a pretrained network, measure it, and save it.

    The run folder holds the saved classifier (for cnnjax evaluate and cnnjax predict), every epoch's metrics, the
    learning curves and the report on the test images.
    """

    data: Data
    target: Annotated[TaskOptions, tyro.conf.arg(name="")] = field(default_factory=TaskOptions)
    recipe: Annotated[Recipe, tyro.conf.arg(name="")] = field(default_factory=Recipe)
    head: HeadName = "lecture"
    training: Annotated[Training, tyro.conf.arg(name="")] = field(default_factory=Training)
    find_learning_rate: bool = False
    """Train nothing: let the learning rate grow through the first phase, and draw the loss (a range test)."""
    out: Out = None

    def __post_init__(self) -> None:
        self.check_backbone(include_top=False)
        self.check_weights()
        checked_head(self.head)
        self.target.check(is_own_data(self.data))
        if self.weights is None and self.training.init_from is None and self.recipe.method != "scratch":
            raise ValueError(
                f"{self.recipe.method} freezes the backbone, which has random weights without --weights or "
                "--init-from; give one of them, or --method scratch"
            )


def fit(config: Fit) -> Path:
    """The command: open, train, measure, save; returns the run folder."""
    keep_programs()
    devices = config.training.start()
    with watching(devices.hosts if devices else 1):
        return _fit(config, devices)


def _fit(config: Fit, devices: "Devices | None") -> Path:
    primary = devices is None or devices.primary
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False, quiet=not primary)
    sources = config.target.open(
        config.data, config.size, parts=config.splits, on_error=config.on_error, resizing=config.resizing,
        scale=config.scale,
    )  # fmt: skip
    for name, source in sources.items():
        if hasattr(source, "verify"):  # one of the user's may have nothing to verify
            source.verify()
        for reason in getattr(source, "skipped", ()):
            console.print(f"left out of {name}: {reason}", style="yellow")
    console.print(f"{config.data}: {account(sources)}")
    training, recipe = config.training, config.recipe
    classifier = ImageClassifier(
        config.backbone, task=config.target.make(sources), weights=None if training.init_from else config.weights,
        image_size=config.size, head=config.head, resizing=config.resizing, scale=config.scale,
        preprocessing=config.preprocessing, seed=training.seed,
        task_path=config.target.task if is_path(config.target.task) else "", **config.backbone_options,
    )  # fmt: skip
    if config.find_learning_rate:  # a schedule would multiply the learning rates that the test sets
        recipe = replace(recipe, schedule="constant", warmup=0.0)
    trains = TrainingRun(classifier, recipe, training, devices=devices)
    fitter = trains.fitter
    fitter.resolve(sources["train"])
    if not config.find_learning_rate:  # a wrong request leaves no run folder, which would refuse the right one
        fitter.check(len(sources["train"]), validated="validation" in sources)
    identity = _identity(config, sources, trains)
    out = config.out or _default_folder(config, identity)
    run = RunFolder(out, identity) if primary else None
    with run.locked() if run else nullcontext(), Bars(console) as bars, trains.onednn(sources["train"]):

        def report(name: str) -> Any:
            return bars.bar(name, "images" if name.startswith("features") else "steps")

        if config.find_learning_rate:
            return _range_test(config, sources, fitter, out, console, report)
        journal = _ShownJournal(out / "metrics.jsonl", fitter.task, console) if primary else None
        fitted = trains.fit(
            sources["train"], sources.get("validation"), folder=out, about=identity, report=report, journal=journal,
            tell=console.print, begun=lambda: console.print(f"starts from {_origin(config)}"),
        )  # fmt: skip
        measured, task = {}, fitted.task
        for name in (split for split in ("validation", "test") if split in sources):
            outputs, targets = trains.judged(fitted, sources["train"], sources[name], report)
            if name == "validation":
                task = task.calibrated(outputs, targets)
            samples = affordable(len(sources[name]), task)
            weights = weights_of(sources[name])
            measured[name] = task.report(outputs, targets, weights=weights, samples=samples, seed=training.seed)
        if primary:
            trained = classifier.with_leaves(fitted.leaves, history=fitted.history, task=task)
            _finish(config, trained, fitted, measured, out)
    if devices:
        devices.agree(True)  # the other hosts wait for the first one's files
    console.print(_summary(fitted, len(sources["train"])))
    console.print(measured["test"].text())
    if primary and any(getattr(source, "skipped", ()) for source in sources.values()):
        account(sources).write(out / "skipped.csv")
    console.print(f"written to {out}: classifier/, metrics.jsonl, report.json, curves.png, report.png, checkpoints/")
    return out


def _origin(config: Fit) -> str:
    """Where the weights come from, where the run has no checkpoint of its own."""
    if config.training.init_from:
        part = "weights" if config.training.init_part == "all" else "backbone"
        return f"the {part} of {config.training.init_from} (--init-from)"
    if config.weights:
        return f"the published weights of {config.weights}; the head from random numbers, seed {config.training.seed}"
    return f"random numbers, seed {config.training.seed}"


def _range_test(
    config: Fit, sources: Mapping[str, Any], fitter: Fitter, out: Path,
    console: Console, report: Any,
) -> Path:  # fmt: skip
    from cnnjax.show.rates import plot

    trainer = fitter.trainer(0, len(sources["train"]))
    rows = fitter.rows(trainer, 0, sources["train"], True, report)
    test = find_rate(trainer, rows, seed=config.training.seed)
    if console.quiet:  # another host draws it
        return out
    plot(test, out / "rates.png", f"{config.backbone} on {Path(config.data).name}: {fitter.phases[0].name}")
    found = "the loss never fell" if test.suggested is None else f"the loss falls fastest at {test.suggested:.2g}"
    console.print(f"{found}; {len(test.rates)} steps up to a rate of {test.rates[-1]:.2g}: {out / 'rates.png'}")
    return out


def _finish(config: Fit, classifier: ImageClassifier, fitted: Fitted, measured: Mapping[str, Any], out: Path) -> None:
    from cnnjax.show import curves, scores

    title = f"{config.backbone} on {Path(config.data).name}, {config.recipe.method}"
    classifier.metrics |= {
        f"{name}_{measure}": value for name, found in measured.items() for measure, value in found.measures().items()
    } | {"seconds": fitted.seconds}
    classifier.save(out / "classifier")
    found = {name: report.to_json() for name, report in measured.items()}
    write_whole(out / "report.json", json.dumps(found, indent=2, allow_nan=False) + "\n")
    named = {key.partition("_")[2] for line in fitted.history for key in line if key.startswith(_SPLITS)}
    units = {name: classifier.task.unit(name) for name in named - {"loss"}}
    # Curves count epochs from 1, as people do.
    curves.plot([line | {"epoch": line["epoch"] + 1} for line in fitted.history], out / "curves.png", title, units)
    scores.plot(measured["test"], out / "report.png", f"{title}, test")


def _summary(fitted: Fitted, images: int) -> str:
    """A line a phase."""
    lines = []
    for phase in dict.fromkeys(line["phase"] for line in fitted.history):
        own = [line for line in fitted.history if line["phase"] == phase]
        seconds, compiling = (sum(line[name] for line in own) for name in ("seconds", "compile_seconds"))
        rate = len(own) * images / max(seconds - compiling, 1e-9)
        text = f"{phase}: {len(own)} epochs in {seconds:.1f} s, {compiling:.1f} of them compiling"
        text += f"; {rate:,.0f} images a second without"
        text += f"; training {_said(fitted.task, own[-1], 'train')}"
        if "validation_loss" in own[-1]:
            text += f", validation {_said(fitted.task, own[-1], 'validation')}"
        lines.append(text)
    features = fitted.seconds["features"]
    return "\n".join([f"features of the images: {features:.1f} s", *lines])


_SPLITS = ("train_", "validation_")


def _said(task: Task, line: Mapping[str, Any], split: str) -> str:
    """The metrics of a split in an epoch's record: of a classification the accuracy alone, without its name."""
    found = {k.removeprefix(f"{split}_"): v for k, v in line.items() if k.startswith(f"{split}_")}
    if isinstance(task, Classification):
        return task.shown("accuracy", found["accuracy"])
    loss = found.pop("loss")
    return ", ".join(f"{name} {task.shown(name, x)}" for name, x in (found or {"loss": loss}).items())


class _ShownJournal(Journal):
    """A journal that tells of each epoch as it ends."""

    def __init__(self, path: Path, task: Task, console: Console):
        super().__init__(path)
        self._task, self._console = task, console

    def write(self, record: Mapping[str, Any]) -> None:
        """Append a line, and print its numbers."""
        super().write(record)
        parts = [
            f"{split} loss {record[f'{split}_loss']:.4g}, {_said(self._task, record, split)}"
            for split in ("train", "validation")
            if f"{split}_loss" in record
        ]
        self._console.print(f"epoch {record['epoch'] + 1}, {record['phase']}: {'; '.join(parts)}")


def _identity(config: Fit, sources: Mapping[str, Any], trains: TrainingRun) -> dict[str, Any]:
    """What makes a run this one: options, images, weights, the user's code."""
    left_out = ("out", "find_learning_rate", "training", "target", "recipe", "image_size")
    options = {f.name: getattr(config, f.name) for f in fields(config) if f.name not in left_out}
    options |= {name: str(value) for name, value in options.items() if isinstance(value, Path)}
    options |= config.target.changed() | {"image_size": list(config.size)}
    options = {k: v for k, v in options.items() if v is not None or k not in ("scale", "preprocessing")}
    return {**options, **trains.identity(sources)}


def _default_folder(config: Fit, identity: Mapping[str, Any]) -> Path:
    name = path_name(config.backbone)
    return Path("runs") / f"fit-{name}-{config.recipe.method}-{digest(repr(sorted(identity.items())))[:8]}"
