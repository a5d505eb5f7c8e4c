"""Orbax: save leaves whole, restore them strictly."""

import os
from pathlib import Path

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from cnnjax.functional import Leaves


class CheckpointMismatch(ValueError):
    """A checkpoint does not hold what is asked of it."""


def save(path: str | os.PathLike[str], leaves: Leaves) -> None:
    """Write leaves as plain nested dictionaries; the folder appears whole or not at all.

    Args:
        path: a folder; one that exists is replaced.
        leaves: arrays by path.

    Raises:
        ValueError: if one of them is a random key.
    """
    import orbax.checkpoint as ocp

    keys = [p for p, x in leaves.items() if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)]
    if keys:
        raise ValueError(f"random keys are made anew from a seed and not saved; leave out {', '.join(keys)}")
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(Path(path).absolute(), unflatten_dict(leaves, sep="/"), force=True)


def restore(path: str | os.PathLike[str], expected: Leaves) -> Leaves:
    """Read leaves, strictly.

    Args:
        path: a folder that `save` wrote.
        expected: leaves whose paths, shapes and types the checkpoint must have; arrays or abstract.

    Raises:
        FileNotFoundError: if there is no checkpoint.
        CheckpointMismatch: naming every leaf that is missing, unknown, or of another shape or type.
    """
    import orbax.checkpoint as ocp

    folder = Path(path).absolute()
    if not folder.is_dir():
        raise FileNotFoundError(f"no checkpoint at {folder}")
    with ocp.StandardCheckpointer() as checkpointer:
        metadata = checkpointer.metadata(folder).item_metadata
        tree = getattr(metadata, "tree", metadata)
        if not isinstance(tree, dict):
            raise FileNotFoundError(f"{folder} is no checkpoint")
        there = flatten_dict(tree, sep="/")
        faults = [f"  {p}: missing from the checkpoint" for p in sorted(set(expected) - set(there))]
        faults += [f"  {p}: not in the model" for p in sorted(set(there) - set(expected))]
        for p in sorted(set(there) & set(expected)):
            found, want = (tuple(there[p].shape), np.dtype(there[p].dtype)), (expected[p].shape, expected[p].dtype)
            if found != want:
                faults.append(f"  {p}: expected {want[1]}{list(want[0])}, found {found[1]}{list(found[0])}")
        if faults:
            raise CheckpointMismatch(f"the checkpoint {folder} does not fit:\n" + "\n".join(faults))
        abstract = {p: jax.ShapeDtypeStruct(x.shape, x.dtype) for p, x in expected.items()}
        device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        abstract = {p: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device) for p, x in abstract.items()}
        return flatten_dict(checkpointer.restore(folder, unflatten_dict(abstract, sep="/")), sep="/")
