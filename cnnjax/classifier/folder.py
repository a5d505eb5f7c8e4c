"""A saved classifier: a folder that is written whole, and read strictly and without executing anything."""

import json
import os
import secrets
import shutil
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from cnnjax.classifier.config import Config
from cnnjax.data.listing import existing_folder, some
from cnnjax.files.importing import is_path, trusted
from cnnjax.files.runs import finite
from cnnjax.functional import Leaves
from cnnjax.train.tasks import Task, code_of

FORMAT, VERSION = "cnnjax classifier", 1
CONFIG, WEIGHTS, METRICS = "config.json", "model.safetensors", "metrics.json"
FILES = (CONFIG, WEIGHTS, METRICS)


class SavedClassifierError(ValueError):
    """A folder holds no saved classifier, or a damaged one."""


def write(path: str | os.PathLike[str], config: Config, leaves: Leaves, measured: Mapping[str, Any]) -> None:
    """Write a saved classifier, whole or not at all.

    The files are written and synced in a folder beside `path`, which then takes its name.

    Args:
        path: The folder; one that exists is replaced if it is a saved classifier and holds nothing else.
        config: What the classifier is.
        leaves: Every leaf of its model by path, random keys left out.
        measured: Kept in `metrics.json`; a number that is not finite as null.

    Raises:
        FileExistsError: There is something else at `path`.
        ValueError: Leaves hold NaN or infinite values, or `measured` holds what JSON has no word for.
        OSError: The folder cannot be written.
    """
    from safetensors.numpy import save

    # An absolute path whose last part is a name, also of "." and "a/..".
    folder = Path(os.path.abspath(path))
    _check_replaceable(folder)
    if faults := _not_finite(leaves):
        raise ValueError("the classifier is not saved, since weights are not finite (did training diverge?):" + faults)
    arrays = {name: np.asarray(leaves[name], order="C") for name in sorted(leaves)}
    # The types stand here too, so that no leaf of another type than was saved is taken for one.
    types = {name: str(array.dtype) for name, array in arrays.items() if array.dtype != np.float32}
    versions = {"cnnjax": version("cnnjax"), "jax": version("jax")}
    about = {"format": FORMAT, "version": VERSION, "written_by": versions, **config.to_json(), "types": types}
    contents = {
        WEIGHTS: save(arrays),
        METRICS: _json(measured, "metrics and history"),
        CONFIG: _json(about, "the config"),
    }
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.partial")
    try:
        partial.mkdir()
        for name, content in contents.items():
            with (partial / name).open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        _sync(partial)
        _put(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def read_leaves(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """The leaves of a saved classifier by path; what it is made of does not matter.

    Raises:
        FileNotFoundError, NotADirectoryError: There is no such folder.
        SavedClassifierError: The file is damaged.
    """
    return _read_weights(existing_folder(Path(path)) / WEIGHTS)


def read(
    path: str | os.PathLike[str], task: Task | None = None, code: Iterable[str] = (), given: Iterable[str] = ()
) -> tuple[Config, dict[str, np.ndarray], dict[str, str], dict[str, Any]]:
    """Read a saved classifier.

    Args:
        path: The folder.
        task: In place of one that was made of functions, which are not saved.
        code: Import paths of the user's code that may be run; a function of the same name at another place may stand
            for the one that the folder names.
        given: What of such code the caller has at hand already: "backbone", "head".

    Returns:
        Its config; its leaves by path; the types of those that are not float32; what was measured.

    Raises:
        FileNotFoundError, NotADirectoryError: There is no such folder.
        SavedClassifierError: A file is missing, damaged, or of a newer format; it is named, with what to do.
    """
    folder = existing_folder(Path(path))
    if missing := [name for name in FILES if not (folder / name).is_file()]:
        there = sorted(os.listdir(folder))
        if len(missing) == len(FILES):
            raise SavedClassifierError(f"{folder} is no saved classifier: it holds {some(there) or 'nothing'}")
        raise SavedClassifierError(
            f"{folder} lacks {' and '.join(missing)}: copy the whole folder again ({', '.join(FILES)})"
        )
    config, types = _read_config(folder, task, tuple(code), frozenset(given))
    measured = _read_json(folder / METRICS)
    if not isinstance(measured.get("metrics"), dict) or not isinstance(measured.get("history"), list):
        raise SavedClassifierError(f"{folder / METRICS} must hold 'metrics' and 'history'; copy the folder again")
    return config, _read_weights(folder / WEIGHTS), types, measured


def check_leaves(
    path: str | os.PathLike[str], found: Mapping[str, Any], expected: Mapping[str, Any], hint: str
) -> None:
    """Compare the leaves of a file with those of the model.

    Args:
        path: The saved classifier.
        found: Arrays by path.
        expected: Anything with `shape` and `dtype`, by path.
        hint: What is known of the misfit, put before the list.

    Raises:
        SavedClassifierError: Listing every leaf that is missing, unknown, of another shape or type, or not finite.
    """
    faults = [f"\n  {p}: missing from the file" for p in expected if p not in found]
    faults += [f"\n  {p}: not in the model" for p in found if p not in expected]
    for p, want in expected.items():
        if p in found and (found[p].shape, found[p].dtype) != (tuple(want.shape), want.dtype):
            here = f"{found[p].dtype}{list(found[p].shape)}"
            faults.append(f"\n  {p}: expected {want.dtype}{list(want.shape)}, found {here}")
    listed = "".join(faults) + _not_finite(found)
    if hint or listed:
        file, end = Path(path) / WEIGHTS, f":{listed}" if listed else ""
        raise SavedClassifierError(
            f"{file} does not fit {CONFIG}{hint}; copy the folder again, or save the classifier anew{end}"
        )


def _check_replaceable(folder: Path) -> None:
    if not os.path.lexists(folder):
        return
    if folder.is_symlink() or not folder.is_dir():
        raise FileExistsError(f"{folder} exists and is no folder; give another name for the saved classifier")
    there = sorted(os.listdir(folder))
    if CONFIG not in there or not _claims(folder / CONFIG):
        raise FileExistsError(
            f"{folder} exists and is no saved classifier (it holds {some(there) or 'nothing'}); give another name"
        )
    if others := [name for name in there if name not in FILES]:
        raise FileExistsError(
            f"{folder} holds {some(others)} beside the saved classifier; move that away, or give another name"
        )


def _claims(file: Path) -> bool:
    """Whether a file says that it is a saved classifier's config."""
    try:
        return _read_json(file).get("format") == FORMAT
    except SavedClassifierError:
        return False


def _put(partial: Path, folder: Path) -> None:
    """Give a finished folder its name; the one that has it goes when the new one stands."""
    old = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.old")
    replaces = folder.exists()
    if replaces:
        folder.rename(old)
    try:
        partial.rename(folder)
    except OSError:
        if replaces:
            old.rename(folder)
        raise
    _sync(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def _sync(folder: Path) -> None:
    if os.name == "posix":  # elsewhere a folder cannot be opened
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _not_finite(arrays: Mapping[str, Any]) -> str:
    counts = {p: int(x.size - np.count_nonzero(np.isfinite(np.asarray(x)))) for p, x in arrays.items()}
    return "".join(f"\n  {p}: {n} of {arrays[p].size} values are NaN or infinite" for p, n in counts.items() if n)


def _json(value: Any, what: str) -> bytes:
    try:
        return (json.dumps(finite(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{what} must be plain numbers, texts, lists and dictionaries: {error}") from error


def _read_json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_bytes())
        if not isinstance(found, dict):
            raise ValueError(f"expected an object, found {type(found).__name__}")
    except (ValueError, RecursionError) as error:
        raise SavedClassifierError(f"{file} is damaged ({error}); copy the folder again") from error
    return found


def _read_config(
    folder: Path, task: Task | None, code: tuple[str, ...], given: frozenset[str]
) -> tuple[Config, dict[str, str]]:
    file = folder / CONFIG
    values = _read_json(file)
    if values.pop("format", None) != FORMAT:
        raise SavedClassifierError(f"{file} is no config of a saved classifier: its 'format' is not {FORMAT!r}")
    found, writer = values.pop("version", None), values.pop("written_by", None)
    if isinstance(found, bool) or not isinstance(found, int) or not 1 <= found <= VERSION:
        by = f", written by cnnjax {writer['cnnjax']}" if isinstance(writer, dict) and "cnnjax" in writer else ""
        raise SavedClassifierError(
            f"{file} is of format {found!r}{by}; cnnjax {version('cnnjax')} reads up to {VERSION}: install a newer one"
        )
    types = values.pop("types", None)
    if not isinstance(types, dict) or not all(t in ("bfloat16", "float16") for t in types.values()):
        raise SavedClassifierError(f"{file}: 'types' must say bfloat16 or float16 of leaves by path, found {types!r}")
    wanted = {
        name: path
        for name in ("backbone", "head")
        if isinstance(path := values.get(name), str) and is_path(path) and name not in given
    }
    kept = values.get("task")
    try:
        own = code_of(kept) if isinstance(kept, dict) and not (task is not None and kept.get("kind") == "own") else {}
    except ValueError as error:
        raise SavedClassifierError(f"{file}: {error}") from error
    run = trusted(wanted | own, code, str(folder))
    values |= {name: run[name] for name in wanted}
    try:
        return Config.from_json(values, task, run), types
    except (ValueError, LookupError) as error:
        raise SavedClassifierError(f"{file}: {error.args[0]}; repair it, or save the classifier anew") from error


def _read_weights(file: Path) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return load_file(file)
    # KeyError: a type that NumPy has no name for.
    except (SafetensorError, KeyError, ValueError) as error:
        raise SavedClassifierError(f"{file} is damaged or cut short ({error}); copy the folder again") from error
