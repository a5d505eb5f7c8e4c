"""The command `cnnjax fit`: a classifier for a folder of images, trained by a recipe, measured and saved."""

import json
import sys
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from rich.console import Console

from cnnjax.arguments import BackboneName, BackboneOptions, ImageSize
from cnnjax.checkpoints import Checkpoints
from cnnjax.classifier.classifier import ImageClassifier
from cnnjax.classifier.command import affordable
from cnnjax.classifier.running import RuntimeConfig, initial_leaves
from cnnjax.data import account
from cnnjax.data.pixels import Resizing
from cnnjax.data.source import targets_of
from cnnjax.features import GIB, FeatureStore
from cnnjax.files.digests import digest
from cnnjax.files.runs import RunFolder, path_name
from cnnjax.files.writing import write_whole
from cnnjax.fit import Fitted, Fitter, Recipe, find_rate
from cnnjax.fit.targets import TaskOptions
from cnnjax.metrics import Journal
from cnnjax.models.layer_order import program_digest
from cnnjax.models.own import imported
from cnnjax.models.registry import entry_or_own
from cnnjax.models.sizes import sides
from cnnjax.runtime.cache import cache_folder, keep_programs
from cnnjax.runtime.precision import Precision, resolved
from cnnjax.runtime.preemption import watching
from cnnjax.runtime.progress import Bars
from cnnjax.train.dataset import digest_of
from cnnjax.train.tasks import Classification, Task

if TYPE_CHECKING:
    from cnnjax.runtime.devices import Devices


@dataclass(frozen=True)
class Fit:
    """Train a classifier of your own images on a pretrained network, measure it, and save it.

    The run folder holds the saved classifier (for cnnjax evaluate and cnnjax predict), every epoch's metrics, the
    learning curves and the report on the test images.
    """

    data: str
    """Folder of images, SPLIT/CLASS/FILE or CLASS/FILE, packed or not; or tfds:NAME[:CONFIG]."""
    target: Annotated[TaskOptions, tyro.conf.arg(name="")] = field(default_factory=TaskOptions)
    recipe: Annotated[Recipe, tyro.conf.arg(name="")] = field(default_factory=Recipe)
    backbone: BackboneName = "mobilenet"
    """The network."""
    backbone_options: BackboneOptions = field(default_factory=dict)
    """Its own options."""
    weights: Path | None = None
    """Keras HDF5 file (.h5) with the backbone's pretrained weights; .safetensors for a network of your own."""
    image_size: ImageSize = 160
    """Height and width the images are resized to, one number for both."""
    preprocessing: str | None = None
    """tf, caffe, torch, unit or none; what the network's published weights expect if not given, unit without any."""
    head: Literal["lecture", "linear"] = "lecture"
    """lecture: Flatten, Dense 256, Dropout 0.5, Dense. linear: average pooling, Dropout 0.2, Dense."""
    splits: dict[str, str] | None = None
    """Slices of a TFDS data set: train 'train[:80%]' validation 'train[80%:]' test test."""
    resizing: Resizing = "bilinear"
    """How images come to their size: bilinear (as Keras), antialias, crop_to_aspect_ratio or center_crop."""
    scale: str | None = None
    """LOW:HIGH, the values of 16-bit files that become black and white: 0:4095 for 12-bit data; 0:65535 if not given,
    and then files that would come out nearly black are refused."""
    on_error: Literal["refuse", "skip"] = "refuse"
    """What to do with an image that cannot be decoded."""
    seed: int = 0
    """Of the head, the order of the images, dropout and augmentation."""
    find_rate: bool = False
    """Train nothing: let the rate grow through the first phase, and draw the loss (a range test)."""
    init_from: Path | None = None
    """A run folder or a saved classifier whose weights it starts from, in place of the published ones."""
    init_part: Literal["all", "backbone"] = "all"
    """What is taken from there: all weights (the same classes), or the backbone's."""
    precision: Precision = "auto"
    """What is computed with; parameters, statistics and the loss stay float32. auto: bfloat16 on TPUs and on GPUs from
    NVIDIA's Ampere on, float32 elsewhere."""
    stream: bool = False
    """Read the images anew in every epoch, and keep neither them nor features: for sets that nothing holds."""
    running: Annotated[RuntimeConfig, tyro.conf.arg(name="")] = field(default_factory=RuntimeConfig)
    workers: int = 0
    """Processes that read images; 0 reads in threads of this one."""
    out: Path | None = None
    """The run folder; by default runs/fit-BACKBONE-METHOD-DIGEST."""
    store: Path | None = None
    """Where features are kept; by default in the user's cache folder, shared by all runs."""
    store_gib: float = 40.0
    """How much the store may hold, in GiB; the oldest features make room."""

    def __post_init__(self) -> None:
        own = entry_or_own(self.backbone).checked(self.backbone_options, include_top=False)
        object.__setattr__(self, "backbone_options", own)
        if self.weights is not None and not self.weights.is_file():
            raise FileNotFoundError(f"no weights file {self.weights}")
        if self.weights is None and self.init_from is None and self.recipe.method != "scratch":
            raise ValueError(
                f"{self.recipe.method} freezes the backbone, which has random weights without --weights or "
                "--init-from; give one of them, or --method scratch"
            )
        if self.workers < 0:
            raise ValueError(f"workers: expected 0 or more processes, found {self.workers}")


def fit(config: Fit) -> Path:
    """The command: open, train, measure, save; returns the run folder."""
    keep_programs()
    devices = config.running.start()
    with watching(devices.hosts if devices else 1):
        return _fit(config, devices)


def _fit(config: Fit, devices: "Devices | None") -> Path:
    config = replace(config, precision=resolved(config.precision))  # a run does not change it on another machine
    primary = devices is None or devices.primary
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False, quiet=not primary)
    size = sides(config.image_size)
    sources = config.target.open(
        config.data, size, parts=config.splits, on_error=config.on_error, resizing=config.resizing, scale=config.scale
    )
    for name, source in sources.items():
        source.verify()
        for reason in source.skipped:
            console.print(f"left out of {name}: {reason}", style="yellow")
    console.print(f"{config.data}: {account(sources)}")
    classifier = ImageClassifier(
        config.backbone, task=config.target.make(sources), weights=None if config.init_from else config.weights,
        image_size=config.image_size, head=config.head, resizing=config.resizing, scale=config.scale,
        preprocessing=config.preprocessing, seed=config.seed, **config.backbone_options,
    )  # fmt: skip
    if config.init_from:
        classifier = classifier.with_leaves(initial_leaves(config.init_from, classifier.leaves, config.init_part))
    store = FeatureStore(config.store or cache_folder() / "features", int(config.store_gib * GIB))
    recipe = config.recipe
    if config.find_rate:  # a schedule would multiply the rates that the test sets
        recipe = replace(recipe, schedule="constant", warmup=0.0)
    fitter = Fitter(
        classifier.model, recipe, size, store=store, workers=config.workers, stream=config.stream,
        precision=config.precision, devices=devices, task=classifier.task,
    )  # fmt: skip
    fitter.resolve(sources["train"])
    if not config.find_rate:  # a wrong request leaves no run folder, which would refuse the right one
        fitter.check(len(sources["train"]), validated="validation" in sources)
    identity = _identity(config, sources, classifier)
    out = config.out or _default_folder(config, identity)
    run = RunFolder(out, identity) if primary else None
    with run.locked() if run else nullcontext(), Bars(console) as bars:

        def report(name: str) -> Any:
            return bars.bar(name, "images" if name.startswith("features") else "steps")

        if config.find_rate:
            return _range_test(config, sources, fitter, out, console, report)
        with Checkpoints(out / "checkpoints", keep=config.running.keep_checkpoints) as checkpoints:
            journal = _ShownJournal(out / "metrics.jsonl", fitter.task, console) if primary else None
            if checkpoints.latest() is None:
                console.print(f"starts from {_origin(config)}")
            metadata = {"config": identity}
            keeping = config.running.keeping(checkpoints, metadata, console.print)
            fitted = fitter.fit(
                sources["train"], sources.get("validation"), seed=config.seed, journal=journal, report=report,
                checkpointing=keeping,
            )  # fmt: skip
        measured, task = {}, fitted.task
        for name in (split for split in ("validation", "test") if split in sources):
            # From stored features, as far as anything is frozen.
            outputs = fitter.outputs(fitted, sources[name], len(sources["train"]), report)
            if name == "validation":
                task = task.calibrated(outputs, targets_of(sources[name]))
            samples = affordable(len(sources[name]), task)
            measured[name] = task.report(outputs, targets_of(sources[name]), samples=samples, seed=config.seed)
        if primary:
            trained = classifier.with_leaves(fitted.leaves, history=fitted.history, task=task)
            _finish(config, trained, fitted, measured, out)
    if devices:
        devices.agree(True)  # the other hosts wait for the first one's files
    console.print(_summary(fitted, len(sources["train"])))
    console.print(measured["test"].text())
    if primary and any(source.skipped for source in sources.values()):
        account(sources).write(out / "skipped.csv")
    console.print(f"written to {out}: classifier/, metrics.jsonl, report.json, curves.png, report.png, checkpoints/")
    return out


def _origin(config: Fit) -> str:
    """Where the weights come from, where the run has no checkpoint of its own."""
    if config.init_from:
        return f"the {'weights' if config.init_part == 'all' else 'backbone'} of {config.init_from} (--init-from)"
    if config.weights:
        return f"the published weights of {config.weights}; the head from random numbers, seed {config.seed}"
    return f"random numbers, seed {config.seed}"


def _range_test(
    config: Fit, sources: Mapping[str, Any], fitter: Fitter, out: Path,
    console: Console, report: Any,
) -> Path:  # fmt: skip
    from cnnjax.show.rates import plot

    trainer = fitter.trainer(0, len(sources["train"]))
    rows = fitter.rows(trainer, 0, sources["train"], True, report)
    test = find_rate(trainer, rows, seed=config.seed)
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


def _identity(config: Fit, sources: Mapping[str, Any], classifier: ImageClassifier) -> dict[str, Any]:
    """What makes a run this one: options, images, weights."""
    left_out = ("out", "store", "store_gib", "workers", "find_rate", "running", "target")
    options = {name: value for name, value in asdict(config).items() if name not in left_out}
    options |= {name: str(value) for name, value in options.items() if isinstance(value, Path)}
    options |= config.target.changed()
    options = {k: v for k, v in options.items() if v is not None or k not in ("scale", "preprocessing")}
    images = {f"{name}_images": digest_of(source) for name, source in sources.items()}
    own = program_digest(classifier.model.backbone, (*classifier.image_size, 3)) if classifier.config.own else None
    program = {"program": own} if own else {}
    recipe = options["recipe"]
    if (named := recipe.pop("gradient_fn")) is not None:  # its code too: a run does not go on with another
        module = sys.modules[getattr(code := imported(named), "__module__", type(code).__module__)]
        recipe["gradient_fn"], program["gradients"] = named, digest(Path(module.__file__ or "").read_bytes())
    return {**options, **images, **program, "weights_digest": digest(*classifier.leaves.values())}


def _default_folder(config: Fit, identity: Mapping[str, Any]) -> Path:
    name = path_name(config.backbone)
    return Path("runs") / f"fit-{name}-{config.recipe.method}-{digest(repr(sorted(identity.items())))[:8]}"
