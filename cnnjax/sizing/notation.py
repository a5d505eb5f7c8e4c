"""Layers and inputs written in text: `32x32x3`, `conv3-64/2+1`, `pool2`, `dense10`."""

import difflib
import re
from dataclasses import dataclass
from typing import Literal

from cnnjax.sizing.windows import any_of, whole

GRAMMAR = {
    "conv": "convF-K (K filters FxF)",
    "dwconv": "dwconvF (depthwise, FxF)",
    "pool": "poolF (stride F unless given)",
    "globalpool": "globalpool",
    "gap": "gap (the same as globalpool)",
    "flatten": "flatten",
    "dense": "denseN (N units)",
}
# What may follow a name: sign -> (what it says, the layers that take it).
_SUFFIXES = {
    "/": ("stride", ("conv", "dwconv", "pool")),
    "+": ("padding", ("conv", "dwconv", "pool")),
    "same": ("padding", ("conv", "dwconv", "pool")),
    "d": ("dilation", ("conv", "dwconv")),
    "g": ("groups", ("conv",)),
}


@dataclass(frozen=True)
class Volume:
    """The shape of one example at some place of a stack.

    Attributes:
        cells: number of cells along each axis, (H, W) for images; () for a vector.
        channels: number of channels, or the length of a vector; None where it is not known.

    >>> str(Volume((28, 28), 6)), str(Volume((7,), None)), str(Volume((), 10))
    ('28x28x6', '7', '10')
    """

    cells: tuple[int, ...]
    channels: int | None

    def __str__(self) -> str:
        known = (*self.cells, self.channels) if self.channels is not None else self.cells
        return "x".join(map(str, known)) or "?"


@dataclass(frozen=True)
class Layer:
    """A layer as it is written in a stack.

    Attributes:
        text: as written.
        kind: conv, dwconv (depthwise), pool, globalpool, flatten or dense.
        window: size F of a filter or of a pooling's window; 1 for layers without one.
        units: filters of a convolution (None where not given), units of a dense layer.
        stride: S.
        padding: P on each side, or "same".
        dilation: distance of the filter's entries.
        groups: groups of channels of a convolution.
    """

    text: str
    kind: str
    window: int = 1
    units: int | None = None
    stride: int = 1
    padding: int | Literal["same"] = 0
    dilation: int = 1
    groups: int = 1


def parse_input(text: str) -> Volume:
    """Read the shape of an input: `HxWxC`, `HxW` or `N` (one axis); without C the channels are not known.

    Raises:
        ValueError: It is no such shape, or a size is 0.

    >>> parse_input("150x100x3")
    Volume(cells=(150, 100), channels=3)
    """
    if not re.fullmatch(r"\d+(x\d+){0,2}", text, re.ASCII):
        raise ValueError(f"the input comes first, as HxWxC (32x32x3), HxW (32x32) or N (7), not {text!r}")
    sizes = [whole("input size", int(size)) for size in text.split("x")]
    return Volume(tuple(sizes[:2]), sizes[2] if len(sizes) == 3 else None)


def parse_layer(text: str) -> Layer:
    """Read a layer.

    `convF-K` is a convolution with K filters FxF (`convF` leaves K open), `dwconvF` a depthwise one, `poolF` a
    pooling. Then follow, in any order, `/S` the stride (1; for `poolF` F), `+P` the padding (0) or `same`
    (output ceil(N/S)), and for convolutions `dD` the dilation and `gG` the groups. `gap` or `globalpool`
    pools over all cells, `flatten` makes a vector, `denseN` has N units and reads all values.

    Raises:
        ValueError: The text is no layer; what was expected and the nearest name are given.

    Source: conv3-64 and the like are Simonyan and Zisserman's (2014, arXiv:1409.1556, table 1).

    >>> parse_layer("conv3-64/2+1")
    Layer(text='conv3-64/2+1', kind='conv', window=3, units=64, stride=2, padding=1, dilation=1, groups=1)
    >>> parse_layer("pool3/2same").padding
    'same'
    """
    match = re.match(r"([A-Za-z_]*)(\d*)(-\d+)?", text, re.ASCII)
    name, number, minus = match.groups("") if match else ("", "", "")
    rest = text[len(name + number + minus) :]
    if name not in GRAMMAR:
        meant = difflib.get_close_matches(name.lower(), GRAMMAR, n=1, cutoff=0.5)
        hint = f"did you mean {GRAMMAR[meant[0]]}?" if meant else f"a layer is {any_of(GRAMMAR.values())}"
        raise ValueError(f"no layer {name or text!r}; {hint}")
    kind, form = "globalpool" if name == "gap" else name, GRAMMAR[name]
    numbered = kind not in ("globalpool", "flatten")
    if bool(number) != numbered or (minus and kind != "conv"):
        found = f"{name}{number}{minus}"
        hint = f"; {name}F+P is a padding" if minus and kind in ("dwconv", "pool") else ""
        raise ValueError(f"{form} was expected, not {found!r}{hint}")
    settings = _suffixes(rest, kind, text)
    if kind == "dense":
        return Layer(text, kind, units=whole("number of units", int(number)))
    if not numbered:
        return Layer(text, kind)
    window = whole("filter", int(number))
    units = whole("number of filters", int(minus[1:])) if minus else None
    settings.setdefault("stride", window if kind == "pool" else 1)
    return Layer(text, kind, window, units, **settings)


def _suffixes(rest: str, kind: str, text: str) -> dict:
    found: dict = {}
    while rest:
        match = re.match(r"same|([/+dg])(\d+)", rest, re.ASCII)
        if not match:
            able = [sign if sign == "same" else f"{sign}NUMBER ({what})" for sign, (what, kinds) in _SUFFIXES.items()
                    if kind in kinds]  # fmt: skip
            hint = f"after it may come {any_of(able)}" if able else "nothing may come after it"
            raise ValueError(f"{rest!r} cannot be read in {text!r}; {hint}")
        sign = match[1] or "same"
        what, kinds = _SUFFIXES[sign]
        if kind not in kinds:
            raise ValueError(f"{kind} has no {what}, but {match[0]!r} gives one; it may stand with {any_of(kinds)}")
        if what in found:
            raise ValueError(f"the {what} is given twice in {text!r}; leave {match[0]!r} away")
        found[what] = whole(what, int(match[2]), 0 if sign == "+" else 1) if match[2] else "same"
        rest = rest[match.end() :]
    return found
