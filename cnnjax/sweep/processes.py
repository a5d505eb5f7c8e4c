"""The cells of a sweep in several processes, each of which computes with its share of the processor's cores.

A training step runs in order: its short operations leave cores idle, and each of them ends with a wait for the slowest.
Cells know nothing of each other, so several of them on fewer cores each take less time together than in turn.
"""

import multiprocessing
import os
import pickle
import signal
import threading
import time
import traceback
from collections.abc import Generator, Sequence, Set
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import jax

from cnnjax.features import GIB, FeatureStore, Progress
from cnnjax.files.importing import imported
from cnnjax.ops import use_onednn
from cnnjax.ops.spread import cpu_threads
from cnnjax.runtime import preemption
from cnnjax.runtime.cache import keep_programs
from cnnjax.runtime.progress import Bars
from cnnjax.sweep.data import SweepData
from cnnjax.sweep.grid import Cell, tunes
from cnnjax.sweep.options import Ablation
from cnnjax.sweep.runner import SweepRunner, make_head

Unit = list[Cell]
"""What one process does without a break: one cell, or those that are trained together."""

_HEARS_EVERY = 0.2  # seconds in which the parent notices that it is asked to end
_TELLS_EVERY = 0.1  # seconds between two reports of one bar


@dataclass(eq=False)
class _Worker:
    process: BaseProcess
    connection: Connection
    bars: dict[tuple[str, str], Progress]
    unit: Unit | None = None
    ready: bool = False


def run_in_processes(
    config: Ablation, data: SweepData, missing: Sequence[Sequence[Cell]], done: Set[str], store: Path, bars: Bars
) -> Generator[dict[str, Any]]:
    """Train groups of cells in `config.processes` processes.

    Cells are handed out one by one, least frozen first; heads on features, which one program trains together, as
    the group they are. A depth is begun when the features of the one before are made, so each is made once, from those.

    Args:
        config: the options.
        data: images and backbone; it is sent to each process.
        missing: groups of cells to train, in order.
        done: names of cells among them that are in already.
        store: folder of the features.
        bars: where progress is shown.

    Yields:
        A record of each cell, in the order in which they end.

    Raises:
        ValueError: JAX computes on an accelerator, which processes cannot share.
        ChildProcessError: a process was ended from outside, by the kernel for want of memory, say.
        Exception: what was raised in a process.
    """
    if (found := jax.default_backend()) != "cpu":
        raise ValueError(
            f"processes: {config.processes} processes share a CPU's cores, and JAX computes on {found}; leave it out, "
            "or set JAX_PLATFORMS=cpu"
        )
    units = [unit for group in missing for unit in _units(group, data, done)]
    programs = list(dict.fromkeys(cell.program for unit in units for cell in unit))
    opened: set[tuple[str, str]] = set()
    count = min(config.processes, len(units))
    workers = [_start(max(1, cpu_threads() // count)) for _ in range(count)]
    try:
        for worker in workers:
            # Not as arguments: JAX makes its threads when it unpickles arrays.
            _send(worker, dict(jax.config.values))
            _send(worker, config)
            _send(worker, (data, missing, store))
        while units or any(worker.unit for worker in workers):
            for worker in workers:
                if worker.ready and not worker.unit and units:
                    before = programs[: programs.index(units[0][0].program)]
                    if opened.issuperset(before):
                        worker.unit = units.pop(0)
                        _send(worker, worker.unit)
            heard = wait([worker.connection for worker in workers], _HEARS_EVERY)
            for worker in (worker for worker in workers if worker.connection in heard):
                what, *told = _heard(worker)
                if what == "ready":
                    worker.ready = True
                elif what == "opened":
                    opened.add(told[0])
                elif what == "bar":
                    _shown(worker, bars, *told)
                elif what == "failed":
                    raise told[0]
                else:
                    worker.unit = None
                    yield from told[0]
            preemption.check()
    finally:
        for worker in workers:
            # What they have done is in; a half-made pass over the images is gone on with, however it ended.
            worker.process.kill()
        for worker in workers:
            worker.process.join()
            worker.connection.close()


def _units(group: Sequence[Cell], data: SweepData, done: Set[str]) -> list[Unit]:
    """The parts of a group that different processes may train."""
    if not tunes(data.backbone, group[0].frozen):
        return [list(group)]
    return [[cell] for cell in group if cell.name not in done]


def _start(threads: int) -> _Worker:
    context = multiprocessing.get_context("spawn")  # a fork would inherit locks of JAX's threads
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs, threads), name="cnnjax-sweep")
    process.start()
    theirs.close()
    return _Worker(process, ours, {})


def _send(worker: _Worker, what: Any) -> None:
    try:
        worker.connection.send(what)
    except (BrokenPipeError, ConnectionResetError):
        raise _died(worker) from None


def _heard(worker: _Worker) -> tuple[Any, ...]:
    try:
        return worker.connection.recv()
    except (EOFError, ConnectionResetError):
        raise _died(worker) from None


def _died(worker: _Worker) -> ChildProcessError:
    worker.process.join()
    preemption.check()
    doing = worker.unit[0].name if worker.unit else "its start"
    return ChildProcessError(
        f"a process of the sweep ended with code {worker.process.exitcode} at {doing}; finished cells are kept. "
        "Where it ran out of memory, give fewer --processes"
    )


def _shown(worker: _Worker, bars: Bars, label: str, unit: str, done: int, total: int) -> None:
    key = label, unit
    if key not in worker.bars:
        worker.bars[key] = bars.bar(label, unit)
    worker.bars[key](done, total)


# What runs in a process.


def _work(connection: Connection, threads: int) -> None:
    """Train the units that come, until the connection ends."""
    # Signals go to all processes of a terminal or a job: the parent decides, and ends this one.
    for number in preemption.SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ["NPROC"] = str(threads)  # how many threads XLA's CPU client makes
    try:
        for name, value in connection.recv().items():
            if jax.config.values[name] != value:
                jax.config.update(name, value)
        if jax.config.jax_compilation_cache_dir:
            keep_programs()  # where it was told to
        config = connection.recv()
        for path in config.paths:
            imported(path)  # what the network's and the sources' classes are made of
        data, missing, store = connection.recv()
        model = data.classifier(make_head(config, data, config.first_seed))
        features = FeatureStore(store, int(config.store_gib * GIB))
        runner = SweepRunner(config, data, model, features, partial(_bar, connection))
        with use_onednn(config.onednn != "never"):
            runner.prepare([cell for group in missing for cell in group])
            connection.send(("ready",))
            while True:
                unit = connection.recv()
                runner.open(unit[0])
                connection.send(("opened", unit[0].program))
                connection.send(("done", runner.run(unit)))
    except (EOFError, BrokenPipeError):  # the parent has what it wanted, or is gone
        pass
    except Exception as error:
        connection.send(("failed", _sendable(error)))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent
    parent.join()
    os._exit(1)


def _sendable(error: Exception) -> Exception:
    """The error, or its text where it cannot be pickled; with the place in the process."""
    error.add_note("".join(traceback.format_exception(error)))
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _bar(connection: Connection, description: str, unit: str) -> Progress:
    """A bar that the parent shows."""
    last = 0.0

    def report(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _TELLS_EVERY or done >= total:
            last = now
            connection.send(("bar", description, unit, done, total))

    return report
