"""The frontier: where a program is cut into what is stored and what is trained."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from cnnjax.files.digests import digest
from cnnjax.staging.times import ELEMENTWISE, FIXED, Known, Time
from cnnjax.staging.trace import GROUPS, Literal, inner_jaxprs, open_jaxpr
from cnnjax.staging.wording import literal

# Equations that cost next to nothing: they may run in every step if that lets us store fewer bytes.
_CHEAP = ELEMENTWISE | {
    "broadcast_in_dim", "concatenate", "iota", "pad", "platform_index", "reshape", "rev", "slice", "squeeze",
    "transpose",
}  # fmt: skip


def row_bytes(var: Any, known: Known) -> int:
    """Bytes of a value: of one image's share for IMAGE values, of the whole for FIXED ones."""
    shape = [known.repeat if k == known.axis else n for k, n in enumerate(var.aval.shape)]
    return int(np.prod(shape, dtype=np.int64)) * var.aval.dtype.itemsize


def producers(jaxpr: Any) -> dict[Any, int]:
    """Variable -> index of the equation that makes it."""
    return {v: k for k, eqn in enumerate(jaxpr.eqns) for v in eqn.outvars}


def variables(atoms: Iterable[Any]) -> list[Any]:
    """The atoms that are variables, once each."""
    return list(dict.fromkeys(a for a in atoms if not isinstance(a, Literal)))


def needed(jaxpr: Any, wanted: Iterable[Any], given: Iterable[Any]) -> tuple[list[int], list[Any]]:
    """Walk back from `wanted` to `given`: (equations to run, in order; inputs that are read)."""
    made, stop = producers(jaxpr), set(given)
    eqns: set[int] = set()
    inputs: dict[Any, None] = {}
    todo = variables(wanted)
    seen = set(todo)
    while todo:
        var = todo.pop()
        if var in stop or var not in made:
            inputs[var] = None
            continue
        if made[var] in eqns:
            continue
        eqns.add(made[var])
        fresh = [v for v in variables(jaxpr.eqns[made[var]].invars) if v not in seen]
        seen.update(fresh)
        todo += fresh
    return sorted(eqns), list(inputs)


def made_of(given: Iterable[Any], eqns: Iterable[Any]) -> set[Any]:
    """What is given, and all that equations make of nothing else."""
    found = set(given)
    for eqn in eqns:
        if found.issuperset(variables(eqn.invars)):
            found.update(eqn.outvars)
    return found


def frontier(jaxpr: Any, times: dict[Any, Known]) -> tuple[list[Any], list[int]]:
    """The values that must be handed over the cut, and the equations that run after it.

    Starting from the latest possible cut, each handed-over value is walked back through cheap equations
    as long as that lowers the number of bytes handed over (a cast from uint8, a padding, a broadcast).

    Returns:
        The handed-over variables (FIXED and IMAGE, in program order) and the indices of late equations.
    """
    made = producers(jaxpr)
    redo: set[int] = set()  # early equations that are run again after the cut

    def cut() -> list[Any]:
        early = [v for v, known in times.items() if known.time is not Time.LATE and made.get(v) not in redo]
        return needed(jaxpr, jaxpr.outvars, early)[1]

    def cost(values: Iterable[Any]) -> int:
        return sum(
            row_bytes(v, times[v]) for v in set(values) if made.get(v) is not None or times[v].time is Time.IMAGE
        )

    def handed(values: list[Any]) -> list[Any]:
        return [v for v in values if times[v].time is not Time.LATE]

    # A FIXED value with a batch axis cannot be computed once a run for every batch size.
    redo |= {made[v] for v, known in times.items() if known.spread and v in made}
    current = handed(cut())
    for start in sorted(current, key=lambda v: -made.get(v, -1)):
        if start not in current:
            continue
        before, trial, best = cost(current), set(redo), None
        inside = {start}
        while True:
            options = [v for v in inside if v in made and made[v] not in trial and _cheap(jaxpr.eqns[made[v]])]
            if not options:
                break
            index = made[max(options, key=lambda v: made[v])]
            trial.add(index)
            inside |= set(variables(jaxpr.eqns[index].invars))
            saved, redo = redo, trial
            price = cost(handed(cut()))
            redo = saved
            if price < before:
                before, best = price, set(trial)
        if best is not None:
            redo = best
            current = handed(cut())
    eqns = needed(jaxpr, jaxpr.outvars, current)[0]
    order = {v: k for k, v in enumerate([*jaxpr.constvars, *jaxpr.invars, *made])}
    return sorted(current, key=order.__getitem__), eqns


def _cheap(eqn: Any) -> bool:
    if eqn.primitive.name in _CHEAP:
        return True
    if eqn.primitive.name != "custom_jvp_call" and eqn.primitive.name not in GROUPS:
        return False
    return all(_cheap(e) for body in inner_jaxprs(eqn.params) for e in open_jaxpr(body).eqns)


def after_large(
    jaxpr: Any, eqns: Sequence[int], wanted: Iterable[Any], times: dict[Any, Known], most: int
) -> tuple[list[Any], int]:
    """Where a program can be cut after the equations that make large values of small weights.

    They may be run over a few images at a time, so that what they make stays in a cache. Where weights are large, and
    larger than what is made with them for an image, it would be the weights that come from memory again for every few.

    Args:
        jaxpr: a flat jaxpr.
        eqns: the equations that run, in order.
        wanted: what they are run for.
        times: what is known of the values.
        most: bytes of an image's share of a value, beyond which it is large.

    Returns:
        The values of images that are handed over (none: nothing is large) at the earliest cut after which nothing
        large is made or handed over, or before the first large weights if there is none such; and the bytes of an
        image's share of the largest value that is handed over or made after it.
    """
    steps = [jaxpr.eqns[k] for k in eqns]

    def shares(values: Iterable[Any]) -> list[int]:
        return [row_bytes(v, times[v]) for v in values if times[v].time is Time.IMAGE]

    def heavy(eqn: Any) -> bool:
        weights = sum(row_bytes(v, times[v]) for v in variables(eqn.invars) if times[v] == FIXED)
        made = shares(eqn.outvars)
        return bool(made) and weights > max(most, *made)

    reach = next((n for n, eqn in enumerate(steps) if heavy(eqn)), len(steps))
    large = [n for n, eqn in enumerate(steps[:reach]) if max(shares(eqn.outvars), default=0) > most]
    last = {v: n for n, eqn in enumerate(steps) for v in variables(eqn.invars)} | dict.fromkeys(wanted, len(steps))
    handed: list[Any] = []
    cut = 0
    for eqn in steps[:reach] if large else ():
        made = [v for v in eqn.outvars if times[v].time is Time.IMAGE]
        handed = [v for v in (*handed, *made) if last.get(v, -1) > cut]
        cut += 1
        if cut > large[-1] and max(shares(handed), default=0) <= most:
            break
    return handed, max(shares([*handed, *(v for eqn in steps[cut:] for v in eqn.outvars)]), default=0)


def fingerprints(jaxpr: Any, wanted: Sequence[Any], leaves: dict[Any, str], said: dict[int, str]) -> dict[Any, str]:
    """A key for every early value on the way to `wanted`: a digest of the expression that made it.

    Args:
        jaxpr: a flat jaxpr.
        wanted: the values to be stored.
        leaves: digests of the inputs (weights by content, the images by a fixed word).
        said: what each early equation does, by its index, in words that hold at every batch size.
    """
    keys = dict(leaves)
    for index in needed(jaxpr, wanted, ())[0]:
        eqn = jaxpr.eqns[index]
        ins = [literal(a, a) if isinstance(a, Literal) else keys[a] for a in eqn.invars]
        text = f"{said[index]}({','.join(ins)})"
        for k, var in enumerate(eqn.outvars):
            keys[var] = digest(f"{k}={text}")
    return keys
