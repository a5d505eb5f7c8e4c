"""What training is asked for: the lecture's methods, and what researchers add to them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from numbers import Integral
from typing import TYPE_CHECKING, Any, Literal, get_args

import optax
from flax import nnx

from cnnjax.augment import Augmentation
from cnnjax.augment.own import takes_targets
from cnnjax.data.order import LastBatch
from cnnjax.files.importing import called, check_call, imported, is_path, named, source_digest
from cnnjax.freeze import Freeze, Frozen, layer_names, num_weighted_layers
from cnnjax.functional import leaves_of
from cnnjax.models.layer_order import Example
from cnnjax.optim import make_optimizer, warmup_cosine, warmup_linear
from cnnjax.runtime.nearest import unknown

if TYPE_CHECKING:
    Named = str | Callable[..., Any]
else:  # options of a command are texts
    Named = str
"""A name, an import path, or in Python the function itself."""

Method = Literal["features", "views", "augment", "finetune", "lp-ft", "gradual", "scratch"]

AUGMENTATIONS = {
    "none": None,
    "lecture": Augmentation(flip=True, rotation=0.1, zoom=0.2),
    "imagenet": Augmentation(flip=True, zoom=(-0.5, 0.0), translation=0.1),
}
"""Name to augmentation; "lecture" is its flips, rotations by 0.1 and zooms by 0.2, "imagenet" flips and parts of half
of each side and more, as ImageNet's random crops."""

_STAGES = 3


@dataclass(frozen=True, kw_only=True)
class Batches:
    """How many images are computed at once."""

    batch_size: int = 20
    """Images that are computed at once; in training, those of a step."""


@dataclass(frozen=True, kw_only=True)
class Steps(Batches):
    """What every training has, of one classifier or of a sweep."""

    epochs: int = 30
    """Passes over the training images, for the head (or the only phase)."""
    last_batch: LastBatch = "pad"
    """pad: an epoch's short last batch is filled up with rows that count nowhere, also in no statistics of BatchNorm.
    drop: it is left out, for models with a normalisation over the batch that is not BatchNorm's."""
    optimizer: Named = "rmsprop"
    """rmsprop, adam, adamw or sgd, with Keras's defaults; optax:NAME, or the import path of a function of learning_rate
    that gives an optax transform."""
    tuning_factor: float = 0.1
    """Where part of a backbone trains that was pretrained, it does at this part of the learning rate: in the phases
    after the head's, and in those rows of a sweep."""
    views: int = 0
    """Stored views of each image, the same for every seed, with augment: of how many augmented images the features are
    kept, one of which each epoch shows. 0 augments in every step; 4 for the method views."""

    def check_steps(self) -> None:
        """Raise `ValueError` for values out of range."""
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if not 0 < self.tuning_factor <= 1:
            raise ValueError(f"tuning_factor: expected above 0 and at most 1, found {self.tuning_factor}")


@dataclass(frozen=True)
class Recipe(Steps):
    """How to train a classifier on a backbone.

    The methods: "features" (the lecture's Method 1: everything frozen, features once, then the head), "views" (its
    images are `views` augmented ones of each, drawn once), "augment" (Method 2: augmentation, the frozen backbone
    inside the step), "finetune" (Method 1, then what `unfreeze_from` or `freeze` leaves free, at a tenth of the
    learning rate), "lp-ft" (the head first, then everything: Kumar et al. 2022), "gradual" (the head, then stage by
    stage deeper, the optimizer's state kept: Howard & Ruder 2018), "scratch" (everything trains from the start).

    >>> Recipe("finetune", unfreeze_from="block5_conv1", epochs=5).tune_epochs
    10
    """

    method: Method = "features"
    """features, views, augment, finetune, lp-ft, gradual or scratch."""
    unfreeze_from: str | None = None
    """finetune: the first layer that trains, such as block5_conv1."""
    freeze: str | None = None
    """What is frozen: none, all, a number of layers, a layer's name (up to and including), [start:stop] as in Keras, or
    a pattern. fit takes it with the method finetune, in place of unfreeze_from; ablate compares several, up to six from
    none to all if not given."""
    stages: tuple[str, ...] = ()
    """gradual: what is frozen in each stage after the head's; three of even depth down to none if not given."""
    tune_epochs: int = 10
    """The same for each phase after the head's."""
    learning_rate: float = 1e-3
    """Of the head's phase, or the only one."""
    layer_factor: float = 1.0
    """Each layer before the last trains at this part of the next one's learning rate (1/2.6 in ULMFiT)."""
    learning_rate_groups: dict[str, float] | None = None
    """Factors of the learning rate by group instead: 'backbone/block5*' 0.3 head 1.0 (the first match counts, 1 without
    any)."""
    schedule: Named = "constant"
    """How the learning rate falls within a phase: constant, cosine or linear; or the import path of a function of
    (steps, warmup), in steps of the optimizer, that gives a function from step to a factor of the learning rate."""
    warmup: float = 0.0
    """Part of a phase's steps in which the learning rate rises from 0."""
    weight_decay: float | None = None
    """Decoupled decay of kernels; biases and normalisation are spared."""
    clip: float | None = None
    """Largest global norm of the gradient."""
    accumulate: int = 1
    """Batches whose gradients make one step."""
    ema: float | None = None
    """Decay of a moving average of the weights, which is what is evaluated and kept."""
    label_smoothing: float = 0.0
    """Part of a label's probability that is spread over all classes."""
    batchnorm: Literal["live", "frozen"] = "live"
    """Whether normalisation of layers that train follows the batch (as in Keras) or keeps its stored statistics."""
    augment: Named = "none"
    """none; lecture: random flips, rotations by 0.1 and zooms by 0.2; imagenet: flips, and parts of half of each side
    and more; or the import path of a function of (key, images) or (key, images, targets) that gives changed ones. The
    methods views and augment take the lecture's if none is given; ablate compares several."""
    patience: int | None = None
    """Stop a phase after so many epochs without a lower validation loss, and go back to the best weights. Those that a
    phase starts from, the best of the phase before, count among them, as Keras's `EarlyStopping(baseline=...)` does."""
    not_finite: Literal["stop", "skip"] = "stop"
    """A loss that is NaN or infinite ends the run, or its step is left out (also for such a gradient) and counted."""
    gradient_fn: str | None = None
    """What makes the gradients, package.module:function or file.py:function, such as one for SAM (see cnnjax.train).
    The loss's own gradient if not given."""
    keep: Literal["last", "best"] = "last"
    """Which epoch's weights a phase ends with: the last one's, or those of the lowest validation loss, its own or of
    the phases before."""

    def __post_init__(self) -> None:
        for name in ("method", "batchnorm", "not_finite", "keep", "last_batch"):
            checked_name(name, getattr(self, name), get_args(self.__dataclass_fields__[name].type))
        checked_name("schedule", self.schedule, SCHEDULES, own=True)
        checked_augment(self.augment)
        if isinstance(self.stages, str):
            self._set(stages=(self.stages,))
        for name in ("epochs", "tune_epochs", "batch_size", "views", "patience"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, Integral)):
                raise ValueError(f"{name}: expected a whole number, found {value!r}")
        self.check_steps()
        if self.tune_epochs < 1:
            raise ValueError(f"tune_epochs must be at least 1, not {self.tune_epochs}")
        if self.patience is not None and self.patience < 1:
            raise ValueError(f"patience must be at least 1 epoch, not {self.patience}; leave it out not to stop early")
        if not 0 < self.layer_factor <= 1:
            raise ValueError(f"layer_factor: expected above 0 and at most 1, found {self.layer_factor}")
        if self.learning_rate_groups and self.layer_factor < 1:
            raise ValueError(
                "give layer_factor or learning_rate_groups, not both: each says how fast every layer learns"
            )
        if not 0 <= self.warmup < 1:
            raise ValueError(f"warmup: expected a part of the steps, 0 to less than 1, found {self.warmup}")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing: expected 0 or more and less than 1, found {self.label_smoothing}")
        if self.method == "views":
            self._set(augment=self._augmented(), views=self.views or 4)
        if self.method == "augment":
            if self.views:
                raise ValueError("augment changes the images in every step; stored views are the method 'views'")
            self._set(augment=self._augmented())
        if self.views < 0 or (self.views and self.augment == "none"):
            raise ValueError(f"views: expected 0 or more, and an augmentation to draw them with, found {self.views}")
        if self.method == "finetune" and (self.unfreeze_from is None) == (self.freeze is None):
            found = "both" if self.freeze is not None else "neither"
            raise ValueError(
                f"finetune needs one of unfreeze_from (the first layer that trains) and freeze (what stays frozen), "
                f"found {found}"
            )
        if self.method != "finetune" and (self.unfreeze_from is not None or self.freeze is not None):
            raise ValueError(f"unfreeze_from and freeze are of the method finetune; this is {self.method!r}")
        if self.gradient_fn is not None and not is_path(self.gradient_fn):
            raise ValueError(
                f"gradient_fn: expected package.module:function or file.py:function, found {self.gradient_fn!r}"
            )
        if self.stages and self.method != "gradual":
            raise ValueError(f"stages are of the method gradual; this is {self.method!r}")
        for text in (*self.stages, *([self.freeze] if self.freeze is not None else [])):
            Freeze.parse(text)
        make_optimizer(
            self.optimizer, self.learning_rate, weight_decay=self.weight_decay, clip=self.clip,
            accumulate=self.accumulate, ema=self.ema,
        )  # fmt: skip

    def _set(self, **values: object) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def _augmented(self) -> Named:
        return "lecture" if self.augment == "none" else self.augment

    @property
    def augmentation(self) -> Any:
        """What happens to each training image: an `Augmentation`, a function of the user's, or None."""
        return augmentation(self.augment)

    def scheduled(self, steps: int, warmup: int) -> optax.Schedule | None:
        """The factor of the learning rate over so many steps of the optimizer; None where it stays 1.

        Raises:
            ValueError: A function of the user's takes other arguments, or gives no function of a step.
        """
        if self.schedule in ("cosine", "linear"):
            return (warmup_cosine if self.schedule == "cosine" else warmup_linear)(steps, warmup)
        if self.schedule != "constant":
            path, function = _found(self.schedule, "a function of (steps, warmup)", "schedules.py:schedule")
            gives, how = "a function from step to a factor", "(steps, warmup)"
            made = called(path, function, how, steps, warmup, gives=gives)
            if not callable(made):
                raise ValueError(f"{path} must give {gives}, found {type(made).__name__}: {made!r:.60}")
            check_call(path, made, "(step)", 0)
            return made
        return optax.linear_schedule(1 / (warmup + 1), 1.0, warmup) if warmup else None

    @property
    def code(self) -> dict[str, Any]:
        """The user's functions that it names, by what they are for."""
        return own_code(
            optimizer=self.optimizer, schedule=self.schedule, augment=self.augment, gradient_fn=self.gradient_fn or ""
        )

    def plain(self) -> dict[str, Any]:
        """All fields as plain values; functions by their import paths, and no `gradient_fn` where there is none."""
        found = {f.name: getattr(self, f.name) for f in fields(self)}
        if self.gradient_fn is None:
            del found["gradient_fn"]
        return {name: named(value) if callable(value) else value for name, value in found.items()}


SCHEDULES = ("constant", "cosine", "linear")


def checked_name(what: str, value: Any, known: Sequence[str], *, own: bool = False) -> None:
    """Refuse a name that is none of those known; with `own`, import paths and functions are known too.

    Raises:
        ValueError: It is none; the nearest is given.
    """
    if value in known or (own and (callable(value) or (isinstance(value, str) and is_path(value)))):
        return
    more = ", and import paths, file.py:function" if own else ""
    raise ValueError(f"{unknown(what, value, known, listed=True)}{more}")


def checked_augment(value: Any) -> None:
    """Refuse an augmentation that is neither a name nor a function of (key, images, targets).

    Raises:
        ValueError: It is neither.
    """
    if not isinstance(value, Augmentation):
        checked_name("augment", value, tuple(AUGMENTATIONS), own=True)


def augmentation(given: Any) -> Any:
    """The augmentation of a name, at an import path, or itself.

    Raises:
        ValueError: There is no such function, or it takes other arguments.
    """
    if isinstance(given, Augmentation):
        return given
    if isinstance(given, str) and given in AUGMENTATIONS:
        return AUGMENTATIONS[given]
    path, function = _found(given, "a function of (key, images)", "augmentations.py:augment")
    if isinstance(function, Augmentation):
        return function
    given_: tuple[None, ...] = (None,) * (3 if takes_targets(function) else 2)
    check_call(path, function, "(key, images) or (key, images, targets)", *given_)
    return function


def own_code(**named_: Any) -> dict[str, Any]:
    """Those of the user's functions that are named by import paths, or given, by what they are for."""
    found = {}
    for what, value in named_.items():
        if isinstance(value, str) and is_path(value):
            found[what] = imported(value, f"the {what}")
        elif callable(value) and not isinstance(value, Augmentation):
            found[what] = value
    return found


def code_digests(code: dict[str, Any]) -> dict[str, str]:
    """What makes a run with other code another run, by name."""
    return {f"{what}_code": source_digest(found) for what, found in code.items()}


def _found(given: Any, what: str, such_as: str) -> tuple[str, Any]:
    return (given, imported(given, what, such_as)) if isinstance(given, str) else (named(given), given)


@dataclass(frozen=True)
class Phase:
    """A part of training with one set of leaves that train.

    Attributes:
        name: "head", "tune", "stage 1", ...
        frozen: what is frozen.
        epochs: at most.
        learning_rate: at its peak.
        keeps_optimizer: whether the optimizer goes on from the phase before, by path; otherwise it starts anew, as
            Keras's does when a model is compiled again.
    """

    name: str
    frozen: Frozen
    epochs: int
    learning_rate: float
    keeps_optimizer: bool = False


def phases(
    recipe: Recipe, model: nnx.Module, within: str = "backbone", example: Example | None = None
) -> tuple[Phase, ...]:
    """The phases of a recipe for a model.

    Args:
        recipe: what is asked for.
        model: pixels to logits.
        within: the part that is frozen and unfrozen; what lies outside trains in every phase.
        example: what the model takes, as for `Freeze.resolve`.

    Raises:
        ValueError: a layer that is not there, a phase in which nothing (more) trains, or stages that freeze what
            trained before.
    """

    def frozen(freeze: Freeze) -> Frozen:
        return freeze.resolve(model, within, live_statistics=recipe.batchnorm == "live", example=example)

    parameters = leaves_of(model, nnx.Param)

    def trained(phase: Phase) -> set[str]:
        return set(phase.frozen.partition(parameters)[0])

    if recipe.method == "scratch":
        return (Phase("all", frozen(Freeze.none()), recipe.epochs, recipe.learning_rate),)
    head = Phase("head", frozen(Freeze.all()), recipe.epochs, recipe.learning_rate)
    if not trained(head):
        raise ValueError(
            f"{recipe.method} trains the head first, and the model has no layer outside its {within}; give it a head "
            "of its own, or take 'scratch'"
        )
    if recipe.method in ("features", "views", "augment"):
        return (head,)
    part = model
    for name in within.split("/"):
        part = getattr(part, name)
    rate = recipe.learning_rate * recipe.tuning_factor
    if recipe.method == "gradual":
        stages = [Freeze.parse(text) for text in recipe.stages] or _even(part)
        found = [head]
        for number, stage in enumerate(stages, 1):
            found.append(Phase(f"stage {number}", frozen(stage), recipe.tune_epochs, rate, keeps_optimizer=True))
            if not trained(found[-2]) < trained(found[-1]):
                raise ValueError(f"stage {number} of {len(stages)} ({stage}) unfreezes nothing more: order them deeper")
        return tuple(found)
    if recipe.method == "lp-ft":
        freeze = Freeze.none()
    elif recipe.unfreeze_from is not None:
        freeze = _before(recipe.unfreeze_from, layer_names(model, within, example=example))
    else:
        freeze = Freeze.parse(recipe.freeze or "")
    tune = Phase("tune", frozen(freeze), recipe.tune_epochs, rate)
    if trained(tune) == trained(head):
        raise ValueError(f"{freeze} leaves nothing of the backbone to tune; name an earlier layer, or take 'features'")
    return head, tune


def _before(layer: str, names: Sequence[str]) -> Freeze:
    """Freezes what lies before a layer."""
    if layer not in names:
        raise ValueError(f"unfreeze_from: {unknown('layer', layer, names, 'in the backbone')}")
    place = names.index(layer)
    return Freeze.slice(None, place) if place else Freeze.none()


def _even(part: nnx.Module) -> list[Freeze]:
    """Depths that fall evenly to none."""
    kernels = num_weighted_layers(part)
    # Below `kernels`: of one layer two thirds would be all.
    depths = {max(0, min(kernels - 1, round(kernels * (_STAGES - 1 - k) / _STAGES))) for k in range(_STAGES)}
    return [Freeze.depth(depth) for depth in sorted(depths, reverse=True)]
