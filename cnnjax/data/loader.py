"""Batches of a source, read ahead by Grain: the same batches for any number of workers, hosts and restarts."""

import signal
import time
import weakref
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from cnnjax.data.order import LastBatch, Order
from cnnjax.data.source import THREADS, rows_of, single_threaded, targets_of
from cnnjax.runtime import preemption

if TYPE_CHECKING:
    from cnnjax.runtime.devices import Devices

READ_AHEAD = 2
"""Batches that are read before they are asked for, in each thread or worker."""

HEAD_START = 16
"""Batches that threads read while worker processes start."""

_OUTLASTS = 10  # seconds that a worker process goes on after SIGTERM


class Readable(Protocol):
    """What the loader asks of a source (see `cnnjax.data.Source`), besides its `targets` or `labels`."""

    def __len__(self) -> int: ...
    def read(self, indices: np.ndarray) -> np.ndarray: ...


class Batch(NamedTuple):
    """One batch, of the same shape every time.

    Attributes:
        examples: f32[B, ...] as the source reads them.
        targets: The source's, or its labels i32[B]: a tree of arrays with a row an example.
        weights: f32[B], 0 for the examples that fill up the last batch of an epoch: they count nowhere.
        index: i32[B], which examples of the source these are.
    """

    examples: np.ndarray
    targets: Any
    weights: np.ndarray
    index: np.ndarray


class Loader:
    """Iterates over the batches of a source, reading ahead of the device.

    The whole state is the number of the next step: `state()` gives it, `restore` goes there, and what follows
    is exactly what an unbroken run would have seen, whatever the number of workers.

    Args:
        source: What is read; with workers it must be picklable, as all of `cnnjax.data` are.
        batch_size: Of the global batch.
        epochs: How many times all examples are taken.
        seed: Of the shuffling; None keeps the source's order.
        shard: (this host, number of hosts); this loader gives the host's rows of every batch.
        workers: Processes that read; 0 reads in threads of this one.
        last_batch: What becomes of an epoch's short last batch: "pad" fills it up, "drop" leaves it out.

    Attributes:
        waited: Seconds that were spent waiting for a batch so far.

    Raises:
        ValueError: A size that is not positive, or hosts that do not divide the batch.

    >>> from cnnjax.data import InMemory
    >>> source = InMemory(np.zeros((5, 4, 4, 3), np.uint8), [0, 1, 0, 1, 0], ("cat", "dog"))
    >>> loader = Loader(source, 2, epochs=2)
    >>> first = next(loader)
    >>> first.examples.shape, loader.state(), len(list(loader)), loader.state()
    ((2, 4, 4, 3), {'step': 1}, 5, {'step': 6})
    """

    def __init__(
        self,
        source: Readable,
        batch_size: int,
        *,
        epochs: int = 1,
        seed: int | None = 0,
        shard: tuple[int, int] = (0, 1),
        workers: int = 0,
        last_batch: LastBatch = "pad",
    ):
        if workers < 0:
            raise ValueError(f"workers: expected 0 or more processes, found {workers}")
        self.order = Order(len(source), batch_size, epochs=epochs, seed=seed, shard=shard, last_batch=last_batch)
        self.workers = workers
        self._source = source
        self._step = 0
        self._reading: Any = None
        self.waited = 0.0

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> "Loader":
        return self

    def __next__(self) -> Batch:
        if self._step >= len(self):
            self.close()
            raise StopIteration
        if self._reading is None:
            self._reading = read_batches(self._source, _Indices(self.order), start=self._step, workers=self.workers)
            # Worker processes are ended while Python still stands, also if nobody calls `close`.
            self._ending = weakref.finalize(self, self._reading.close)
        index, weights = self.order[self._step]
        start = time.perf_counter()
        examples = next(self._reading)
        self.waited += time.perf_counter() - start
        self._step += 1
        return Batch(examples, rows_of(targets_of(self._source), index), weights, index)

    def state(self) -> dict[str, int]:
        """Where it stands: the number of the next step, as a plain dictionary."""
        return {"step": self._step}

    def restore(self, state: Mapping[str, int]) -> None:
        """Go to where `state` was taken.

        Raises:
            ValueError: It is no step of this run.
        """
        step = state.get("step", -1)
        if not 0 <= step <= len(self):
            raise ValueError(f"a loader of {len(self)} steps cannot go on at step {step}")
        self.close()
        self._step = int(step)

    def close(self) -> None:
        """Stop reading ahead, and end the workers."""
        if self._reading is not None:
            self._ending()
            self._reading = None


def read_batches(
    source: Readable, indices: Sequence[np.ndarray], *, start: int = 0, workers: int = 0
) -> Generator[np.ndarray]:
    """Read one batch after another, ahead of whoever takes them.

    Args:
        source: What is read, by its `read`.
        indices: Those of every batch.
        start: The first batch.
        workers: Processes that read, each in one thread; 0 reads in threads of this one.

    Raises:
        Preempted: this process was asked to end, and whoever asked ended its readers too.
    """
    try:
        yield from _read_batches(source, indices, start, workers)
    except Exception:
        preemption.check()
        raise


def _read_batches(source: Readable, indices: Sequence[np.ndarray], start: int, workers: int) -> Generator[np.ndarray]:
    stop = min(start + HEAD_START, len(indices)) if workers else len(indices)
    # The thread ends before the processes are closed: a generator that runs cannot be.
    with closing(_by_processes(source, indices, stop, workers)) as later, ThreadPoolExecutor(1) as beside:
        # Processes take seconds to start: threads read what is needed until then.
        first: Any = beside.submit(next, later, None) if stop < len(indices) else None
        with closing(_by_threads(source, indices, start, stop)) as batches:
            yield from batches
        if first is not None and (batch := first.result()) is not None:
            yield batch
            yield from later


def _by_threads(source: Readable, indices: Sequence[np.ndarray], start: int, stop: int) -> Generator[np.ndarray]:
    if start < stop:
        # Each thread reads a batch by itself: sharing one out costs two cores a third of their rate, in waiting.
        batches = _reading(source, indices, start, stop, THREADS)
        with closing(iter(batches)) as running:
            yield from running


def _by_processes(source: Readable, indices: Sequence[np.ndarray], start: int, workers: int) -> Generator[np.ndarray]:
    if start >= len(indices):
        return
    import absl.flags
    import grain

    if not absl.flags.FLAGS.is_parsed():  # Grain's worker options are absl flags, which only absl's own main parses
        absl.flags.FLAGS.mark_as_parsed()
    wanted = min(workers, len(indices) - start)
    processes = grain.MultiprocessingOptions(num_workers=wanted, per_worker_buffer_size=READ_AHEAD)
    batches = _reading(source, indices, start, len(indices), 1).mp_prefetch(processes, _outlast)
    with closing(iter(batches)) as running, ThreadPoolExecutor(1) as beside:

        def copied() -> np.ndarray | None:
            # Out of the memory shared with a worker, which lives no longer than the loader. Megabytes: the caller
            # need not wait for it.
            batch = next(running, None)
            return None if batch is None else np.array(batch)

        coming = beside.submit(copied)
        while (batch := coming.result()) is not None:
            coming = beside.submit(copied)
            yield batch


def _outlast(worker: int, workers: int) -> None:
    """Makes a worker outlast the signals that ask all processes of a run to end: who reads still has to save."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(_OUTLASTS))


def _reading(source: Readable, indices: Sequence[np.ndarray], start: int, stop: int, threads: int) -> Any:
    import grain  # brings JAX and Orbax along, which a process that only reads images does not need

    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=READ_AHEAD * threads)
    return grain.MapDataset.range(start, stop).map(_Read(source, indices)).to_iter_dataset(options)


def to_device(batches: Iterable[Batch], depth: int = 2, devices: "Devices | None" = None) -> Iterator[Batch]:
    """Hand batches to the device before they are asked for: the copy of one runs beside the steps on others.

    Args:
        batches: From a `Loader`.
        depth: How many wait on the device.
        devices: What the batches are spread over; examples are then the host's own (`Devices.own`), all else is the
            whole batch's, and stays on the host.

    >>> from cnnjax.data import InMemory
    >>> source = InMemory(np.zeros((5, 4, 4, 3), np.uint8), [0, 1, 0, 1, 0], ("cat", "dog"))
    >>> [type(batch.examples).__name__ for batch in to_device(Loader(source, 2))]
    ['ArrayImpl', 'ArrayImpl', 'ArrayImpl']
    """
    import jax  # a worker process reads this file too, and needs no device

    waiting: deque[Batch] = deque()
    for batch in batches:
        if devices is None:
            waiting.append(jax.device_put(batch))
        else:
            waiting.append(batch._replace(examples=devices.local_batch(batch.examples)))
        if len(waiting) > depth:
            yield waiting.popleft()
    yield from waiting


class _Indices(Sequence[np.ndarray]):
    """An order's indices alone."""

    def __init__(self, order: Order):
        self._order = order

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, step: int | slice) -> Any:
        return self._order[step][0]


class _Read:
    """Step number to batch; an object, since a worker process must be able to unpickle it."""

    def __init__(self, source: Readable, indices: Sequence[np.ndarray]):
        self._source, self._indices = source, indices

    def __call__(self, step: int) -> np.ndarray:
        with single_threaded():
            return self._source.read(self._indices[int(step)])
