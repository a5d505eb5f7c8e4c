"""What a program says at two batch sizes, as one text in which the batch size is `N`.

A program is traced at one size and run at others. What it does must then be the same at all of them, which is
more than its operations: a model may choose a padding, an axis or a number by `x.shape[0]`, inside a rule for
gradients too. So equations are put into words from two traces at once. Shapes may follow the batch size, in
proportion; nothing else may, and what is not understood here has no words. The text is also what the keys of
stored features are made of, so it is the same for every pair of sizes.
"""

import dataclasses
import enum
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np

from cnnjax.files.digests import digest
from cnnjax.staging.trace import GROUPS, ClosedJaxpr, Jaxpr, Literal, inner_jaxprs, open_jaxpr, written_in

# Calls whose bodies are looked at equation by equation (`cnnjax.staging.times`), so that shapes in them may grow.
CALLS = GROUPS | {
    "checkpoint", "remat", "remat2", "custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr", "cond",
}  # fmt: skip

# Parameters that repeat the shape of an input or the output: they follow the batch size as it does.
_SHAPES = {
    "broadcast_in_dim": "shape", "dynamic_slice": "slice_sizes", "gather": "slice_sizes", "reshape": "new_sizes",
    "slice": "limit_indices",
}  # fmt: skip

_PLAIN = {bool, int, float, complex, str, bytes, type(None)}
_OPS = Path(__file__).parents[1] / "ops"

# Rules for gradients and for what is kept for them: they stand beside a body, which alone decides values.
_RULES = {"bwd", "fwd_jaxpr_thunk", "jvp_jaxpr_fun", "jvp_jaxpr_thunk", "out_trees", "policy"}

Sizes = tuple[int, int]
_T = TypeVar("_T")


class Unlike(Exception):
    """The two programs do not say the same, or what they say is not understood."""


def equation(x: Any, y: Any, sizes: Sizes) -> str:
    """An equation without the names of its variables.

    Args:
        x: an equation of the program traced at batch size `sizes[0]`.
        y: the one in its place at `sizes[1]`.
        sizes: two unequal batch sizes.

    Raises:
        Unlike: they do something else.

    >>> import jax.numpy as jnp
    >>> traces = [jax.make_jaxpr(lambda x: jnp.zeros(x.shape))(jnp.ones((n, 3))) for n in (5, 7)]
    >>> a, b = (trace.jaxpr.eqns[0] for trace in traces)
    >>> equation(a, b, (5, 7))
    'broadcast_in_dim{broadcast_dimensions:(),shape:(1N, 3),sharding:None}->float32(1N, 3)'
    """
    return _equation(x, y, sizes, grows=True)


def platform_bodies(params: dict[str, Any]) -> list[tuple[Any, bool]]:
    """The bodies of an equation, and whether each decides what it means.

    Of a choice by platform (`jax.lax.platform_dependent`) all branches are read but those of `cnnjax.ops`, which are
    tested to mean what the default does, and are written by what is fastest for a batch.
    """
    bodies = list(inner_jaxprs(params))
    platforms = params.get("branches_platforms") or ()
    if None not in platforms:
        return [(body, True) for body in bodies]
    return [(b, where is None or not _is_ours(b)) for b, where in zip(bodies, platforms, strict=True)]


def _is_ours(body: Any) -> bool:
    # Where that is not told the branch is read as any other, and less is stored.
    written = written_in(body)
    return bool(written) and Path(written).is_relative_to(_OPS)


def _equation(x: Any, y: Any, sizes: Sizes, grows: bool) -> str:
    name = x.primitive.name
    if x.primitive is not y.primitive or len(x.outvars) != len(y.outvars) or x.params.keys() != y.params.keys():
        raise Unlike(f"{name} and {y.primitive.name}")
    if "callback" in name or x.effects or y.effects:
        raise Unlike(f"{name} may do anything")
    inside = grows and name in CALLS
    bodies = [decides for _, decides in platform_bodies(x.params)] if inside else []
    if inside and bodies != [decides for _, decides in platform_bodies(y.params)]:
        raise Unlike(f"{name} has other branches")
    texts, has_body = [], bool(inner_jaxprs(x.params))
    for key in sorted(x.params):
        p, q = x.params[key], y.params[key]
        if key == "branches" and not all(bodies):
            chosen = [(a, b) for a, b, decides in zip(p, q, bodies, strict=True) if decides]
            text = ",".join(_value(a, b, sizes, inside) for a, b in chosen)
        elif has_body and (key in _RULES or (callable(p) and not isinstance(p, type))):
            continue
        elif grows and _SHAPES.get(name) == key:
            text = _shape(p, q, sizes)
        else:
            text = _value(p, q, sizes, inside)
        texts.append(f"{key}:{text}")
    made = ",".join(_aval(a.aval, b.aval, sizes, grows) for a, b in zip(x.outvars, y.outvars, strict=True))
    return f"{name}{{{','.join(texts)}}}->{made}"


def _value(p: Any, q: Any, sizes: Sizes, grows: bool) -> str:
    """A parameter, which is the same at both sizes; the shapes in a body may grow if it `grows`."""
    if type(p) is not type(q):
        return _differ(p, q)
    if type(p) in _PLAIN:
        text = repr(p)
        return text if text == repr(q) else _differ(p, q)
    if isinstance(p, ClosedJaxpr | Jaxpr):
        return _body(p, q, sizes, grows)
    if isinstance(p, np.ndarray | np.generic | jax.Array):
        return digest(p) if np.shape(p) == np.shape(q) and digest(p) == digest(q) else _differ(p, q)
    if isinstance(p, tuple | list):
        if len(p) != len(q):
            return _differ(p, q)
        kind = type(p).__name__ if hasattr(p, "_fields") else ""
        return f"{kind}({','.join(_value(a, b, sizes, grows) for a, b in zip(p, q, strict=True))})"
    if isinstance(p, dict):
        if p.keys() != q.keys():
            return _differ(p, q)
        return "{" + ",".join(f"{k}:{_value(p[k], q[k], sizes, grows)}" for k in sorted(p, key=str)) + "}"
    if isinstance(p, frozenset | set):
        return "{" + ",".join(sorted(map(repr, p))) + "}" if p == q else _differ(p, q)
    if dataclasses.is_dataclass(p) and not isinstance(p, type | enum.Enum):
        fields = [field.name for field in dataclasses.fields(p)]
        said = (f"{k}={_value(getattr(p, k), getattr(q, k), sizes, grows)}" for k in fields)
        return f"{type(p).__name__}({','.join(said)})"
    # Types, enumerations, and what JAX keeps of shardings and layouts: as they say themselves, if they can.
    if " at 0x" in str(p) or not (p is q or p == q):
        return _differ(p, q)
    return str(p)


def _differ(p: Any, q: Any) -> str:
    raise Unlike(f"{p} and {q}"[:200])


def _body(p: Any, q: Any, sizes: Sizes, grows: bool) -> str:
    """A body, its variables numbered in order."""
    a, b = open_jaxpr(p), open_jaxpr(q)
    if len(a.eqns) != len(b.eqns):
        raise Unlike(f"{len(a.eqns)} and {len(b.eqns)} equations")
    consts = _value(list(getattr(p, "consts", ())), list(getattr(q, "consts", ())), sizes, grows)
    numbers: tuple[dict[Any, int], dict[Any, int]] = ({}, {})

    def atoms(some: Sequence[Any], twins: Sequence[Any]) -> str:
        if len(some) != len(twins):
            raise Unlike(f"{len(some)} and {len(twins)} variables")
        return ",".join(map(atom, some, twins))

    def atom(v: Any, w: Any) -> str:
        if isinstance(v, Literal) or isinstance(w, Literal):
            return literal(v, w)
        n, m = (known.setdefault(x, len(known)) for known, x in zip(numbers, (v, w), strict=True))
        return f"v{n}:{_aval(v.aval, w.aval, sizes, grows)}" if n == m else _differ(v, w)

    lines = [consts, atoms([*a.constvars, *a.invars], [*b.constvars, *b.invars])]
    for x, y in zip(a.eqns, b.eqns, strict=True):
        made, read = atoms(x.outvars, y.outvars), atoms(x.invars, y.invars)
        lines.append(f"{made}={_equation(x, y, sizes, grows)}({read})")
    return "\n".join([*lines, atoms(a.outvars, b.outvars)])


def literal(v: Any, w: Any) -> str:
    """A number in the programs, to the last bit (its `repr` is rounded).

    Raises:
        Unlike: it is another one, or none.
    """
    if not (isinstance(v, Literal) and isinstance(w, Literal)) or np.shape(v.val) != np.shape(w.val):
        raise Unlike("a number and a value")
    if digest(v.val) != digest(w.val) or v.aval.str_short() != w.aval.str_short():
        raise Unlike(f"{v.val} and {w.val}")
    return f"{digest(v.val)}:{v.aval.str_short()}"


def _aval(p: Any, q: Any, sizes: Sizes, grows: bool) -> str:
    """A value's type and shape."""
    if not (grows and hasattr(p, "shape") and hasattr(q, "shape")):
        return str(p) if str(p) == str(q) else _differ(p, q)
    kinds = [(x.dtype, getattr(x, "weak_type", False)) for x in (p, q)]
    if kinds[0] != kinds[1]:
        return _differ(p, q)
    return f"{p.dtype}{'~' if kinds[0][1] else ''}{_shape(p.shape, q.shape, sizes)}"


def _shape(p: Sequence[int], q: Sequence[int], sizes: Sizes) -> str:
    if p == q:
        return str(tuple(p))
    if len(p) != len(q):
        return _differ(p, q)
    return str(tuple(_length(a, b, sizes) for a, b in zip(p, q, strict=True))).replace("'", "")


def _length(a: int, b: int, sizes: Sizes) -> int | str:
    """A length as a number, or as so many times the batch size."""
    if a == b:
        return a
    return f"{Fraction(a, sizes[0])}N" if a * sizes[1] == b * sizes[0] else _differ(a, b)


# Sizes that no layer is likely to have; then some that many numbers divide.
_PAIRS = ((5, 7), (24, 48))


def traced_at_two(trace: Callable[[int], _T]) -> tuple[Sizes, tuple[_T, _T]]:
    """A program at two batch sizes that it takes, where none is given.

    Raises:
        Exception: what it raises at the first, if it takes no pair of those that are tried.
    """
    failed: Exception | None = None
    for pair in _PAIRS:
        try:
            return pair, (trace(pair[0]), trace(pair[1]))
        except Exception as error:  # the model's own: it is written for other sizes
            failed = failed or error
    assert failed is not None
    raise failed
