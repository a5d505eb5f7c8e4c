"""What a `Trainer` compiles, on abstract arguments: to lower or compile it for any platform, with no image at hand.

A program here is the function that training calls; only its arguments are shapes. So it can be lowered for a TPU on a
laptop (`jax.export`), and compiled for a slice that nobody has rented yet (`scripts/aot_tpu.py`).
"""

import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from cnnjax.runtime.devices import AXIS, Devices
from cnnjax.runtime.nearest import unknown
from cnnjax.train.dataset import Kind
from cnnjax.train.task import Labelled
from cnnjax.train.trainer import Trainer

PROGRAMS: dict[str, tuple[Kind, ...]] = {
    "step": ("source", "features"),
    "taking_step": ("images", "features"),
    "epoch": ("images", "features"),
    "evaluate": ("source", "images", "features"),
}
"""Each program of a trainer, and the kinds of rows (see `cnnjax.train.dataset.FeatureDataset`) that it runs on: a step
on a batch from the host, a step that takes its batch out of rows on the device, an epoch of these, and evaluation of
a batch."""


class Program(NamedTuple):
    """A program and what it is called with.

    Attributes:
        function: compiled by `jax.jit`; it is called with `*arguments, **how`.
        arguments: trees of `jax.ShapeDtypeStruct`, by position.
        axes: of each argument the axis along which the examples of a batch lie; None where they do not.
        decoded: whether the rows are images, and not features.
        trains: whether the first argument is used up, and given back changed.
        masked: whether it is told which rows count (see `Trainer.masks`).
    """

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    axes: tuple[int | None, ...]
    decoded: bool
    trains: bool
    masked: bool = False

    @property
    def how(self) -> dict[str, bool]:
        """The arguments that say which program of the function this is."""
        return {"decoded": self.decoded} | ({"masked": self.masked} if self.trains else {})

    def lower(self, platform: str) -> jax.stages.Lowered:
        """Lower it for "cpu", "cuda" or "tpu", whatever this machine has."""
        traced: Any = self.function
        return traced.trace(*self.arguments, **self.how).lower(lowering_platforms=(platform,))

    def on(self, devices: Devices) -> "Program":
        """The same on several devices, which need not exist: batches cut along them, the state where its rule puts it.

        Raises:
            ValueError: The batch cannot be spread evenly.
        """
        for tree, axis in zip(self.arguments, self.axes, strict=True):
            for leaf in jax.tree.leaves(tree) if axis is not None else ():
                devices.check_batch(leaf.shape[axis])

        def placed(tree: Any, axis: int | None) -> Any:
            parts = PartitionSpec() if axis is None else PartitionSpec(*[None] * axis, AXIS)
            return _with(tree, jax.tree.map(lambda _: NamedSharding(devices.mesh, parts), tree))

        def spread(*arguments: Any, **how: bool) -> Any:
            first, *rest = self.function(*arguments, **how)
            return (devices.keep(first) if self.trains else devices.whole(first), *devices.whole(rest))

        state, *others = self.arguments
        arguments = tuple(placed(tree, axis) for tree, axis in zip(others, self.axes[1:], strict=True))
        function = jax.jit(spread, donate_argnums=(0,) if self.trains else (), static_argnames=tuple(self.how))
        return self._replace(function=function, arguments=(_with(state, devices.shardings(state)), *arguments))


def program(
    trainer: Trainer, name: str = "step", rows: Kind = "source", *, examples: int = 1000, target: Any = None,
    weighted: bool = False,
) -> Program:  # fmt: skip
    """One of a trainer's programs, with abstract arguments of the types that training gives it.

    Args:
        trainer: it stays as it is, but for `traces`.
        name: a key of `PROGRAMS`.
        rows: what it runs on, one of that key's values.
        examples: in all; where they do not fill the last batch, the program may be another (see `Trainer.masks`).
        target: shape and type of one example's targets, a tree of `jax.ShapeDtypeStruct`; the task's if not given.
        weighted: whether the examples have weights.

    Raises:
        LookupError: there is no such program; the nearest is named.
        ValueError: it does not run on such rows, or the task does not say what its targets are.

    >>> from flax import nnx
    >>> from cnnjax.freeze import Freeze
    >>> model = nnx.Sequential(nnx.Conv(3, 4, (3, 3), rngs=nnx.Rngs(0)), lambda x: x.mean((1, 2)),
    ...                        nnx.Linear(4, 1, rngs=nnx.Rngs(1)))
    >>> trainer = Trainer(model, Freeze.depth(1).resolve(model), (8, 8), batch_size=16)
    >>> stored = program(trainer, "taking_step", "features", examples=500)
    >>> stored.arguments[2], "stablehlo.convolution" in stored.lower("tpu").as_text()
    ((ShapeDtypeStruct(shape=(500, 4), dtype=float32),), False)
    >>> "stablehlo.convolution" in program(trainer, "step", "source").lower("tpu").as_text()
    True
    """
    if name not in PROGRAMS:
        raise LookupError(unknown("program", name, PROGRAMS, listed=True))
    if rows not in PROGRAMS[name]:
        raise ValueError(f"{name} runs on rows of kind {' or '.join(PROGRAMS[name])}, found {rows!r}")
    trains, decoded, batch = name != "evaluate", rows != "features", trainer.batch_size
    state = trainer.abstract_state()
    constants = trainer.constants if trains else trainer.inference_constants
    context = jax.tree.map(_abstract, (constants, trainer.fixed if decoded else None))
    if decoded:  # images that are kept are bytes, those that are read anew are floats
        kinds = [(trainer.example.shape, jnp.uint8 if rows == "images" else jnp.float32)]
    else:
        kinds = [(f.shape, f.dtype) for f in (trainer.staged if trains else trainer.inference).features]

    def arrays(count: int) -> tuple[jax.ShapeDtypeStruct, ...]:
        return tuple(jax.ShapeDtypeStruct((count, *shape), dtype) for shape, dtype in kinds)

    def each(dtype: Any, *shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((*shape, batch), dtype)

    known = trainer.task.target if target is None else target
    if known is None:
        raise ValueError(
            "the task does not say what its targets are: give `target`, the shape and type of an example's"
        )

    def labelled(count: int) -> Labelled:
        rows = jax.tree.map(lambda x: jax.ShapeDtypeStruct((count, *x.shape), x.dtype), known)
        return Labelled(rows, jax.ShapeDtypeStruct((count,), jnp.float32) if weighted else None)

    seed = jax.ShapeDtypeStruct((), jnp.uint32)
    integers, floats = jnp.int32, jnp.float32
    if name == "step":
        arguments: tuple[Any, ...] = (state, context, arrays(batch), labelled(batch), each(floats), seed)
        axes: tuple[int | None, ...] = (None, None, 0, 0, 0, None)
    elif name == "evaluate":
        arguments, axes = (state, context, arrays(batch), labelled(batch), each(floats)), (None, None, 0, 0, 0)
    else:
        steps, axis = ((trainer.steps_per_epoch(examples),), 1) if name == "epoch" else ((), 0)
        stored = arrays(examples if decoded else examples * max(trainer.views, 1))
        order = (each(integers, *steps), each(floats, *steps), each(integers, *steps))
        arguments, axes = (
            (state, context, stored, labelled(examples), *order, seed),
            (None,) * 4 + (axis,) * 3 + (None,),
        )
    return Program(
        getattr(trainer.programs, name), arguments, axes, decoded, trains, trains and trainer.masks(examples)
    )


class Traffic(NamedTuple):
    """The messages of one kind between devices.

    Attributes:
        count: how many.
        nbytes: of whole arrays: what an all-gather gives; what each device has before any other of them.
    """

    count: int
    nbytes: int


_COLLECTIVE = re.compile(
    r"= (.+?) (all-reduce|all-gather|reduce-scatter|collective-permute|all-to-all|ragged-all-to-all"
    r"|collective-broadcast)(-start)?\(([^)]*)\)"
)
_DEFINED = re.compile(r"^\s*(?:ROOT )?%([\w.\-]+) = (.+?) [a-z][\w\-]*\(", re.MULTILINE)


def collectives(hlo: str) -> dict[str, Traffic]:
    """The messages between devices in a compiled program; those in a loop are counted once.

    Args:
        hlo: its text, `compiled.as_text()`.

    Returns:
        By kind, such as "all-reduce"; an asynchronous one (`all-reduce-start` and `-done`) counts once.

    >>> collectives('''
    ...   %g = (f32[9,64]{1,0}, f32[64]{0}) fusion(%p)
    ...   %a = f32[9,64]{1,0} get-tuple-element(%g), index=0
    ...   %r = f32[9,64]{1,0} all-reduce-start(%a), channel_id=1
    ...   %d = f32[9,64]{1,0} all-reduce-done(%r)
    ... ''')
    {'all-reduce': Traffic(count=1, nbytes=2304)}
    """
    types = {name: nbytes(kind) for name, kind in _DEFINED.findall(hlo)}
    found: dict[str, Traffic] = {}
    for result, kind, start, operands in _COLLECTIVE.findall(hlo):
        size = sum(types[name] for name in re.findall(r"%([\w.\-]+)", operands))
        if kind == "all-gather":  # an asynchronous one gives its operands back too
            size = nbytes(result) - (size if start else 0)
        before = found.get(kind, Traffic(0, 0))
        found[kind] = Traffic(before.count + 1, before.nbytes + size)
    return found


def nbytes(kind: str) -> int:
    """Bytes of a type as HLO writes it, layouts left out.

    >>> nbytes("(f32[3,3,64]{2,1,0:T(8,128)}, pred[], bf16[8]{0})")
    2321
    """
    total = 0
    for dtype, shape in re.findall(r"\b(pred|[a-z]+\d+\w*)\[([\d,]*)\]", kind):
        bits = 8 if dtype == "pred" else int(re.findall(r"\d+", dtype)[0])
        total += -(-bits * math.prod(int(n) for n in shape.split(",") if n) // 8)
    return total


def _abstract(x: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype)


def _with(tree: Any, shardings: Any) -> Any:
    return jax.tree.map(lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), tree, shardings)
