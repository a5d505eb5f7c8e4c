"""A model as training and evaluation run it: two programs, each cut at the frontier."""

from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from cnnjax.data.source import image_shape
from cnnjax.features import PASS_BATCH
from cnnjax.freeze import Frozen
from cnnjax.functional import Leaves, functionalize, leaves_of
from cnnjax.ops import spread_over_devices
from cnnjax.ops.counting import batch_of
from cnnjax.runtime import Tree
from cnnjax.runtime.devices import Devices
from cnnjax.runtime.precision import Precision, resolved
from cnnjax.staging import Staged


class StagedModel:
    """The training and the inference program of a model, cut at the frontier of what is frozen.

    Args:
        model: any NNX module from a batch of images to a tree of arrays; it is not changed.
        frozen: what is frozen.
        image_size: as for `cnnjax.Trainer`.
        batch_size: examples a step.
        precision: what is computed with.
        devices: what batches are spread over.

    Attributes:
        functional: the model as pure functions.
        fixed: the frozen leaves by path.
        live: the leaves that train, and running statistics that are live.
        trainable: paths of the former.
        statistics: paths of the latter.
        example: shape and type of one image.
        training: the training program, from images to outputs and statistics after the batch.
        inference: the inference program, from images to outputs.
        constants: what every training step reads that depends on frozen weights alone.
        inference_constants: the same of evaluation.
        outputs: shapes of the outputs for a batch.
    """

    def __init__(
        self, model: nnx.Module, frozen: Frozen, image_size: tuple[int, ...], batch_size: int, precision: Precision,
        devices: Devices | None,
    ):  # fmt: skip
        self.precision, self.devices, self.batch_size = resolved(precision), devices, batch_size
        self.functional = functionalize(model, frozen=frozen)
        parameters, random = set(self.functional.parameters()), set(self.functional.random())
        leaves = {p: x for p, x in leaves_of(model).items() if p not in random}
        self.live, self.fixed = frozen.partition(leaves)
        self._parameters = parameters
        self.trainable = tuple(p for p in self.live if p in parameters)
        self.statistics = tuple(p for p in self.live if p not in parameters)
        shape = image_shape(image_size)
        self.example = jax.ShapeDtypeStruct(shape, jnp.float32)
        late: dict[str, Any] = {
            "trainable": {p: self.live[p] for p in self.trainable},
            "statistics": {p: self.live[p] for p in self.statistics},
        }
        self._keyed = late | {"key": jax.random.key(0)}
        self._normalises, self._fault = self.functional.normalises, ""
        self._sizes = sizes = (batch_size, PASS_BATCH)
        with self.spread():
            self.training = Staged(self._forward, self.fixed, self.example, self._keyed, sizes)
            self.inference = Staged(self._infer, self.fixed, self.example, late, sizes)
        if own := [p for p in self.statistics if p not in self.functional.counted and self.training.of_images[1][p]]:
            self._normalises = True
            self._fault = self._fault or f"{own[0]} is made from the batch, and is no statistic of an nnx.BatchNorm"
        images = jax.ShapeDtypeStruct((batch_size, *shape), jnp.float32)
        self.outputs = jax.eval_shape(self._infer, self.fixed, images, late)
        self.constants = self.training.constants(self.fixed)
        self.inference_constants = self.inference.constants(self.fixed)

    def spread(self) -> AbstractContextManager[None]:
        """The context in which programs for several devices are traced."""
        several = self.devices is not None and self.devices.count > 1
        return spread_over_devices() if several else nullcontext()

    # The two programs that are staged.

    def _forward(self, fixed: Leaves, images: jax.Array, late: dict[str, Any]) -> tuple[Any, Leaves]:
        random = self.functional.random_leaves(late["key"])
        leaves, images = self._computed({**fixed, **late["trainable"], **late["statistics"]}, images)
        with batch_of(len(images), late.get("counts")) as batch:
            outputs, after = self.functional.apply({**leaves, **random}, images, train=True)
        self._normalises |= batch.normalises
        self._fault = self._fault or batch.fault or ""
        return _in_float32(outputs), {p: after[p] for p in self.statistics}

    def _infer(self, fixed: Leaves, images: jax.Array, late: dict[str, Any]) -> Any:
        random = self.functional.random_leaves(jax.random.key(0))
        leaves, images = self._computed({**fixed, **late["trainable"], **late["statistics"]}, images)
        return _in_float32(self.functional.apply({**leaves, **random}, images, train=False)[0])

    def _computed(self, leaves: Leaves, images: jax.Array) -> tuple[Leaves, jax.Array]:
        """Parameters and images in the type that is computed with; statistics stay as they are."""
        if self.precision == "float32":
            return leaves, images
        kind = jnp.dtype(self.precision)
        cast = {p: x.astype(kind) for p, x in leaves.items() if p in self._parameters and x.dtype == jnp.float32}
        return {**leaves, **cast}, images.astype(kind)

    @cached_property
    def masked(self) -> Staged:
        """The training program with one argument more, which rows count; constants and features are the same."""

        def late(batch: int) -> dict[str, Any]:
            return self._keyed | {"counts": jax.ShapeDtypeStruct((batch,), jnp.bool_)}

        with self.spread():
            staged = Staged(self._forward, self.fixed, self.example, late, self._sizes)
        if staged.cut != self.training.cut:
            raise ValueError(
                "the model is another program where rows are left out of its statistics; give last_batch='drop', or a "
                "batch size that divides the number of examples"
            )
        return staged

    def masks(self, examples: int) -> bool:
        """Whether the steps of epochs of so many examples, the last batch filled up, are told which rows count.

        They are where BatchNorm follows the batch: its statistics are then those of the rows that count, as with
        Keras's short last batch. Other steps have no need of it, and run without.

        Raises:
            ValueError: it cannot be told which numbers of a BatchNorm's input belong to which row.
        """
        left = examples % self.batch_size
        if not (left and self._normalises):
            return False
        if self._fault:
            raise ValueError(
                f"the last batch of {examples} examples has {left} of {self.batch_size}, and the rows that fill it up "
                f"cannot be left out of its statistics: {self._fault}. Give last_batch='drop', or a batch size that "
                "divides the number of examples"
            )
        return self.masked is not None  # traced here, not inside of a program

    @property
    def trainable_parameters(self) -> int:
        """Number of trainable parameters."""
        return sum(int(self.live[p].size) for p in self.trainable)

    def leaves(self, live: Leaves) -> Leaves:
        """Every leaf, random streams left out, on one device of this host; every host must call it."""
        return {**self.fixed, **(live if self.devices is None else self.devices.gather(live))}

    def module(self, live: Leaves) -> nnx.Module:
        """The model again, in inference mode."""
        random = self.functional.random_leaves(jax.random.key(0))
        return self.functional.module({**self.leaves(live), **random}, train=False)


def _in_float32(outputs: Tree) -> Any:
    """Outputs as losses take them: floats of 16 bit widened, whole numbers as they are."""
    return jax.tree.map(lambda x: x.astype(jnp.float32) if jnp.issubdtype(x.dtype, jnp.floating) else x, outputs)
