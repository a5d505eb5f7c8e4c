"""A run's checkpoints: saved beside the training, kept by recency and by merit, restored strictly."""

import json
import math
import os
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import jax
import numpy as np

from cnnjax.checkpoints import trees
from cnnjax.checkpoints.digests import verify
from cnnjax.checkpoints.errors import SaveFailed, reason
from cnnjax.runtime import Tree

_LIBRARIES = ("cnnjax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


class Checkpoints:
    """The checkpoints of one run, a folder for each step.

    A checkpoint is written in the background and gets its name when it is whole and on the disk, so a killed run
    never leaves half of one. Every file's SHA-256 is written with it and checked before it is restored.

    With several processes under `jax.distributed` each makes this object over the same shared folder and makes the
    same calls of `save` and `restore` with global arrays. Each writes what it holds; the first one names and removes.

    Args:
        folder: made by the first save; a local or mounted folder.
        keep: how many of the newest stay.
        keep_best: how many of those with the best metric stay besides; the earlier of two equals is better.
        lower_is_better: whether a small metric is a good one.

    Raises:
        ValueError: if a number is out of range, or the path is no local folder's.
        NotADirectoryError: if the folder is a file.

    Example:
        >>> import tempfile
        >>> import jax.numpy as jnp
        >>> with tempfile.TemporaryDirectory() as folder, Checkpoints(folder, keep=1) as checkpoints:
        ...     for step, loss in ((10, 0.9), (20, 0.3), (30, 0.5)):
        ...         saved = checkpoints.save(step, {"w": jnp.full(3, loss)}, {"epoch": step // 10}, metric=loss)
        ...     checkpoints.wait()
        ...     checkpoints.steps(), checkpoints.restore({"w": jnp.zeros(3)}, 20)["w"].tolist()[0] == jnp.float32(0.3)
        ((20, 30), Array(True, dtype=bool))
    """

    def __init__(
        self, folder: str | os.PathLike[str], *, keep: int = 2, keep_best: int = 1, lower_is_better: bool = True
    ):
        if keep < 1 or keep_best < 0:
            raise ValueError(f"keep: expected 1 or more, keep_best: 0 or more; found {keep} and {keep_best}")
        self.folder = trees.checked(folder)
        if self.folder.exists() and not self.folder.is_dir():
            raise NotADirectoryError(f"{self.folder} is a file; checkpoints need a folder")
        self._keep, self._keep_best, self._sign = keep, keep_best, 1 if lower_is_better else -1
        self._writer: Any = None
        self._writing: int | None = None
        self._written: set[int] = set()
        self._metrics: dict[int, float | None] = {}

    def save(
        self, step: int, tree: Tree, metadata: Mapping[str, Any], *, metric: float | None = None, wait: bool = False,
        replace: bool = False,
    ) -> bool:  # fmt: skip
        """Begin to write a checkpoint; waits for the one before to be finished.

        Args:
            step: its name; steps count upwards.
            tree: any tree of arrays. It is copied before this returns: the next step may donate it.
            metadata: what JSON can hold: position, configuration. The versions of the libraries are added.
            metric: how good the model is, for `keep_best`; one that is not finite counts as none.
            wait: return when it is whole.
            replace: write a step that was saved before once more; the new one takes the name when it is whole.

        Returns:
            False if the step was saved before, and not to be replaced.

        Raises:
            ValueError: if newer checkpoints exist, `metadata` is no JSON, or a leaf cannot be saved.
            SaveFailed: this save failed, or the one begun before it, and then this one is not begun: the disk is
                full, say. A later one may succeed.
        """
        self.wait()
        try:
            steps = self.steps()
        except OSError as error:
            self._writing = step
            self._fail(error)
        again = step in steps or step in self._written
        if again and not replace:
            return False
        if newer := [s for s in steps if s > step]:
            raise ValueError(
                f"step {step} is older than checkpoint {newer[-1]} in {self.folder}; to go on from an older one, "
                f"remove the newer ones first: rewind({max((s for s in steps if s < step), default=step)})"
            )
        given = trees.snapshot(tree)
        value = None if metric is None or not math.isfinite(metric) else float(metric)
        record = {"metadata": _json(metadata), "metric": value, "versions": _versions()}
        self._writing, self._metrics[step] = step, value
        try:
            if self._writer is None:
                self._check_shared()
                trees.remove_partial(self.folder)
                self._writer = trees.make_writer(self._prune)
            # Under its own name Orbax would remove the old one first.
            trees.write(self._writer, self.folder / f"{step}{trees.AGAIN if again else ''}", given, record)
        except Exception as error:
            self._fail(error)
        if wait:
            self.wait()
        return True

    def wait(self) -> None:
        """Return when nothing is being written.

        Raises:
            SaveFailed: what was being written could not be.
        """
        if self._writing is None:
            return
        try:
            self._writer.wait_until_finished()
        except Exception as error:
            self._fail(error)
        self._written.add(self._writing)
        self._writing = None

    def close(self) -> None:
        """Wait, and give back what was taken.

        Raises:
            SaveFailed: what was being written could not be.
        """
        self.wait()
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def steps(self) -> tuple[int, ...]:
        """The steps of whole checkpoints, oldest first; none where the folder was not made yet.

        Raises:
            OSError: the folder cannot be read: what is in it is not known.
        """
        try:
            return tuple(sorted(int(p.name) for p in self.folder.iterdir() if p.name.isdecimal() and p.is_dir()))
        except FileNotFoundError:  # not made yet
            return ()

    def latest(self) -> int | None:
        """The newest step, None if there is no checkpoint."""
        return max(self.steps(), default=None)

    def metadata(self, step: int | None = None) -> dict[str, Any]:
        """What was said of a checkpoint, and its `metric` and `versions`.

        Args:
            step: the newest if not given.

        Raises:
            FileNotFoundError: if there is no such checkpoint.
            CorruptCheckpoint: if that part of it is damaged.
        """
        path, hint = self._find(step)
        verify(path, hint, only=trees.ABOUT)
        record = trees.recorded(path)
        return record["metadata"] | {"metric": record["metric"], "versions": record["versions"]}

    def restore(self, like: Tree, step: int | None = None) -> Any:
        """Read a checkpoint, strictly: nothing is filled in, and no other one is taken instead.

        Args:
            like: a tree with the paths, shapes and types that the checkpoint must have; arrays or abstract. Where
                its leaves have shardings, the result has them, whatever they were when it was saved; NumPy arrays
                come back as such; all others go to the first local device.
            step: the newest if not given.

        Returns:
            A tree of the same structure, bit for bit what was saved.

        Raises:
            FileNotFoundError: if there is no such checkpoint.
            CorruptCheckpoint: if it is damaged, naming the files and the step before it.
            CheckpointMismatch: naming every leaf that is missing, unknown, or of another shape or type.
        """
        self._agree(step)
        path, hint = self._find(step)
        verify(path, hint)
        return trees.read(path, like)

    def read(self, step: int | None = None) -> dict[str, Any]:
        """Read whatever a checkpoint holds, as nested dictionaries of NumPy arrays: to look at, or to start from.

        Args:
            step: the newest if not given.

        Raises:
            FileNotFoundError: if there is no such checkpoint.
            CorruptCheckpoint: if it is damaged, naming the files and the step before it.
        """
        path, hint = self._find(step)
        verify(path, hint)
        return trees.read_all(path)

    def rewind(self, step: int) -> None:
        """Remove all checkpoints that are newer, so that a run can go on from an older one.

        Raises:
            FileNotFoundError: if there is none of that step.
        """
        self.wait()
        self._find(step)
        newer = [s for s in self.steps() if s > step]
        self._written -= set(newer)
        if jax.process_index() == 0:
            for s in newer:
                trees.discard(self.folder / str(s))

    def _find(self, step: int | None) -> tuple[Path, str]:
        steps = self.steps()
        if not steps:
            raise FileNotFoundError(f"no checkpoint in {self.folder}")
        if step is None:
            step = steps[-1]
        if step not in steps:
            near = min(steps, key=lambda s: abs(s - step))
            raise FileNotFoundError(f"no checkpoint of step {step} in {self.folder}; the nearest is of step {near}")
        before = [s for s in steps if s < step]
        return self.folder / str(step), (
            f"the one before it is of step {before[-1]}: ask for that" if before else "there is none before it"
        )

    def _check_shared(self) -> None:
        # Written to folders apart, a checkpoint would lack what the others hold, and Orbax would read that as zeros.
        if jax.process_count() == 1:
            return
        token = self.folder / f"{trees.PARTIAL}-{_gathered(os.getpid())[0]}"
        if jax.process_index() == 0:
            token.mkdir(parents=True, exist_ok=True)
        _gathered(0)
        if not all(_gathered(token.is_dir())):
            raise OSError("the processes do not share this folder")

    def _agree(self, step: int | None) -> None:
        if jax.process_count() == 1:
            return
        wanted = self.latest() if step is None else step
        seen = _gathered(wanted if wanted is not None and wanted in self.steps() else -1)
        if len(set(seen)) > 1:
            found = ", ".join("none" if s < 0 else str(s) for s in seen)
            raise FileNotFoundError(f"the processes see other checkpoints in {self.folder} ({found}): share the folder")

    def _fail(self, error: Exception) -> None:
        # Orbax may keep the error for the next save too: that one gets a new writer, which also removes what is left.
        step, self._writing, self._writer = self._writing, None, None
        last = None
        with suppress(OSError):
            trees.remove_partial(self.folder)
            last = self.latest()
        still = "no earlier one is there" if last is None else f"step {last} can still be restored"
        raise SaveFailed(
            f"the checkpoint of step {step} could not be saved in {self.folder}: {reason(error)}; {still}"
        ) from error

    def _prune(self) -> None:
        steps = self.steps()
        known = [(self._sign * m, s) for s in steps if (m := self._metric(s)) is not None]
        stay = {*steps[-self._keep :], *(s for _, s in sorted(known)[: self._keep_best])}
        for step in set(steps) - stay:
            with suppress(OSError):  # the new one is whole all the same
                trees.discard(self.folder / str(step))

    def _metric(self, step: int) -> float | None:
        if step not in self._metrics:
            try:
                self._metrics[step] = self.metadata(step)["metric"]
            except OSError:  # damaged: whoever restores it is told
                self._metrics[step] = None
        return self._metrics[step]


def _json(metadata: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return json.loads(json.dumps(dict(metadata)))
    except (TypeError, ValueError) as error:
        raise ValueError(f"metadata: expected what JSON can hold ({error})") from error


@cache
def _versions() -> dict[str, str]:
    import platform

    found = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name.removesuffix("-checkpoint")] = version(name)
        except PackageNotFoundError:  # run from a checkout that was not installed
            found[name] = "unknown"
    return found


def _gathered(number: int) -> list[int]:
    """Every process's number; each waits here for the others."""
    from jax.experimental import multihost_utils

    return np.ravel(multihost_utils.process_allgather(np.int32(number))).tolist()
