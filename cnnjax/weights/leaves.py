"""A safetensors file onto the leaves of any module: everything fits, or nothing changes and one error says why."""

from os import PathLike
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from flax import nnx

from cnnjax.functional import join, lasting_leaves
from cnnjax.weights.hdf5 import WeightsError

_PART = "backbone/"


def load_leaves(model: nnx.Module, path: str | PathLike[str]) -> tuple[str, ...]:
    """Fill every leaf of `model`, random keys left out, from a file whose tensors have the leaves' paths as names.

    A saved classifier's `model.safetensors` serves too: then its backbone is taken.

    Args:
        model: Any Flax NNX module; its leaves may be abstract.
        path: A .safetensors file.

    Returns:
        The paths.

    Raises:
        WeightsError: It is no such file, or does not fit; all misfits are named, and the model is as it was.
    """
    path = Path(path)
    if path.suffix.lower() != ".safetensors":
        raise WeightsError(
            f"{path}: the weights of a network of your own are read from .safetensors, whose tensors have the paths of "
            "its leaves as names (safetensors.numpy.save_file(lasting_leaves(model), path) writes one)"
        )
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        arrays = load_file(path)
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise WeightsError(f"{path} cannot be read: {error}") from error
    leaves = lasting_leaves(model)
    if not set(arrays) & set(leaves) and any(name.startswith(_PART) for name in arrays):
        arrays = {name.removeprefix(_PART): x for name, x in arrays.items() if name.startswith(_PART)}
    faults = [f"{name}: missing from the file" for name in leaves if name not in arrays]
    faults += [f"{name}: not in the model" for name in arrays if name not in leaves]
    for name, x in arrays.items():
        if name not in leaves:
            continue
        want = leaves[name]
        if (x.shape, x.dtype) != (tuple(want.shape), np.dtype(want.dtype)):
            faults.append(f"{name}: expected {want.dtype}{list(want.shape)}, found {x.dtype}{list(x.shape)}")
        elif not np.isfinite(x).all():
            faults.append(f"{name}: NaN or infinite values")
    if faults:
        raise WeightsError("\n  ".join([f"{path} does not fit the model; nothing was loaded:", *faults]))
    for name, variable in nnx.to_flat_state(nnx.state(model)):
        if join(name) in arrays:
            variable.set_value(jnp.asarray(arrays[join(name)]))
    return tuple(leaves)
