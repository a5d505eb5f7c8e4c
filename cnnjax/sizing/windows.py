"""Output sizes: how many places a filter has on one axis, and which paddings make it fit."""

import difflib
import operator
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

RULES = ("exact", "floor", "same")

Padding = int | tuple[int, int]

_FAR = 10_000  # how far from what was asked an error looks for what fits


def output_size(
    n: int, f: int, stride: int = 1, padding: Padding = 0, *, dilation: int = 1, rule: str = "exact"
) -> int:
    """Return the number of output cells of a convolution or pooling along one axis.

    Args:
        n: input size N.
        f: filter size F.
        stride: S.
        padding: positions added on each side, P, or (before, after).
        dilation: distance D of the filter's entries; a dilated filter spans D(F - 1) + 1 positions.
        rule: "exact", (N - F + 2P)/S + 1, which must be a whole number; "floor", the same rounded down, as all
            frameworks have it (their "valid" is "floor" without padding); or "same", ceil(N/S), which sets
            the padding itself (see `same_padding`).

    Raises:
        ValueError: The filter does not fit (what fits nearby is named) or is larger than the padded input; a
            number is not whole or too small; the rule is unknown; "same" is given a padding.

    Source: the lecture's slides on the size of the output volume; "floor" and "same" are Keras's.

    >>> output_size(7, 3), output_size(7, 3, 2), output_size(7, 3, 2, 1)
    (5, 3, 4)
    >>> output_size(7, 3, 3, rule="floor"), output_size(7, 3, 3, rule="same")
    (2, 3)
    >>> output_size(7, 3, 3)
    Traceback (most recent call last):
    ValueError: a filter of 3 with stride 3 does not fit an input of 7: (7 - 3 + 2·0)/3 + 1 = 2.33. \
It fits with padding 1, with stride 1, 2 or 4, or with an input of 6 or 9; the rule 'floor' gives 2
    """
    n, f, stride, dilation = _whole_sizes(n, f, stride, dilation)
    before, after = checked_padding(padding)
    rule = checked_rule(rule)
    if rule == "same":
        if before or after:
            raise ValueError(f"the rule 'same' sets the padding itself; leave padding={padding} away or take 'floor'")
        return -(-n // stride)
    reach, total = dilation * (f - 1) + 1, n + before + after
    if reach > total:
        spans = f" dilated by {dilation} spans {reach} positions and" if dilation > 1 else ""
        padded = f" with padding {_spelled(before, after)} ({total} in all)" if before or after else ""
        raise ValueError(
            f"a filter of {f}{spans} is larger than the input of {n}{padded}; "
            f"take one of at most {(total - 1) // dilation + 1}, or a padding of at least {-(-(reach - n) // 2)}"
        )
    steps, left = divmod(total - reach, stride)
    if left and rule == "exact":
        dilated = f" dilated by {dilation}" if dilation > 1 else ""
        raise ValueError(
            f"a filter of {f}{dilated} with stride {stride} does not fit an input of {n}: "
            f"{_term(n, f, stride, (before, after), dilation)} = {_decimal(total - reach + stride, stride)}. It fits "
            f"{_what_fits(n, reach, stride, before, after)}; the rule 'floor' gives {steps + 1}"
        )
    return steps + 1


def formula(n: int, f: int, stride: int = 1, padding: Padding = 0, *, dilation: int = 1, rule: str = "exact") -> str:
    """Return the arithmetic of `output_size`, spelled out with its result; arguments and errors are the same.

    >>> formula(32, 5)
    '(32 - 5 + 2·0)/1 + 1 = 28'
    >>> formula(224, 3, 2, rule="floor"), formula(224, 3, 2, rule="same")
    ('floor((224 - 3 + 2·0)/2) + 1 = 111', 'ceil(224/2) = 112, P = (0, 1)')
    """
    out = output_size(n, f, stride, padding, dilation=dilation, rule=rule)
    if rule == "same":
        return f"ceil({n}/{stride}) = {out}, P = {same_padding(n, f, stride, dilation=dilation)}"
    pads = checked_padding(padding)
    term = _term(n, f, stride, pads, dilation)
    if (n + sum(pads) - dilation * (f - 1) - 1) % stride:
        term = f"floor({term.removesuffix(' + 1')}) + 1"
    return f"{term} = {out}"


def same_padding(n: int, f: int, stride: int = 1, *, dilation: int = 1) -> tuple[int, int]:
    """Return the padding (before, after) of one axis with which the output has ceil(N/S) cells.

    Where the total is odd the extra position comes after, as in TensorFlow, Keras and XLA ("SAME"); where
    the stride leaves positions out, nothing is padded.

    Args:
        n: input size N.
        f: filter size F.
        stride: S.
        dilation: distance of the filter's entries.

    Raises:
        ValueError: A number is not whole or less than 1.

    >>> same_padding(32, 5), same_padding(224, 3, 2), same_padding(9, 1, 3)
    ((2, 2), (0, 1), (0, 0))
    """
    n, f, stride, dilation = _whole_sizes(n, f, stride, dilation)
    total = max((-(-n // stride) - 1) * stride + dilation * (f - 1) + 1 - n, 0)
    return total // 2, total - total // 2


def keeping_padding(f: int) -> int:
    """Return the padding P = (F - 1)/2 that keeps the size of the input at stride 1.

    Raises:
        ValueError: F is even (P would be half a position), or no whole number of at least 1.

    Source: the lecture's slide on padding.

    >>> [keeping_padding(f) for f in (3, 5, 7)]
    [1, 2, 3]
    """
    f = whole("filter", f)
    if f % 2 == 0:
        raise ValueError(
            f"no padding keeps the size with an even filter of {f}: ({f} - 1)/2 = {f // 2 - 1}.5, half a position "
            f"on each side. Take a filter of {f - 1} or {f + 1}, or the rule 'same', which pads {f // 2 - 1} before "
            f"and {f // 2} after"
        )
    return (f - 1) // 2


def fitting_paddings(n: int, f: int, stride: int = 1, *, dilation: int = 1) -> tuple[int, ...]:
    """Return the paddings P with which a filter fits exactly: the slide's "whatever fits".

    A padding as wide as the filter or wider is left out: there would be cells that see nothing but zeros.

    Args:
        n: input size N.
        f: filter size F.
        stride: S.
        dilation: distance of the filter's entries.

    Raises:
        ValueError: A number is not whole or less than 1.

    >>> fitting_paddings(33, 5, 2), fitting_paddings(32, 5, 2), fitting_paddings(7, 3, 3)
    ((0, 1, 2, 3, 4), (), (1,))
    """
    n, f, stride, dilation = _whole_sizes(n, f, stride, dilation)
    reach = dilation * (f - 1) + 1
    return tuple(p for p in range(reach) if n + 2 * p >= reach and (n - reach + 2 * p) % stride == 0)


def whole(name: str, value: Any, least: int = 1) -> int:
    """Return a size as an int.

    Raises:
        ValueError: It is no whole number of at least `least`; True and False are none.

    >>> whole("stride", 2)
    2
    """
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool) or number < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, not {value!r}")
    return number


def checked_padding(padding: object) -> tuple[int, int]:
    """Return a padding as (before, after).

    Raises:
        ValueError: It is neither a whole number of at least 0 nor a pair of them.

    >>> checked_padding(1), checked_padding((0, 1))
    ((1, 1), (0, 1))
    """
    if isinstance(padding, str):
        raise ValueError(f"padding must be a number or (before, after), not {padding!r}; 'same' is a rule: rule='same'")
    pair = padding if isinstance(padding, tuple | list) else (padding, padding)
    if len(pair) != 2:
        raise ValueError(f"padding must be a number or (before, after), not {padding!r}")
    return whole("padding", pair[0], 0), whole("padding", pair[1], 0)


def checked_rule(rule: str) -> str:
    """Return the rule.

    Raises:
        ValueError: There is no such rule; the nearest one is given.

    >>> checked_rule("floor")
    'floor'
    """
    if rule in RULES:
        return rule
    text = str(rule).lower()
    meant = "floor" if text == "valid" else difflib.get_close_matches(text, RULES, n=1, cutoff=0)[0]
    raise ValueError(f"no rule {rule!r}; did you mean {meant!r}? There are {any_of(RULES, 'and')}")


def near(fits: Callable[[int], bool], around: int, low: int, high: int, count: int) -> list[int]:
    """The numbers between `low` and `high` that fit and are nearest to `around`, at most `count`, in order.

    >>> near(lambda s: 4 % s == 0, 3, 1, 4, 2)
    [2, 4]
    """
    farthest = min(max(around - low, high - around), _FAR)
    steps = (m for d in range(1, farthest + 1) for m in (around - d, around + d))
    return sorted(islice((m for m in steps if low <= m <= high and fits(m)), count))


def any_of(words: Iterable[object], last: str = "or") -> str:
    """The words as a list in a sentence.

    >>> any_of([1, 2, 4])
    '1, 2 or 4'
    """
    *first, end = map(str, words)
    return f"{', '.join(first)} {last} {end}" if first else end


def _what_fits(n: int, reach: int, stride: int, before: int, after: int) -> str:
    """Paddings, strides and input sizes near those asked for with which the filter fits, as a list of phrases."""
    total = before + after
    span = n + total - reach
    left = span % stride
    found = []
    paddings: list[Any] = []
    if before == after:
        paddings += near(
            lambda p: (n + 2 * p - reach) % stride == 0, before, max(0, -(-(reach - n) // 2)), reach - 1, 2
        )
    if not paddings:  # an even stride, say, and an odd number of positions to pad
        wider = [t for t in (total - left, total - left + stride) if t >= 0]
        pairs = [(t // 2, t - t // 2) if before == after else (before, t - before) for t in wider]
        paddings += [pair for pair in pairs if 0 <= pair[1] < reach]
    if paddings:
        found.append(f"with padding {any_of(paddings)}")
    widest = min(span, 2 * max(stride, reach))  # wider ones would fit, but see next to nothing
    found.append(f"with stride {any_of(near(lambda s: span % s == 0, stride, 1, widest, 3) or [1])}")
    found.append(f"with an input of {any_of(size for size in (n - left, n - left + stride) if size > 0)}")
    return ", ".join(found[:-1]) + ", or " + found[-1]


def _whole_sizes(n: object, f: object, stride: object, dilation: object) -> tuple[int, int, int, int]:
    return whole("input size", n), whole("filter", f), whole("stride", stride), whole("dilation", dilation)


def _term(n: int, f: int, stride: int, pads: tuple[int, int], dilation: int) -> str:
    spanned = f"({dilation}·{f - 1} + 1)" if dilation > 1 else f
    added = f"2·{pads[0]}" if pads[0] == pads[1] else _spelled(*pads)
    return f"({n} - {spanned} + {added})/{stride} + 1"


def _decimal(above: int, below: int) -> str:
    """A fraction to two decimals, or to as many as keep it from reading as a whole number."""
    unit = 10 ** max(2, len(str(below)))
    number = (2 * above * unit + below) // (2 * below)
    return f"{number // unit}.{str(unit + number % unit)[1:]}".rstrip("0")


def _spelled(before: int, after: int) -> str:
    return f"{before} + {after}"
