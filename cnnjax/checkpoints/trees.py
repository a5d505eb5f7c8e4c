"""One tree of arrays in one folder: written whole or not at all, restored strictly."""

import json
import logging
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from cnnjax.checkpoints.digests import seal, verify
from cnnjax.checkpoints.errors import CheckpointMismatch, SaveFailed, reason
from cnnjax.checkpoints.nested import as_nested, named_leaves, strays
from cnnjax.files.writing import sync

ABOUT = "_CHECKPOINT_METADATA"  # Orbax's file of what is known of a checkpoint, ours included
PARTIAL = ".orbax-checkpoint-tmp"
_STAGED, AGAIN = f"{PARTIAL}-whole", ".again"
_MIB = 1 << 20


def save(path: str | os.PathLike[str], tree: Any) -> None:
    """Write a tree of arrays as plain nested dictionaries; the folder appears whole or not at all.

    Args:
        path: a folder; one that exists is replaced once the new one is whole.
        tree: arrays by path, or any other tree of arrays.

    Raises:
        ValueError: if a leaf cannot be saved (a random key, or what is no array), or the path is no local folder's.
        SaveFailed: if the disk is full or the folder cannot be written.
    """
    folder, given = checked(path), snapshot(tree)
    writer = make_writer()
    try:
        write(writer, folder, given, {})
        writer.wait_until_finished()
    except Exception as error:
        remove_partial(folder.parent, folder.name + PARTIAL)
        raise SaveFailed(f"{folder} could not be saved: {reason(error)}") from error
    writer.close()


def restore(path: str | os.PathLike[str], like: Any) -> Any:
    """Read a tree, strictly.

    Args:
        path: a folder that `save` wrote.
        like: a tree with the paths, shapes and types that the checkpoint must have; arrays or abstract. Where its
            leaves have shardings, the result has them; NumPy arrays come back as such; all others go to the first
            local device.

    Raises:
        FileNotFoundError: if there is no checkpoint.
        CorruptCheckpoint: if it is not what was written.
        CheckpointMismatch: naming every leaf that is missing, unknown, or of another shape or type.
    """
    folder = Path(path).absolute()
    verify(folder, "remove that folder, and it can be made anew")
    return read(folder, like)


def checked(path: str | os.PathLike[str]) -> Path:
    """The absolute path, if Orbax can write there.

    Raises:
        ValueError: if it cannot.
    """
    text = os.fspath(path)
    if "://" in text:
        raise ValueError(f"{text}: checkpoints need a folder; mount the bucket and give its path")
    folder = Path(path).absolute()
    if "[" in str(folder):  # Orbax takes the folder's own name for a pattern
        raise ValueError(f"{folder}: Orbax cannot write below a folder with a '[' in its name; give another")
    return folder


def snapshot(tree: Any) -> dict[str, Any]:
    """The tree as nested dictionaries, in host memory of its own: the arrays may be donated at once.

    Raises:
        ValueError: if a leaf is a random key, empty, or no array.
    """
    leaves = named_leaves(tree)
    if not leaves:
        raise ValueError("nothing to save: the tree has no arrays")
    odd = [p for p, x in leaves.items() if not hasattr(x, "dtype")]
    if odd:
        raise ValueError(f"only arrays are saved, not Python's numbers or objects: {', '.join(odd)}")
    keys = [p for p, x in leaves.items() if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)]
    if keys:
        raise ValueError(f"random keys are not saved; leave out {', '.join(keys)}, or give jax.random.key_data of it")
    empty = [p for p, x in leaves.items() if x.size == 0]
    if empty:
        raise ValueError(f"arrays without elements cannot be saved: {', '.join(empty)}")
    alone = jax.process_count() == 1
    for x in leaves.values():
        if isinstance(x, jax.Array) and alone:
            x.copy_to_host_async()
    return jax.tree.map(lambda x: _apart(x, alone), as_nested(tree))


def _apart(x: Any, alone: bool) -> Any:
    if not isinstance(x, jax.Array):
        return np.array(x)
    on_host = next(iter(x.sharding.device_set)).platform == "cpu"
    if alone:
        # A view of its own, which dies here: one that stays would keep the step from reusing the array's memory.
        whole = np.asarray(x.addressable_data(0) if x.is_fully_replicated else x)
        return whole.copy() if on_host else whole
    if not on_host:  # Orbax copies each process's share from the device before it returns
        return x
    shards = [jax.device_put(np.array(shard.data), shard.device) for shard in x.addressable_shards]
    return jax.make_array_from_single_device_arrays(x.shape, x.sharding, shards)


def make_writer(after: Callable[[], None] = lambda: None) -> Any:
    """Orbax's asynchronous checkpointer, whose folders are sealed with digests before they get their names.

    Args:
        after: called in the background, by the first process alone, when a checkpoint is whole.
    """
    import orbax.checkpoint as ocp

    base: Any = ocp.path.atomicity.AtomicRenameTemporaryPath

    class Sealed(base):
        """A folder that Orbax finishes under another name, and that gets its own when its digests are there."""

        @classmethod
        def from_final(cls, final_path: Any, **options: Any) -> Any:
            return super().from_final(final_path.with_name(final_path.name + _STAGED), **options)

        async def finalize(self) -> None:
            await super().finalize()
            staged = Path(self.get_final())
            final = staged.with_name(staged.name.removesuffix(_STAGED).removesuffix(AGAIN))
            if not (staged / "manifest.ocdbt").is_file():  # of which Orbax only warns
                raise OSError("Orbax did not join what the processes wrote")
            seal(staged)
            if final.is_dir():
                discard(final)
            staged.rename(final)
            sync(final.parent)
            after()

    _quieten()
    return ocp.AsyncCheckpointer(
        ocp.PyTreeCheckpointHandler(
            use_compression=False,  # float32 weights shrink by 7 %, at twice the processor time
            type_handler_registry=ocp.type_handlers.create_type_handler_registry(
                (np.ndarray, ocp.type_handlers.NumpyHandler(deepcopy_host_arrays=False)),
                (jax.Array, _array_handler(ocp)),
            ),
        ),
        # In the background a folder that cannot be made leaves a thread waiting for ever.
        async_options=ocp.options.AsyncOptions(create_directories_asynchronously=False),
        temporary_path_class=Sealed,
    )


def _array_handler(ocp: Any) -> Any:
    # Hosts share the writing of what they all have, unless it is small: each share is a slice that is compiled.
    return ocp.type_handlers.ArrayHandler(min_slice_bytes_for_replica_parallel=_MIB, enable_write_sharding_file=False)


def write(writer: Any, folder: Path, given: dict[str, Any], metadata: Mapping[str, Any]) -> None:
    """Begin to write what `snapshot` gave; `writer.wait_until_finished` ends it."""
    import orbax.checkpoint as ocp

    folder.parent.mkdir(parents=True, exist_ok=True)
    # Orbax would open every array to tell its kind: half of the time of restoring.
    kinds = {path: _kind(x) for path, x in flatten_dict(given, sep="/").items()}
    writer.save(folder, args=ocp.args.PyTreeSave(given), custom_metadata={**metadata, "leaves": kinds}, force=True)


def discard(folder: Path) -> None:
    """Remove a checkpoint; it loses its name first, so that a kill leaves no half of one."""
    going = folder.with_name(f"{folder.name}{PARTIAL}-removed")
    folder.rename(going)
    shutil.rmtree(going, ignore_errors=True)


def remove_partial(folder: Path, name: str = "") -> None:
    """Remove what a save that was killed, or failed, left behind: of one name, or of all."""
    if jax.process_index() == 0 and folder.is_dir():
        for left in folder.iterdir():
            if PARTIAL in left.name and left.name.startswith(name):
                shutil.rmtree(left, ignore_errors=True)


def recorded(folder: Path) -> dict[str, Any]:
    """What `write` was told of a checkpoint, and the kinds of its leaves."""
    return json.loads((folder / ABOUT).read_bytes())["custom_metadata"]


def read(folder: Path, like: Any) -> Any:
    """Restore a folder that was verified; see `restore`."""
    import orbax.checkpoint as ocp

    _quieten()
    expected, found = named_leaves(like), recorded(folder)["leaves"]
    if faults := [*strays(found, expected), *_other_kinds(found, expected)]:
        raise CheckpointMismatch(f"the checkpoint {folder} does not fit:\n" + "\n".join(faults))
    form = as_nested(dict.fromkeys(expected, 0))
    asked = as_nested({p: _request(ocp, x) for p, x in expected.items()})
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        restored: Any = checkpointer.restore(folder, args=ocp.args.PyTreeRestore(item=form, restore_args=asked))
        values = flatten_dict(restored, sep="/")
    return jax.tree.unflatten(jax.tree.structure(like), [_placed(values[p], x) for p, x in expected.items()])


def read_all(folder: Path) -> dict[str, Any]:
    """Restore a folder that was verified, as nested dictionaries of NumPy arrays."""
    import orbax.checkpoint as ocp

    _quieten()
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        tree: Any = checkpointer.metadata(folder).item_metadata.tree
        asked = jax.tree.map(lambda x: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        return checkpointer.restore(folder, args=ocp.args.PyTreeRestore(restore_args=asked))


def _kind(x: Any) -> str:
    return f"{x.dtype}{list(x.shape)}"


def _other_kinds(found: Mapping[str, str], expected: Mapping[str, Any]) -> list[str]:
    faults = []
    for p in sorted(found.keys() & expected.keys()):
        there, want = found[p], expected[p]
        if there != _kind(want):
            faults.append(f"  {p}: expected {_kind(want)}, found {there}")
        elif not _is_host(want) and jax.dtypes.canonicalize_dtype(want.dtype) != want.dtype:
            faults.append(f"  {p}: {there} fits no JAX array unless jax_enable_x64 is set")
    return faults


def _request(ocp: Any, like: Any) -> Any:
    sharding = _sharding(like)
    if sharding is None:
        return ocp.RestoreArgs(restore_type=np.ndarray)
    return ocp.ArrayRestoreArgs(sharding=sharding, global_shape=like.shape, dtype=like.dtype)


def _placed(value: Any, like: Any) -> Any:
    # Without a sharding of its own an array is left uncommitted, as fresh ones are: the step then is the same program.
    return value if _is_host(like) or _sharding(like) is not None else jax.device_put(value, may_alias=False)


def _sharding(like: Any) -> Any:
    if isinstance(like, jax.Array):
        return like.sharding if like.committed else None
    return getattr(like, "sharding", None)


def _is_host(like: Any) -> bool:
    return isinstance(like, np.ndarray | np.generic)


class _NoOrbax(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return f"{os.sep}orbax{os.sep}" not in record.pathname


_NO_ORBAX = _NoOrbax()


def _quieten() -> None:
    """Keeps Orbax's log from the terminal: what fails is raised, and said once."""
    logging.getLogger("absl").addFilter(_NO_ORBAX)
