"""A classifier of images: build it, predict, evaluate, save, load."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import jax
import jax.numpy as jnp
import numpy as np

from cnnjax.classifier import folder
from cnnjax.classifier.config import Config, own_preprocessing, own_size
from cnnjax.classifier.images import Files, Images, Scaling, open_images
from cnnjax.classifier.loading import check_new_leaves, read_model
from cnnjax.classifier.prediction import Prediction, inference_program, outputs_of, predictions
from cnnjax.classifier.sources import check_training_source, labels_of, targets_of
from cnnjax.data.listing import some
from cnnjax.data.pixels import Resizing, checked_scale
from cnnjax.data.source import Source, weights_of
from cnnjax.features import FeatureStore
from cnnjax.fit import Fitted, Fitter, Recipe
from cnnjax.fit.fitter import Report, silent
from cnnjax.functional import Functional, Leaves, functionalize, lasting_leaves
from cnnjax.models import Classifier
from cnnjax.models.own import OwnBackbone, OwnHead, named
from cnnjax.train.own import changed_task
from cnnjax.train.task import PerExample
from cnnjax.train.tasks import Task

if TYPE_CHECKING:
    from cnnjax.metrics import Journal
    from cnnjax.runtime.devices import Devices
    from cnnjax.runtime.precision import Precision
    from cnnjax.runtime.tuning import OneDNN


class ImageClassifier:
    """A network with the names of its classes, and all that its images need.

    Args:
        backbone: A key of `cnnjax.models.BACKBONES`, such as "mobilenet"; or a network of your own: an import path, a
            function or a module.
        class_names: The classes, in the order of their labels, where no task is given; two share one logit (but with
            the top of mobilenet or vgg16), more have one each.
        weights: Keras's HDF5 file with the backbone's weights; random numbers if not given.
        image_size: Height and width in pixels, one number for both; the architecture's own if not given.
        head: "lecture" or "linear" (see `cnnjax.models.heads`); "top": the backbone's own classification layers; or a
            function that builds one of your own, as these are built, or its import path.
        preprocessing: A key of `cnnjax.models.PREPROCESSING`; what the published weights expect if not given.
        resizing: How images come to their size; see `cnnjax.data.resize`.
        scale: Which values of 16-bit files become 0 and 255; see `cnnjax.data.Folder`.
        seed: Of the random numbers.
        task: What is predicted: `Classification` with extras, `MultiLabel`, `Regression`, or a `Task` of your own.
        task_path: The import path of the function that gave a task of your own, which is saved.
        **options: The architecture's own, such as `alpha` of mobilenet; those of its classification layers, such as
            `pooling` of cifar_cnn, with head "top" alone.

    Attributes:
        model: Pixels to logits, in inference mode.
        config: What it is, apart from its weights.
        metrics: What was measured, by name; saved with it.
        history: One record an epoch of its training; saved with it.

    Raises:
        LookupError: There is no such backbone, head or preprocessing; the nearest name is given.
        ValueError: A value does not fit, or the weights do not, or there is no such weights file.

    >>> import tempfile
    >>> classifier = ImageClassifier("lecture_cnn", ("cats", "dogs"), image_size=32, head="linear", widths=(4, 8))
    >>> images = np.zeros((2, 32, 32, 3), np.uint8)
    >>> with tempfile.TemporaryDirectory() as place:
    ...     classifier.save(f"{place}/pets")
    ...     loaded = ImageClassifier.load(f"{place}/pets")
    >>> loaded.predict(images) == classifier.predict(images), loaded.class_names
    (True, ('cats', 'dogs'))
    """

    def __init__(
        self,
        backbone: str | OwnBackbone,
        class_names: Sequence[str] = (),
        *,
        weights: str | os.PathLike[str] | None = None,
        image_size: int | tuple[int, int] | None = None,
        head: str | OwnHead = "lecture",
        preprocessing: str | None = None,
        resizing: Resizing = "bilinear",
        scale: Scaling = None,
        seed: int = 0,
        task: Task | None = None,
        task_path: str = "",
        **options: Any,
    ):
        given = {name: value for name, value in options.items() if value is not None}
        name = backbone if isinstance(backbone, str) else named(backbone)
        config = Config(
            name,
            tuple([class_names] if isinstance(class_names, str) else class_names),
            own_size(name, given) if image_size is None else image_size,
            head if isinstance(head, str) else named(head),
            own_preprocessing(name, given) if preprocessing is None else preprocessing,
            resizing,
            given,
            checked_scale(scale),
            None if isinstance(backbone, str) else backbone,
            task,  # ty: ignore[invalid-argument-type]  # None stands for the classes
            None if isinstance(head, str) else head,
            task_path,
        )
        if seed < 0:
            raise ValueError(f"seed: expected a whole number from 0 on, found {seed}")
        model = config.build(seed) if weights is None else config.filled(weights, seed)
        functional = functionalize(model)
        self._hold(config, functional, lasting_leaves(model))

    def _hold(self, config: Config, functional: Functional, leaves: Leaves, apply: Any = None) -> None:
        self.config = config
        self.metrics: dict[str, Any] = {}
        self.history: list[dict[str, Any]] = []
        self._functional = functional
        random = functional.random_leaves(jax.random.key(0))
        model: Any = functional.module({**leaves, **random})
        self.model: Classifier = model
        self._apply = apply or inference_program(functional)

    def __repr__(self) -> str:
        names = some(self.class_names)
        return f"ImageClassifier({self.config.backbone!r}, {self.config.image_size} pixels, classes {names})"

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes, in the order of their labels; of another task the names of what it predicts."""
        return self.config.classes

    @property
    def task(self) -> Task:
        """What the outputs mean."""
        return self.config.task

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the images that the model takes: the `image_size` of a source for it."""
        return self.config.size

    @property
    def leaves(self) -> Leaves:
        """Every leaf of the model by path, BatchNorm's statistics included, random keys left out."""
        return lasting_leaves(self.model)

    def with_leaves(
        self,
        leaves: Mapping[str, Any],
        *,
        metrics: Mapping[str, Any] | None = None,
        history: Sequence[Mapping[str, Any]] | None = None,
        task: Task | None = None,
    ) -> Self:
        """A classifier with other weights, such as `trainer.leaves(state)`; this one stays as it is.

        Args:
            leaves: Values by path, copied; this one's where a path is absent. Floats of 16 bit are kept as such.
            metrics: What was measured with these leaves.
            history: How they were trained.
            task: The same task with what it took from data, such as a scale or thresholds.

        Raises:
            ValueError: A leaf is unknown, of another shape, or no float; all are named.
        """
        own = self.leaves
        given = {path: jnp.array(value) for path, value in leaves.items()}
        check_new_leaves(given, own)
        other = object.__new__(type(self))
        config = self.config if task is None else replace(self.config, task=task)
        other._hold(config, self._functional, {**own, **given}, self._apply)
        other.metrics, other.history = dict(metrics or {}), [dict(record) for record in history or ()]
        return other

    def predict(
        self, images: Images, *, on_error: Literal["refuse", "skip"] = "refuse", batch_size: int = 20,
        scale: Scaling = None,
    ) -> list[Prediction]:  # fmt: skip
        """Say what is on images, decoded and resized as for training.

        Args:
            images: Files in any order, folders (searched to the bottom, their images sorted), a source, or arrays
                u8 or f32[N, H, W, 3] in 0..255: resized as files are, or of the classifier's size already.
            on_error: What becomes of files that cannot be decoded: "refuse" raises for all of them, "skip" gives them a
                prediction with an `error`.
            batch_size: How many are classified at once, at most.
            scale: Which values of arrays, or of 16-bit files, become 0 and 255: (0, 1), "0:4095". Of files, and of
                arrays u16, the classifier's own if not given.

        Raises:
            ImageError: Files cannot be decoded; each is named with the reason.
            FileNotFoundError: There is no such file or folder.
            ValueError: There is nothing to classify, or arrays do not fit: floats that all lie in 0..1 need a scale.
        """
        if on_error not in ("refuse", "skip"):
            raise ValueError(f"on_error: expected 'refuse' or 'skip', found {on_error!r}")
        source = open_images(images, self.config, scale)
        errors = source.errors if isinstance(source, Files) and on_error == "skip" else {}
        names = source.paths if isinstance(source, Files) else source.names
        found = predictions(names, self._outputs(source, batch_size, skip=on_error == "skip"), self.task)
        return [Prediction(p.path, error=errors[i]) if i in errors else p for i, p in enumerate(found)]

    def predict_logits(self, images: Images, *, batch_size: int = 20, scale: Scaling = None) -> np.ndarray:
        """Logits f32[N, 1 or classes], or another task's outputs, of a source, of arrays or of files; as `predict`."""
        return self._outputs(open_images(images, self.config, scale), batch_size)

    def evaluate(self, source: Source, *, samples: int = 0, batch_size: int = 20) -> Any:
        """Measure the classifier on labelled images.

        Args:
            source: Images of the same classes, in any order of the classes.
            samples: Resamples for the 95 % bootstrap intervals; 0 for none. See `cnnjax.metrics.report`.
            batch_size: How many are classified at once, at most.

        Returns:
            The task's report: `cnnjax.metrics.Report` of classes.

        Raises:
            ValueError: The source's classes are others, or its images of another size or resized otherwise.
        """
        targets = self.targets(source)
        outputs = self.predict_logits(source, batch_size=batch_size)
        return self.task.report(outputs, targets, weights=weights_of(source), samples=samples)

    def targets(self, source: Source) -> Any:
        """A source's targets as this classifier takes them: of classes its `labels`.

        Raises:
            ValueError: They are of something else.
        """
        return targets_of(source, self.config)

    def labels(self, source: Source) -> np.ndarray:
        """A source's labels i32[N] as this classifier counts its classes.

        Raises:
            ValueError: The source's classes are others; the differences are listed.
        """
        return labels_of(source, self.class_names)

    def fitter(self, recipe: Recipe, *, store: FeatureStore | None = None, workers: int = 0) -> Fitter:
        """What trains this classifier by a recipe, for one seed or many; see `Fitter`."""
        return Fitter(self.model, recipe, self.image_size, store=store, workers=workers, task=self.task)

    def fit(
        self,
        train: Source,
        validation: Source | None = None,
        recipe: Recipe | None = None,
        *,
        task: Task | None = None,
        loss: str | PerExample | None = None,
        metrics: Sequence[str | PerExample] = (),
        seed: int = 0,
        init_from: str | os.PathLike[str] | None = None,
        init_part: Literal["all", "backbone"] = "all",
        precision: "Precision" = "auto",
        onednn: "OneDNN" = "auto",
        stream: bool = False,
        callbacks: Sequence[Any] = (),
        workers: int = 0,
        store: "str | os.PathLike[str] | FeatureStore | None" = None,
        store_gib: float = 40.0,
        out: str | os.PathLike[str] | None = None,
        checkpoint_every: float = 60.0,
        keep_checkpoints: int = 2,
        fall_back: bool = False,
        devices: "int | Devices | None" = None,
        shard_parameters: bool = False,
        hosts: str | None = None,
        journal: "Journal | None" = None,
        report: Report = silent,
        **options: Any,
    ) -> Fitted:
        """Train this classifier, as Keras's `fit` does: its weights and its history are the trained ones afterwards.

        Args:
            train: Labelled images of its classes.
            validation: Others, evaluated after each epoch.
            recipe: How to train; or its fields as keyword arguments (`method="finetune", unfreeze_from="conv_pw_12"`).
                Its optimizer, schedule and augment may be functions, or their import paths.
            task: In place of the classifier's, for as many outputs.
            loss: In place of the task's: a function of (outputs, targets) that gives a number an example, or its import
                path.
            metrics: Such functions, whose means are reported too.
            seed: Of the order of the images, dropout and augmentation.
            init_from: A run folder or a saved classifier whose weights it starts from, in place of its own.
            init_part: What is taken from there: "all" weights, or the "backbone"'s.
            precision: What is computed with, as for `Trainer`.
            onednn: Whether oneDNN convolves on CPU: "always", "never" or, where it pays for compiling anew, "auto".
            stream: Read the images anew in every epoch, and keep neither them nor features.
            callbacks: Called after steps and epochs (see `cnnjax.Fitter.fit`); also their classes, or import paths.
            workers: Processes that read images.
            store: Where features are kept: a folder, by default the one in the user's cache that all runs share, or a
                `FeatureStore`, which may be in memory.
            store_gib: How much that folder may hold, in GiB; the oldest features make room.
            out: A run folder, in which checkpoints and every epoch's record are kept: the same call goes on from the
                newest. Nothing is kept if not given.
            checkpoint_every: Seconds between two checkpoints.
            keep_checkpoints: How many of the newest stay, besides the one with the lowest validation loss.
            fall_back: Go on from the checkpoint before, where the newest is damaged.
            devices: How many devices the batches are spread over, or which; all there are if not given.
            shard_parameters: Keep each large parameter in parts on the devices, not whole on each.
            hosts: Join several hosts, as the option of `cnnjax fit`.
            journal: Takes each epoch's record as it ends, in place of that of the run folder.
            report: Shows progress.
            **options: Fields of `cnnjax.Recipe`.

        Returns:
            Every epoch's record and where the time went.

        Raises:
            ValueError: The images' classes are others, or the recipe does not fit the model; nothing is changed.

        >>> from cnnjax.data import InMemory
        >>> classifier = ImageClassifier("lecture_cnn", ("dark", "bright"), image_size=32, head="linear", widths=(4, 8))
        >>> images = np.repeat(np.array([20, 230], np.uint8), 8)[:, None, None, None] * np.ones((32, 32, 3), np.uint8)
        >>> source = InMemory(images, np.arange(16) // 8, ("dark", "bright"))
        >>> fitted = classifier.fit(source, method="scratch", epochs=15, batch_size=4, optimizer="adam")
        >>> classifier.evaluate(source).accuracy, len(classifier.history)
        (1.0, 15)
        """
        from cnnjax.classifier.training import Training, TrainingRun, recipe_from

        recipe = recipe_from(recipe, options)
        wanted = changed_task(self.task, task, loss, metrics)
        classifier = self
        if wanted is not self.task:
            classifier = self.with_leaves({}, metrics=self.metrics, history=self.history, task=wanted)
        for source in (train, *([] if validation is None else [validation])):
            check_training_source(source, classifier.config)
        training = Training(
            seed=seed, init_from=None if init_from is None else Path(init_from), init_part=init_part,
            precision=precision, onednn=onednn, stream=stream, callbacks=tuple(callbacks), workers=workers,
            store=None if store is None or isinstance(store, FeatureStore) else Path(store), store_gib=store_gib,
            checkpoint_every=checkpoint_every, keep_checkpoints=keep_checkpoints, fall_back=fall_back,
            devices=devices if isinstance(devices, int) else None, shard_parameters=shard_parameters, hosts=hosts,
        )  # fmt: skip
        spread = training.start() if devices is None or isinstance(devices, int) else devices
        run = TrainingRun(
            classifier, recipe, training, devices=spread,
            store=store if isinstance(store, FeatureStore) else None,
        )  # fmt: skip
        with run.onednn(train):
            fitted = run.fit_in(None if out is None else Path(out), train, validation, journal=journal, report=report)
            task = classifier.task.predicting(fitted.task)
            if validation is not None:
                task = task.calibrated(*run.judged(fitted, train, validation, report))
        self._hold(replace(classifier.config, task=task), self._functional, fitted.leaves, self._apply)
        self.history = fitted.history
        return fitted

    def _outputs(self, source: Source, batch_size: int, *, skip: bool = False) -> np.ndarray:
        return outputs_of(partial(self._apply, self.leaves), source, batch_size, skip=skip)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write `model.safetensors`, `config.json` and `metrics.json` into a folder, whole or not at all.

        A saved classifier of that name is replaced. Between the renaming of the old folder and of the new one there
        is an instant without either.

        Raises:
            FileExistsError: There is something else at `path`, or something else lies in the folder.
            ValueError: Weights are not finite, or metrics and history are no plain values.
        """
        folder.write(path, self.config, self.leaves, {"metrics": self.metrics, "history": self.history})

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], *, backbone: str | OwnBackbone | None = None,
        head: str | OwnHead | None = None, task: Task | None = None, code: str | Iterable[str] = (),
    ) -> Self:  # fmt: skip
        """Read a saved classifier; it needs nothing beside the folder, and executes nothing of it.

        Args:
            path: The folder.
            backbone: Of a classifier with a network of your own: the import path, function or module that builds it.
                The folder names one, whose code is not run unless you name it here, or in `code`.
            head: The same of a head.
            task: The task that it was saved with, where that was made of functions without an import path.
            code: Import paths of all code of your own that the folder names and that may be run: network, head, loss,
                metrics, task. A function of the same name at another place stands for the one that is named.

        Raises:
            ValueError: The folder needs code that is not named, or code is named that it does not need.
            FileNotFoundError: There is no such folder; the nearest name is given.
            SavedClassifierError: A file is missing, damaged, of a newer format, or does not fit the others.
        """
        named_ = (code,) if isinstance(code, str) else tuple(code)
        config, functional, leaves, measured = read_model(path, backbone, head, task, named_)
        loaded = object.__new__(cls)
        loaded._hold(config, functional, leaves)
        loaded.metrics, loaded.history = measured["metrics"], measured["history"]
        return loaded
