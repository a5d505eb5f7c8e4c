"""What training is asked for: the lecture's methods, and what researchers add to them."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Literal, get_args

from flax import nnx

from cnnjax.augment import Augmentation
from cnnjax.data.order import LastBatch
from cnnjax.freeze import Freeze, Frozen, layer_names, num_weighted_layers
from cnnjax.functional import leaves_of
from cnnjax.models.layer_order import Example
from cnnjax.models.own import is_path
from cnnjax.optim import make_optimizer

Method = Literal["features", "views", "augment", "finetune", "lp-ft", "gradual", "scratch"]

AUGMENTATIONS = {
    "none": None,
    "lecture": Augmentation(flip=True, rotation=0.1, zoom=0.2),
    "imagenet": Augmentation(flip=True, zoom=(-0.5, 0.0), translation=0.1),
}
"""Name to augmentation; "lecture" is its flips, rotations by 0.1 and zooms by 0.2, "imagenet" flips and parts of half
of each side and more, as ImageNet's random crops."""

_STAGES = 3


@dataclass(frozen=True)
class Recipe:
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
    """finetune: what stays frozen, in place of unfreeze_from: a number of layers, [:-4] as in Keras, a pattern."""
    stages: tuple[str, ...] = ()
    """gradual: what is frozen in each stage after the head's; three of even depth down to none if not given."""
    epochs: int = 30
    """Passes over the training images, for the head (or the only phase)."""
    tune_epochs: int = 10
    """The same for each phase after the head's."""
    batch_size: int = 20
    """Images a step."""
    last_batch: LastBatch = "pad"
    """pad: an epoch's short last batch is filled up with rows that count nowhere, also in no statistics of BatchNorm.
    drop: it is left out, for models with a normalisation over the batch that is not BatchNorm's."""
    optimizer: str = "rmsprop"
    """rmsprop, adam, adamw or sgd, with Keras's defaults."""
    learning_rate: float = 1e-3
    """Of the head's phase, or the only one."""
    tuning_factor: float = 0.1
    """Later phases train at this part of the learning rate."""
    layer_factor: float = 1.0
    """Each layer before the last trains at this part of the next one's rate (discriminative rates; 1/2.6 in ULMFiT)."""
    rate_groups: dict[str, float] | None = None
    """Factors of the learning rate by group instead: 'backbone/block5*' 0.3 head 1.0 (the first match counts, 1 without
    any)."""
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    """How the rate falls within a phase."""
    warmup: float = 0.0
    """Part of a phase's steps in which the rate rises from 0."""
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
    augment: Literal["none", "lecture", "imagenet"] = "none"
    """lecture: random flips, rotations by 0.1 and zooms by 0.2; imagenet: flips, and parts of half of each side and
    more. The methods views and augment take the lecture's if none is given."""
    views: int = 0
    """Stored views of each image, the same for every seed; 4 for the method views, otherwise with augment only."""
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
        for name in ("method", "schedule", "batchnorm", "augment", "not_finite", "keep", "last_batch"):
            value, known = getattr(self, name), get_args(self.__dataclass_fields__[name].type)
            if value not in known:
                near = difflib.get_close_matches(str(value), known, 1, 0)[0]
                raise ValueError(f"no {name} {value!r}; did you mean {near!r}? There are {', '.join(known)}")
        if isinstance(self.stages, str):
            self._set(stages=(self.stages,))
        for name in ("epochs", "tune_epochs", "batch_size", "views", "patience"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, Integral)):
                raise ValueError(f"{name}: expected a whole number, found {value!r}")
        for name in ("epochs", "tune_epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.patience is not None and self.patience < 1:
            raise ValueError(f"patience must be at least 1 epoch, not {self.patience}; leave it out not to stop early")
        if not 0 < self.tuning_factor <= 1:
            raise ValueError(f"tuning_factor: expected above 0 and at most 1, found {self.tuning_factor}")
        if not 0 < self.layer_factor <= 1:
            raise ValueError(f"layer_factor: expected above 0 and at most 1, found {self.layer_factor}")
        if self.rate_groups and self.layer_factor < 1:
            raise ValueError("give layer_factor or rate_groups, not both: each says how fast every layer learns")
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

    def _augmented(self) -> str:
        return "lecture" if self.augment == "none" else self.augment

    @property
    def augmentation(self) -> Augmentation | None:
        """What happens to each training image."""
        return AUGMENTATIONS[self.augment]


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
        near = difflib.get_close_matches(layer, names, 1, 0)[0]
        raise ValueError(f"unfreeze_from: no layer {layer!r} in the backbone; did you mean {near!r}?")
    place = names.index(layer)
    return Freeze.slice(None, place) if place else Freeze.none()


def _even(part: nnx.Module) -> list[Freeze]:
    """Depths that fall evenly to none."""
    kernels = num_weighted_layers(part)
    # Below `kernels`: of one layer two thirds would be all.
    depths = {max(0, min(kernels - 1, round(kernels * (_STAGES - 1 - k) / _STAGES))) for k in range(_STAGES)}
    return [Freeze.depth(depth) for depth in sorted(depths, reverse=True)]
