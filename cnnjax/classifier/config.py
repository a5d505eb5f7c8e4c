"""What a classifier is, apart from its weights: plain values, which a saved classifier keeps as JSON."""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import jax
from flax import nnx

from cnnjax.data.listing import some
from cnnjax.data.pixels import Resizing, Scale, checked_resizing, checked_scale
from cnnjax.files.importing import imported, is_path
from cnnjax.models import Backbone, Classifier
from cnnjax.models.heads import HEADS
from cnnjax.models.layer_order import output_shape
from cnnjax.models.own import ImportedBackbone, OwnBackbone, OwnHead, build_head, checked_head
from cnnjax.models.preprocessing import checked_preprocessing
from cnnjax.models.registry import Entry, entry, entry_or_own
from cnnjax.models.sizes import sides
from cnnjax.train.own import TaskCode
from cnnjax.train.tasks import Classification, MultiLabel, Regression, Task, task_from_config

TOP = "top"
_APART = ("scale", "code", "task", "head_code", "task_path")
# A config may come from a stranger: what would take hours only to describe is refused.
_MAX_SIZE = 2048
_MAX_FEATURES = 1 << 22


@dataclass(frozen=True)
class Config:
    """Everything that decides a classifier, apart from its weights.

    Attributes:
        backbone: A key of `cnnjax.models.BACKBONES`, or the import path of a network of the user's
            (`cnnjax.models.own`); its code is imported when the model is built, and not before.
        classes: The classes' names, in the order of their labels.
        image_size: Height and width of the images in pixels, one number where they are the same.
        head: A key of `cnnjax.models.heads.HEADS`, "top" (the backbone's own classification layers), or the import path
            of a function that builds one (`cnnjax.models.own.build_head`).
        preprocessing: A key of `cnnjax.models.PREPROCESSING`.
        resizing: How images come to their size; see `cnnjax.data.resize`.
        options: The architecture's own (`cnnjax.models.registry`), such as `alpha` of mobilenet; those of its
            classification layers, such as `pooling` of cifar_cnn, with head "top" alone.
        scale: Which values of 16-bit files become 0 and 255; see `cnnjax.data.Folder`.
        code: The function or module at the import path, if it is at hand; not saved.
        task: What the outputs mean; classes if not given. Its names are `classes`.
        head_code: The function at the head's import path, if it is at hand; not saved.
        task_path: The import path of the function that gave a task of the user's.

    Raises:
        LookupError: There is no such backbone, head or preprocessing; the nearest name is given.
        ValueError: A value of another kind or range.

    >>> config = Config("mobilenet", ("cats", "dogs"), 96, "linear", "tf", options={"alpha": 0.25})
    >>> config.build().head.output_shape(), Config.from_json(config.to_json()) == config
    ((1,), True)
    """

    backbone: str
    classes: tuple[str, ...]
    image_size: int | tuple[int, int]
    head: str
    preprocessing: str
    resizing: Resizing = "bilinear"
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    scale: Scale | None = None
    code: OwnBackbone | None = field(default=None, compare=False, repr=False)
    task: Task = None  # ty: ignore[invalid-assignment]  # set below
    head_code: OwnHead | None = field(default=None, compare=False, repr=False)
    task_path: str = ""

    def __post_init__(self) -> None:
        for name in ("backbone", "head", "preprocessing", "resizing"):
            if not isinstance(getattr(self, name), str):
                raise ValueError(f"{name}: expected a name, found {getattr(self, name)!r}")
        found = self._entry
        if isinstance(found, ImportedBackbone) and self.head == TOP:
            raise ValueError(
                f"head: {self.backbone} is a network of your own, without a top; give {' or '.join(HEADS)}"
            )
        if self.head_code is None:
            checked_head(self.head, TOP)
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
        height, width = self.size
        if max(height, width) > _MAX_SIZE:
            raise ValueError(
                f"image_size: expected a whole number of pixels from 1 to {_MAX_SIZE}, found {self.image_size!r}"
            )
        object.__setattr__(self, "image_size", height if height == width else (height, width))
        if not isinstance(self.options, Mapping):
            raise ValueError(f"options: expected values by name, found {self.options!r}")
        object.__setattr__(self, "options", found.checked(self.options, include_top=self.head == TOP))

    @property
    def own(self) -> bool:
        """Whether the backbone is a network of the user's, which `backbone` names by an import path."""
        return isinstance(self._entry, ImportedBackbone)

    @property
    def _entry(self) -> Entry | ImportedBackbone:
        return entry_or_own(self.backbone) if self.code is None else ImportedBackbone(self.backbone, self.code)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images."""
        return sides(self.image_size)

    def build(self, seed: int = 0) -> Classifier:
        """The model, filled with random numbers; under `nnx.eval_shape` abstract."""
        backbone = self.build_backbone(nnx.Rngs(jax.random.fold_in(jax.random.key(seed), 1)))
        return self.on(backbone, seed)

    def build_backbone(self, rngs: nnx.Rngs) -> Any:
        """The backbone alone; with head "top" it ends in logits."""
        asked, found = dict(self.options), self._entry
        if isinstance(found, ImportedBackbone):
            return found.build((*self.size, 3), rngs, asked)
        if self.head == TOP:
            known = found.options
            without = {k: v for k, v in self.options.items() if not known[k].of_top}
            self._check_features(nnx.eval_shape(lambda: self._created(nnx.Rngs(0), include_top=False, **without)))
            asked |= {"classes": self._top_outputs, "classifier_activation": None}
        return self._created(rngs, include_top=self.head == TOP, **asked)

    def _created(self, rngs: nnx.Rngs, **asked: Any) -> Backbone:
        return entry(self.backbone).function(input_shape=(*self.size, 3), rngs=rngs, **asked)

    def _check_features(self, backbone: nnx.Module) -> tuple[int, ...]:
        """Refuse a dense layer on more features than any machine has room for."""
        shape = output_shape(backbone, (*self.size, 3))
        if (features := math.prod(shape)) > _MAX_FEATURES:
            raise ValueError(
                f"{self.backbone} gives {features:,} features at {self.image_size} pixels, more than a dense layer "
                f"takes here ({_MAX_FEATURES:,}): take smaller images, or head='linear'"
            )
        return shape

    def on(self, backbone: nnx.Module, seed: int) -> Classifier:
        """The model on a backbone; a head's random numbers are those of `nnx.Rngs(seed)`."""
        head = None
        if self.head != TOP:
            lecture = self.head == "lecture"
            shape = self._check_features(backbone) if lecture else output_shape(backbone, (*self.size, 3))
            head = build_head(self.head, shape, self.task.outputs or 1, nnx.Rngs(seed), self.head_code)
        return Classifier(backbone, head, self.preprocessing)

    def filled(self, weights: str | os.PathLike[str], seed: int) -> Classifier:
        """The model with a backbone of weights from a file: Keras's, or those of a network of one's own.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: The weights do not fit.
        """
        from cnnjax.weights.assign import load_weights
        from cnnjax.weights.leaves import load_leaves

        # Abstract: nothing is drawn that the file replaces.
        backbone = nnx.eval_shape(lambda: self.build_backbone(nnx.Rngs(0)))
        if self.own:
            load_leaves(backbone, weights)
        else:
            load_weights(backbone, weights, leave_out=() if self.head == TOP else "top")
        return self.on(backbone, seed)

    @property
    def _top_outputs(self) -> int | None:
        return len(self.classes) if isinstance(self.task, Classification) else self.task.outputs

    def to_json(self) -> dict[str, Any]:
        """The same as plain values."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in _APART}
        options = {k: list(v) if isinstance(v, tuple) else v for k, v in self.options.items()}
        size = self.image_size if isinstance(self.image_size, int) else list(self.image_size)
        scale = {} if self.scale is None else {"scale": list(self.scale)}
        plain = isinstance(self.task, Classification) and self.task == Classification(self.classes)
        own = {"code": self.task_path, "names": list(self.classes)} if self.task_path else {}
        task = {} if plain else {"task": {**self.task.to_config(), **own}}
        return {**values, "image_size": size, "classes": list(self.classes), "options": options, **scale, **task}

    @classmethod
    def from_json(
        cls, values: Mapping[str, Any], task: Task | None = None, run: Mapping[str, str] | None = None
    ) -> "Config":
        """The config of which `to_json` gave `values`; raises as the constructor, and for names it has not.

        Args:
            values: Plain values.
            task: In place of one that was made of functions.
            run: Import paths in the task that may be run, and what is run for each.
        """
        names = [f.name for f in fields(cls) if f.name not in ("code", "head_code", "task_path")]
        if faults := [f"{n!r} is missing" for n in names if n not in values and n not in ("scale", "task")]:
            raise ValueError(", ".join(faults))
        if faults := [f"{n!r} is unknown" for n in values if n not in names]:
            raise ValueError(f"{', '.join(faults)}; there are {', '.join(names)}")
        kept = values.get("task")
        if kept is None:
            return cls(**values)
        if not isinstance(kept, Mapping):
            raise ValueError(f"task: expected values by name, found {kept!r}")
        path = kept.get("code") if kept.get("kind") == "own" else None
        own = task if task is not None and kept.get("kind") == "own" else task_from_config(kept, run)
        return cls(**dict[str, Any](values, task=own, task_path=path if isinstance(path, str) else ""))

    @property
    def own_code(self) -> dict[str, str]:
        """Import paths of the user's code that it takes to build it, by what they are for."""
        found = {"backbone": self.backbone} if self.own else {}
        return found | ({"head": self.head} if is_path(self.head) else {})

    def functions(self) -> dict[str, Any]:
        """The user's functions in its head and its task, by what they are for."""
        head: dict[str, Any] = {}
        if is_path(self.head):
            head = {"head": self.head_code or imported(self.head)}
        if self.task_path:
            return head | {"task": imported(self.task_path)}
        if type(self.task) not in (Classification, MultiLabel, Regression):
            code = getattr(self.task, "code", None)
            own = {path: code.function(path) for path in code.paths} if isinstance(code, TaskCode) else {}
            return head | (own or {"task": type(self.task)})
        return head


def own_size(backbone: str, options: Mapping[str, Any] | None = None) -> tuple[int, int]:
    """Height and width that an architecture's images have if nothing else is said."""
    found = entry_or_own(backbone)
    return found.image_size if isinstance(found, ImportedBackbone) else found.image_size_of(options or {})


def own_preprocessing(backbone: str, options: Mapping[str, Any] | None = None) -> str:
    """What the published weights of an architecture expect of their pixels; "unit" where there are none.

    >>> own_preprocessing("vgg16"), own_preprocessing("lecture_cnn")
    ('caffe', 'unit')
    """
    return entry_or_own(backbone).preprocessing(options or {})


def _checked_classes(names: Any) -> tuple[str, ...]:
    if isinstance(names, str) or not isinstance(names, Sequence) or not all(isinstance(n, str) and n for n in names):
        raise ValueError(f"class names: expected a list of texts, found {names!r}")
    if len(names) < 2:
        raise ValueError(f"class names: a classifier needs at least two classes, found {list(names)}")
    if twice := sorted({n for n in names if list(names).count(n) > 1}):
        raise ValueError(f"class names: {', '.join(map(repr, twice))} given more than once")
    return tuple(names)
