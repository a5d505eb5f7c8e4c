"""The store of computed features: each made once, kept on disk, and never made again."""

import os
import shutil
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np

from cnnjax.data.loader import read_batches
from cnnjax.staging import Feature, Staged
from cnnjax.staging.trace import digest

Progress = Callable[[int, int], None]
GIB = 1 << 30
PASS_BATCH = 32


class Pictures(Protocol):
    """What the store asks of a data source (see `cnnjax.data.Source`)."""

    @property
    def digest(self) -> str: ...
    def __len__(self) -> int: ...
    def read(self, indices: np.ndarray) -> np.ndarray: ...


@dataclass(frozen=True)
class Pass:
    """A pass over a source: what was made, from what, how long it took.

    Attributes:
        images: how many images went through.
        decoded: whether the pictures themselves were read (False: made from other stored features).
        equations: how many equations of the model ran for each batch.
        seconds: wall-clock time, compilation included.
        waited: how much of it was spent waiting for pictures to be read.
    """

    images: int
    decoded: bool
    equations: int
    seconds: float
    waited: float = 0.0


class StoreTooSmall(OSError):
    """The features do not fit into the store's budget or onto its disk."""


class FeatureStore:
    """Features by key, on disk or (without a folder) in memory.

    A feature's file is named by the digest of the program and weights that made it, the digest of the
    pictures, the platform and the versions of the libraries: a wrong hit is impossible. Files are written
    whole or not at all, so a killed run leaves nothing half-made behind. Where the budget is exceeded,
    the features not used for the longest time are removed.

    Args:
        root: the folder; None keeps the features in this process only.
        budget: bytes that the store may hold.

    Attributes:
        passes: one entry for each pass made by this process; empty if all was found.
    """

    def __init__(self, root: str | os.PathLike[str] | None = None, budget: int = 40 * GIB):
        self.root = Path(root) if root is not None else None
        self.budget = budget
        self.passes: list[Pass] = []
        self._memory: dict[str, np.ndarray] = {}
        self._in_use: set[str] = set()
        if self.root is not None:
            if self.root.exists() and not self.root.is_dir():
                raise NotADirectoryError(f"the feature store {self.root} is a file; give a folder")
            self.root.mkdir(parents=True, exist_ok=True)

    def __repr__(self) -> str:
        return f"FeatureStore({str(self.root) if self.root else None!r})"

    def get(
        self,
        staged: Staged,
        fixed: Any,
        source: Pictures,
        batch: int = PASS_BATCH,
        progress: Progress | None = None,
        workers: int = 0,
    ) -> tuple[tuple[np.ndarray, ...], bool]:
        """The features of every image of a source; made now if they are not there.

        Args:
            staged: the cut program.
            fixed: its frozen leaves.
            source: the pictures.
            batch: images a step of the pass.
            progress: called with (images done, images in all).
            workers: processes that read pictures; 0 reads in threads of this one.

        Returns:
            One array `[N, ...]` for each of `staged.features`, and whether all of them were found.

        Raises:
            StoreTooSmall: they do not fit.
        """
        found = {f.key: self._load(f, source) for f in staged.features}
        missing = [f for f in staged.features if found[f.key] is None]
        if missing:
            report = progress or (lambda done, total: None)
            found |= self._make(staged, missing, fixed, source, batch, report, workers)
        return tuple(_present(found[f.key]) for f in staged.features), not missing

    def release(self) -> None:
        """Say that the features given out so far are no longer read: they may be removed to make room."""
        self._in_use.clear()

    def _make(
        self,
        staged: Staged,
        missing: list[Feature],
        fixed: Any,
        source: Pictures,
        batch: int,
        progress: Progress,
        workers: int,
    ) -> dict[str, np.ndarray]:
        start, count = time.perf_counter(), len(source)
        self._make_room(sum(f.nbytes for f in missing) * count)
        # Loaded, not only there: what proves damaged must not be counted on.
        at_hand = [f for f in staged.intermediates if self._load(f, source) is not None]
        maker = staged.maker(missing, batch, stored=at_hand)
        stored = [_present(self._load(f, source)) for f in maker.reads]
        batches = [np.arange(k, min(k + batch, count)) for k in range(0, count, batch)]

        def features(rows: np.ndarray) -> tuple[Any, ...]:
            return tuple(_padded(x[rows], batch) for x in stored)

        read = read_batches(source, batches, workers=workers) if maker.reads_images else None
        waited = 0.0
        with (
            closing(read) if read else nullcontext(),
            ThreadPoolExecutor(1) as beside,
            self._writers(missing, source) as arrays,
        ):
            # Reading begins, and its worker processes start, while the program is compiled.
            first: Any = beside.submit(next, read) if read else None
            image = jax.ShapeDtypeStruct((batch, *staged.image.shape), staged.image.dtype) if read else None
            values = [jax.ShapeDtypeStruct((batch, *x.shape[1:]), x.dtype) for x in stored]
            run = jax.jit(maker.run).lower(fixed, image, *values).compile()
            for rows, values in zip(batches, ahead(features, batches), strict=True):
                asked = time.perf_counter()
                images = None
                if read:
                    images, first = _padded(first.result() if first else next(read), batch), None
                waited += time.perf_counter() - asked
                for array, made in zip(arrays, run(fixed, images, *values), strict=True):
                    array[rows] = np.asarray(made)[: len(rows)]
                progress(int(rows[-1]) + 1, count)
        seconds = time.perf_counter() - start
        self.passes.append(Pass(count, maker.reads_images, maker.equations, seconds, waited))
        return {f.key: _present(self._load(f, source)) for f in missing}

    def _name(self, feature: Feature, source: Pictures) -> str:
        # All that decides a bit of the result and does not stand in the program.
        precision = str(jax.config.jax_default_matmul_precision)
        return digest(feature.key, source.digest, jax.default_backend(), jax.__version__, precision)[:40]

    def _path(self, feature: Feature, source: Pictures) -> Path:
        assert self.root is not None
        return self.root / f"{self._name(feature, source)}.npy"

    def _load(self, feature: Feature, source: Pictures) -> np.ndarray | None:
        name = self._name(feature, source)
        self._in_use.add(name)
        if self.root is None:
            return self._memory.get(name)
        path = self._path(feature, source)
        try:
            array = np.load(path, mmap_mode="r")
            if array.dtype != feature.dtype:  # bfloat16 comes back from .npy as plain bytes
                array = array.view(feature.dtype)
            if array.shape != (len(source), *feature.shape):
                raise ValueError(f"expected shape {(len(source), *feature.shape)}, found {array.shape}")
        except FileNotFoundError:
            return None
        except (ValueError, OSError, EOFError, TypeError):
            # A damaged file costs a pass, never a wrong number.
            path.unlink(missing_ok=True)
            return None
        with suppress(OSError):  # removed meanwhile, or another user's
            os.utime(path)
        return array

    @contextmanager
    def _writers(self, features: Sequence[Feature], source: Pictures) -> Generator[list[np.ndarray]]:
        shapes = [(len(source), *f.shape) for f in features]
        if self.root is None:
            arrays = [np.empty(s, f.dtype) for s, f in zip(shapes, features, strict=True)]
            yield arrays
            self._memory |= {self._name(f, source): a for f, a in zip(features, arrays, strict=True)}
            return
        paths = [self._path(f, source) for f in features]
        partial = [p.with_suffix(f".{os.getpid()}-{threading.get_ident()}.partial") for p in paths]
        try:
            files = [
                np.lib.format.open_memmap(p, "w+", f.dtype, s)
                for p, f, s in zip(partial, features, shapes, strict=True)
            ]
            for file, temporary in zip(files, partial, strict=True):
                _reserve(temporary, file.nbytes)
            yield list(files)
            for file, temporary, path in zip(files, partial, paths, strict=True):
                file.flush()
                temporary.replace(path)
        finally:
            for temporary in partial:
                temporary.unlink(missing_ok=True)

    def _make_room(self, wanted: int) -> None:
        """Remove what was not used for the longest time until `wanted` bytes fit."""
        if self.root is None:
            sizes = {name: array.nbytes for name, array in self._memory.items()}
            self._evict(wanted, sizes, lambda: self.budget, self._memory.pop)
            return
        root = self.root
        for stale in root.glob("*.partial"):  # left by a run that was killed
            if time.time() - _status(stale)[0] > 3600:
                stale.unlink(missing_ok=True)
        files = sorted((_status(path), path.stem) for path in root.glob("*.npy"))
        sizes = {name: size for (_, size), name in files}

        def remove(name: str) -> None:
            (root / f"{name}.npy").unlink(missing_ok=True)

        def free_on_disk() -> int:
            return shutil.disk_usage(root).free - GIB

        self._evict(wanted, sizes, lambda: min(self.budget, sum(sizes.values()) + free_on_disk()), remove)

    def _evict(
        self, wanted: int, sizes: dict[str, int], limit: Callable[[], int], remove: Callable[[str], object]
    ) -> None:
        for name in [name for name in sizes if name not in self._in_use]:
            if sum(sizes.values()) + wanted <= limit():
                return
            remove(name)
            del sizes[name]
        free = limit() - sum(sizes.values())
        if wanted > free:
            where = str(self.root) if self.root else "the budget in memory"
            raise StoreTooSmall(
                f"features of {wanted / GIB:.2f} GiB do not fit: {max(free, 0) / GIB:.2f} GiB are free in {where}"
            )


def _status(path: Path) -> tuple[float, int]:
    """Time of last use and size; a file that another process has just renamed or removed counts as new and empty."""
    try:
        found = path.stat()
    except OSError:
        return time.time(), 0
    return found.st_mtime, found.st_size


def _reserve(path: Path, nbytes: int) -> None:
    """Take the disk's space now: a full disk is then an error here, not a crash while writing."""
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, max(path.stat().st_size, nbytes))


def _present(array: np.ndarray | None) -> np.ndarray:
    if array is None:
        raise RuntimeError("a stored feature vanished while it was in use: was the store's folder emptied?")
    return array


def _padded(rows: np.ndarray, batch: int) -> np.ndarray:
    """The last, short batch is filled up with its last row, so that one program serves all."""
    short = batch - len(rows)
    return np.concatenate([rows, np.repeat(rows[-1:], short, axis=0)]) if short else np.asarray(rows)


def ahead(make: Callable[[Any], Any], items: Sequence[Any], depth: int = 2) -> Iterator[Any]:
    """`map(make, items)`, with `depth` results being made in a thread while the caller works."""
    with ThreadPoolExecutor(1) as pool:
        waiting = [pool.submit(make, item) for item in items[:depth]]
        for item in [*items[depth:], *[None] * min(depth, len(items))]:
            done = waiting.pop(0)
            if item is not None:
                waiting.append(pool.submit(make, item))
            yield done.result()


def fits_on_device(nbytes: int) -> bool:
    """Whether `nbytes` may be kept in device memory, leaving at least half of what is free."""
    return nbytes <= free_bytes() // 2


def free_bytes() -> int:
    """Free memory of a device; of this machine where devices do not say."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"] - stats["bytes_in_use"]
    names = os.sysconf_names
    pages = os.sysconf("SC_AVPHYS_PAGES" if "SC_AVPHYS_PAGES" in names else "SC_PHYS_PAGES")
    return pages * os.sysconf("SC_PAGE_SIZE")
