"""Metrics as JSON lines while training: one line a record, whole or not there."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cnnjax.files.runs import finite
from cnnjax.files.writing import write_whole


class Journal:
    """A file of JSON lines that grows while training; other programs may read along.

    Opening a file that is there goes on behind its last whole line: a half one, of a killed run, is cut off.

    Args:
        path: The file; its folder is made if it does not exist.

    Raises:
        OSError: The file cannot be opened.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     journal = Journal(Path(folder) / "metrics.jsonl")
    ...     journal.write({"epoch": 1, "loss": 0.7})
    ...     journal.write({"epoch": 2, "loss": float("nan")})
    ...     read(journal.path)
    [{'epoch': 1, 'loss': 0.7}, {'epoch': 2, 'loss': None}]
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab+") as file:
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)

    def write(self, record: Mapping[str, Any]) -> None:
        """Append a line: numbers of Python, NumPy or JAX; null for what is not finite."""
        line = json.dumps(finite(dict(record)), allow_nan=False) + "\n"
        with self.path.open("a", encoding="utf-8") as file:  # closing flushes: the line is whole for every reader
            file.write(line)

    def restart(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Hold these records and no others: where a run goes on from, later ones are made again."""
        write_whole(self.path, "".join(json.dumps(finite(dict(r)), allow_nan=False) + "\n" for r in records))


def read(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The records of a journal; a half last line is left out.

    Raises:
        OSError: The file cannot be read.
        ValueError: A whole line is no JSON object; its number is given.
    """
    content = Path(path).read_bytes()
    records = []
    for number, line in enumerate(content[: content.rfind(b"\n") + 1].splitlines(), 1):
        try:
            records.append(json.loads(line))
            if not isinstance(records[-1], dict):
                raise ValueError(f"found {type(records[-1]).__name__}")
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: expected a JSON object ({error}); remove that line") from error
    return records
