"""What the tests run in processes of their own, to be killed, short of disk, or with several devices."""

import os
import resource
from pathlib import Path

import numpy as np

LENGTH = 300_000


def content(step):
    """A state that follows from its step alone: 2.4 MB."""
    rng = np.random.default_rng(step)
    return {
        "step": np.int32(step), "w/kernel": rng.standard_normal(LENGTH, np.float32),
        "optimizer": [None, {"mu": rng.integers(0, 2**32, LENGTH, np.uint32)}],
    }  # fmt: skip


def same(found, expected):
    """Whether two trees are equal bit for bit."""
    import jax

    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    return jax.tree.structure(found) == jax.tree.structure(expected) and all(
        np.asarray(x).dtype == np.asarray(y).dtype and np.asarray(x).tobytes() == np.asarray(y).tobytes()
        for x, y in pairs
    )


def save_for_ever(folder, begun):
    from cnnjax.checkpoints import Checkpoints

    checkpoints = Checkpoints(folder)
    step = checkpoints.latest() or 0
    if step and not same(checkpoints.restore(content(0)), content(step)):
        os._exit(3)
    checkpoints.save(step + 1, content(step + 1), {"step": step + 1}, wait=True)
    begun.set()
    while True:
        step += 1
        checkpoints.save(step + 1, content(step + 1), {"step": step + 1})


def fill_the_disk(folder, limits, answer):
    from cnnjax.checkpoints import Checkpoints, SaveFailed

    checkpoints = Checkpoints(folder)
    checkpoints.save(1, content(1), {}, wait=True)
    most = resource.getrlimit(resource.RLIMIT_FSIZE)
    said = []
    for limit in limits:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, most[1]))  # no file may be longer
        try:
            checkpoints.save(2, content(2), {})
            checkpoints.save(3, content(3), {})
        except SaveFailed as error:
            said.append(str(error))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, most)
    restored = same(checkpoints.restore(content(0)), content(1))
    later = checkpoints.save(4, content(4), {}, wait=True) and same(checkpoints.restore(content(0)), content(4))
    answer.put((said, restored, later, sorted(p.name for p in Path(folder).iterdir())))


def reshard(before, after, answer):
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
    import jax
    from jax.sharding import NamedSharding, PartitionSpec

    from cnnjax.checkpoints import Checkpoints

    mesh = jax.make_mesh((8,), ("data",))
    split, whole = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
    like = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=split if x.ndim else whole), content(0)
    )
    found = Checkpoints(before).restore(like)
    pieces = {x.addressable_shards[0].data.shape for x in jax.tree.leaves(found)}
    with Checkpoints(after) as checkpoints:
        checkpoints.save(6, found, {})
    answer.put((len(jax.devices()), sorted(pieces), same(found, content(5))))


def host(index, hosts, port, folder, answer):
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
    import jax
    from jax.sharding import NamedSharding, PartitionSpec

    from cnnjax.checkpoints import Checkpoints, SaveFailed

    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"127.0.0.1:{port}", hosts, index)
    mesh = jax.make_mesh((2 * hosts,), ("data",))
    split, whole = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())

    def spread(x, sharding):
        return jax.make_array_from_callback(x.shape, sharding, lambda where: x[where])

    def state(step):
        flat = content(step)
        return jax.tree.map(lambda x: spread(x, split if x.dtype == np.uint32 else whole), flat)

    checkpoints = Checkpoints(folder, keep=1, keep_best=1)
    for step, metric in ((1, 0.1), (2, 0.5), (3, 0.4)):
        checkpoints.save(step, state(step), {"step": step}, metric=metric)
    checkpoints.wait()
    found = checkpoints.restore(state(0), 1)
    expected = state(1)
    right = all(
        np.array_equal(a.data, b.data)
        for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
        for a, b in zip(x.addressable_shards, y.addressable_shards, strict=True)
    )
    checkpoints.close()
    try:
        Checkpoints(f"{folder}-{index}").save(1, state(1), {})
        apart = ""
    except SaveFailed as error:
        apart = str(error)
    answer.put((index, checkpoints.steps(), right, apart))
