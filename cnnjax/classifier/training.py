"""One training of a classifier: what `ImageClassifier.fit` and `cnnjax fit` share."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self

from cnnjax.checkpoints import Checkpoints
from cnnjax.classifier.config import Config
from cnnjax.classifier.running import RuntimeConfig, initial_leaves
from cnnjax.commands.network import Computing
from cnnjax.commands.options import Seed
from cnnjax.data.source import Source, targets_of
from cnnjax.features import GIB, FeatureStore
from cnnjax.files.digests import digest
from cnnjax.files.importing import called, check_call, imported, named
from cnnjax.files.runs import RunFolder
from cnnjax.fit import Fitted, Fitter, Recipe
from cnnjax.fit.fitter import Report
from cnnjax.fit.recipe import code_digests, own_code
from cnnjax.functional import Leaves
from cnnjax.metrics import Journal
from cnnjax.models import Classifier
from cnnjax.models.layer_order import program_digest
from cnnjax.models.own import is_path
from cnnjax.runtime.cache import cache_folder
from cnnjax.runtime.nearest import did_you_mean
from cnnjax.runtime.precision import resolved
from cnnjax.train.dataset import digest_of
from cnnjax.train.tasks import Task
from cnnjax.train.worth import onednn_for

if TYPE_CHECKING:
    from cnnjax.runtime.devices import Devices

_WHERE = ("onednn", "store", "store_gib", "workers", *RuntimeConfig.__dataclass_fields__)
"""Options of training that change nothing of what is computed."""


@dataclass(frozen=True, kw_only=True)
class Training(Computing, RuntimeConfig):
    """How a classifier is trained, besides the recipe."""

    seed: Seed = 0
    init_from: Path | None = None
    """A run folder or a saved classifier whose weights it starts from, in place of the published ones."""
    init_part: Literal["all", "backbone"] = "all"
    """What is taken from there: all weights (the same classes), or the backbone's."""
    stream: bool = False
    """Read the images anew in every epoch, and keep neither them nor features: for sets that nothing holds."""
    callbacks: tuple[str, ...] = ()
    """Import paths of callbacks (see cnnjax.Callback), called after steps and epochs: classes, of which one is made, or
    functions of (trainer, state, record), called after each epoch."""

    def __post_init__(self) -> None:
        RuntimeConfig.__post_init__(self)
        self.check_workers()
        for path in self.callbacks:
            if isinstance(path, str) and not is_path(path):
                raise ValueError(f"callbacks: expected import paths, such as callbacks.py:{path}, found {path!r}")

    def identity(self) -> dict[str, Any]:
        """What of it makes a run this one, as plain values."""
        plain = {name: value for name, value in asdict(replace(self, callbacks=())).items() if name not in _WHERE}
        plain["init_from"] = None if self.init_from is None else str(self.init_from)
        return plain | {"callbacks": [x if isinstance(x, str) else named(x) for x in self.callbacks]}

    def made_callbacks(self) -> list[Any]:
        """The callbacks, one new one of each class.

        Raises:
            ValueError: There is no such class, or it takes arguments.
        """
        found = []
        for given in self.callbacks:
            what = "a callback's class, or a function of (trainer, state, record)"
            code = imported(given, what, "callbacks.py:Callback") if isinstance(given, str) else given
            path = given if isinstance(given, str) else named(given)
            made = called(path, code, "no arguments") if isinstance(code, type) else code
            if not any(callable(getattr(made, name, None)) for name in ("on_step_end", "on_epoch_end")):
                if isinstance(code, type) or not callable(made):
                    raise ValueError(
                        f"{path}: a callback has on_step_end or on_epoch_end, and {made!r:.60} has neither"
                    )
                check_call(path, made, "(trainer, state, record)", None, None, None)
            found.append(made)
        return found

    @property
    def code(self) -> dict[str, Any]:
        """The user's functions that it names, by what they are for."""
        return own_code(**{f"callback_{k}": given for k, given in enumerate(self.callbacks)})


def recipe_from(recipe: Recipe | None, options: Mapping[str, Any]) -> Recipe:
    """A recipe, or one of its fields by name.

    Raises:
        ValueError: Both are given, or there is no such field.
    """
    if recipe is not None and options:
        raise ValueError(f"give a recipe or its fields, not both: found {', '.join(options)} beside it")
    known = Recipe.__dataclass_fields__
    if strange := [name for name in options if name not in known]:
        raise ValueError(f"a recipe has no {strange[0]!r}{did_you_mean(strange[0], known)}")
    return recipe or Recipe(**options)


class Trainable(Protocol):
    """What is trained: a network, what it is for, and its weights. `ImageClassifier` is one."""

    @property
    def config(self) -> Config: ...
    @property
    def model(self) -> Classifier: ...
    @property
    def leaves(self) -> Leaves: ...
    @property
    def image_size(self) -> tuple[int, int]: ...
    @property
    def task(self) -> Task: ...
    def with_leaves(self, leaves: Mapping[str, Any]) -> Self: ...


class TrainingRun:
    """A training that is about to begin: programs are made when it does.

    Args:
        classifier: What is trained; it stays as it is.
        recipe: How.
        training: What else there is to say.
        devices: What the run is spread over; one device if not given.
        store: Where features are kept, in place of the folder that the options name.

    Attributes:
        fitter: What trains.
        classifier: The classifier with the weights that training starts from.
    """

    def __init__(
        self, classifier: Trainable, recipe: Recipe, training: Training, *,
        devices: "Devices | None" = None, store: FeatureStore | None = None,
    ):  # fmt: skip
        if training.init_from is not None:
            leaves = initial_leaves(Path(training.init_from), classifier.leaves, training.init_part)
            classifier = classifier.with_leaves(leaves)
        # The same on another machine, which goes on with it.
        self.training = replace(training, precision=resolved(training.precision))
        self.classifier, self.recipe, self.devices = classifier, recipe, devices
        if store is None:
            store = FeatureStore(training.store or cache_folder() / "features", int(training.store_gib * GIB))
        self.fitter = Fitter(
            classifier.model, recipe, classifier.image_size, store=store, workers=training.workers,
            stream=training.stream, precision=self.training.precision, devices=devices, task=classifier.task,
        )  # fmt: skip

    def identity(self, sources: Mapping[str, Any]) -> dict[str, Any]:
        """What makes it this one: options, images, weights, the user's code."""
        images = {f"{name}_images": digest_of(source) for name, source in sources.items()}
        config = self.classifier.config
        own = config.own_code
        backbone = self.classifier.model.backbone
        program = {"program": program_digest(backbone, (*self.classifier.image_size, 3))} if "backbone" in own else {}
        code = {**self.recipe.code, **self.training.code, **config.functions()}
        return {
            "recipe": self.recipe.plain(), **self.training.identity(), **images, **program, **code_digests(code),
            "weights_digest": digest(*self.classifier.leaves.values()),
        }  # fmt: skip

    def onednn(self, train: Source) -> AbstractContextManager[None]:
        """The block in which the run's programs are compiled: with oneDNN where the work ahead pays for it."""
        whole = self.recipe.method == "scratch" or (self.recipe.augmentation is not None and not self.recipe.views)
        phases = self.fitter.phases if whole else self.fitter.phases[1:]  # whose steps hold convolutions
        return onednn_for(
            self.classifier.model, (*self.classifier.image_size, 3), len(train), sum(p.epochs for p in phases),
            frozen=not phases, programs=1 + len(phases), choice=self.training.onednn,
        )  # fmt: skip

    def fit(
        self, train: Source, validation: Source | None = None, *, folder: Path | None, about: Mapping[str, Any],
        report: Report, journal: Journal | None = None, tell: Callable[[str], None] = print,
        begun: Callable[[], None] | None = None,
    ) -> Fitted:  # fmt: skip
        """Train.

        Args:
            train: Labelled images.
            validation: Others, evaluated after each epoch.
            folder: The run folder, in which checkpoints are kept; None keeps none.
            about: What each checkpoint says of the run.
            report: Shows progress.
            journal: Takes each epoch's record as it ends.
            tell: Takes what the run has to say.
            begun: Called where there is no checkpoint to go on from.
        """
        training = self.training
        opened = (
            nullcontext() if folder is None else Checkpoints(folder / "checkpoints", keep=training.keep_checkpoints)
        )
        with opened as checkpoints:
            if begun and (checkpoints is None or checkpoints.latest() is None):
                begun()
            kept = None if checkpoints is None else training.checkpointing(checkpoints, {"config": about}, tell)
            return self.fitter.fit(
                train,
                validation,
                seed=training.seed,
                journal=journal,
                report=report,
                checkpointing=kept,
                callbacks=training.made_callbacks(),
            )

    def fit_in(
        self,
        out: Path | None,
        train: Source,
        validation: Source | None = None,
        *,
        report: Report,
        journal: Journal | None = None,
    ) -> Fitted:
        """Train; with a run folder it holds what makes the run this one, and its journal."""
        self.fitter.resolve(train)
        self.fitter.check(len(train), validated=validation is not None)
        if out is None:
            return self.fit(train, validation, folder=None, about={}, report=report, journal=journal)
        sources = {"train": train} | ({} if validation is None else {"validation": validation})
        config = {name: x for name, x in self.classifier.config.to_json().items() if name != "task"}
        about = {**config, **self.identity(sources)}
        primary = self.devices is None or self.devices.primary
        run = RunFolder(out, about) if primary else None
        with run.locked() if run else nullcontext():
            if run and journal is None:
                journal = Journal(out / "metrics.jsonl")
            return self.fit(train, validation, folder=out, about=about, report=report, journal=journal)

    def judged(self, fitted: Fitted, train: Source, source: Source, report: Report) -> tuple[Any, Any]:
        """Outputs and targets of a source, from stored features as far as anything is frozen."""
        return self.fitter.outputs(fitted, source, len(train), report), targets_of(source)
