"""What a classifier is, apart from its weights: plain values, which a saved classifier keeps as JSON."""

import difflib
import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import jax
from flax import nnx

from cnnjax.data.listing import some
from cnnjax.data.pixels import Resizing, Scale, checked_resizing, checked_scale
from cnnjax.models import BACKBONES, PUBLISHED, Backbone, Classifier, create
from cnnjax.models.heads import HEADS
from cnnjax.models.preprocessing import checked_preprocessing
from cnnjax.train.tasks import Classification, Task, task_from_config

TOP = "top"
_GIVEN = ("input_shape", "include_top", "classes", "classifier_activation", "rngs")  # by what else the config says
_OF_THE_TOP = ("dropout", "pooling")
# A config may come from a stranger: what would take hours only to describe is refused.
_MAX_SIZE = 2048
_MAX_ALPHA = 4.0
_MAX_WIDTHS, _MAX_WIDTH = 16, 4096
_MAX_FEATURES = 1 << 22


@dataclass(frozen=True)
class Config:
    """Everything that decides a classifier, apart from its weights.

    Attributes:
        backbone: A key of `cnnjax.models.BACKBONES`.
        classes: The classes' names, in the order of their labels.
        image_size: Height and width of the pictures, in pixels.
        head: A key of `cnnjax.models.heads.HEADS`, or "top": the backbone's own classification layers.
        preprocessing: A key of `cnnjax.models.PREPROCESSING`.
        resizing: How pictures come to their size; see `cnnjax.data.resize`.
        options: Further arguments of the architecture's function: `alpha` of mobilenet, `widths` of lecture_cnn,
            with head "top" also `dropout` of mobilenet and `pooling` of cifar_cnn.
        scale: Which values of 16-bit files become 0 and 255; see `cnnjax.data.Folder`.
        task: What the outputs mean; classes if not given. Its names are `classes`.

    Raises:
        LookupError: There is no such backbone, head or preprocessing; the nearest name is given.
        ValueError: A value of another kind or range.

    >>> config = Config("mobilenet", ("cats", "dogs"), 96, "linear", "tf", options={"alpha": 0.25})
    >>> config.build().head.output_shape(), Config.from_json(config.to_json()) == config
    ((1,), True)
    """

    backbone: str
    classes: tuple[str, ...]
    image_size: int
    head: str
    preprocessing: str
    resizing: Resizing = "bilinear"
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    scale: Scale | None = None
    task: Task = None  # ty: ignore[invalid-assignment]  # set below

    def __post_init__(self) -> None:
        for name in ("backbone", "head", "preprocessing", "resizing"):
            if not isinstance(getattr(self, name), str):
                raise ValueError(f"{name}: expected a name, found {getattr(self, name)!r}")
        function = architecture(self.backbone)
        if self.head != TOP and self.head not in HEADS:
            near = difflib.get_close_matches(self.head, [*HEADS, TOP], 1, 0)[0]
            raise LookupError(f"no head {self.head!r}; did you mean {near!r}? There are {', '.join(HEADS)} and {TOP}")
        checked_preprocessing(self.preprocessing)
        checked_resizing(self.resizing)
        object.__setattr__(self, "scale", checked_scale(self.scale))
        if self.task is None:
            object.__setattr__(self, "task", Classification(_checked_classes(self.classes)))
        elif self.classes and tuple(self.classes) != self.task.names:
            raise ValueError(f"class names: expected the task's, {some(self.task.names)}, found {some(self.classes)}")
        object.__setattr__(self, "classes", tuple(self.task.names))
        if self.task.outputs is None:
            raise ValueError("the task does not say how many outputs a head needs: give it names, or outputs=")
        size = self.image_size
        if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= _MAX_SIZE:
            raise ValueError(f"image_size: expected a whole number of pixels from 1 to {_MAX_SIZE}, found {size!r}")
        if not isinstance(self.options, Mapping):
            raise ValueError(f"options: expected values by name, found {self.options!r}")
        known = {k: p.default for k, p in inspect.signature(function).parameters.items() if k not in _GIVEN}
        options = {k: _checked_option(self.backbone, k, v, known) for k, v in self.options.items()}
        if unused := [k for k in options if k in _OF_THE_TOP and self.head != TOP]:
            raise ValueError(
                f"{unused[0]} is of {self.backbone}'s own classification layers: give head={TOP!r} as well"
            )
        object.__setattr__(self, "options", options)

    def build(self, seed: int = 0) -> Classifier:
        """The model, filled with random numbers; under `nnx.eval_shape` abstract."""
        backbone = self.build_backbone(nnx.Rngs(jax.random.fold_in(jax.random.key(seed), 1)))
        return self.on(backbone, seed)

    def build_backbone(self, rngs: nnx.Rngs) -> Backbone:
        """The backbone alone; with head "top" it ends in logits."""
        asked = dict(self.options)
        if self.head == TOP:
            without = {k: v for k, v in self.options.items() if k not in _OF_THE_TOP}
            self._check_features(nnx.eval_shape(lambda: self._created(nnx.Rngs(0), include_top=False, **without)))
            asked |= {"classes": self._top_outputs, "classifier_activation": None}
        return self._created(rngs, include_top=self.head == TOP, **asked)

    def _created(self, rngs: nnx.Rngs, **asked: Any) -> Backbone:
        return create(self.backbone, input_shape=(self.image_size, self.image_size, 3), rngs=rngs, **asked)

    def _check_features(self, backbone: Backbone) -> None:
        """Refuse a dense layer on more features than any machine has room for."""
        if (features := math.prod(backbone.output_shape())) > _MAX_FEATURES:
            raise ValueError(
                f"{self.backbone} gives {features:,} features at {self.image_size} pixels, more than a dense layer "
                f"takes here ({_MAX_FEATURES:,}): take smaller pictures, or head='linear'"
            )

    def on(self, backbone: Backbone, seed: int) -> Classifier:
        """The model on a backbone; a head's random numbers are those of `nnx.Rngs(seed)`."""
        head = None
        if self.head == "lecture":
            self._check_features(backbone)
        if self.head != TOP:
            head = HEADS[self.head](backbone.output_shape(), rngs=nnx.Rngs(seed), outputs=self.task.outputs)
        return Classifier(backbone, head, self.preprocessing)

    @property
    def _top_outputs(self) -> int | None:
        return len(self.classes) if isinstance(self.task, Classification) else self.task.outputs

    def to_json(self) -> dict[str, Any]:
        """The same as plain values."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("scale", "task")}
        options = {k: list(v) if isinstance(v, tuple) else v for k, v in self.options.items()}
        scale = {} if self.scale is None else {"scale": list(self.scale)}
        plain = isinstance(self.task, Classification) and self.task == Classification(self.classes)
        task = {} if plain else {"task": self.task.to_config()}
        return {**values, "classes": list(self.classes), "options": options, **scale, **task}

    @classmethod
    def from_json(cls, values: Mapping[str, Any], task: Task | None = None) -> "Config":
        """The config of which `to_json` gave `values`; raises as the constructor, and for names it has not.

        Args:
            values: Plain values.
            task: In place of one that was made of functions.
        """
        names = [f.name for f in fields(cls)]
        if faults := [f"{n!r} is missing" for n in names if n not in values and n not in ("scale", "task")]:
            raise ValueError(", ".join(faults))
        if faults := [f"{n!r} is unknown" for n in values if n not in names]:
            raise ValueError(f"{', '.join(faults)}; there are {', '.join(names)}")
        kept = values.get("task")
        if kept is None:
            return cls(**values)
        if not isinstance(kept, Mapping):
            raise ValueError(f"task: expected values by name, found {kept!r}")
        own = task if task is not None and kept.get("kind") == "own" else task_from_config(kept)
        return cls(**dict[str, Any](values, task=own))


def architecture(name: str) -> Any:
    """The function that builds the network of that name; raises `LookupError` with the nearest one otherwise."""
    if name not in BACKBONES:
        create(name)  # raises
    return BACKBONES[name]


def own_size(backbone: str) -> int:
    """Height and width that an architecture's pictures have if nothing else is said."""
    return inspect.signature(architecture(backbone)).parameters["input_shape"].default[0]


def own_preprocessing(backbone: str) -> str:
    """What the published weights of an architecture expect of their pixels; "unit" where there are none.

    >>> own_preprocessing("vgg16"), own_preprocessing("lecture_cnn")
    ('caffe', 'unit')
    """
    return next((entry.preprocessing for entry in PUBLISHED.values() if entry.backbone == backbone), "unit")


def _checked_classes(names: Any) -> tuple[str, ...]:
    if isinstance(names, str) or not isinstance(names, Sequence) or not all(isinstance(n, str) and n for n in names):
        raise ValueError(f"class names: expected a list of texts, found {names!r}")
    if len(names) < 2:
        raise ValueError(f"class names: a classifier needs at least two classes, found {list(names)}")
    if twice := sorted({n for n in names if list(names).count(n) > 1}):
        raise ValueError(f"class names: {', '.join(map(repr, twice))} given more than once")
    return tuple(names)


def _checked_option(backbone: str, name: str, value: Any, known: Mapping[str, Any]) -> Any:
    """The value of an option, as the architecture's function takes it: of the same kind as its default."""
    if name not in known:
        has = f"its options are {', '.join(known)}" if known else "it has no options"
        raise ValueError(f"{backbone} has no option {name!r}; {has}")
    default = known[name]
    if isinstance(default, float):
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= _MAX_ALPHA:
            return float(value)
        expected = f"a number from 0 to {_MAX_ALPHA:g}"
    elif isinstance(default, tuple):
        whole = isinstance(value, list | tuple) and all(isinstance(n, int) and not isinstance(n, bool) for n in value)
        if whole and len(value) <= _MAX_WIDTHS and all(n <= _MAX_WIDTH for n in value):
            return tuple(value)
        expected = f"up to {_MAX_WIDTHS} whole numbers, none above {_MAX_WIDTH}"
    else:
        if isinstance(value, str):
            return value
        expected = "a name"
    raise ValueError(f"{name} of {backbone}: expected {expected}, found {value!r}")
