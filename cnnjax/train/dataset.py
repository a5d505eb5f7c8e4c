"""Stored features as rows of a training set."""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from cnnjax.data.source import image_shape, in_memory
from cnnjax.features import Pictures, StoreTooSmall, fits_on_device
from cnnjax.runtime.devices import Devices
from cnnjax.staging.trace import digest

Kind = Literal["features", "images", "source"]


class LabelledPictures(Pictures, Protocol):
    """What the trainer asks of a data source (see `cnnjax.data.Source`)."""

    @property
    def labels(self) -> np.ndarray: ...
    @property
    def image_size(self) -> tuple[int, ...]: ...


@dataclass(frozen=True)
class Rows:
    """The examples of one source, ready to be trained or evaluated on.

    Attributes:
        kind: What is at hand: "features" (the frozen part has run), "images" (decoded; the frozen part runs
            in every step) or "source" (read anew in every epoch).
        labels: i32[N].
        arrays: One array `[N * views, ...]` a feature, or the images; on the device, or on disk if they do
            not fit there.
        on_device: Whether `arrays` are in device memory.
        reused: Whether all of them were found in the store.
        source: The pictures, where they are read anew.
        views: How many stored views each example has, one after another.
    """

    kind: Kind
    labels: Any
    arrays: tuple[Any, ...] = ()
    on_device: bool = False
    reused: bool = False
    source: LabelledPictures | None = None
    views: int = 1

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def decoded(self) -> bool:
        """Whether it is images that a step gets, and not features."""
        return self.kind != "features"

    def part(self, chosen: np.ndarray) -> "Rows":
        """The rows of some examples alone, with all their views, in that order."""
        if self.source is not None:
            return replace(self, labels=np.asarray(self.labels)[chosen], source=_Part(self.source, chosen))
        places = (chosen[:, None] * self.views + np.arange(self.views)).ravel()
        return replace(self, labels=self.labels[chosen], arrays=tuple(x[places] for x in self.arrays))

    def take(self, index: np.ndarray) -> tuple[Any, ...]:
        """The rows at `index`, from memory, from disk or decoded anew."""
        if self.source is not None:
            return (self.source.read(index),)
        return tuple(np.asarray(x[index]) for x in self.arrays)


class Own:
    """A part of every batch that is read from a source: a host's own.

    Args:
        source: the pictures.
        part: which of a batch's rows.
    """

    def __init__(self, source: LabelledPictures, part: slice):
        self._source, self._part = source, part
        self.labels = source.labels

    def __len__(self) -> int:
        return len(self._source)

    def read(self, indices: np.ndarray) -> np.ndarray:
        """The pictures of the part alone."""
        return self._source.read(indices[self._part])


class _Part:
    """Some pictures of a source."""

    def __init__(self, source: LabelledPictures, chosen: np.ndarray):
        self._source, self._chosen = source, chosen
        self.labels, self.image_size = np.asarray(source.labels)[chosen], source.image_size
        self.digest = digest(source.digest, chosen)

    def __len__(self) -> int:
        return len(self._chosen)

    def read(self, indices: np.ndarray) -> np.ndarray:
        return self._source.read(self._chosen[np.asarray(indices)])


def checked_labels(source: LabelledPictures, image_size: tuple[int, ...], outputs: int) -> np.ndarray:
    """The labels of a source that fits a model of `outputs` logits for pictures of `image_size`.

    Raises:
        ValueError: it does not fit, or has no pictures.
    """
    if image_shape(source.image_size) != image_shape(image_size):
        raise ValueError(f"the trainer was made for pictures of {image_size}, the source has {source.image_size}")
    labels = np.asarray(source.labels)
    if not len(labels):
        raise ValueError("the source has no pictures")
    if labels.min() < 0 or labels.max() >= max(outputs, 2):
        raise ValueError(
            f"labels {labels.min()} to {labels.max()} do not fit {outputs} logit{'s'[: outputs > 1]}: "
            "one logit tells two classes apart, more tell one class each"
        )
    return labels


def image_rows(
    source: LabelledPictures, labels: np.ndarray, shape: tuple[int, ...], devices: Devices | None = None
) -> Rows:
    """Pictures for augmentation in the step: in memory as uint8 if they fit, read anew otherwise."""
    nbytes = len(source) * math.prod(shape)
    if len(source.image_size) in (2, 3) and _fits(nbytes, devices):
        pictures: Any = source
        kept = in_memory(pictures, nbytes)
        assert kept is not None
        return Rows("images", *_on_device(labels, (kept.images,), devices), True)
    return Rows("source", labels, source=source)


def _fits(nbytes: int, devices: Devices | None) -> bool:
    if devices is None:
        return fits_on_device(nbytes)
    return not devices.agree(not fits_on_device(nbytes * devices.copies))[0]


def _on_device(labels: np.ndarray, arrays: tuple[np.ndarray, ...], devices: Devices | None) -> tuple[Any, Any]:
    return jax.tree.map(jnp.asarray, (labels, arrays)) if devices is None else devices.replicate((labels, arrays))


def feature_rows(
    get: Callable[[], tuple[tuple[np.ndarray, ...], bool]], source: LabelledPictures, labels: np.ndarray, views: int,
    devices: Devices | None = None,
) -> Rows:  # fmt: skip
    """Features from the store, on the device if they fit; the pictures themselves where they do not fit the store.

    Args:
        get: gives the features, and whether they were found (`FeatureStore.get`).
        source: the pictures.
        labels: theirs.
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
        return Rows("source", labels, source=source)
    if _fits(sum(x.nbytes for x in arrays), devices):
        return Rows("features", *_on_device(labels, arrays, devices), True, reused, views=views)
    return Rows("features", labels, arrays, False, reused, views=views)
