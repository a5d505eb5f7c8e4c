"""What the bytes of a checkpoint were, so that damage is found: TensorStore does not check the numbers themselves."""

import json
from pathlib import Path

from cnnjax.checkpoints.errors import CorruptCheckpoint
from cnnjax.files.digests import file_digest
from cnnjax.files.writing import sync

FILE = "digests.json"


def seal(folder: Path) -> None:
    """Write the SHA-256 of every file into `digests.json`, and put all of it on the disk itself."""
    digests = {}
    for path in _files(folder):
        digests[path.relative_to(folder).as_posix()] = file_digest(path)
        sync(path)
    # No spaces, which a damaged byte could replace unseen.
    (folder / FILE).write_text(json.dumps(digests, sort_keys=True, separators=(",", ":")))
    for path in (folder / FILE, *(p for p in folder.rglob("*") if p.is_dir()), folder):
        sync(path)


def verify(folder: Path, hint: str, only: str | None = None) -> None:
    """Check every file against `digests.json`.

    Args:
        folder: that `seal` went through.
        hint: what can be done instead; the end of the error.
        only: check this file alone.

    Raises:
        FileNotFoundError: if there is nothing.
        CorruptCheckpoint: naming every file that is damaged, missing or not expected.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"no checkpoint at {folder}")
    files = _files(folder)
    if not files and not (folder / FILE).exists():
        raise FileNotFoundError(f"{folder} is no checkpoint: it is empty")
    try:
        digests = json.loads((folder / FILE).read_bytes())
        if not isinstance(digests, dict):
            raise ValueError("expected an object")
    except FileNotFoundError:
        raise CorruptCheckpoint(f"{folder} is no whole checkpoint: it has no {FILE}; {hint}") from None
    except (OSError, ValueError) as error:
        raise CorruptCheckpoint(f"the checkpoint {folder} is damaged: {FILE} cannot be read; {hint}") from error
    names = [only] if only else sorted({p.relative_to(folder).as_posix() for p in files} | digests.keys())
    faults = [f"{name}: {fault}" for name in names if (fault := _fault(folder / name, digests.get(name)))]
    if faults:
        raise CorruptCheckpoint(f"the checkpoint {folder} is damaged ({'; '.join(faults)}); {hint}")


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / FILE)


def _fault(path: Path, digest: str | None) -> str | None:
    if digest is None:
        return "not written with it"
    try:
        found = file_digest(path)
    except OSError as error:
        return "missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
    return None if found == digest else "its bytes are not those that were written"
