"""Binding times: what is known once a run, once an image, or only in the step.

Every value of a program gets the latest time among the values it is made from. A value of time IMAGE must
belong to one image alone, or it could not be stored per image; the batch axis of each value is found by
tracing the program at two batch sizes. An equation that mixes images (batch statistics, a sort over the
batch), one that does something else at the other size, or one whose meaning is not known here, is LATE: that
is always right, and only stores less.
"""

import enum
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from cnnjax.files.digests import digest
from cnnjax.staging.trace import Literal, open_jaxpr
from cnnjax.staging.wording import CALLS, Sizes, Unlike, equation, platform_bodies


class Time(enum.IntEnum):
    """When a value is known."""

    FIXED = 0
    IMAGE = 1
    LATE = 2


class Known(NamedTuple):
    """What is known of a value: its time, and for IMAGE the axis along which the images lie.

    `repeat` is the number of entries one image has along that axis: over 1 where a reshape merged the batch
    with positions, as a matrix product over all pixels does. `spread` marks a FIXED value that has a batch
    axis but the same content for every image.
    """

    time: Time
    axis: int | None = None
    spread: bool = False
    repeat: int = 1


class ProgramDiffers(Exception):
    """The program has other equations at another batch size, or passes other values between them."""


LATE, FIXED = Known(Time.LATE), Known(Time.FIXED)

ELEMENTWISE = frozenset(
    (
        "abs acos acosh add add_any and asin asinh atan atan2 atanh cbrt ceil clamp convert_element_type copy "
        "copy_p cos cosh digamma div eq erf erf_inv erfc exp exp2 expm1 floor ge gt imag integer_pow is_finite le "
        "lgamma log log1p logistic lt max min mul name ne neg nextafter not or population_count pow real "
        "reduce_precision rem round rsqrt select_n shift_left shift_right_arithmetic shift_right_logical sign sin "
        "sinh sqrt square stop_gradient sub tan tanh xor "
    ).split()
)
_REDUCTIONS = frozenset(
    "reduce_sum reduce_max reduce_min reduce_prod reduce_and reduce_or reduce_xor argmax argmin".split()
)
_WINDOWS = frozenset("reduce_window reduce_window_max reduce_window_min reduce_window_sum".split())
_RUNNING = frozenset("cumsum cumprod cummax cummin cumlogsumexp".split())
Constants = tuple[Sequence[Any], Sequence[Any]]


def binding_times(
    a: Any, b: Any, known: list[Known], sizes: Sizes, constants: Constants, said: dict[int, str] | None = None
) -> dict[Any, Known]:
    """Time and batch axis of every variable of a flat jaxpr.

    Args:
        a: the program traced at batch size `sizes[0]`; the answer is keyed by its variables.
        b: the same program at `sizes[1]`.
        known: what is known of the inputs, in order.
        sizes: the two batch sizes.
        constants: the values of the two programs' `constvars`.
        said: filled with what each early equation does, by its index, in words that hold at both sizes.

    Raises:
        ProgramDiffers: if the two are not the same sequence of operations, on the same values.
    """
    check_wiring(a, b, sizes)
    words: dict[int, str | None] = {}
    env = _times(a, b, known, sizes, constants, words)
    if said is not None:
        early = (k for k, eqn in enumerate(a.eqns) if any(env[v].time is not Time.LATE for v in eqn.outvars))
        said.update((k, text) for k in early if (text := words[k]) is not None)
    return env


def _times(
    a: Any, b: Any, known: list[Known], sizes: Sizes, constants: Constants, words: dict[int, str | None] | None
) -> dict[Any, Known]:
    """As `binding_times`; without `words`, of two bodies that say the same."""
    env: dict[Any, Known] = {v: FIXED if same(p, q) else LATE for v, p, q in zip(a.constvars, *constants, strict=True)}
    env.update(zip(a.invars, known, strict=True))
    for k, (x, y) in enumerate(_pairs(a.eqns, b.eqns)):
        ins = [_atom(p, q, env) for p, q in _pairs(x.invars, y.invars)]
        waits = any(known.time is Time.LATE for known in ins)
        if words is not None and not waits:
            words[k] = _words(x, y, sizes)
            waits = words[k] is None
        env.update(zip(x.outvars, [LATE] * len(x.outvars) if waits else _equation(x, y, ins, sizes), strict=True))
    return env


def _words(x: Any, y: Any, sizes: Sizes) -> str | None:
    try:
        return equation(x, y, sizes)
    except Unlike:
        return None


def check_wiring(a: Any, b: Any, sizes: Sizes) -> dict[Any, Any]:
    """The map from the variables of a program to those in their place in its trace at another batch size.

    Raises:
        ProgramDiffers: if the two are not the same sequence of operations, on the same values.
    """
    counts = [(len(j.eqns), len(j.constvars), len(j.invars), len(j.outvars)) for j in (a, b)]
    if counts[0] != counts[1]:
        raise ProgramDiffers(
            f"the model is another program at batch size {sizes[1]} than at {sizes[0]}: "
            f"{counts[1][0]} equations and {counts[1][1]} constants for {counts[0][0]} and {counts[0][1]}"
        )
    own: dict[Any, Any] = dict(zip([*a.constvars, *a.invars], [*b.constvars, *b.invars], strict=True))

    def check(x: Any, y: Any, what: Any) -> None:
        numbers = [isinstance(atom, Literal) for atom in (x, y)]
        if numbers[0] != numbers[1] or not (numbers[0] or own[x] is y):
            raise ProgramDiffers(
                f"the model computes something else at batch size {sizes[1]} than at {sizes[0]}: "
                f"{what} is given another value"
            )

    for x, y in _pairs(a.eqns, b.eqns):
        if x.primitive is not y.primitive or len(x.invars) != len(y.invars) or len(x.outvars) != len(y.outvars):
            raise ProgramDiffers(
                f"the model is another program at batch size {sizes[1]} than at {sizes[0]}: "
                f"{y.primitive} for {x.primitive}"
            )
        for p, q in _pairs(x.invars, y.invars):
            check(p, q, x.primitive)
        own.update(zip(x.outvars, y.outvars, strict=True))
    for p, q in _pairs(a.outvars, b.outvars):
        check(p, q, "its output")
    return own


def same(a: Any, b: Any) -> bool:
    """Whether two constants are equal, NaNs and random keys included."""
    return np.shape(a) == np.shape(b) and digest(a) == digest(b)


def _pairs(a: Any, b: Any) -> Any:
    return zip(a, b, strict=True)


def _atom(a: Any, b: Any, env: dict[Any, Known]) -> Known:
    if isinstance(a, Literal):
        # A number that changes with the batch size (a mean's divisor) belongs to the batch, not to an image.
        return FIXED if isinstance(b, Literal) and same(a.val, b.val) else LATE
    return env[a]


def _axis(a: Any, b: Any, sizes: Sizes) -> tuple[int, ...] | None:
    """The axes along which a value grows in proportion to the batch; None if it changes in another way."""
    p, q = getattr(a.aval, "shape", ()), getattr(b.aval, "shape", ())
    if len(p) != len(q):
        return None
    axes = tuple(k for k in range(len(p)) if p[k] != q[k])
    return axes if all(p[k] % sizes[0] == 0 and p[k] * sizes[1] == q[k] * sizes[0] for k in axes) else None


def _equation(x: Any, y: Any, ins: list[Known], sizes: Sizes) -> list[Known]:
    late = [LATE] * len(x.outvars)
    time = max((k.time for k in ins), default=Time.FIXED)
    if x.primitive.name in CALLS:
        return _call(x, y, ins, sizes) or late
    axes = [_axis(v, w, sizes) for v, w in _pairs(x.outvars, y.outvars)]
    if time is Time.FIXED:
        return [_fixed(x, ins, found) for found in axes]
    out = []
    for var, found in zip(x.outvars, axes, strict=True):
        if found is None or len(found) != 1 or not _keeps_images_apart(x, ins, found[0]):
            return late
        out.append(Known(Time.IMAGE, found[0], repeat=var.aval.shape[found[0]] // sizes[0]))
    return out


def _fixed(eqn: Any, ins: list[Known], axes: tuple[int, ...] | None) -> Known:
    if axes == () and not any(k.spread for k in ins):
        return FIXED
    if axes is None:
        return LATE
    if eqn.primitive.name in ELEMENTWISE:
        return Known(Time.FIXED, spread=bool(axes))
    if eqn.primitive.name == "broadcast_in_dim" and not ins[0].spread:
        return Known(Time.FIXED, spread=True)
    return LATE


def _call(x: Any, y: Any, ins: list[Known], sizes: Sizes) -> list[Known] | None:
    """A call, or a choice among branches: as its bodies say, if they agree.

    Of `jax.lax.platform_dependent` the branches of `cnnjax.ops` are left out: they mean what the default does, and
    may be written so that they tell less.
    """
    name = x.primitive.name
    if name == "cond" and ins[0].time is not Time.FIXED:
        return None
    args = ins[1:] if name == "cond" else ins
    answers = []
    for (body, decides), (twin, _) in _pairs(platform_bodies(x.params), platform_bodies(y.params)):
        if not decides:
            continue
        p, q = open_jaxpr(body), open_jaxpr(twin)
        if len(p.invars) != len(args):
            return None
        constants = (getattr(body, "consts", ()), getattr(twin, "consts", ()))
        env = _times(p, q, args, sizes, constants, None)
        answers.append([_atom(v, w, env) for v, w in _pairs(p.outvars, q.outvars)])
    agree = bool(answers) and all(answer == answers[0] for answer in answers)
    return answers[0] if agree else None


def _keeps_images_apart(eqn: Any, ins: list[Known], out: int) -> bool:
    """Whether row k of the output (axis `out`) is made from row k of the IMAGE inputs alone."""
    name, p = eqn.primitive.name, eqn.params
    images = [(v.aval, k.axis) for v, k in zip(eqn.invars, ins, strict=True) if k.time is Time.IMAGE]
    aval, axis = images[0]
    if name in ELEMENTWISE:
        return all(k == out for _, k in images)
    if name == "stack":
        return p["axis"] != out and all(k + (k >= p["axis"]) == out for _, k in images if k is not None)
    if name == "concatenate":
        return p["dimension"] != out and all(k == out for _, k in images)
    if name == "dot_general":
        contract, batch = p["dimension_numbers"]
        sides = [(k.axis, contract[s], list(batch[s])) for s, k in enumerate(ins) if k.time is Time.IMAGE]
        if any(k in contracted for k, contracted, _ in sides):
            return False
        places = {paired.index(k) if k in paired else -1 for k, _, paired in sides}
        return len(sides) == 1 or (len(places) == 1 and -1 not in places)
    if name == "gather":
        return _gather_keeps_images_apart(eqn, ins, out)
    if ins[0].time is not Time.IMAGE:
        return False
    if len(images) > 1 or axis is None:
        return False
    if name in ("reshape", "squeeze"):
        return math.prod(aval.shape[:axis]) == math.prod(eqn.outvars[0].aval.shape[:out])
    if name == "transpose":
        return p["permutation"][out] == axis
    if name == "broadcast_in_dim":
        return p["broadcast_dimensions"][axis] == out
    if name in _REDUCTIONS:
        return axis not in p["axes"]
    if name in _WINDOWS:
        dilated = any(tuple(p.get(d) or (1,) * aval.ndim)[axis] != 1 for d in ("base_dilation", "window_dilation"))
        plain = p["window_dimensions"][axis] == 1 and p["window_strides"][axis] == 1
        return plain and tuple(p["padding"][axis]) == (0, 0) and not dilated
    if name in _RUNNING:
        return p["axis"] != axis
    if name == "sort":
        return p["dimension"] != axis
    if name == "rev":
        return axis not in p["dimensions"]
    if name == "top_k":
        return p.get("axis", aval.ndim - 1) % aval.ndim != axis
    if name == "tile":
        return p["reps"][axis] == 1
    if name == "split":
        return p["axis"] != axis
    if name == "pad":
        return tuple(p["padding_config"][axis]) == (0, 0, 0)
    if name == "slice":
        whole = p["start_indices"][axis] == 0 and p["limit_indices"][axis] == aval.shape[axis]
        return whole and (p["strides"] is None or p["strides"][axis] == 1)
    if name == "fft":
        return axis < aval.ndim - len(p["fft_lengths"])
    if name == "dynamic_slice":
        return p["slice_sizes"][axis] == aval.shape[axis]
    if name == "conv_general_dilated":
        numbers = p["dimension_numbers"]
        return axis == numbers.lhs_spec[0] and out == numbers.out_spec[0] and p["batch_group_count"] == 1
    return False


def _gather_keeps_images_apart(eqn: Any, ins: list[Known], out: int) -> bool:
    operand, rows = ins[0], ins[1]
    numbers, sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
    if operand.time is Time.FIXED:  # rows of one table, as an embedding looks them up
        return not operand.spread and rows.axis == 0 and out == 0 and 0 not in numbers.offset_dims
    if rows.time is not Time.FIXED or rows.spread or operand.axis is None:
        return False
    axis = operand.axis
    whole = sizes[axis] == eqn.invars[0].aval.shape[axis] and axis not in numbers.start_index_map
    dropped = (*numbers.collapsed_slice_dims, *getattr(numbers, "operand_batching_dims", ()))
    if not whole or axis in dropped:
        return False
    kept = [d for d in range(len(sizes)) if d not in dropped]
    return numbers.offset_dims[kept.index(axis)] == out
