"""The run folder: its configuration, one line a finished cell, and going on after a kill."""

import json
import math
import os
import re
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cnnjax.files.writing import write_whole


class RunMismatch(ValueError):
    """The folder holds another run."""


class RunFolder:
    """A folder that holds one sweep.

    `config.json` says what is run; `results.jsonl` has one line a finished cell, written whole and synced to
    disk as each cell ends. Opening the folder again with the same configuration goes on where it stopped.

    Args:
        path: the folder; made if it does not exist.
        config: what identifies the run, as JSON.

    Raises:
        RunMismatch: if the folder belongs to a run with another configuration; every difference is named.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     run = RunFolder(folder, {"epochs": 3})
        ...     run.append({"cell": "all/0", "test_accuracy": 0.9})
        ...     [line["cell"] for line in RunFolder(folder, {"epochs": 3}).results]
        ['all/0']
    """

    def __init__(self, path: str | os.PathLike[str], config: Mapping[str, Any]):
        self.path = Path(path)
        if self.path.exists() and not self.path.is_dir():
            raise NotADirectoryError(f"the run folder {self.path} is a file; give another --out")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OSError(f"cannot make the run folder {self.path} ({error.strerror}); give another --out") from error
        self._results = self.path / "results.jsonl"
        self._check(json.loads(json.dumps(config)))
        self.results = self._read()

    def _check(self, config: dict[str, Any]) -> None:
        file = self.path / "config.json"
        if not file.exists():
            if self._results.exists():
                raise RunMismatch(
                    f"{self._results} exists without a config.json: this is no run folder; give another --out"
                )
            write_whole(file, json.dumps(config, indent=2) + "\n")
            return
        try:
            before = json.loads(file.read_text())
            if not isinstance(before, dict):
                raise ValueError(f"expected an object, found {type(before).__name__}")
        except ValueError as error:
            raise RunMismatch(f"{file} is no JSON ({error}); repair it or give another --out") from error
        names = sorted(set(before) | set(config))
        changed = [
            f"  {name}: {before.get(name)!r} there, {config.get(name)!r} now"
            for name in names
            if before.get(name) != config.get(name)
        ]
        if changed:
            raise RunMismatch(
                f"{self.path} holds a run with another configuration; give another --out, or the same options:\n"
                + "\n".join(changed)
            )

    def _read(self) -> list[dict[str, Any]]:
        if not self._results.exists():
            return []
        text = self._results.read_bytes()
        whole = text[: text.rfind(b"\n") + 1]
        if len(whole) != len(text):  # killed while writing: that cell is run again
            os.truncate(self._results, len(whole))
        lines: dict[str, dict[str, Any]] = {}
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                record = json.loads(line)
                lines.setdefault(record["cell"], record)
            except (ValueError, KeyError, TypeError) as error:
                raise RunMismatch(f"{self._results}, line {number}, is no JSON of a cell; remove that line") from error
        return list(lines.values())

    @contextmanager
    def locked(self) -> Generator[None]:
        """Keep other processes out, until the block or this process ends, however it ends.

        Raises:
            RunMismatch: if another process is in.
        """
        try:
            import fcntl
        except ImportError:  # a platform without such locks
            yield
            return
        with (self.path / ".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise RunMismatch(f"another process is writing to {self.path}; wait, or give another --out") from error
            self.results = self._read()
            yield

    def append(self, record: Mapping[str, Any]) -> None:
        """Write the line of a finished cell; a number that is not finite (a loss that diverged) as null."""
        record = finite(dict(record))
        with self._results.open("a") as file:
            file.write(json.dumps(record, allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.results.append(record)


def path_name(text: str) -> str:
    """A text as part of a folder's name.

    >>> path_name("mobilenet"), path_name("networks/vit.py:model")
    ('mobilenet', 'networks-vit.py-model')
    """
    return re.sub(r"[^\w.]+", "-", text).strip("-.") or "own"


def finite(value: Any) -> Any:
    """What JSON can hold: arrays as lists, numbers of NumPy and JAX as Python's, None for what is not finite.

    Example:
        >>> finite({"loss": math.inf, "rates": (0.5, math.nan)})
        {'loss': None, 'rates': [0.5, None]}
    """
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
