"""Whether asking oneDNN pays in a run: its programs are faster, and no process can take them from the disk."""

import math
import os
from contextlib import AbstractContextManager
from typing import Any, get_args

import jax
import jax.numpy as jnp
from flax import nnx

from cnnjax.functional import functionalize, leaves_of
from cnnjax.ops import use_onednn
from cnnjax.ops.onednn import takes
from cnnjax.runtime.tuning import OneDNN
from cnnjax.staging.trace import flat_trace, inner_jaxprs

# Measured on two cores of a Xeon with AVX-512 (2026-11-29; MobileNet, ResNet-50, VGG16 and the lecture's CNN in batches
# of 16): without oneDNN a step runs at 33 to 150 GFLOP/s, with it a step takes 5 to 33 % less time. Compiling a step
# takes 0.2 to 0.35 s for each layer with a kernel, which a second start without oneDNN reads from the disk.
_RATE = 60e9 / 2  # floating-point operations a second and core
_SAVED = 0.2
_COMPILE = 0.3  # seconds a layer and program


def work_of(model: nnx.Module, example_shape: tuple[int, ...]) -> tuple[int, int]:
    """The multiplications of one example's way through a model, and the convolutions and matrix products they are of.

    >>> work_of(nnx.Conv(3, 8, (3, 3), rngs=nnx.Rngs(0)), (10, 10, 3))
    (21600, 1)
    """
    functional, leaves = functionalize(model), leaves_of(model)
    example = jax.ShapeDtypeStruct((1, *example_shape), jnp.float32)
    with use_onednn(False):  # whose calls tell nothing of what they compute
        jaxpr, _, _ = flat_trace(lambda x, y: functional.apply(x, y, train=False)[0], leaves, example, opened=False)
    return _work(jaxpr)


def _work(jaxpr: Any) -> tuple[int, int]:
    multiplications, operations = 0, 0
    for eqn in jaxpr.eqns:
        name = eqn.primitive.name
        if name in ("conv_general_dilated", "dot_general"):
            left, right = (v.aval.shape for v in eqn.invars[:2])
            if name == "dot_general":
                each = math.prod(left[k] for k in eqn.params["dimension_numbers"][0][0])
            else:
                each = math.prod(right) // right[eqn.params["dimension_numbers"].rhs_spec[0]]
            multiplications += each * math.prod(eqn.outvars[0].aval.shape)
            operations += 1
            continue
        inner = [_work(inside) for inside in inner_jaxprs(eqn.params)]
        if inner:  # of branches one runs, and a loop's turns are not counted: this is an estimate
            found = max(inner)
            multiplications, operations = multiplications + found[0], operations + found[1]
    return multiplications, operations


def onednn_pays(multiplications: float, operations: int, programs: int = 1, choice: OneDNN = "auto") -> bool:
    """Whether a run should ask oneDNN for its convolutions (see `cnnjax.ops.use_onednn`).

    A function of the run's settings and of this machine's cores alone: a run that goes on decides as at its start.

    Args:
        multiplications: that the whole run makes.
        operations: convolutions and products in a program.
        programs: how many are compiled.
        choice: "auto" weighs the time saved against the compiling that each start repeats; "always" and "never" do not.

    Raises:
        ValueError: no such choice.

    >>> onednn_pays(1e9, operations=28), onednn_pays(1e14, operations=28)
    (False, True)
    """
    if choice not in get_args(OneDNN):
        raise ValueError(f"onednn: expected {', '.join(get_args(OneDNN))}, found {choice!r}")
    if choice != "auto":
        return choice == "always"
    seconds = 2 * multiplications / (_RATE * (os.cpu_count() or 1))
    return _SAVED * seconds > _COMPILE * operations * programs


def onednn_for(
    model: nnx.Module, example_shape: tuple[int, ...], examples: int, epochs: int, *, frozen: bool, programs: int = 1,
    choice: OneDNN = "auto",
) -> AbstractContextManager[None]:  # fmt: skip
    """The block in which a run is compiled, with oneDNN or without, as `onednn_pays` says.

    Args:
        model: what runs.
        example_shape: of one image, (H, W, C).
        examples: in the training set.
        epochs: of training.
        frozen: whether all that costs is computed once; otherwise each step goes forward and back, three times the
        cost. programs: how many are compiled.
        choice: as for `onednn_pays`.
    """
    if choice == "auto" and takes(jnp.float32):
        each, operations = work_of(model, example_shape)
        ahead = float(each) * examples * (1 if frozen else 3 * epochs)
        return use_onednn(onednn_pays(ahead, operations, programs))
    return use_onednn(choice != "never")
