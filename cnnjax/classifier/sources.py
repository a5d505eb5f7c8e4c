"""Whether a source's images and labels are what a classifier was made for."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cnnjax.classifier.config import Config
from cnnjax.data.listing import some
from cnnjax.data.pixels import Resizing, Scale, keeps_as_is
from cnnjax.data.source import Source
from cnnjax.train.tasks import Classification


def targets_of(source: Any, config: Config) -> Any:
    """A source's targets as a classifier takes them: of classes its labels.

    Raises:
        ValueError: They are of something else.
    """
    task = config.task
    if isinstance(task, Classification):
        return labels_of(source, config.classes)
    theirs = tuple(getattr(source, "target_names", ()))
    if theirs and theirs != task.names:
        raise ValueError(f"the source's targets must be {some(task.names)}, found {some(theirs)}")
    given = getattr(source, "targets", None)
    if given is None:
        raise ValueError(f"the source has classes and no targets of a {type(task).__name__}")
    size = task.outputs or 1
    return task.checked_targets(given, jax.ShapeDtypeStruct((len(source), size), jnp.float32))


def labels_of(source: Source, class_names: tuple[str, ...]) -> np.ndarray:
    """A source's labels i32[N] by another order of its classes.

    Raises:
        ValueError: The source's classes are others; the differences are listed.
    """
    theirs = tuple(source.class_names)
    faults = []
    if missing := [name for name in class_names if name not in theirs]:
        faults.append(f"it lacks {some(missing)}")
    if extra := [name for name in theirs if name not in class_names]:
        faults.append(f"it has {some(extra)}")
    if faults:
        raise ValueError(
            f"the source's classes must be the classifier's ({some(class_names)}), but {' and '.join(faults)}"
        )
    order = np.array([class_names.index(name) for name in theirs], np.int32)
    return order[np.asarray(source.labels)]


def check_training_source(source: Source, config: Config) -> None:
    """Refuse a source that a classifier cannot be trained on.

    Raises:
        ValueError: Its classes or targets are others, or in another order, or its images are read otherwise.
    """
    targets_of(source, config)  # classes that are not the same are refused here
    check_source(source, config.size, config.resizing)
    check_source_scale(source, config.scale)
    if isinstance(config.task, Classification) and tuple(source.class_names) != config.classes:
        raise ValueError(
            f"to train, the classes must be in the classifier's order {some(config.classes)}, "
            f"found {some(source.class_names)}"
        )


def check_source(source: Any, size: tuple[int, int], resizing: Resizing) -> None:
    """Refuse a source whose images are not what the classifier was made for.

    Raises:
        ValueError: They are of another size, or were resized in another way.
    """
    if tuple(source.image_size) != size:
        raise ValueError(
            f"the classifier takes images of {size}, the source gives {tuple(source.image_size)}: "
            f"open it with image_size={size}"
        )
    way = getattr(source, "resizing", resizing)
    # In memory at that size, nothing is resized.
    same = keeps_as_is(getattr(getattr(source, "images", None), "shape", (0, 0, 0))[1:3], size, way)
    if way != resizing and not same:
        raise ValueError(
            f"the classifier takes images resized by {resizing!r}, the source resizes by {way!r}: "
            f"open it with resizing={resizing!r}"
        )


def check_source_scale(source: Any, scale: Scale | None) -> None:
    """Refuse to train on files that are read by another scale than the classifier keeps: it would predict by that.

    Raises:
        ValueError: The scales of 16-bit files are not the same.
    """
    theirs = getattr(source, "scale", scale)
    if theirs != scale:
        raise ValueError(
            f"the source reads 16-bit files by {_scale_text(theirs)}, the classifier by {_scale_text(scale)}, which it "
            f"would predict by: open the source with scale={scale!r}, or make the classifier with scale={theirs!r}"
        )


def _scale_text(scale: Scale | None) -> str:
    return "no scale" if scale is None else f"the scale {scale[0]:g}:{scale[1]:g}"
