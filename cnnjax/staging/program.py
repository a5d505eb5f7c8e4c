"""A program at the batch sizes it is run at, and where it is cut."""

from collections.abc import Callable, Sequence
from contextvars import copy_context
from functools import partial
from typing import Any

import jax
import numpy as np

from cnnjax.staging.cut import frontier
from cnnjax.staging.times import FIXED, LATE, Known, ProgramDiffers, Time, binding_times, check_wiring, same
from cnnjax.staging.trace import Literal, flat_trace
from cnnjax.staging.wording import Unlike, equation, literal, traced_at_two


class Program:
    """`fn(fixed, images, late)` traced and cut by binding time; see `Staged`. Only shapes and types count.

    Args:
        fn: As for `Staged`.
        fixed: The frozen arrays, which may be abstract.
        image: Shape and dtype of one image.
        late: As for `Staged`.
        batches: As for `Staged`.

    Attributes:
        sizes: The two batch sizes that are compared; the trace at the first is the one that all else is told by.
        times: What is known of each of its variables.
        cut: The variables that are handed over the cut, in order.
        late_eqns: The equations behind it.
        stored: Those of the variables that are stored for each image.
        opened: Whether the program could be followed; if not, what is stored are the images.
        said: What each early equation does, by its index, in words that hold at every batch size.
        fixed_count: How many frozen arrays there are.
    """

    def __init__(
        self, fn: Callable[..., Any], fixed: Any, image: jax.ShapeDtypeStruct, late: Any, batches: Sequence[int] = ()
    ):
        self._fn, self.image = fn, image
        self._fixed = jax.tree.map(_abstract, fixed)
        self._late = late if callable(late) else lambda batch: late
        self.fixed_count = len(jax.tree.leaves(fixed))
        self._traces: dict[int, tuple[Any, list[Any], Any]] = {}
        self._owns: dict[int, dict[Any, Any]] = {}
        self.said: dict[int, str] = {}
        # Sizes that are asked for later are traced as the first one is: operations may go by the context.
        self._context = copy_context()
        self.opened, named = True, tuple(dict.fromkeys(batches))
        try:
            # Keys do not depend on the two sizes.
            pair = (*named, 2 * named[0])[:2] if named else traced_at_two(self.trace)[0]
            self.sizes = pair[0], pair[1]
            self._split()
            for batch in named[2:]:
                self.at(batch)
        except ProgramDiffers:
            # The whole program is late: as one call, its batch size is its own affair.
            self._fn, self.opened = jax.jit(fn), False
            self._traces.clear()
            self._owns.clear()
            self._keep_whole()

    def _inputs(self) -> list[Known]:
        late = len(jax.tree.leaves(self._late(self.sizes[0])))
        return [FIXED] * self.fixed_count + [Known(Time.IMAGE, 0)] + [LATE] * late

    def _split(self) -> None:
        jaxpr, consts, _ = self.first
        other, other_consts, _ = self._reached(self.sizes[1])
        constants = (consts, other_consts)
        self.times = binding_times(jaxpr, other, self._inputs(), self.sizes, constants, self.said)
        self._owns[self.sizes[1]] = check_wiring(jaxpr, other, self.sizes)
        self.cut, self.late_eqns = frontier(jaxpr, self.times)
        self.stored = [v for v in self.cut if self.times[v].time is Time.IMAGE]

    def _keep_whole(self) -> None:
        jaxpr = self.first[0]
        made = [*jaxpr.constvars, *(v for eqn in jaxpr.eqns for v in eqn.outvars)]
        self.times = dict(zip(jaxpr.invars, self._inputs(), strict=True)) | dict.fromkeys(made, LATE)
        self.said = {}
        self.cut, self.late_eqns = list(jaxpr.invars[: self.fixed_count + 1]), list(range(len(jaxpr.eqns)))
        self.stored = [jaxpr.invars[self.fixed_count]]

    @property
    def first(self) -> tuple[Any, list[Any], Any]:
        """The trace that all else is told by: the jaxpr, the values of its constants, the tree of the output."""
        return self.trace(self.sizes[0])

    def shape(self, var: Any) -> tuple[int, ...]:
        """The shape of a value for one image."""
        known = self.times[var]
        shape = tuple(n for k, n in enumerate(var.aval.shape) if k != known.axis)
        return shape if known.repeat == 1 else (known.repeat, *shape)

    def trace(self, batch: int) -> tuple[Any, list[Any], Any]:
        """The trace at a batch size, whether or not it is the same program there."""
        if batch not in self._traces:
            images = jax.ShapeDtypeStruct((batch, *self.image.shape), self.image.dtype)
            late = jax.tree.map(_abstract, self._late(batch))
            trace = partial(flat_trace, self._fn, self._fixed, images, late, opened=self.opened)
            self._traces[batch] = self._context.copy().run(trace)
        return self._traces[batch]

    def _reached(self, batch: int) -> tuple[Any, list[Any], Any]:
        """The trace at a size that the model need not take."""
        try:
            return self.trace(batch)
        except Exception as error:
            raise ProgramDiffers(f"the model cannot be run at batch size {batch}: {error}") from error

    def at(self, batch: int) -> tuple[Any, list[Any], Any, dict[Any, Any]]:
        """The trace at a batch size, and the map from the first trace's variables to its own."""
        jaxpr, consts, tree = self._reached(batch)
        if batch not in self._owns:
            try:
                self._owns[batch] = self._checked(jaxpr, consts, batch)
            except ProgramDiffers:
                del self._traces[batch]
                raise
        return jaxpr, consts, tree, self._owns[batch]

    def _checked(self, jaxpr: Any, consts: list[Any], batch: int) -> dict[Any, Any]:
        """That map, if early equations are the same at this batch size: a model may choose by it what it computes."""
        first, constants, _ = self.first
        own = check_wiring(first, jaxpr, (self.sizes[0], batch))
        if batch == self.sizes[0]:
            return own
        try:
            for v, p, q in zip(first.constvars, constants, consts, strict=True):
                if self.times[v].time is not Time.LATE and not same(p, q):
                    raise Unlike("a constant")
            for k, said in self.said.items():
                x, y = first.eqns[k], jaxpr.eqns[k]
                for p, q in zip(x.invars, y.invars, strict=True):
                    if isinstance(p, Literal):
                        literal(p, q)
                if equation(x, y, (self.sizes[0], batch)) != said:
                    raise Unlike(x.primitive.name)
        except Unlike as error:
            raise ProgramDiffers(
                f"the model computes something else at batch size {batch} ({error}): name it in `batches`"
            ) from error
        return own


def _abstract(x: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(np.shape(x), x.dtype)
