"""The compiled programs of training: a step, an epoch of steps, evaluation. A value that the loop holds."""

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from cnnjax.runtime import Tree
from cnnjax.train.state import State
from cnnjax.train.step import Step, TrainingBatch
from cnnjax.train.task import Labelled, Metrics

# XLA's CPU backend leaves its fast convolutions inside a loop, so epochs with any are run step by step there.
_SLOW_IN_LOOPS_ON_CPU = {"conv_general_dilated", "reduce_window_max", "select_and_scatter_add"}


class Programs:
    """What training compiles. Each program is traced once for each kind of rows.

    Args:
        functions: the pure functions of a step.

    Attributes:
        step: a step on a batch from the host: `step(state, context, rows, labelled, counts, seed, decoded=, masked=)`
            gives the state after it and `Metrics`. The state is donated, here and below.
        taking_step: a step that takes its batch out of rows on the device: `taking_step(state, context, arrays,
            labelled, index, counts, views, seed, decoded=, masked=)`, `index` of the labels and `views` of the rows.
        epoch: a whole epoch of these, `index`, `counts` and `views` with an axis of steps before that of the batch;
            gives the state, the sums, and the loss of each step.
        evaluate: `evaluate(state, context, rows, labelled, counts, decoded=)` gives `Metrics` and the outputs.
        take: a batch out of rows on the device: `take(arrays, labelled, index, views)`.
        in_loop: whether an epoch is as fast as its steps one by one: not with convolutions on a CPU.
        traces: how often each program was traced.
    """

    def __init__(self, functions: Step):
        self.functions = functions
        self.traces: Counter[str] = Counter()
        late = functions.model.training.late_primitives
        self.in_loop = jax.default_backend() != "cpu" or not (late & _SLOW_IN_LOOPS_ON_CPU)
        compiled = partial(jax.jit, donate_argnums=0, static_argnames=("decoded", "masked"))
        self.step: Any = compiled(self._traced("step", self.update))
        self.taking_step: Any = compiled(self._traced("step", self.take_and_update))
        self.epoch: Any = compiled(self._traced("epoch", self.scan))
        self.evaluate: Any = jax.jit(self._traced("evaluate", self._score), static_argnames="decoded")
        self.take: Any = jax.jit(_taken)

    def _traced(self, name: str, fn: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            self.traces[name] += 1
            with self.functions.model.spread():
                return fn(*args, **kwargs)

        return counted

    # The same before they are compiled, for programs that are made of them (`cnnjax.train.replicas`).

    def update(
        self, state: State, context: Tree, rows: Sequence[jax.Array], labelled: Labelled, counts: jax.Array,
        seed: jax.Array, decoded: bool = False, masked: bool = False,
    ) -> tuple[State, Metrics]:  # fmt: skip
        """`step`, not compiled."""
        return self.functions.update(state, TrainingBatch(context, rows, labelled, counts, seed, decoded, masked))

    def take_and_update(
        self, state: State, context: Tree, arrays: Tree, labelled: Labelled, index: jax.Array, counts: jax.Array,
        views: jax.Array, seed: jax.Array, decoded: bool = False, masked: bool = False,
    ) -> tuple[State, Metrics]:  # fmt: skip
        """`taking_step`, not compiled."""
        return self.update(state, context, *_taken(arrays, labelled, index, views), counts, seed, decoded, masked)

    def scan(
        self, state: State, context: Tree, arrays: Tree, labelled: Labelled, index: jax.Array, counts: jax.Array,
        views: jax.Array, seed: jax.Array, decoded: bool = False, masked: bool = False,
    ) -> tuple[State, Metrics, jax.Array]:  # fmt: skip
        """`epoch`, not compiled."""

        def body(state: State, batch: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[State, Metrics]:
            return self.take_and_update(state, context, arrays, labelled, *batch, seed, decoded, masked)

        state, metrics = jax.lax.scan(body, state, (index, counts, views))
        return state, jax.tree.map(jnp.sum, metrics), jnp.asarray(metrics.loss)

    def _score(
        self, state: State, context: Tree, rows: Tree, labelled: Labelled, counts: jax.Array, decoded: bool = False
    ) -> tuple[Metrics, Any]:
        return self.functions.score(state, TrainingBatch(context, rows, labelled, counts, None, decoded))


def _taken(arrays: Tree, labelled: Labelled, index: jax.Array, views: jax.Array) -> tuple[list[jax.Array], Labelled]:
    return [jnp.take(x, views, axis=0, mode="clip") for x in arrays], labelled.take(index)
