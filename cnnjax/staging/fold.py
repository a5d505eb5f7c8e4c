"""Frozen normalisation goes into the kernel before it: a convolution, then a factor and a term for each channel."""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cnnjax.staging.cut import variables
from cnnjax.staging.trace import Literal, inner_jaxprs, open_jaxpr, part

_AFFINE = ("add", "sub", "mul", "div")


class _Chain(NamedTuple):
    """A convolution and the equations that scale and shift its channels."""

    convolution: Any
    kernel_axis: int
    axis: int
    steps: list[tuple[str, Any, bool]]  # the operation, its other operand, and whether that comes second
    absorbed: list[Any]
    out: Any


def folded(
    jaxpr: Any, ins: Sequence[Any], outs: Sequence[Any], eqns: Iterable[Any], fixed: Collection[Any]
) -> Callable[..., list[Any]]:
    """As `part`, but what follows a convolution and is fixed, and affine in each channel, is computed with its kernel.

    BatchNorm with frozen statistics is (y - mean) s + b of a convolution y of x with k: that of x with k s, plus
    (b - mean s). Large values are then written once instead of twice, and CPUs' oneDNN adds the term, and rectifies,
    while it writes. The sum is another one to rounding.

    Args:
        jaxpr: a flat jaxpr.
        ins: variables that are given.
        outs: variables that are wanted.
        eqns: the equations to run, in order.
        fixed: the variables that hold for every image: frozen weights, and what is made of them.
    """
    eqns = list(eqns)
    chains = {id(c.convolution): c for c in _chains(eqns, outs, fixed)}
    if not chains:
        return part(jaxpr, ins, outs, eqns)
    absorbed = {id(eqn) for chain in chains.values() for eqn in chain.absorbed}
    # Factors and terms are made after the convolution in the program, but without it.
    early = [eqn for eqn in eqns if all(v in fixed for v in eqn.outvars)]
    ran = {id(eqn) for eqn in early}
    order = [*early, *(eqn for eqn in eqns if id(eqn) not in ran and id(eqn) not in absorbed)]

    def run(*values: Any) -> list[Any]:
        env = dict(zip(ins, values, strict=True))

        def read(atom: Any) -> Any:
            return atom.val if isinstance(atom, Literal) else env[atom]

        for eqn in order:
            given = {v: env[v] for v in variables(eqn.invars)}
            chain = chains.get(id(eqn))
            if chain is None:
                env.update(zip(eqn.outvars, part(jaxpr, list(given), eqn.outvars, [eqn])(*given.values()), strict=True))
                continue
            factor, term = _factor_and_term(chain, read)
            kernel = eqn.invars[1]
            given[kernel] = given[kernel] * _along(factor, chain.kernel_axis, kernel.aval.ndim)
            (made,) = part(jaxpr, list(given), eqn.outvars, [eqn])(*given.values())
            env[chain.out] = made + _along(term, chain.axis, made.ndim)
        return [read(atom) for atom in outs]

    return run


def _chains(eqns: Sequence[Any], outs: Iterable[Any], fixed: Collection[Any]) -> list[_Chain]:
    uses = Counter(a for eqn in eqns for a in eqn.invars if not isinstance(a, Literal))
    uses.update(a for a in outs if not isinstance(a, Literal))
    user = {a: eqn for eqn in eqns for a in variables(eqn.invars)}
    found = []
    for eqn in eqns:
        axes = _channel_axes(eqn)
        if axes is None or eqn.invars[1] not in fixed or eqn.invars[0] in fixed:
            continue
        kernel_axis, axis = axes
        steps: list[tuple[str, Any, bool]] = []
        absorbed: list[Any] = []
        value = eqn.outvars[0]
        while uses[value] == 1 and value in user:
            step = _step(user[value], value, axis, fixed)
            if step is None:
                break
            steps.append(step)
            absorbed.append(user[value])
            value = user[value].outvars[0]
        if any(name in ("mul", "div") for name, *_ in steps):
            found.append(_Chain(eqn, kernel_axis, axis, steps, absorbed, value))
    return found


def _step(eqn: Any, value: Any, axis: int, fixed: Collection[Any]) -> tuple[str, Any, bool] | None:
    """What an equation does to the channels of a value, if it is affine in each and otherwise fixed."""
    if eqn.primitive.name not in _AFFINE or len(eqn.invars) != 2 or eqn.outvars[0].aval != value.aval:
        return None
    second = eqn.invars[0] is value
    other = eqn.invars[1] if second else eqn.invars[0]
    if eqn.primitive.name == "div" and not second:
        return None
    if not isinstance(other, Literal) and other not in fixed:
        return None
    shape = np.shape(other.val) if isinstance(other, Literal) else other.aval.shape
    if shape and not (len(shape) == len(value.aval.shape) and all(n == 1 for k, n in enumerate(shape) if k != axis)):
        return None
    return eqn.primitive.name, other, second


def _factor_and_term(chain: _Chain, read: Callable[[Any], Any]) -> tuple[jax.Array, jax.Array]:
    factor: Any = jnp.ones((), chain.out.aval.dtype)
    term: Any = jnp.zeros((), chain.out.aval.dtype)
    for name, other, second in chain.steps:
        given = jnp.asarray(read(other), chain.out.aval.dtype).reshape(-1)
        if name == "add":
            term = term + given
        elif name == "sub":
            factor, term = (factor, term - given) if second else (-factor, given - term)
        elif name == "mul":
            factor, term = factor * given, term * given
        else:
            factor, term = factor / given, term / given
    channels = chain.out.aval.shape[chain.axis]
    return jnp.broadcast_to(factor, channels), jnp.broadcast_to(term, channels)


def _along(vector: jax.Array, axis: int, ndim: int) -> jax.Array:
    return vector.reshape([-1 if k == axis else 1 for k in range(ndim)])


def _channel_axes(eqn: Any) -> tuple[int, int] | None:
    """Which axes of kernel and output are the output's channels, if an equation is a convolution.

    One of `cnnjax.ops` is known by the plain convolution that it is on some platform.
    """
    if len(eqn.invars) != 2 or len(eqn.outvars) != 1 or any(isinstance(a, Literal) for a in eqn.invars):
        return None
    image, kernel = eqn.invars
    if eqn.primitive.name == "conv_general_dilated":
        numbers = eqn.params["dimension_numbers"]
        one_type = image.aval.dtype == kernel.aval.dtype == eqn.outvars[0].aval.dtype
        plain = one_type and eqn.params["batch_group_count"] == 1
        return (numbers.rhs_spec[0], numbers.out_spec[1]) if plain else None
    if eqn.primitive.name != "custom_vjp_call":
        return None
    for body in inner_jaxprs(eqn.params):
        for inner in open_jaxpr(body).eqns:
            if inner.primitive.name != "cond":
                continue
            for branch in map(open_jaxpr, inner_jaxprs(inner.params)):
                alone = len(branch.eqns) == 1 and list(branch.eqns[0].invars) == list(branch.invars)
                axes = _channel_axes(branch.eqns[0]) if alone and branch.eqns[0].outvars == branch.outvars else None
                if axes is not None:
                    return axes
    return None
