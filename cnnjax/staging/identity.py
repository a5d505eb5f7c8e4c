"""What tells one program from another, in every process: a digest of all that it computes."""

from collections.abc import Callable
from typing import Any

from cnnjax.files.digests import digest
from cnnjax.staging.cut import fingerprints
from cnnjax.staging.trace import Literal, flat_trace
from cnnjax.staging.wording import Unlike, equation, literal


class NoIdentity(ValueError):
    """A program does something that no text describes, such as a call of Python."""


def expression_digest(fn: Callable[..., Any], *args: Any) -> str:
    """SHA-256 (hex) of what a function computes: its operations, and the arrays and numbers that it holds.

    Two functions that trace to the same program have the same one, however they are written.

    Args:
        fn: a pure function of arrays.
        *args: what it is called with, as arrays or abstract shapes.

    Raises:
        NoIdentity: it calls back into Python, or does something else that is not described by its program.

    >>> import jax, jax.numpy as jnp
    >>> x = jax.ShapeDtypeStruct((3,), jnp.float32)
    >>> one, same, other = (expression_digest(f, x) for f in (lambda x: 2 * x, lambda y: 2 * y, lambda x: 3 * x))
    >>> one == same, one == other
    (True, False)
    """
    jaxpr, consts, tree = flat_trace(fn, *args)
    leaves = dict(zip(jaxpr.constvars, map(digest, consts), strict=True))
    leaves |= {v: f"argument {k}: {v.aval}" for k, v in enumerate(jaxpr.invars)}
    try:
        said = {k: equation(eqn, eqn, (1, 2)) for k, eqn in enumerate(jaxpr.eqns)}
        keys = fingerprints(jaxpr, jaxpr.outvars, leaves, said)
        outs = [literal(v, v) if isinstance(v, Literal) else keys[v] for v in jaxpr.outvars]
    except Unlike as error:
        raise NoIdentity(f"the program is not known by what it says ({error})") from None
    return digest(str(tree), *outs)
