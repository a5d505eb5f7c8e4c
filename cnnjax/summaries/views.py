"""What a value of a program sees of the input, and how that changes from operation to operation.

A `View` speaks of one axis of the input (height, say) and one value. `through` gives the views of what an
operation makes from those of what it reads; an operation whose meaning is not known here gives none, so that a
receptive field is either exact or blank.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from cnnjax.sizing.field import Field
from cnnjax.staging.times import ELEMENTWISE
from cnnjax.staging.trace import Equation, aval_of

_REDUCTIONS = frozenset("reduce_sum reduce_max reduce_min reduce_prod reduce_and reduce_or argmax argmin".split())
_WINDOWS = frozenset("reduce_window_sum reduce_window_max reduce_window_min".split())


@dataclass(frozen=True)
class View:
    """What the cells of a value see of one axis of the input.

    Attributes:
        axis: The value's axis whose cells see different parts; None where all see the same.
        size: How many input positions one cell sees.
        low: The first input position that any cell sees.
        high: The last one.
        jump: How far apart neighbouring cells' parts are; None where the cells of `axis` stand in no regular
            order (behind a Flatten).
    """

    axis: int | None
    size: int
    low: int
    high: int
    jump: int | None = None

    @property
    def field(self) -> Field | None:
        """The same as a `Field`: jump 0 where all cells see the same, None where they are in no order."""
        if self.axis is None:
            return Field(self.size, 0, self.low)
        return None if self.jump is None else Field(self.size, self.jump, self.low)


Views = tuple[View | None, ...]
"""A view for each axis of the input, the batch's first; None where it is not known."""


def whole(view: View) -> View:
    """The view of a cell that reads every cell of the axis."""
    return View(None, view.high - view.low + 1, view.low, view.high)


def of_input(shape: Sequence[int]) -> Views:
    """The views of the input itself, its channels (the last axis) left out."""
    return tuple(View(k, 1, 0, n - 1, 1) for k, n in enumerate(shape[:-1]))


def _along(view: View, field: Field, cells: int) -> View:
    """A view behind a window: the field, and how many cells there are."""
    return View(view.axis, field.size, field.start, field.interval(cells - 1)[1], field.jump)


def _moved(view: View | None, places: Mapping[int, int | None]) -> View | None:
    """The view with the value's axes moved; an axis that is gone (None, or absent) was read as a whole."""
    if view is None or view.axis is None:
        return view
    place = places.get(view.axis)
    return whole(view) if place is None else replace(view, axis=place)


def _spread(views: Views, have: Sequence[int], want: Sequence[int]) -> Views:
    """The views of a value whose axes of size 1 are repeated: all cells along them see the same."""
    if len(have) != len(want):
        return views
    return tuple(
        whole(v) if v is not None and v.axis is not None and have[v.axis] == 1 != want[v.axis] else v for v in views
    )


def _joined(a: View | None, b: View | None) -> View | None:
    """The view of a value each of whose cells reads the same cell of two others."""
    if a is None or b is None or a == b:
        return a if a == b else None
    if a.axis == b.axis and a.axis is not None and a.jump is not None and a.jump == b.jump:
        size = max(a.low + a.size, b.low + b.size) - min(a.low, b.low)
        return View(a.axis, size, min(a.low, b.low), max(a.high, b.high), a.jump)
    low, high = min(a.low, b.low), max(a.high, b.high)
    for one, other in ((a, b), (b, a)):
        if one.axis is None and (other.axis is None or (one.low, one.high) == (low, high)):
            return View(None, high - low + 1, low, high)
    return None


def joined(values: Sequence[Views]) -> Views:
    """The views of a value that reads several others cell by cell."""
    first, *rest = values
    for other in rest:
        first = tuple(_joined(a, b) for a, b in zip(first, other, strict=True))
    return first


def through(eqn: Equation, ins: Sequence[Views | None]) -> Views | None:
    """The views of an equation's first output.

    Args:
        eqn: The equation of a jaxpr.
        ins: Views of its inputs; None for what does not depend on the input.

    Returns:
        Views, or None where the output does not depend on the input.
    """
    seen = [views for views in ins if views is not None]
    if not seen:
        return None
    unknown: Views = (None,) * len(seen[0])
    name, params = eqn.primitive.name, eqn.params
    if name in ELEMENTWISE:
        out, pairs = aval_of(eqn.outvars[0]).shape, zip(ins, eqn.invars, strict=True)
        return joined([_spread(views, aval_of(var).shape, out) for views, var in pairs if views is not None])
    if name == "dot_general":
        return _dot(eqn, ins)
    if name == "concatenate":
        return tuple(
            None if view is None or view.axis == params["dimension"] else view for view in joined(seen)
        )  # fmt: skip
    first = ins[0]
    if first is None or len(seen) > 1:
        return unknown
    shape = aval_of(eqn.invars[0]).shape
    if name in _REDUCTIONS:
        kept = [k for k in range(len(shape)) if k not in params["axes"]]
        return tuple(_moved(v, {k: i for i, k in enumerate(kept)}) for v in first)
    if name == "transpose":
        return tuple(_moved(v, {k: i for i, k in enumerate(params["permutation"])}) for v in first)
    if name == "broadcast_in_dim":
        places = params["broadcast_dimensions"]
        first = _spread(first, shape, [params["shape"][k] for k in places])
        return tuple(_moved(v, dict(enumerate(places))) for v in first)
    if name in ("reshape", "squeeze", "expand_dims"):
        return tuple(_reshaped(v, shape, aval_of(eqn.outvars[0]).shape) for v in first)
    if name in ("pad", "slice") or name in _WINDOWS or name == "conv_general_dilated":
        rule = {"pad": _pad, "slice": _slice, "conv_general_dilated": _convolution}.get(name, _window)
        return tuple(v if v is None else rule(v, eqn) for v in first)
    return unknown


def _convolution(view: View, eqn: Equation) -> View | None:
    params, numbers = eqn.params, eqn.params["dimension_numbers"]
    if params["batch_group_count"] != 1:
        return None
    if view.axis is None or view.axis == numbers.lhs_spec[1]:
        return whole(view)
    if view.axis == numbers.lhs_spec[0]:
        return replace(view, axis=numbers.out_spec[0])
    k = numbers.lhs_spec[2:].index(view.axis)
    if view.jump is None or params["lhs_dilation"][k] != 1:
        return None
    kernel = aval_of(eqn.invars[1]).shape[numbers.rhs_spec[2:][k]]
    field = Field(view.size, view.jump, view.low).after(
        kernel, params["window_strides"][k], params["padding"][k][0], params["rhs_dilation"][k]
    )
    axis = numbers.out_spec[2:][k]
    return replace(_along(view, field, aval_of(eqn.outvars[0]).shape[axis]), axis=axis)


def _window(view: View, eqn: Equation) -> View | None:
    params, k = eqn.params, view.axis
    if k is None:
        return view
    kernel, stride, pads = params["window_dimensions"][k], params["window_strides"][k], params["padding"][k]
    if (kernel, stride, *pads) == (1, 1, 0, 0):
        return view
    if view.jump is None or params["base_dilation"][k] != 1:
        return None
    field = Field(view.size, view.jump, view.low).after(kernel, stride, pads[0], params["window_dilation"][k])
    return _along(view, field, aval_of(eqn.outvars[0]).shape[k])


def _pad(view: View, eqn: Equation) -> View | None:
    config = (0, 0, 0) if view.axis is None else eqn.params["padding_config"][view.axis]
    low, high, interior = map(int, config)
    if (low, high, interior) == (0, 0, 0):
        return view
    if view.jump is None or interior or view.axis is None:
        return None
    field = Field(view.size, view.jump, view.low).after(1, padding=low)
    return _along(view, field, aval_of(eqn.outvars[0]).shape[view.axis])


def _slice(view: View, eqn: Equation) -> View | None:
    if view.axis is None:
        return view
    start = eqn.params["start_indices"][view.axis]
    stride = (eqn.params["strides"] or (1,) * (view.axis + 1))[view.axis]
    cells = aval_of(eqn.outvars[0]).shape[view.axis]
    if (start, stride, cells) == (0, 1, aval_of(eqn.invars[0]).shape[view.axis]):
        return view
    if view.jump is None:
        return None
    return _along(view, Field(view.size, view.jump, view.low).after(1, stride, -start), cells)


def _dot(eqn: Equation, ins: Sequence[Views | None]) -> Views:
    """A matrix product: contracted axes are read as a whole."""
    (contracted, batched), places = eqn.params["dimension_numbers"], []
    ranks = [len(aval_of(v).shape) for v in eqn.invars]
    out = len(batched[0])
    for side in (0, 1):
        free = [k for k in range(ranks[side]) if k not in (*contracted[side], *batched[side])]
        places.append({k: i for i, k in enumerate(batched[side])} | {k: out + i for i, k in enumerate(free)})
        out += len(free)
    sides = [
        tuple(_moved(v, places[side]) for v in views) for side, views in enumerate(ins) if views is not None
    ]  # fmt: skip
    return joined(sides)


def _reshaped(view: View | None, old: Sequence[int], new: Sequence[int]) -> View | None:
    """Axes that a reshape keeps are found again; a merged one loses its order, a split one is not followed."""
    if view is None or view.axis is None:
        return view
    if old[view.axis] == 1:
        return whole(view)
    before = [(k, n) for k, n in enumerate(old) if n != 1]
    after = [(k, n) for k, n in enumerate(new) if n != 1]
    while before and after:
        left, right = [before.pop(0)], [after.pop(0)]
        while math.prod(n for _, n in left) != math.prod(n for _, n in right):
            if math.prod(n for _, n in left) < math.prod(n for _, n in right):
                left.append(before.pop(0))
            else:
                right.append(after.pop(0))
        if view.axis in (k for k, _ in left):
            if len(right) > 1:
                return None
            return replace(view, axis=right[0][0], jump=view.jump if len(left) == 1 else None)
    return None
