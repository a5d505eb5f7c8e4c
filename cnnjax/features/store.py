"""The store of computed features: each made once, kept on disk, and never made again."""

import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from cnnjax.data.loader import read_batches
from cnnjax.data.source import as_kept
from cnnjax.features.partial import DiskWriter, MemoryWriter, PartialFile, claimed, clear, discard, mapped
from cnnjax.files.digests import digest
from cnnjax.ops.onednn import takes
from cnnjax.ops.spread import cpu_threads
from cnnjax.runtime import Progress, preemption
from cnnjax.staging import Feature, Maker, ProgramDiffers, Staged

GIB = 1 << 30
PASS_BATCH = 32
# On CPU a pass is fastest while its values stay in the caches. Two cores, images a second with all made for 8 at a
# time, and with large values made for 2: MobileNet at 160x160 259 and 278, at 224x224 126 and 138, VGG16 at 96x96 39
# and 48, at 180x180 (where two images' values leave the caches too) 13 and 13. With oneDNN, which writes a value once
# where there were three operations, 4, 8, 16 and 64 MiB a core: MobileNet at 160x160 310, 342, 364 and 359.
_CORE_BYTES, _ONEDNN_BYTES, _MOST_CORES, _ROUND = 4 << 20, 16 << 20, 8, 8
_PROGRAMS = 4  # compiled passes that are kept at hand


class Images(Protocol):
    """What the store asks of a data source (see `cnnjax.data.Source`)."""

    @property
    def digest(self) -> str: ...
    def __len__(self) -> int: ...
    def read(self, indices: np.ndarray) -> np.ndarray: ...


@dataclass(frozen=True)
class Pass:
    """A pass over a source: what was made, from what, how long it took.

    Attributes:
        images: how many images went through, in this process.
        decoded: whether the images themselves were read (False: made from other stored features).
        equations: how many equations of the model ran for each batch.
        seconds: wall-clock time, compilation included.
        waited: how much of it was spent waiting for images to be read.
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
    images, the platform and the versions of the libraries: a wrong hit is impossible. A pass that was killed
    goes on where it stopped, when the same features are asked for again in the same way (on CPU: with as many cores),
    and gives the same bits as an unbroken one; features in memory are made anew. A process that asks for what another
    is making waits for it. Where the budget is exceeded, the features not used for the longest time are removed,
    half-made ones too.

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
        self._programs: dict[str, Any] = {}
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
        source: Images,
        batch: int = PASS_BATCH,
        progress: Progress | None = None,
        workers: int = 0,
    ) -> tuple[tuple[np.ndarray, ...], bool]:
        """The features of every image of a source; made now if they are not there.

        Args:
            staged: the cut program.
            fixed: its frozen leaves.
            source: the images.
            batch: images a step of the pass, at most; on CPU they are fewer where their values would leave the cache.
            progress: called with (images done, images in all); done begins at what a killed pass has left.
            workers: processes that read images; 0 reads in threads of this one.

        Returns:
            One array `[N, ...]` for each of `staged.features`, and whether all of them were found: no pass was made.

        Raises:
            StoreTooSmall: they do not fit.
            Preempted: the process was asked to end; all is kept but the batch on its way.
        """
        missing = self._missing(staged.features, source)
        report = progress or (lambda done, total: None)
        made = bool(missing) and self._make(staged, missing, fixed, source, batch, report, workers)
        return tuple(_present(self._load(f, source)) for f in staged.features), not made

    def release(self) -> None:
        """Say that the features given out so far are no longer read: they may be removed to make room."""
        self._in_use.clear()

    def _missing(self, features: Iterable[Feature], source: Images) -> list[Feature]:
        once = {f.key: f for f in features}
        return [f for f in once.values() if self._load(f, source) is None]

    def _make(
        self,
        staged: Staged,
        missing: list[Feature],
        fixed: Any,
        source: Images,
        batch: int,
        progress: Progress,
        workers: int,
    ) -> bool:
        """Make what is missing; returns whether that took a pass."""
        with ExitStack() as claims:
            halves = self._claim(missing, source, progress, claims)
            missing = self._missing(missing, source)
            if not missing:  # another process has made them meanwhile
                return False
            if halves and all(halves[f.key].whole for f in missing):  # killed when only their names were to be given
                for feature in missing:
                    halves[feature.key].publish()
                return False
            self._make_room(missing, source)
            self.passes.append(self._pass(staged, missing, halves, fixed, source, batch, progress, workers))
            return True

    def _pass(
        self,
        staged: Staged,
        missing: list[Feature],
        halves: Mapping[str, PartialFile],
        fixed: Any,
        source: Images,
        batch: int,
        progress: Progress,
        workers: int,
    ) -> Pass:
        start, count = time.perf_counter(), len(source)
        # Loaded, not only there: what proves damaged must not be counted on.
        at_hand = [f for f in staged.intermediates if self._load(f, source) is not None]
        maker, batch = _maker(staged, missing, batch, at_hand)
        stored = [_present(self._load(f, source)) for f in maker.reads]
        source_images, kind = as_kept(source, staged.image.dtype)
        # Rows of two programs may differ in their last bits: only what this very pass has made is gone on with.
        made, read_from = ([self._name(f, source) for f in some] for some in (missing, maker.reads))
        made_by = digest(
            *made,
            "from",
            *read_from,
            "by",
            str(batch),
            str(maker.few),
            str(np.dtype(kind)),
            jax.devices()[0].device_kind,
        )
        writer = self._writer(missing, halves, source, made_by)
        begun = writer.done
        batches = [np.arange(k, min(k + batch, count)) for k in range(begun, count, batch)]

        def features(rows: np.ndarray) -> tuple[Any, ...]:
            return tuple(_padded(x[rows], batch) for x in stored)

        read = read_batches(source_images, batches, workers=workers) if maker.reads_images else None
        waited = 0.0
        with closing(read) if read else nullcontext(), ThreadPoolExecutor(1) as beside, writer:
            # Reading begins, and its worker processes start, while the program is compiled.
            first: Any = beside.submit(next, read) if read else None
            image = jax.ShapeDtypeStruct((batch, *staged.image.shape), kind) if read else None
            values = [jax.ShapeDtypeStruct((batch, *x.shape[1:]), x.dtype) for x in stored]
            run = self._compiled(maker, [f.key for f in missing], fixed, image, values)
            if begun:
                progress(begun, count)

            def write(rows: np.ndarray, made: Sequence[jax.Array]) -> None:
                writer.append([np.asarray(x)[: len(rows)] for x in made])
                progress(writer.done, count)

            running: tuple[np.ndarray, Any] | None = None
            for rows, values in zip(batches, ahead(features, batches), strict=True):
                preemption.check()
                asked = time.perf_counter()
                images = None
                if read:
                    images, first = _padded(first.result() if first else next(read), batch), None
                waited += time.perf_counter() - asked
                # The device has the next batch before the last one is fetched and written.
                before, running = running, (rows, run(fixed, images, *values))
                if before:
                    write(*before)
            if running:
                write(*running)
        return Pass(count - begun, maker.reads_images, maker.equations, time.perf_counter() - start, waited)

    def _compiled(self, maker: Maker, wanted: Sequence[str], fixed: Any, image: Any, values: Sequence[Any]) -> Any:
        """A pass's program; one serves all sources (training, validation, test) that want the same features."""
        given = jax.tree.map(lambda x: (x.shape, str(x.dtype)), fixed)
        key = repr((wanted, [f.key for f in maker.reads], maker.few, given, image, values, _precision()))
        if key not in self._programs:
            while len(self._programs) >= _PROGRAMS:
                self._programs.pop(next(iter(self._programs)))
            self._programs[key] = jax.jit(maker.run).lower(fixed, image, *values).compile()
        return self._programs[key]

    def _claim(
        self, missing: Sequence[Feature], source: Images, progress: Progress, claims: ExitStack
    ) -> dict[str, PartialFile]:
        """The files of what is to be made, for this process alone; waits while another process makes some of it."""
        if self.root is None:
            return {}
        count = len(source)
        halves = {}
        for feature in sorted(missing, key=lambda f: self._name(f, source)):  # in one order: nobody waits in a circle
            claim = claimed(
                self._path(feature, source), feature.dtype, (count, *feature.shape), lambda done: progress(done, count)
            )
            halves[feature.key] = claims.enter_context(claim)
        return halves

    def _writer(
        self, features: Sequence[Feature], halves: Mapping[str, PartialFile], source: Images, made_by: str
    ) -> DiskWriter | MemoryWriter:
        if halves:
            return DiskWriter([halves[f.key] for f in features], made_by)
        names = [self._name(f, source) for f in features]
        arrays = [np.empty((len(source), *f.shape), f.dtype) for f in features]
        return MemoryWriter(arrays, lambda made: self._memory.update(zip(names, made, strict=True)))

    def _name(self, feature: Feature, source: Images) -> str:
        # All that decides a bit of the result and does not stand in the program.
        lowering = (jax.default_backend(), str(takes(jnp.float32)), jax.__version__, _precision())
        return digest(feature.key, source.digest, *lowering)[:40]

    def _path(self, feature: Feature, source: Images) -> Path:
        assert self.root is not None
        return self.root / f"{self._name(feature, source)}.npy"

    def _load(self, feature: Feature, source: Images) -> np.ndarray | None:
        name = self._name(feature, source)
        self._in_use.add(name)
        if self.root is None:
            return self._memory.get(name)
        path = self._path(feature, source)
        try:
            array = mapped(path, feature.dtype, (len(source), *feature.shape))
        except FileNotFoundError:
            return None
        except (ValueError, OSError):
            # A damaged file costs a pass, never a wrong number.
            path.unlink(missing_ok=True)
            return None
        with suppress(OSError):  # removed meanwhile, or another user's
            os.utime(path)
        return array

    def _make_room(self, features: Sequence[Feature], source: Images) -> None:
        """Remove what was not used for the longest time until the features fit."""
        wanted = sum(f.nbytes for f in features) * len(source)
        if self.root is None:
            held = {name: array.nbytes for name, array in self._memory.items()}
            self._evict(wanted, held, lambda: self.budget, lambda name: self._memory.pop(name) is not None)
            return
        root = self.root
        clear(root)
        files = sorted((_status(path), path.name) for path in (*root.glob("*.npy"), *root.glob("*.partial")))
        sizes = {name: size for (_, size), name in files}
        for feature in features:  # what is half made has its place already
            wanted -= min(feature.nbytes * len(source), sizes.get(f"{self._name(feature, source)}.partial", 0))

        def remove(name: str) -> bool:
            if name.endswith(".partial"):
                return discard(root / name)
            (root / name).unlink(missing_ok=True)
            return True

        def free_on_disk() -> int:
            return shutil.disk_usage(root).free - GIB

        self._evict(wanted, sizes, lambda: min(self.budget, sum(sizes.values()) + free_on_disk()), remove)

    def _evict(
        self, wanted: int, sizes: dict[str, int], limit: Callable[[], int], remove: Callable[[str], bool]
    ) -> None:
        for name in [name for name in sizes if name.partition(".")[0] not in self._in_use]:
            if sum(sizes.values()) + wanted <= limit():
                return
            if remove(name):
                del sizes[name]
        free = limit() - sum(sizes.values())
        if wanted > free:
            where = str(self.root) if self.root else "the budget in memory"
            raise StoreTooSmall(
                f"features of {wanted / GIB:.2f} GiB do not fit: {max(free, 0) / GIB:.2f} GiB are free in {where}"
            )


def _maker(staged: Staged, wanted: list[Feature], batch: int, stored: list[Feature]) -> tuple[Maker, int]:
    """The pass's program, and its batch size."""
    if jax.default_backend() == "cpu":
        cache = (_ONEDNN_BYTES if takes(jnp.float32) else _CORE_BYTES) * min(cpu_threads(), _MOST_CORES)
        for slices in (cache, 0):
            with suppress(ProgramDiffers):  # a model that chooses by batch size: it was looked at with the size given
                maker = staged.maker(wanted, batch, stored=stored, cache=slices)
                # Twice as much: these values are fewer, and some of them may wait in the cache that all cores share.
                smaller = max(1, 2 * cache // max(maker.largest, 1) // _ROUND) * _ROUND
                if smaller >= batch:
                    return maker, batch
                return staged.maker(wanted, smaller, stored=stored, cache=slices), smaller
    return staged.maker(wanted, batch, stored=stored), batch


def _precision() -> str:
    return str(jax.config.jax_default_matmul_precision)


def _status(path: Path) -> tuple[float, int]:
    """Time of last use and size; a file that another process has just renamed or removed counts as new and empty."""
    try:
        found = path.stat()
    except OSError:
        return time.time(), 0
    return found.st_mtime, found.st_size


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
