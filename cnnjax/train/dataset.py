"""Stored features as rows of a training set."""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from cnnjax.data.source import image_shape, in_memory, rows_of, targets_of
from cnnjax.features import Images, StoreTooSmall, fits_on_device
from cnnjax.files.digests import digest
from cnnjax.runtime.devices import Devices
from cnnjax.train.task import Labelled, Task

Kind = Literal["features", "images", "source"]


class LabelledImages(Images, Protocol):
    """What the trainer asks of a data source (see `cnnjax.data.Source`).

    Where it has `targets`, a tree of arrays with a row an example, they stand for the labels; where it has `weights`,
    f32[N], they say how much each example counts.
    """

    @property
    def labels(self) -> np.ndarray: ...
    @property
    def image_size(self) -> tuple[int, ...]: ...


@dataclass(frozen=True)
class FeatureDataset:
    """The examples of one source, ready to be trained or evaluated on.

    Attributes:
        kind: What is at hand: "features" (the frozen part has run), "images" (decoded; the frozen part runs
            in every step) or "source" (read anew in every epoch).
        labelled: Targets, and weights where the examples have some.
        arrays: One array `[N * views, ...]` a feature, or the images; on the device, or on disk if they do
            not fit there.
        on_device: Whether `arrays` are in device memory.
        reused: Whether all of them were found in the store.
        source: The images, where they are read anew.
        views: How many stored views each example has, one after another.
    """

    kind: Kind
    labelled: Labelled
    arrays: tuple[Any, ...] = ()
    on_device: bool = False
    reused: bool = False
    source: LabelledImages | None = None
    views: int = 1

    def __len__(self) -> int:
        return self.labelled.size

    @property
    def decoded(self) -> bool:
        """Whether it is images that a step gets, and not features."""
        return self.kind != "features"

    def part(self, chosen: np.ndarray) -> "FeatureDataset":
        """The rows of some examples alone, with all their views, in that order."""
        if self.source is not None:
            return replace(self, labelled=self.labelled.take(chosen), source=_Part(self.source, chosen))
        places = (chosen[:, None] * self.views + np.arange(self.views)).ravel()
        return replace(self, labelled=self.labelled.take(chosen), arrays=tuple(x[places] for x in self.arrays))

    def take(self, index: np.ndarray) -> tuple[Any, ...]:
        """The rows at `index`, from memory, from disk or decoded anew."""
        if self.source is not None:
            return (self.source.read(index),)
        return tuple(np.asarray(x[index]) for x in self.arrays)


class HostShard:
    """A part of every batch that is read from a source: a host's own.

    Args:
        source: the images.
        part: which of a batch's rows.
    """

    def __init__(self, source: LabelledImages, part: slice):
        self._source, self._part = source, part
        self.targets = targets_of(source)

    def __len__(self) -> int:
        return len(self._source)

    def read(self, indices: np.ndarray) -> np.ndarray:
        """The images of the part alone."""
        return self._source.read(indices[self._part])


class _Part:
    """Some images of a source."""

    def __init__(self, source: LabelledImages, chosen: np.ndarray):
        self._source, self._chosen = source, chosen
        self.targets, self.image_size = rows_of(targets_of(source), chosen), source.image_size
        self.digest = digest(source.digest, chosen)

    def __len__(self) -> int:
        return len(self._chosen)

    def read(self, indices: np.ndarray) -> np.ndarray:
        return self._source.read(self._chosen[np.asarray(indices)])


def checked_labelled(source: LabelledImages, image_size: tuple[int, ...], task: Task, outputs: Any) -> Labelled:
    """What is known of the examples of a source that fits a model for images of `image_size`.

    Args:
        source: the images.
        image_size: what the model takes.
        task: what is done with them.
        outputs: shapes of the model's outputs.

    Raises:
        ValueError: it does not fit, or has no images.
    """
    if image_shape(source.image_size) != image_shape(image_size):
        raise ValueError(f"the trainer was made for images of {image_size}, the source has {source.image_size}")
    count = len(source)
    if not count:
        raise ValueError("the source has no images")
    given = targets_of(source)
    if not jax.tree.leaves(given) or any(np.shape(x)[:1] != (count,) for x in jax.tree.leaves(given)):
        found = jax.tree.map(lambda x: list(np.shape(x)), given)
        raise ValueError(f"targets: expected arrays with a row for each of {count} images, found {found}")
    return Labelled(task.checked_targets(given, outputs), checked_weights(getattr(source, "weights", None), count))


def checked_weights(weights: Any, count: int) -> np.ndarray | None:
    """Weights of examples as f32[N], None where they have none.

    Raises:
        ValueError: they are not `count` finite numbers from 0 on, or all of them are 0.
    """
    if weights is None:
        return None
    found = np.asarray(weights)
    if found.shape != (count,) or found.dtype.kind not in "biuf":
        raise ValueError(f"weights: expected {count} numbers, one an example, found {found.dtype}{list(found.shape)}")
    found = found.astype(np.float32)
    low, high = float(np.min(found)), float(np.max(found))
    if not np.isfinite(found).all() or low < 0 or not high:
        raise ValueError(f"weights: expected finite numbers from 0 on, not all 0, found {low:g} to {high:g}")
    return found


def digest_of(source: Any) -> str:
    """SHA-256 (hex) of a source's images, and of all that is known of them: what makes a run another one."""
    targets, weights = getattr(source, "targets", None), getattr(source, "weights", None)
    if targets is None and weights is None:
        return digest(source.digest, np.asarray(source.labels), *source.class_names)
    known, tree = jax.tree.flatten(targets_of(source))
    names = (*getattr(source, "target_names", ()), *getattr(source, "class_names", ()))
    own = [] if weights is None else [np.asarray(weights)]
    return digest(source.digest, str(tree), *(np.asarray(x) for x in known), *own, *names)


def image_rows(
    source: LabelledImages, labelled: Labelled, shape: tuple[int, ...], devices: Devices | None = None
) -> FeatureDataset:
    """Images for augmentation in the step: in memory as uint8 if they fit, read anew otherwise."""
    nbytes = len(source) * math.prod(shape)
    if len(source.image_size) in (2, 3) and _fits(nbytes, devices):
        images: Any = source
        kept = in_memory(images, nbytes)
        assert kept is not None
        return FeatureDataset("images", *_on_device(labelled, (kept.images,), devices), True)
    return FeatureDataset("source", labelled, source=source)


def _fits(nbytes: int, devices: Devices | None) -> bool:
    if devices is None:
        return fits_on_device(nbytes)
    return not devices.agree(not fits_on_device(nbytes * devices.copies))[0]


def _on_device(labelled: Labelled, arrays: tuple[np.ndarray, ...], devices: Devices | None) -> tuple[Any, Any]:
    return jax.tree.map(jnp.asarray, (labelled, arrays)) if devices is None else devices.replicate((labelled, arrays))


def feature_rows(
    get: Callable[[], tuple[tuple[np.ndarray, ...], bool]], source: LabelledImages, labelled: Labelled, views: int,
    devices: Devices | None = None,
) -> FeatureDataset:  # fmt: skip
    """Features from the store, on the device if they fit; the images themselves where they do not fit the store.

    Args:
        get: gives the features, and whether they were found (`FeatureStore.get`).
        source: the images.
        labelled: what is known of them.
        views: how many stored views each has.
        devices: what the rows are spread over; all hosts make the features, and do the same with them.
    """
    arrays, reused, refused = (), False, None
    try:
        arrays, reused = get()
    except StoreTooSmall as error:
        refused = error
    if devices is not None and devices.agree(refused is not None)[0]:
        refused = refused or StoreTooSmall("the features do not fit another host's store")
    if refused is not None:
        if views > 1:
            raise refused
        warnings.warn(f"{refused}; the frozen part runs in every step instead", RuntimeWarning, stacklevel=3)
        return FeatureDataset("source", labelled, source=source)
    if _fits(sum(x.nbytes for x in arrays), devices):
        return FeatureDataset("features", *_on_device(labelled, arrays, devices), True, reused, views=views)
    return FeatureDataset("features", labelled, arrays, False, reused, views=views)
