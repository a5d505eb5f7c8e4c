"""Walk a model's program and measure its layers: shapes, multiplications, receptive fields."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from cnnjax.functional import functionalize, leaves_of, model_name
from cnnjax.hooks import checked_layer, layer_of, with_hook
from cnnjax.sizing.field import Field
from cnnjax.staging.trace import Literal, inner_jaxprs, open_jaxpr, scope_of
from cnnjax.summaries.views import Views, of_input, through

# Two unequal batch sizes: what differs between them belongs to one example.
_BATCHES, _THIRD = (2, 3), 5
_MARK = "cnnjax layer "

Call = Callable[[Any, Any], Any]
"""How a model is called with a batch: `lambda model, x: model(x, train=False)`."""


@dataclass
class Measured:
    """What is known of one layer. What is None is not known.

    Attributes:
        shape: Of its output, None for the batch.
        multiplications: Of convolutions and matrix products, for one example, those of inner layers left out.
        views: What its output sees of the input.
        calls: How often it is called.
    """

    shape: tuple[int | None, ...] | None = None
    multiplications: int | None = 0
    views: Views | None = None
    calls: int = 0


@dataclass
class _Walk:
    """The state of a walk through one program."""

    layers: dict[str, Measured] = field(default_factory=dict)
    shapes: dict[str, list[Any]] = field(default_factory=dict)

    def of(self, layer: str | None) -> Measured:
        return self.layers.setdefault(layer or "", Measured())


def measure(
    model: nnx.Module, shape: Sequence[int], dtype: Any = jnp.float32, call: Call | None = None
) -> dict[str, Measured]:
    """Measure every module of a model that is called, in inference mode, without running anything.

    Args:
        model: Any NNX module; its leaves may be abstract.
        shape: Of one example, (H, W, C) for images.
        dtype: Of the input.
        call: How the model is called with a batch; `model(x)` if not given.

    Returns:
        By path, in the order of first calls; "" is the model itself.

    Raises:
        ValueError: The model cannot be called so.

    >>> from cnnjax.models import lecture_cnn
    >>> first = measure(lecture_cnn(rngs=nnx.Rngs(0)), (150, 150, 3))["conv2d_1"]
    >>> first.shape, first.multiplications == 148 * 148 * 32 * 3 * 3 * 3, first.views[1].field
    ((None, 148, 148, 32), True, Field(size=3, jump=1, start=0))
    """
    walks = [_walk(model, batch, shape, dtype, call) for batch in _BATCHES]
    if any(2 * b.multiplications != 3 * a.multiplications for a, b in _counts(*walks)):
        # Something does not grow with the batch: a third size tells a fixed part from one of another degree.
        walks.append(_walk(model, _THIRD, shape, dtype, call))
    return _per_example(*walks)


def _walk(model: nnx.Module, batch: int, shape: Sequence[int], dtype: Any, call: Call | None) -> _Walk:
    """Trace the model at a batch size and walk through its program."""
    functional = functionalize(model)
    leaves = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), leaves_of(model))
    walk = _Walk()

    def program(leaves: Any, x: Any) -> Any:
        return called(functional.module(leaves), x, call, walk.shapes)

    x = jax.ShapeDtypeStruct((batch, *shape), dtype)
    try:
        jaxpr = jax.make_jaxpr(program)(leaves, x).jaxpr
    except Exception as error:
        text = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"{model_name(model)} cannot be called with one input of shape (N, {', '.join(map(str, shape))}) and type "
            f"{jnp.dtype(dtype).name}: {text}. Give another input_shape or dtype, or call=lambda model, x: ... "
            "if it is called otherwise"
        ) from error
    views: list[Views | None] = [None] * (len(jaxpr.invars) - 1)
    _follow(jaxpr, [*views, of_input(x.shape)], walk, "", 1)
    return walk


def receptive_fields(
    model: nnx.Module, input_shape: Sequence[int] | None = None
) -> dict[str, tuple[Field | None, ...]]:
    """What the cells of every layer's output see of the images.

    Args:
        model: Any NNX module from f32[N, H, W, C].
        input_shape: (H, W, C); the model's own `input_shape` if not given.

    Returns:
        By path: a `Field` for rows and one for columns. Jump 0: every cell sees the same. None: not known, or
        the cells are in no order (behind a Flatten) or along another axis (behind a transposition).

    Raises:
        ValueError: The shape is not known.

    >>> from cnnjax.models import vgg16
    >>> receptive_fields(nnx.eval_shape(lambda: vgg16(rngs=nnx.Rngs(0))))["block5_pool"][0]
    Field(size=212, jump=32, start=-90)
    """
    shape = known_shape(model, input_shape)
    if shape is None:
        raise ValueError(f"the size of {model_name(model)}'s images is not known: give input_shape, (H, W, C)")
    measured = measure(model, shape)
    fields = {}
    for path, found in measured.items():
        views = enumerate(found.views or (None,) * len(shape))
        # Cells are counted along the axes of the input; behind a transposition they are others.
        fields[path] = tuple(v.field if v and v.axis in (None, k) else None for k, v in views)[1:]
    return {path: field for path, field in fields.items() if path}


def receptive_field(
    model: nnx.Module, layer: str, input_shape: Sequence[int] | None = None
) -> tuple[Field | None, ...]:
    """The same for one layer.

    Raises:
        LookupError: There is no such layer, or it is not called; the nearest name is given.
        ValueError: The shape is not known.
    """
    found = receptive_fields(model, input_shape)
    return found[checked_layer(layer, found, model_name(model))]


def known_shape(model: Any, given: Any) -> tuple[int, ...] | None:
    """The shape of one example: as given, or the model's (or its backbone's) own, if it is known whole.

    Raises:
        ValueError: What was given is no shape.
    """
    if given is not None:
        try:
            shape = tuple(int(n) for n in given)
            fits = bool(shape) and min(shape) >= 1 and not any(isinstance(n, bool) or n != int(n) for n in given)
        except (TypeError, ValueError):
            fits = False
        if not fits:
            raise ValueError(f"an input_shape is (height, width, channels), each at least 1, found {given!r}")
        return shape
    shape = getattr(getattr(model, "backbone", model), "input_shape", None)
    known = isinstance(shape, tuple | list) and bool(shape) and all(isinstance(n, int) and n > 0 for n in shape)
    return tuple(int(n) for n in shape) if known and shape else None


def marked(model: nnx.Module, shapes: dict[str, list[Any]] | None = None) -> Any:
    """The model (which is changed), with every layer's output named in its program.

    Args:
        model: A copy of the model.
        shapes: Where to note the shape of each output, by path.
    """

    def mark(path: str, out: Any) -> Any:
        if shapes is not None:
            shapes.setdefault(path, []).append(jax.tree.map(lambda x: getattr(x, "shape", None), out))
        return checkpoint_name(out, _MARK + path) if isinstance(out, jax.Array) else out

    return with_hook(model, mark)


def called(model: nnx.Module, x: Any, call: Call | None, shapes: dict[str, list[Any]] | None = None) -> Any:
    """What the model (which is changed) gives, with every layer's output and its own named in the program."""
    hooked = marked(model, shapes)
    out = call(hooked, x) if call else hooked(x)
    if shapes is not None:
        shapes[""] = [jax.tree.map(lambda x: getattr(x, "shape", None), out)]
    return checkpoint_name(out, _MARK) if isinstance(out, jax.Array) else out


def marked_layer(eqn: Any) -> str | None:
    """The layer whose output an equation of a marked program is; None for all other equations."""
    name = eqn.params["name"] if eqn.primitive.name == "name" else ""
    return name.removeprefix(_MARK) if name.startswith(_MARK) else None  # "" is the model itself


def _follow(jaxpr: Any, ins: Sequence[Views | None], walk: _Walk, scope: str, times: int | None) -> list[Views | None]:
    """Walk through a program, `times` times (None: nobody knows how often)."""
    env: dict[Any, Views | None] = dict(zip(jaxpr.invars, ins, strict=True))

    def read(atom: Any) -> Views | None:
        return None if isinstance(atom, Literal) else env.get(atom)

    for eqn in jaxpr.eqns:
        place = f"{scope}/{scope_of(eqn)}"
        views = [read(atom) for atom in eqn.invars]
        outs = _inside(eqn, views, walk, place, times)
        if outs is None:
            outs = [through(eqn, views)] + [_unknown(views)] * (len(eqn.outvars) - 1)
            _count(eqn, walk.of(layer_of(place)), times)
        if (layer := marked_layer(eqn)) is not None:
            found = walk.of(layer)
            found.views, found.calls = outs[0] if found.calls == 0 else None, found.calls + 1
        env.update(zip(eqn.outvars, outs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _inside(
    eqn: Any, views: list[Views | None], walk: _Walk, place: str, times: int | None
) -> list[Views | None] | None:
    """Walk into an equation that holds a program; None if it holds none."""
    name, bodies = eqn.primitive.name, [open_jaxpr(body) for body in inner_jaxprs(eqn.params)]
    if not bodies or name.startswith("reduce"):
        return None
    lost = [_unknown(views)] * len(eqn.outvars)
    if name == "cond":
        # A choice by platform means the same in every branch; the one without a platform is the plain one.
        platforms = eqn.params.get("branches_platforms")
        if platforms and None in platforms:
            return _follow(bodies[list(platforms).index(None)], views[1:], walk, place, times)
        _spoil(bodies, walk, place)
        return lost
    if name in ("scan", "while"):
        length = eqn.params.get("length") if times is not None else None
        for body in bodies:
            empty = [_unknown(views)] * len(body.invars)
            _follow(body, empty, walk, place, times * length if times is not None and length else None)
        return lost
    if len(bodies) == 1 and len(bodies[0].invars) == len(views) and len(bodies[0].outvars) == len(lost):
        return _follow(bodies[0], views, walk, place, times)
    _spoil(bodies, walk, place)
    return lost


def _spoil(bodies: Sequence[Any], walk: _Walk, place: str) -> None:
    """Walk through programs of which nobody knows whether they run."""
    for body in bodies:
        _follow(body, [None] * len(body.invars), walk, place, None)


def _unknown(views: Sequence[Views | None]) -> Views | None:
    known = next((v for v in views if v is not None), None)
    return None if known is None else (None,) * len(known)


def _count(eqn: Any, found: Measured, times: int | None) -> None:
    """Add an equation's multiplications to its layer's."""
    name, params = eqn.primitive.name, eqn.params
    if name not in ("conv_general_dilated", "dot_general"):
        return
    if times is None or found.multiplications is None:
        found.multiplications = None
        return
    left, right = (v.aval.shape for v in eqn.invars[:2])
    cells = math.prod(eqn.outvars[0].aval.shape)
    if name == "dot_general":
        found.multiplications += times * cells * math.prod(left[k] for k in params["dimension_numbers"][0][0])
    else:
        # A filter has one weight for each position and input channel of its group.
        numbers = params["dimension_numbers"].rhs_spec
        found.multiplications += times * cells * math.prod(right) // right[numbers[0]]


def _counts(first: _Walk, second: _Walk) -> list[tuple[Any, Any]]:
    """The layers of two walks whose multiplications are known."""
    pairs = [(first.of(path), second.of(path)) for path in dict.fromkeys([*first.layers, *second.layers])]
    return [(a, b) for a, b in pairs if a.multiplications is not None and b.multiplications is not None]


def _per_example(first: _Walk, second: _Walk, third: _Walk | None = None) -> dict[str, Measured]:
    """What two batch sizes tell of one example: what grows with the batch belongs to it."""
    result = {}
    for path in dict.fromkeys(["", *first.shapes, *first.layers]):
        a = first.of(path)
        one, other = (walk.shapes.get(path, []) for walk in (first, second))
        a.shape = _batched(one, other)
        a.calls = len(one)
        counts = [walk.of(path).multiplications for walk in (first, second, third) if walk]
        known = [n for n in counts if n is not None]
        each = known[1] - known[0] if len(known) == len(counts) else None
        a.multiplications = each if each is None or known[2:] in ([], [known[1] + 2 * each]) else None
        # A layer that mixes the examples of a batch has no field of its own.
        if a.views is not None and (a.views[0] is None or (a.views[0].size, a.views[0].jump) != (1, 1)):
            a.views = None
        result[path] = a
    return result


def _batched(one: list[Any], other: list[Any]) -> tuple[int | None, ...] | None:
    """The shape of a layer's output with None for the batch; None if it gives several or no arrays."""
    shapes = {tuple(shape) if isinstance(shape, tuple) else None for shape in one}
    others = {tuple(shape) if isinstance(shape, tuple) else None for shape in other}
    if len(shapes) != 1 or len(others) != 1:
        return None
    a, b = shapes.pop(), others.pop()
    if a is None or b is None or len(a) != len(b) or not all(isinstance(n, int) for n in a):
        return None
    return tuple(m if m == n else None for m, n in zip(a, b, strict=True))
