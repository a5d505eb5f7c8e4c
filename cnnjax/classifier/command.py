"""The commands `cnnjax evaluate` and `cnnjax predict`."""

import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, arg

from cnnjax.classifier.classifier import ImageClassifier
from cnnjax.classifier.images import find_images
from cnnjax.classifier.prediction import Prediction
from cnnjax.commands.options import Data, Decoding, Out, Saved
from cnnjax.data import Folder, account, holds_records, open_data, open_labels, splits
from cnnjax.data.listing import shown, some, visible_folders
from cnnjax.data.own import is_own_data, open_own
from cnnjax.files.writing import write_whole
from cnnjax.fit.recipe import Batches
from cnnjax.fit.targets import TableOptions
from cnnjax.runtime.cache import keep_programs
from cnnjax.train.tasks import Classification, MultiLabel, Regression, Task
from cnnjax.train.worth import onednn_for

ALL = "all"
SAMPLES = 2000
MOST_DRAWS = 2_000_000_000
"""Images x classes x resamples, beyond which intervals are made only if asked for."""


@dataclass(frozen=True, kw_only=True)
class Evaluate(Saved, TableOptions, Decoding, Batches):
    """Measure a saved classifier on labelled images: accuracy, AUC, confusion, calibration."""

    data: Data
    split: str = "test"
    """Which split: train, validation or test; CLASS/FILE is split by chance as for training, or taken whole: all."""
    out: Out = None
    samples: int | None = None
    """Resamples for the 95 % bootstrap intervals, 0 for none; 2,000 if not given, none where that takes minutes."""

    def __post_init__(self) -> None:
        if len(self.targets) > 1:
            raise ValueError(f"targets: a table has one column of classes, found {', '.join(self.targets)}")
        if self.out is not None and self.out.suffix.lower() not in (".png", ".json"):
            raise ValueError(f"--out must be a .png or .json file, such as report.png, not {self.out}")


@dataclass(frozen=True, kw_only=True)
class Predict(Saved, Decoding, Batches):
    """Say what is on images, by a saved classifier."""

    files: Annotated[Positional[tuple[Path, ...]], arg(metavar="FILES")]
    """Images, or folders that are searched for some."""
    json: bool = False
    """One JSON object a line for each image, rather than a table."""
    top: int | None = None
    """The K likeliest classes of each image; 1 in the table and all in JSON if not given."""

    def __post_init__(self) -> None:
        if self.top is not None and self.top < 1:
            raise ValueError(f"top must be at least 1 class, not {self.top}")


def evaluate(config: Evaluate) -> None:
    """Print the report, and write it to `out`."""
    keep_programs()
    classifier = ImageClassifier.load(config.classifier, code=config.code)
    source = _source(config, classifier)
    print(f"{config.data}, {config.split}: {account({config.split: source})}")
    samples = config.samples if config.samples is not None else affordable(len(source), classifier.task)
    with _onednn(classifier, len(source)):
        found = classifier.evaluate(source, samples=samples, batch_size=config.batch_size)
    print(found.text())
    if config.out is None:
        return
    config.out.parent.mkdir(parents=True, exist_ok=True)
    if config.out.suffix.lower() == ".json":
        write_whole(config.out, json.dumps(found.to_json(), indent=2, allow_nan=False) + "\n")
    else:
        from cnnjax.show.scores import plot

        plot(found, config.out, f"{config.classifier.name} on {Path(config.data).name}, {config.split}")
    print(f"written to {config.out}")


def affordable(images: int, task: Task) -> int:
    """How many resamples are made where nobody asked for a number: none where they would take minutes."""
    each = len(task.names) * (20 if isinstance(task, MultiLabel) else 1)  # which are sorted again for each
    return SAMPLES if images * each * SAMPLES <= MOST_DRAWS else 0


def predict(config: Predict) -> None:
    """Print what is on the images, as a table or as JSON lines."""
    keep_programs()
    classifier = ImageClassifier.load(config.classifier, code=config.code)
    with _onednn(classifier, len(find_images(config.files))):
        found = classifier.predict(
            config.files, on_error=config.on_error, batch_size=config.batch_size, scale=config.scale
        )
    if config.json:
        for prediction in found:
            print(json.dumps(prediction.to_json(config.top), allow_nan=False))
    else:
        print(_table(found, config.top or 1, classifier.task))


def _onednn(classifier: ImageClassifier, images: int) -> AbstractContextManager[None]:
    return onednn_for(classifier.model, (*classifier.image_size, 3), images, 1, frozen=True)


def _source(config: Evaluate, classifier: ImageClassifier) -> Any:
    """The images that the options name."""
    scale = classifier.config.scale if config.scale is None else config.scale
    settings: dict[str, Any] = {"on_error": config.on_error, "resizing": classifier.config.resizing, "scale": scale}
    data, size = Path(config.data), classifier.image_size
    if is_own_data(config.data):
        if config.labels is not None:
            raise ValueError("labels: a source of your own brings its targets")
        return _split(open_own(config.data, size), config)
    if config.labels is not None:
        return _from_table(config, classifier.task, settings | {"image_size": size})
    if isinstance(classifier.task, MultiLabel | Regression):
        raise ValueError(f"a {type(classifier.task).__name__} is measured on targets: give --labels FILE.csv as well")
    if data.is_dir() and (own := splits(data)):  # also where the test split is all there is
        return Folder(data, own.get(config.split, config.split), size, **settings)
    if config.split == ALL:
        if holds_records(config.data) or not data.is_dir() or not visible_folders(data):
            raise ValueError(f"--split {ALL} is for a folder CLASS/FILE; name one of the splits of {config.data}")
        return Folder(data, None, size, **settings)
    return _split(open_data(config.data, size, **settings), config)


def _split(sources: Mapping[str, Any], config: Evaluate) -> Any:
    if config.split not in sources:
        raise LookupError(f"no split {config.split!r} in {config.data}; there are {some(list(sources))}")
    return sources[config.split]


def _from_table(config: Evaluate, task: Task, settings: dict[str, Any]) -> Any:
    assert config.labels is not None
    own: dict[str, Any]
    if isinstance(task, Classification):
        own = {"kind": "classification", "columns": config.targets, "classes": task.names}
    elif config.targets:
        raise ValueError(f"targets: the columns of this classifier are {some(task.names)}")
    else:
        # A task of the user's was trained on these columns as numbers.
        own = {"kind": "multilabel" if isinstance(task, MultiLabel) else "regression", "columns": task.names}
    found = open_labels(config.data, config.labels, whole=config.split == ALL, **own, **settings)
    if config.split not in found:
        raise LookupError(f"no split {config.split!r} in {config.labels}; there are {some(list(found))}")
    return found[config.split]


def _table(found: list[Prediction], top: int, task: Task) -> str:
    """Path, class and probability in columns, a line for each of the likeliest classes; or labels, or numbers."""
    if isinstance(task, Regression):
        names = [f"{name} ({unit})" if unit else name for name, unit in zip(task.names, task.units, strict=True)]
        lines = [
            (shown(p.path), *([shown(p.error)] if p.error else [f"{x:.5g}" for x in p.values.values()])) for p in found
        ]
        return _columns([("path", *names), *lines])
    if isinstance(task, MultiLabel):
        lines = [(shown(p.path), shown(p.error) if p.error else ", ".join(p.labels or ()) or "-") for p in found]
        return _columns([("path", "labels"), *lines])
    if not isinstance(task, Classification):
        return _columns([("path", "output"), *((shown(p.path), shown(p.error or str(p.output))) for p in found)])
    rows = [("path", "class", "probability")]
    for prediction in found:
        path = shown(prediction.path)
        if prediction.error is not None:
            rows.append((path, "-", shown(prediction.error)))
        rows += [(path, name, f"{probability:.4f}") for name, probability in prediction.top(top)]
    return _columns(rows)


def _columns(rows: Sequence[tuple[str, ...]]) -> str:
    widths = [max(len(row[k]) for row in rows if k < len(row) - 1) for k in range(len(rows[0]) - 1)]
    return "\n".join("  ".join([*(f"{c:{w}}" for c, w in zip(row[:-1], widths)), row[-1]]) for row in rows)  # noqa: B905
