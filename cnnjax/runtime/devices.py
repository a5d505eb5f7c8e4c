"""Many devices and many hosts: a mesh with one axis, what lies where on it, and how hosts find each other."""

import math
import re
import threading
import zlib
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from cnnjax.runtime import Tree

AXIS = "data"

BIG = 1 << 16
"""Numbers in a leaf from which on it is worth sharding: smaller ones cost more in messages than in memory."""

_GRACE = 60  # seconds that JAX waits on, after a process has given up


@dataclass(frozen=True)
class Devices:
    """What a run is spread over: a mesh with the one axis "data", through all devices of all hosts.

    Batches are cut along it, so every device computes the gradient of its examples, and XLA adds the parts up. All
    that a step computes over the batch, BatchNorm's statistics among it, is of the whole batch: the numbers are those
    of one device, but for the order of sums.

    Attributes:
        mesh: The devices, those of a host beside each other (made by `all`).
        shard_parameters: Parameters, and what the optimizer keeps of them, are cut as well, so that each device holds a
            part: a leaf of `BIG` numbers or more, along its largest dimension that the devices divide. They are put
            together for each step. That saves memory, not messages: XLA still adds whole gradients up. Otherwise every
            device holds all of them.

    >>> devices = Devices.all()
    >>> batch = devices.batch(np.zeros((devices.count * 2, 4, 4, 3)))
    >>> batch.shape[0] == devices.count * 2, batch.sharding.spec
    (True, P('data',))
    >>> devices.place({"kernel": np.zeros((3, 3))})["kernel"].sharding.spec
    P()
    """

    mesh: Mesh
    shard_parameters: bool = False

    @classmethod
    def all(cls, *, shard_parameters: bool = False, count: int | None = None) -> "Devices":
        """The devices that there are.

        Args:
            shard_parameters: See the class.
            count: The first so many alone; only where one process has all.

        Raises:
            ValueError: There are not so many, or they belong to several hosts.
        """
        # A host's rows of a batch lie beside each other only if its devices do.
        found = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
        if count is not None:
            if jax.process_count() > 1 and count != len(found):
                raise ValueError(
                    f"devices: a run on {jax.process_count()} hosts takes all {len(found)}, found {count}; leave it out"
                )
            if not 1 <= count <= len(found):
                raise ValueError(f"devices: expected 1 to {len(found)} ({found[0].platform}), found {count}")
        return cls(Mesh(np.array(found[:count]), (AXIS,)), shard_parameters)

    @property
    def count(self) -> int:
        """Number of devices, of all hosts."""
        return self.mesh.size

    @property
    def host(self) -> int:
        """This process's number, from 0."""
        return jax.process_index()

    @property
    def hosts(self) -> int:
        """Number of processes."""
        return jax.process_count()

    @property
    def primary(self) -> bool:
        """Whether this process is the one that writes logs."""
        return self.host == 0

    @property
    def replicated(self) -> NamedSharding:
        """Where everything lies on every device."""
        return NamedSharding(self.mesh, PartitionSpec())

    @property
    def copies(self) -> int:
        """How often a replicated array lies in the memory that `features.free_bytes` measures."""
        here = self.mesh.local_devices
        return len(here) if here[0].platform == "cpu" else 1  # CPU devices share the machine's

    def check_batch(self, size: int) -> None:
        """Refuse a batch that cannot be spread evenly.

        Raises:
            ValueError: With the nearest sizes that can be.

        >>> Devices.all(count=1).check_batch(30)
        """
        if size % self.count:
            below = size // self.count * self.count
            near = f"{below} or {below + self.count}" if below else f"{self.count}"
            raise ValueError(
                f"a batch of {size} cannot be spread evenly over {self.count} devices: batch_size {near} can; "
                "or take fewer devices"
            )

    def own(self, size: int) -> slice:
        """Which of the rows of a batch of that size are this host's: those that `local_batch` wants of it."""
        each = size // self.count
        mine = [k for k, device in enumerate(self.mesh.devices.flat) if device.process_index == self.host]
        return slice(mine[0] * each, (mine[-1] + 1) * each)

    def replicate(self, tree: Tree) -> Any:
        """Arrays, the same on every host, onto all devices."""
        return jax.tree.map(lambda x: _put(x, self.replicated), tree)

    def batch(self, tree: Tree, axis: int = 0) -> Any:
        """Host arrays [B, ...] of a whole batch, the same on every host: each device gets its examples.

        Args:
            tree: The arrays.
            axis: Which axis the examples lie along.
        """
        sharding = NamedSharding(self.mesh, PartitionSpec(*[None] * axis, AXIS))
        return jax.tree.map(lambda x: _put(x, sharding), tree)

    def local_batch(self, tree: Tree) -> Any:
        """Host arrays [B / hosts, ...], each host's own examples of a batch (see `own`), as arrays [B, ...]."""
        sharding = NamedSharding(self.mesh, PartitionSpec(AXIS))
        here = len(self.mesh.local_devices)

        def joined(x: np.ndarray) -> jax.Array:
            shape = (len(x) // here * self.count, *x.shape[1:])
            return jax.make_array_from_process_local_data(sharding, x, shape)

        return jax.tree.map(joined, tree)

    def shardings(self, tree: Tree) -> Any:
        """Where `place` puts each leaf; of arrays, or of abstract ones (`jax.ShapeDtypeStruct`)."""
        return jax.tree.map(lambda x: NamedSharding(self.mesh, self._rule(x.shape)), tree)

    def place(self, tree: Tree) -> Any:
        """A state, the same on every host, onto the devices: each leaf whole or in parts, as the class says."""
        return jax.tree.map(_put, tree, self.shardings(tree))

    def keep(self, tree: Tree) -> Any:
        """In a compiled program: what it gives lies where `place` puts it."""
        return jax.lax.with_sharding_constraint(tree, self.shardings(tree))

    def whole(self, tree: Tree) -> Any:
        """In a compiled program: every device has all of it."""
        return jax.lax.with_sharding_constraint(tree, self.replicated)

    def gather(self, tree: Tree) -> Any:
        """Global arrays as this process's own, on its first device; every host must call it."""
        return jax.tree.map(lambda x: _put(x, self.replicated).addressable_data(0), tree)

    def _rule(self, shape: tuple[int, ...]) -> PartitionSpec:
        axes = [k for k, n in enumerate(shape) if n % self.count == 0]
        if not self.shard_parameters or math.prod(shape) < BIG or not axes:
            return PartitionSpec()
        axis = max(axes, key=lambda k: shape[k])
        return PartitionSpec(*[None] * axis, AXIS)

    def agree(self, *flags: bool) -> tuple[bool, ...]:
        """Whether any host has each flag set; every host must ask, at the same point, and waits for the others.

        >>> Devices.all().agree(True, False)
        (True, False)
        """
        if self.hosts == 1:
            return flags
        return tuple(np.asarray(multihost_utils.process_allgather(np.array(flags))).any(0).tolist())

    def check_same(self, tree: Tree, what: str) -> None:
        """Refuse arrays that differ from host to host: a run from two sets of weights would be neither's.

        Args:
            tree: Arrays; those of all hosts together are the same already.
            what: They are called in the message.

        Raises:
            ValueError: They differ; on every host.
        """
        if self.hosts == 1:
            return
        found = np.uint32(0)
        for leaf in (x for x in jax.tree.leaves(tree) if not isinstance(x, jax.Array) or x.is_fully_addressable):
            found = np.uint32(zlib.crc32(np.ascontiguousarray(leaf).view(np.uint8), int(found)))
        others = np.asarray(multihost_utils.process_allgather(found)).ravel()
        if len(set(others.tolist())) > 1:
            differ = [k for k, other in enumerate(others) if other != others[0]]
            raise ValueError(
                f"{what} are not the same on every host: host {', '.join(map(str, differ))} differs from host 0; "
                "give all of them the same files and options"
            )


def _put(x: jax.Array | np.ndarray, sharding: NamedSharding) -> jax.Array:
    if sharding.is_fully_addressable or (isinstance(x, jax.Array) and x.sharding.device_set == sharding.device_set):
        return jax.device_put(x, sharding)
    # Not device_put, which has all hosts compare all values first.
    host = np.asarray(x)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


def start(hosts: str | None, *, join: int = 300, lost: int = 100) -> None:
    """Join this process with those of the other hosts, by JAX's own distributed runtime; before JAX is first used.

    A process that dies takes the run with it: the others end with an error as soon as a message to it fails, or when
    it has been silent for `lost` seconds (JAX ends them itself, by SIGABRT, wherever they stand). So long too a process
    that ends, well or by an error of its own, waits for the others to end; then JAX ends all. All are started again
    after that. Where one host goes on for longer than the others (it writes a report), let them wait for it in
    `Devices.agree`, which has no limit.

    Args:
        hosts: "auto" asks the cluster (SLURM, Open MPI, Kubernetes and Cloud TPU tell JAX who is there);
            "HOST:PORT,ID,COUNT" says it: where process 0 listens, this process's number from 0, and how many there
            are. None, or a COUNT of 1, does nothing.
        join: Seconds to wait for all processes to come.
        lost: Seconds of silence after which a process counts as dead, and that the end of one may lie after another's.

    Raises:
        ValueError: It is not of that form, no cluster is there, or JAX was used before.
        TimeoutError: Not all processes came.

    >>> start("10.0.0.1:1234,0,1")
    """
    if hosts is None:
        return
    given: dict[str, Any] = {}
    if hosts != "auto":
        address, number, count = _parsed(hosts)
        if count == 1:
            return
        # JAX would ask the cluster for what is not given: which devices of this host are whose.
        given = dict(coordinator_address=address, process_id=number, num_processes=count)
        given["cluster_detection_method"] = "deactivate"
    failed: list[Exception] = []

    def joining() -> None:
        try:
            jax.distributed.initialize(
                **given, initialization_timeout=join + _GRACE, heartbeat_timeout_seconds=lost,
                shutdown_timeout_seconds=lost,
            )  # fmt: skip
        except Exception as error:  # told by the thread that waits
            failed.append(error)

    # JAX ends the process where not all come in time; waiting beside it, that is an error like others.
    beside = threading.Thread(target=joining, daemon=True, name="cnnjax-hosts")
    beside.start()
    beside.join(join)
    if beside.is_alive():
        raise TimeoutError(f"hosts: not all processes of {hosts!r} came within {join} seconds")
    for error in failed:
        raise _told(error) from error


def _told(error: Exception) -> Exception:
    """A failure to join, as far as it is known, in a sentence."""
    if "must be called before" in str(error):
        return ValueError("hosts: JAX was used in this process before; join the hosts first")
    if "only be called once" in str(error):
        return ValueError("hosts: this process has joined them already")
    if "should be defined" in str(error):
        return ValueError(
            "hosts: no cluster was found (SLURM's srun, Open MPI, Kubernetes and Cloud TPU are looked for); "
            "give HOST:PORT,ID,COUNT, such as 10.0.0.1:1234,0,2"
        )
    return OSError(f"hosts: {error}")


def _parsed(hosts: str) -> tuple[str, int, int]:
    found = re.fullmatch(r"([^,\s]+:\d+),(\d+),(\d+)", hosts)
    if not found:
        raise ValueError(f"hosts: expected auto, or HOST:PORT,ID,COUNT such as 10.0.0.1:1234,0,2; found {hosts!r}")
    address, number, count = found[1], int(found[2]), int(found[3])
    if number >= count:
        raise ValueError(f"hosts: of {count} processes the last is {count - 1}, found {number} in {hosts!r}")
    return address, number, count
