"""Read Keras's legacy HDF5 weights, from anyone, without trusting the file.

Two layouts: layer groups at the root, as Keras publishes its weights, and the same nested under
`model_weights`, as `model.save("x.h5")` writes it. Each group names its tensors in the attribute
`weight_names`; nothing but what is named is read, and nothing is read before everything named has been
looked at. The rules about links, external storage, virtual data sets and shape bombs are those of
`keras.src.saving.saving_lib.safe_get_h5_dataset`.
"""

import math
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from itertools import count, takewhile
from os import PathLike
from pathlib import Path
from typing import Any

import h5py
import numpy as np

Tensors = dict[str, dict[str, np.ndarray]]

_BOMB_FLOOR = 1 << 32  # bytes declared, below which nothing is a bomb
_BOMB_RATIO = 1000  # bytes declared for one stored
_OLD_NAMES = {"W": "kernel", "b": "bias"}  # of Keras 1, as in `block1_conv1_W_1:0`
_OTHER_FILES = {  # how files begin that people save under the name .h5
    b"PK\x03\x04": "a zip archive, perhaps a .keras file; in Keras, load it and model.save('x.h5')",
    b"version https://git-lfs": "a Git LFS pointer: the file itself was not fetched (git lfs pull)",
    b"<": "a web page or XML, perhaps in place of a download",
}


class WeightsError(ValueError):
    """A weights file cannot be read, or does not fit the model."""


def read_tensors(path: str | PathLike[str]) -> Tensors:
    """Read all tensors of a weights file in Keras's legacy HDF5.

    Args:
        path: The file.

    Returns:
        Layer name to tensor name to array, in the file's order, weightless layers included (with no
        tensors). Tensor names are Keras's own (`kernel`, `depthwise_kernel`, `bias`, `gamma`, `beta`,
        `moving_mean`, `moving_variance`), without the layer's name and the `:0`; Keras 1's `W` and `b` are
        called `kernel` and `bias`.

    Raises:
        WeightsError: The file is missing, empty, truncated, no HDF5, in another layout; it links out of
            itself or keeps values elsewhere; a tensor is named but absent, not of floating numbers, never
            written, or declared far larger than stored.

    >>> read_tensors("no/such.h5")
    Traceback (most recent call last):
        ...
    cnnjax.weights.hdf5.WeightsError: no/such.h5: there is no such file
    """
    path = Path(path)
    _check_is_hdf5(path)
    with _one_clear_error(path), h5py.File(path, "r") as file:
        root = _layers_group(path, file)
        datasets = {layer: _datasets(path, root, layer) for layer in _strings(path, root, "layer_names")}
        _check_nothing_unnamed(path, root, datasets)
        if "top_level_model_weights" in root:
            top_level = _datasets(path, root, "top_level_model_weights")
            datasets |= {"top_level_model_weights": top_level} if top_level else {}
        everything = [dataset for tensors in datasets.values() for dataset in tensors.values()]
        _check_size(path, "all its tensors together", sum(map(_declared, everything)), path.stat().st_size)
        return {
            layer: {name: _values(dataset) for name, dataset in tensors.items()} for layer, tensors in datasets.items()
        }


def _check_is_hdf5(path: Path) -> None:
    if not path.exists():
        raise WeightsError(f"{path}: there is no such file")
    if not path.is_file():
        raise WeightsError(f"{path}: is not a file")
    try:
        with path.open("rb") as file:
            start = file.read(1024)
    except OSError as fault:
        raise WeightsError(f"{path}: cannot be read: {fault.strerror}") from fault
    if not start:
        raise WeightsError(f"{path}: the file is empty")
    if not h5py.is_hdf5(path):
        for beginning, what in _OTHER_FILES.items():
            if start.lstrip().startswith(beginning):
                raise WeightsError(f"{path}: is not an HDF5 file but {what}")
        text = all(byte >= 32 or byte in b"\t\n\r\f" for byte in start)
        raise WeightsError(f"{path}: is not an HDF5 file{' but text' if text else ''}; it begins with {start[:24]!r}")


@contextmanager
def _one_clear_error(path: Path) -> Generator[None]:
    try:
        yield
    except WeightsError:
        raise
    except Exception as fault:  # a damaged file makes h5py raise almost anything
        text = str(fault)
        if "truncated file" in text:
            raise WeightsError(f"{path}: the file is truncated (an unfinished download or copy?): {text}") from fault
        raise WeightsError(
            f"{path}: the file is damaged, HDF5 cannot read it: {type(fault).__name__}: {text}"
        ) from fault


def _layers_group(path: Path, file: "h5py.Group") -> Any:
    roots = [file]
    if file.get("model_weights", getlink=True) is not None:
        roots.append(_member(path, file, "model_weights", h5py.Group))
    for root in roots:
        if "layer_names" in root.attrs or "layer_names0" in root.attrs:
            return root
    if "layers" in file or "_layer_checkpoint_dependencies" in file:
        raise WeightsError(
            f"{path}: is in the layout of Keras 3's model.save_weights('x.weights.h5'), which numbers its "
            "tensors instead of naming them; save the model with model.save('x.h5') instead"
        )
    raise WeightsError(
        f"{path}: is HDF5 but no Keras weights: neither the root nor 'model_weights' has the "
        f"attribute 'layer_names'; the root holds {sorted(file)[:8]}"
    )


def _strings(path: Path, group: "h5py.Group", attribute: str) -> list[str]:
    """Return a list of names; Keras cuts long ones into `attribute0`, `attribute1`, ..."""
    numbered = takewhile(group.attrs.__contains__, (f"{attribute}{i}" for i in count()))
    chunks = [attribute] if attribute in group.attrs else numbered
    names: list[str] = []
    for chunk in chunks:
        value = group.attrs[chunk]
        if getattr(value, "shape", ()) == (0,):  # Keras writes the empty list as an empty array of floats
            continue
        if np.ndim(value) != 1 or any(not isinstance(name, bytes | str) for name in value):
            raise WeightsError(f"{path}: attribute {chunk!r} of {group.name!r} is not a list of names")
        try:
            names += [name.decode() if isinstance(name, bytes) else name for name in value]
            "".join(names).encode()  # h5py hands on what is not UTF-8 as surrogates
        except UnicodeError as fault:
            raise WeightsError(f"{path}: attribute {chunk!r} of {group.name!r} is not UTF-8 text") from fault
    if twice := [name for name, times in Counter(names).items() if times > 1]:
        raise WeightsError(f"{path}: attribute {attribute!r} of {group.name!r} names {', '.join(twice)} more than once")
    return names


def _member(path: Path, group: "h5py.Group", name: str, kind: type) -> Any:
    """Return the group or data set at `name` ("a/b/c"), having followed hard links only."""
    here = group
    for part in name.split("/"):
        where = f"{here.name.rstrip('/')}/{part}"
        proper = isinstance(here, h5py.Group) and part not in ("", ".", "..")
        link = here.get(part, getlink=True) if proper else None
        if link is None:
            raise WeightsError(f"{path}: {group.name!r} names {name!r}, which is not in the file")
        if isinstance(link, h5py.ExternalLink):
            raise WeightsError(f"{path}: {where!r} is an external link, to {link.filename!r}; links are not followed")
        if isinstance(link, h5py.SoftLink):
            raise WeightsError(f"{path}: {where!r} is a soft link, to {link.path!r}; links are not followed")
        here = here[part]
    if not isinstance(here, kind):
        raise WeightsError(f"{path}: {here.name!r} is a {type(here).__name__}, expected a {kind.__name__}")
    return here


def _datasets(path: Path, root: "h5py.Group", layer: str) -> dict[str, Any]:
    group = _member(path, root, layer, h5py.Group)
    paths = _strings(path, group, "weight_names")
    short = [_tensor_name(layer, name) for name in paths]
    counts = Counter(short)
    tensors = {}
    for name, short_name in zip(paths, short, strict=True):
        dataset = _member(path, group, name, h5py.Dataset)
        _check_dataset(path, dataset)
        # a model nested as one layer repeats its names: then they stay whole
        tensors[short_name if counts[short_name] == 1 else name] = dataset
    inside: list[str] = []
    group.visititems(lambda name, item: inside.append(name) if isinstance(item, h5py.Dataset) else None)
    if unnamed := sorted(set(inside) - set(paths)):
        raise WeightsError(
            f"{path}: layer {layer!r} holds {', '.join(unnamed)}, which its 'weight_names' does not name"
        )
    return tensors


def _tensor_name(layer: str, name: str) -> str:
    short, own = name.rsplit("/", 1)[-1].removesuffix(":0"), layer.rsplit("/", 1)[-1]
    parts = short.removeprefix(f"{own}_").split("_")
    return _OLD_NAMES.get(parts[0], short) if short.startswith(f"{own}_") else short


def _check_dataset(path: Path, dataset: "h5py.Dataset") -> None:
    if dataset.external:
        raise WeightsError(
            f"{path}: {dataset.name!r} keeps its values in another file, {dataset.external[0][0]!r}; refused"
        )
    if dataset.is_virtual:
        raise WeightsError(f"{path}: {dataset.name!r} is a virtual data set, its values are elsewhere; refused")
    counter = dataset.dtype.kind in "iu" and dataset.shape == ()  # as Keras's Normalization has one
    if dataset.dtype.kind != "f" and not counter:
        raise WeightsError(f"{path}: {dataset.name!r} holds {dataset.dtype}, expected floating numbers")
    if dataset.shape is None:
        raise WeightsError(f"{path}: {dataset.name!r} has no shape")
    stored = dataset.id.get_storage_size()
    _check_size(path, repr(dataset.name), _declared(dataset), stored)
    if dataset.size and not stored:
        raise WeightsError(f"{path}: {dataset.name!r} declares shape {dataset.shape} but its values were never written")


def _declared(dataset: "h5py.Dataset") -> int:
    return math.prod(dataset.shape) * dataset.dtype.itemsize


def _check_size(path: Path, what: str, declared: int, stored: int) -> None:
    if declared > _BOMB_FLOOR and declared > _BOMB_RATIO * stored:
        raise WeightsError(
            f"{path}: {what} would be {declared:,} bytes, {stored:,} are stored; refused as a shape bomb"
        )


def _check_nothing_unnamed(path: Path, root: "h5py.Group", layers: dict[str, Any]) -> None:
    known = {layer.split("/", 1)[0] for layer in layers} | {"top_level_model_weights", "optimizer_weights"}
    if unnamed := sorted(set(root) - known):
        raise WeightsError(f"{path}: holds {', '.join(unnamed)}, which its 'layer_names' does not name")


def _values(dataset: "h5py.Dataset") -> np.ndarray:
    values = np.asarray(dataset[()])
    return values.astype(values.dtype.newbyteorder("="), copy=False)
