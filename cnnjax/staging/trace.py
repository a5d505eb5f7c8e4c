"""Programs as flat lists of equations: trace, inline, and run a part.

JAX calls its own programs' types unstable: they are taken from here alone (see docs/private-interfaces.md).
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.core
from jax.extend.core import ClosedJaxpr as ClosedJaxpr
from jax.extend.core import Jaxpr as Jaxpr
from jax.extend.core import JaxprEqn as Equation
from jax.extend.core import Literal as Literal
from jax.extend.core import Var as Var
from jax.extend.core import no_effects

from cnnjax.runtime import Tree

Atom = Var | Literal
"""What an equation takes: a variable, or a number that is written in it."""

# Calls that only group equations: opened, so that a cut may pass through them. A rule for gradients
# (custom_jvp_call, custom_vjp_call) and a checkpoint stay whole: opening them would lose what they are for.
GROUPS = {"jit", "pjit", "closed_call", "core_call", "core_closed_call"}


def inner_jaxprs(params: dict[str, Any]) -> list[Any]:
    """The jaxprs among an equation's parameters that define its values."""
    found = []
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, ClosedJaxpr | Jaxpr):
                found.append(item)
    return found


def open_jaxpr(jaxpr: Jaxpr | ClosedJaxpr) -> Any:
    """The jaxpr without its constants."""
    return jaxpr.jaxpr if isinstance(jaxpr, ClosedJaxpr) else jaxpr


def aval_of(atom: Atom) -> Any:
    """The abstract array that an atom stands for: its `shape`, `dtype` and `ndim`."""
    return atom.aval


def scope_of(eqn: Equation) -> str:
    """The scopes in which an equation was traced, as in `layer<conv1>/jit(relu)`."""
    return str(eqn.source_info.name_stack)


def written_in(jaxpr: Jaxpr | ClosedJaxpr) -> str | None:
    """The file of the function that a jaxpr was traced from; None where JAX does not tell."""
    return getattr(getattr(open_jaxpr(jaxpr), "debug_info", None), "func_filename", None)


def part(jaxpr: Jaxpr, ins: Sequence[Any], outs: Sequence[Any], eqns: Iterable[Any]) -> Callable[..., list[Any]]:
    """The function from values of `ins` to values of `outs` that runs `eqns` of a jaxpr."""
    body = jaxpr.replace(
        constvars=[], invars=list(ins), outvars=list(outs), eqns=list(eqns), effects=no_effects,
        debug_info=jaxpr.debug_info.with_unknown_names(),
    )  # fmt: skip
    return lambda *values: jax.core.eval_jaxpr(body, (), *values)


def flat_trace(fn: Callable[..., Any], *args: Tree, opened: bool = True) -> tuple[Any, list[Any], Any]:
    """Trace `fn` on abstract arguments into one jaxpr, flat if `opened`.

    Returns:
        The jaxpr, the values of its `constvars`, and the tree of the output.
    """
    tree: list[Any] = []

    def flat(*leaves: jax.Array) -> list[Any]:
        out = fn(*jax.tree.unflatten(jax.tree.structure(args), leaves))
        flat_out, structure = jax.tree.flatten(out)
        tree[:] = [structure]
        return flat_out

    leaves = jax.tree.leaves(args)
    nested = jax.make_jaxpr(flat)(*leaves)
    if not opened:
        return nested.jaxpr, list(nested.consts), tree[0]
    flattened = jax.make_jaxpr(lambda *values: _open(nested.jaxpr, nested.consts, values))(*leaves)
    return flattened.jaxpr, list(flattened.consts), tree[0]


def _open(jaxpr: Jaxpr, consts: Sequence[Any], values: Sequence[Any]) -> list[Any]:
    """Evaluate with the grouping calls opened."""
    env: dict[Any, Any] = dict(zip(jaxpr.constvars, consts, strict=True))
    env.update(zip(jaxpr.invars, values, strict=True))

    def read(atom: Atom) -> Any:
        return atom.val if isinstance(atom, Literal) else env[atom]

    for eqn in jaxpr.eqns:
        inner = inner_jaxprs(eqn.params) if eqn.primitive.name in GROUPS else []
        ins = [read(atom) for atom in eqn.invars]
        if len(inner) == 1:
            closed = inner[0]
            outs = _open(open_jaxpr(closed), getattr(closed, "consts", ()), ins)
        else:
            variables = list(dict.fromkeys(a for a in eqn.invars if not isinstance(a, Literal)))
            outs = part(jaxpr, variables, eqn.outvars, [eqn])(*(env[v] for v in variables))
        env.update(zip(eqn.outvars, outs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]
