"""Where the frontier lies: which layers are computed once an image, and what is stored."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from cnnjax.freeze import Frozen
from cnnjax.functional import functionalize, leaves_of
from cnnjax.staging.program import Program
from cnnjax.staging.times import Time
from cnnjax.staging.trace import inner_jaxprs, open_jaxpr
from cnnjax.summaries.measure import Call, called, marked_layer


@dataclass(frozen=True)
class Frontier:
    """The cut between what is computed once and what every training step computes.

    Attributes:
        once: By layer, whether its output is known before training starts.
        stored: (dtype, shape) of each array that is kept for an image.
    """

    once: dict[str, bool]
    stored: tuple[tuple[str, tuple[int, ...]], ...]

    @property
    def bytes_per_image(self) -> int:
        """Bytes that are kept for one image."""
        return sum(math.prod(shape) * jnp.dtype(dtype).itemsize for dtype, shape in self.stored)


def frontier(
    model: nnx.Module, frozen: Frozen, shape: Sequence[int], dtype: Any, call: Call | None = None
) -> Frontier | None:
    """Find the frontier of a model's training step: the cut of `Staged` itself, of abstract arrays.

    Args:
        model: Any NNX module; its leaves may be abstract.
        frozen: What is frozen.
        shape: Of one example.
        dtype: Of the input.
        call: How the model is called; `model(x)` if not given.

    Returns:
        The frontier, or None if the model is another program at another batch size.

    >>> from cnnjax.freeze import Freeze
    >>> from cnnjax.models import lecture_cnn
    >>> model = lecture_cnn(rngs=nnx.Rngs(0))
    >>> cut = frontier(model, Freeze.through("max_pooling2d_2").resolve(model), (150, 150, 3), "float32")
    >>> cut.stored, cut.once["conv2d_2"], cut.once["conv2d_3"]
    ((('float32', (36, 36, 64)),), True, False)
    """
    functional = functionalize(model, frozen=frozen)
    random = set(functional.random())
    leaves = {p: jax.ShapeDtypeStruct(x.shape, x.dtype) for p, x in leaves_of(model).items() if p not in random}
    live, fixed = frozen.partition(leaves)
    parameters = set(functional.parameters())
    statistics = [p for p in live if p not in parameters]
    # Trained weights are late, and so are the statistics of normalisation that is live.
    late = {"live": live, "key": jax.eval_shape(lambda: jax.random.key(0))}

    # As `Trainer` has it: the outputs, and the statistics of normalisation that is live.
    def step(fixed: Any, images: Any, late: Any) -> Any:
        everything = {**fixed, **late["live"], **functional.random_leaves(late["key"])}
        module = functional.module(everything, train=True)
        outputs, after = called(module, images, call), leaves_of(module)
        return outputs, {p: after[p] for p in statistics}

    program = Program(step, fixed, jax.ShapeDtypeStruct(tuple(shape), dtype), late)
    if not program.opened:
        return None
    once: dict[str, bool] = {}
    for eqn in program.first[0].eqns:
        early = all(program.times[var].time is not Time.LATE for var in eqn.outvars)
        for layer in _layers_of(eqn):
            # A layer that is called twice is computed once only if both calls are.
            once[layer] = once.get(layer, True) and early
    return Frontier(once, tuple((str(var.aval.dtype), program.shape(var)) for var in program.stored))


def _layers_of(eqn: Any) -> Iterator[str]:
    """The layers whose outputs an equation makes, those inside a call (a checkpoint, a scan) included."""
    layer = marked_layer(eqn)
    if layer is not None:
        yield layer
    for body in inner_jaxprs(eqn.params):
        for inner in open_jaxpr(body).eqns:
            yield from _layers_of(inner)
