"""Seeds and rates as replicas: the same model from several states, trained by one program."""

import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from cnnjax.features import Progress, free_bytes
from cnnjax.runtime import preemption
from cnnjax.runtime.compiling import compile_seconds
from cnnjax.train.dataset import FeatureDataset
from cnnjax.train.state import State
from cnnjax.train.task import Metrics
from cnnjax.train.trainer import Trainer

_COPIES = 4  # weights, gradients, updates, and what the optimizer makes on the way
_AXIS = "replicas"


class Replicas:
    """Trains several states of one `Trainer`, each with a seed and a rate of its own.

    Parts without convolutions (heads on stored features) are trained together, by `vmap`: their steps are so short
    that starting them is most of the cost. `vmap` over a convolution's kernels would make it a grouped convolution,
    which takes many times longer (measured: 18 times for four 3x3 kernels on CPU), so replicas of such parts take
    turns, or go one to a device. On several devices the replicas are spread over all of them.

    Args:
        trainer: what is trained.
        devices: which are used; all of this process by default.

    Attributes:
        together: whether a device trains several replicas at once.

    >>> from flax import nnx
    >>> from cnnjax.data import InMemory
    >>> from cnnjax.freeze import Freeze
    >>> model = nnx.Sequential(lambda x: x.mean((1, 2)) / 255, nnx.Linear(3, 1, rngs=nnx.Rngs(0)))
    >>> data = InMemory(np.zeros((6, 4, 4, 3), np.uint8), np.arange(6) % 2, ("a", "b"))
    >>> trainer = Trainer(model, Freeze.none().resolve(model), (4, 4), batch_size=3)
    >>> replicas = Replicas(trainer)
    >>> states = [trainer.init(learning_rate=rate) for rate in (1e-3, 1e-2)]
    >>> states, logs = replicas.fit(states, trainer.rows(data), epochs=2, seeds=(0, 0))
    >>> [int(state.step) for state in states], [len(log) for log in logs]
    ([4, 4], [2, 2])
    """

    def __init__(self, trainer: Trainer, devices: Sequence[jax.Device] | None = None):
        self.trainer = trainer
        self.devices = tuple(devices or jax.local_devices())
        self.together = "conv_general_dilated" not in trainer.staged.late_primitives
        spread, shared = PartitionSpec(_AXIS), PartitionSpec()
        specs = (spread, shared, shared, shared, spread, spread, spread, spread)
        programs = trainer.programs

        def program(*args: Any, masked: bool) -> Any:
            programs.traces["replicas"] += 1
            inner = partial(programs.scan if self.together else self._alone, masked=masked)
            if self.together:
                inner = jax.vmap(inner, in_axes=(0, None, None, None, 0, 0, 0, 0))
            if len(self.devices) > 1:
                mesh = Mesh(np.array(self.devices), (_AXIS,))
                inner = jax.shard_map(inner, mesh=mesh, in_specs=specs, out_specs=spread, check_vma=False)
            return inner(*args)

        self._program = jax.jit(program, donate_argnums=0, static_argnames="masked")

    def _alone(self, state: State, *args: Any, masked: bool) -> tuple[State, Metrics]:
        """One step of the one replica of a device."""
        context, arrays, labelled, *own = args
        first = partial(jax.tree.map, lambda x: x[0])
        stepped = self.trainer.programs.take_and_update(
            first(state), context, arrays, labelled, *first(own), masked=masked
        )
        return jax.tree.map(lambda x: x[None], stepped)

    def most(self) -> int:
        """How many replicas fit into the memory of the devices together."""
        if not self.together:
            return len(self.devices)
        state = self.trainer.abstract_state()
        each = _COPIES * sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
        return max(1, int(free_bytes() // 2 // max(each, 1))) * len(self.devices)

    def fit(
        self,
        states: Sequence[State],
        rows: FeatureDataset,
        *,
        epochs: int,
        seeds: Sequence[int],
        progress: Progress | None = None,
    ) -> tuple[list[State], list[list[dict[str, float]]]]:
        """Train all states; arguments and results are those of `Trainer.fit`, one for each state.

        The seconds of a record are the replica's share of what its group took.

        Raises:
            ValueError: not a seed for each state, states at different steps, or more than fit into memory.
        """
        if len(states) != len(seeds) or not states:
            raise ValueError(f"expected a seed for each state, found {len(states)} states and {len(seeds)} seeds")
        if len({int(state.step) for state in states}) > 1:
            raise ValueError("the states must stand at the same step")
        turns = rows.kind != "features" or not rows.on_device or (not self.together and len(self.devices) == 1)
        if turns or len(states) == 1:
            return self._in_turn(states, rows, epochs, seeds, progress)
        if self.together and len(states) > (most := self.most()):
            raise ValueError(
                f"{len(states)} replicas of {self.trainer.trainable_parameters:,} trainable parameters do not fit into "
                f"memory; train at most {most} together"
            )
        size = len(states) if self.together else len(self.devices)
        done: list[State] = []
        logs: list[list[dict[str, float]]] = []
        for start in range(0, len(states), size):
            group, own = states[start : start + size], seeds[start : start + size]
            after, log = self._group(group, rows, epochs, own, progress)
            done, logs = done + after, logs + log
        return done, logs

    def _in_turn(
        self,
        states: Sequence[State],
        rows: FeatureDataset,
        epochs: int,
        seeds: Sequence[int],
        progress: Progress | None,
    ) -> tuple[list[State], list[list[dict[str, float]]]]:
        found = [
            self.trainer.fit(state, rows, epochs=epochs, seed=seed, progress=progress)
            for state, seed in zip(states, seeds, strict=True)
        ]
        return [state for state, _ in found], [log for _, log in found]

    def _group(
        self,
        states: Sequence[State],
        rows: FeatureDataset,
        epochs: int,
        seeds: Sequence[int],
        progress: Progress | None,
    ) -> tuple[list[State], list[list[dict[str, float]]]]:
        trainer, count = self.trainer, len(states)
        # Every device has the same number: the last replica fills up.
        filled = -(-count // len(self.devices)) * len(self.devices)
        places = [min(k, count - 1) for k in range(filled)]
        stacked: Any = jax.tree.map(lambda *xs: jnp.stack(xs), *(states[k] for k in places))
        keys = np.array([seeds[k] for k in places], np.uint32)
        steps, program = trainer.steps_per_epoch(len(rows)), partial(self._program, masked=trainer.masks(len(rows)))
        first = int(states[0].step) // steps
        logs: list[list[dict[str, float]]] = [[] for _ in states]
        for epoch in range(first, first + epochs):
            preemption.check()
            start, compiled = time.perf_counter(), compile_seconds()
            orders = [trainer.feed.order(rows, int(key), epoch) for key in keys]
            index, weights, views = (np.stack(parts) for parts in zip(*orders, strict=True))
            arguments = ((trainer.constants, None), rows.arrays, rows.labelled)
            if self.together:
                stacked, metrics, _ = program(stacked, *arguments, index, weights, views, keys)
                total = jax.device_get(metrics)
            else:
                sums: Any = trainer.no_metrics()
                for k in range(steps):
                    stacked, metrics = program(stacked, *arguments, index[:, k], weights[:, k], views[:, k], keys)
                    sums = sums.plus(metrics)
                total = jax.device_get(sums)
            spent = {"seconds": time.perf_counter() - start, "compile_seconds": compile_seconds() - compiled}
            shares = {name: seconds / count for name, seconds in spent.items()}
            for r, log in enumerate(logs):
                found = jax.tree.map(lambda part, r=r: np.asarray(part)[r], total).summary()
                log.append(found | {"epoch": epoch, "steps": steps} | shares)
            if progress:
                progress((epoch - first + 1) * steps, epochs * steps)
        return [jax.tree.map(lambda x, r=r: x[r], stacked) for r in range(count)], logs
