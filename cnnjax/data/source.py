"""What a source of labelled images is, and the one that holds its images in memory."""

import functools
import math
import os
import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np

from cnnjax.data.listing import Selection
from cnnjax.data.pixels import (
    PIXEL_CHOICES,
    RESIZINGS,
    Resizing,
    checked_resizing,
    checked_scale,
    keeps_as_is,
    resize,
    scaled,
)
from cnnjax.files.digests import joined_digest

THREADS = min(4, max(2, os.cpu_count() or 2))
"""Threads of a process that read images."""
_CHUNK = 512
_READ = 64
_HERE = threading.local()
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


@runtime_checkable
class Source(Protocol):
    """A fixed, ordered set of labelled images that are read by index.

    Attributes:
        class_names: the classes, in the order of their labels.
        labels: i32[N], an index into `class_names` for every image.
        names: one name an image, unique within the source (a folder's images: the path below its root,
            with `/`).
        image_size: height and width of what `read` returns; of sounds the number of samples.
        skipped: the images left out, each as "name: reason".

    Two attributes more may be there: `targets`, a tree of arrays with a row an example, which stands for the labels
    where what is learned is no class; and `weights`, f32[N], how much each example counts in losses and metrics.
    """

    @property
    def class_names(self) -> tuple[str, ...]: ...
    @property
    def labels(self) -> np.ndarray: ...
    @property
    def names(self) -> tuple[str, ...]: ...
    @property
    def image_size(self) -> tuple[int, ...]: ...
    @property
    def skipped(self) -> tuple[str, ...]: ...

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the images' contents in order and of every choice that decides a pixel.

        Labels, names and places are left out: features computed from a source depend on its pixels alone.
        """
        ...

    def __len__(self) -> int: ...

    def read(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Returns the images at `indices`, in that order, as f32[n, H, W, 3] in 0..255."""
        ...


class InMemory:
    """A source of images given as arrays.

    Args:
        images: u8[N, H, W, C] or a float array in 0..255 of that shape; RGB, if C is 3. Kept as it is (floats as
            float32), not copied.
        labels: int[N], indices into `class_names`; None where there are `targets` instead.
        class_names: the classes, in the order of their labels.
        names: one name an image; their positions by default.
        image_size: resize to this height and width while reading; the images' own size by default.
        resizing: how; see `cnnjax.data.pixels.resize`.
        scale: which values of `images` become 0 and 255, such as (0, 1), "-1:1" or (0, 4095): then they may be of
            any real type, and a copy is kept as float32.
        targets: what is learned, where that is no class: a tree of arrays with a row an image.
        weights: f32[N], how much each image counts in losses and metrics; all the same if not given.

    Attributes:
        images: the array itself.
        selection: which files the images were read from, where `in_memory` read them from a folder.

    Raises:
        ValueError: shapes, types or ranges that do not fit; the message names the argument.

    >>> source = InMemory(np.zeros((2, 8, 8, 3), np.uint8), [0, 1], ("cat", "dog"))
    >>> source.read([1]).shape
    (1, 8, 8, 3)
    """

    def __init__(
        self,
        images: np.ndarray,
        labels: Sequence[int] | np.ndarray | None = None,
        class_names: Sequence[str] = (),
        names: Sequence[str] | None = None,
        image_size: tuple[int, int] | None = None,
        resizing: Resizing = "bilinear",
        scale: str | Sequence[float] | None = None,
        *,
        targets: Any = None,
        weights: Sequence[float] | np.ndarray | None = None,
    ) -> None:
        images, wanted = np.asarray(images), checked_scale(scale)
        if images.ndim != 4 or 0 in images.shape[1:]:
            raise ValueError(f"images: expected shape [N, H, W, C], found {list(images.shape)}")
        if wanted is not None:
            try:
                images = scaled(images, wanted)
            except ValueError as error:
                raise ValueError(f"images: {error}") from None
        elif images.dtype != np.uint8:
            if not np.issubdtype(images.dtype, np.floating):
                raise ValueError(
                    f"images: expected uint8, or floats in 0..255, found {images.dtype}; other values need a "
                    "scale, such as scale=(0, 4095)"
                )
            images = images.astype(np.float32, copy=False)
            # `not (... <= ...)` refuses NaN as well.
            if images.size and not (images.min() >= 0 and images.max() <= 255):
                raise ValueError(
                    f"images: expected values in 0..255, found {images.min()} to {images.max()}; other values need a "
                    "scale, such as scale=(-1, 1)"
                )
            # Up to 2: of numbers in 0..1 resizing and changes of brightness leave some above 1.
            if images.size and 0 < images.max() <= 2:
                raise ValueError(
                    f"images: expected values in 0..255, found floats from {images.min():g} to {images.max():g}, "
                    "nearly black; give scale=(0, 1) if 1 is white (or scale=(0, 255) to take them as they are)"
                )
        self.class_names = tuple(class_names)
        if (labels is None) == (targets is None):
            raise ValueError("give labels and class_names, or targets")
        if labels is not None:
            self.labels = as_labels(labels, len(images), len(self.class_names))
        # A list of numbers is meant as an array, not as a tree of scalars.
        self.targets = np.asarray(targets) if isinstance(targets, list) and np.ndim(targets) else targets
        self.weights = None if weights is None else np.asarray(weights)
        self.names = tuple(str(i) for i in range(len(images))) if names is None else tuple(names)
        if len(self.names) != len(images):
            raise ValueError(f"names: expected {len(images)}, one an image, found {len(self.names)}")
        size, channels = as_size(images.shape[1:3] if image_size is None else image_size), images.shape[-1]
        self.image_size: tuple[int, ...] = size if channels == 3 else (*size, channels)
        self.resizing = checked_resizing(resizing)
        self.skipped: tuple[str, ...] = ()
        self.selection: Selection | None = None
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        classes = f"{len(self.class_names)} classes, " if self.class_names else ""
        return f"InMemory({len(self)} images, {classes}{self.image_size})"

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of the images in order, their shape and type, and the pixel choices."""
        choices = PIXEL_CHOICES + RESIZINGS[self.resizing]
        parts = (np.ascontiguousarray(self.images[start : start + _CHUNK]) for start in range(0, len(self), _CHUNK))
        return joined_digest(f"{choices}; {self.image_size}; {self.images.shape} {self.images.dtype}", parts)

    def read(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Returns f32[n, H, W, 3] in 0..255; raises `IndexError` for an index outside 0..N-1."""
        return self.read_kept(indices).astype(np.float32, copy=False)

    def read_kept(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """As `read`, but as uint8 where the images are kept so and not resized: a quarter of the bytes."""
        wanted = as_indices(indices, len(self))
        size = as_size(self.image_size[:2])
        if keeps_as_is(self.images.shape[1:3], size, self.resizing):
            return self.images[wanted]
        images = np.empty((len(wanted), *size, self.images.shape[-1]), np.float32)
        for slot, index in enumerate(wanted):
            images[slot] = resize(self.images[index], size, self.resizing)
        return images


@dataclass(frozen=True)
class _AsKept:
    source: InMemory

    def read(self, indices: np.ndarray) -> np.ndarray:
        return self.source.read_kept(indices)


def as_kept(source: Any, dtype: Any) -> tuple[Any, Any]:
    """What reads a source's examples in fewer bytes where it can, and their type: `dtype` where it cannot."""
    if isinstance(source, InMemory) and type(source).read is InMemory.read:  # a class of the user's may read otherwise
        kept = _AsKept(source)
        return kept, kept.read(np.arange(0)).dtype
    return source, dtype


def in_memory(source: Source, budget: int, progress: Callable[[int, int], None] | None = None) -> InMemory | None:
    """Reads a source once and keeps its images as uint8, if they fit: a quarter of what floats take.

    Every value is rounded to the nearest whole number, so it differs from what `source.read` gives by at most
    0.5 of 255; where nothing is resized it does not differ. The digest is that of the rounded images: features
    stored for `source` itself do not serve here.

    Args:
        source: any source of images.
        budget: bytes that the images may take, N * H * W * 3.
        progress: called with (images done, images in all).

    Returns:
        A source with the same labels, classes, names and skipped images; None where they do not fit.

    Raises:
        ImageError: an image that cannot be decoded; nothing is kept.

    >>> images = InMemory(np.full((2, 4, 4, 3), 99.6, np.float32), [0, 1], ("cat", "dog"))
    >>> in_memory(images, budget=96).images[0, 0, 0].tolist(), in_memory(images, budget=95)
    ([100, 100, 100], None)
    """
    shape = (len(source), *image_shape(source.image_size))
    if math.prod(shape) > budget:
        return None
    images = np.empty(shape, np.uint8)
    for start in range(0, len(source), _READ):
        rows = np.arange(start, min(start + _READ, len(source)))
        images[rows] = np.rint(source.read(rows))
        if progress:
            progress(int(rows[-1]) + 1, len(source))
    known: dict[str, Any] = {"targets": getattr(source, "targets", None), "weights": getattr(source, "weights", None)}
    if known["targets"] is None:
        known |= {"labels": source.labels, "class_names": source.class_names}
    kept = InMemory(images, names=source.names, **known)
    kept.skipped, kept.selection = source.skipped, getattr(source, "selection", None)
    return kept


def image_shape(size: Sequence[int]) -> tuple[int, ...]:
    """The shape of an image, (H, W, C), of a source's `image_size`: (H, W) is of three channels.

    >>> image_shape((8, 6)), image_shape((8, 6, 1))
    ((8, 6, 3), (8, 6, 1))
    """
    return (*size, 3) if len(size) == 2 else tuple(size)


def targets_of(source: Any) -> Any:
    """What is to be learned of a source's examples: its `targets`, or its labels where it has none.

    >>> targets_of(InMemory(np.zeros((2, 8, 8, 3), np.uint8), targets={"age": np.array([3.0, 4.0])}))
    {'age': array([3., 4.])}
    """
    targets = getattr(source, "targets", None)
    return source.labels if targets is None else targets


def weights_of(source: Any) -> np.ndarray | None:
    """How much each example of a source counts, f32[N]; None where all count the same.

    >>> weights_of(InMemory(np.zeros((2, 8, 8, 3), np.uint8), [0, 1], ("a", "b"), weights=[1, 3])).tolist()
    [1, 3]
    """
    return getattr(source, "weights", None)


def rows_of(tree: Any, index: Any) -> Any:
    """The rows at `index` of each array of a tree of dictionaries, lists and tuples; here, since it needs no JAX."""
    if isinstance(tree, dict):
        return {name: rows_of(x, index) for name, x in tree.items()}
    if isinstance(tree, list | tuple):
        parts = [rows_of(x, index) for x in tree]
        return type(tree)(*parts) if hasattr(tree, "_fields") else type(tree)(parts)
    return None if tree is None else np.asarray(tree)[index]


def as_size(size: Sequence[int]) -> tuple[int, int]:
    """Returns `size` as (height, width); raises `ValueError` unless it is two positive whole numbers."""
    if len(size) != 2 or any(int(n) != n or n < 1 for n in size):
        raise ValueError(f"image_size: expected height and width, two positive whole numbers, found {tuple(size)}")
    return int(size[0]), int(size[1])


def as_labels(labels: Sequence[int] | np.ndarray, count: int, classes: int) -> np.ndarray:
    """Returns `labels` as i32[count]; raises `ValueError` where their number, type or range does not fit."""
    found = np.asarray(labels)
    if found.shape != (count,):
        raise ValueError(f"labels: expected shape [{count}], one an image, found {list(found.shape)}")
    if count and not np.issubdtype(found.dtype, np.integer):
        raise ValueError(f"labels: expected whole numbers, found {found.dtype}")
    if count and (found.min() < 0 or found.max() >= classes):
        raise ValueError(
            f"labels: expected 0 to {classes - 1} for {classes} classes, found {found.min()} to {found.max()}"
        )
    return found.astype(np.int32)


def as_indices(indices: Sequence[int] | np.ndarray, count: int) -> np.ndarray:
    """Returns `indices` as int64[n]; raises `IndexError` for one outside 0..count-1."""
    found = np.asarray(indices)
    if found.size == 0:
        return np.zeros(0, np.int64)
    if found.ndim != 1 or not np.issubdtype(found.dtype, np.integer):
        raise IndexError(f"indices: expected whole numbers of shape [n], found {found.dtype}{list(found.shape)}")
    if found.min() < 0 or found.max() >= count:
        raise IndexError(f"indices: expected 0 to {count - 1}, found {found.min()} to {found.max()}")
    return found.astype(np.int64)


@contextmanager
def single_threaded() -> Generator[None]:
    """In this block the thread it is in shares no work out: others of its kind do the same for other batches."""
    before = getattr(_HERE, "single_threaded", False)
    _HERE.single_threaded = True
    try:
        yield
    finally:
        _HERE.single_threaded = before


def map_threaded(function: Callable[[_Item], _Result], items: Sequence[_Item]) -> list[_Result]:
    """Maps over a few threads, results in the items' order.

    Decoding, hashing and reading leave Python's lock, so threads do run side by side. Items are handed over
    in runs rather than one by one: two million futures would weigh more than the images' names. Within
    `single_threaded` the calling thread does all by itself.
    """
    if getattr(_HERE, "single_threaded", False):
        return [function(item) for item in items]
    run = max(1, min(_CHUNK, -(-len(items) // (THREADS * 4))))
    starts = range(0, len(items), run)
    done = _pool(os.getpid()).map(lambda start: [function(item) for item in items[start : start + run]], starts)
    return [result for results in done for result in results]


@functools.lru_cache(maxsize=1)
def _pool(pid: int) -> ThreadPoolExecutor:
    """One pool a process: a forked child cannot use its parent's threads."""
    return ThreadPoolExecutor(THREADS, thread_name_prefix="cnnjax-read")
