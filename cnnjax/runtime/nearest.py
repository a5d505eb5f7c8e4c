"""What was probably meant by a name that is not known."""

import difflib
from collections.abc import Iterable


def nearest(name: object, known: Iterable[str], cutoff: float = 0.0) -> str | None:
    """The most alike of the known names; None if there is none, or none alike by `cutoff` (0 to 1).

    >>> nearest("block5_conv4", ["block5_conv3", "block5_pool"]), nearest("x", ["block5_pool"], 0.6)
    ('block5_conv3', None)
    """
    return next(iter(difflib.get_close_matches(str(name), list(known), 1, cutoff)), None)


def did_you_mean(name: object, known: Iterable[str], cutoff: float = 0.0) -> str:
    """The end of a message that names the nearest; "" if there is none.

    >>> did_you_mean("trian", ["train", "test"])
    "; did you mean 'train'?"
    """
    near = nearest(name, known, cutoff)
    return "" if near is None else f"; did you mean {near!r}?"


def unknown(kind: str, name: object, known: Iterable[str], where: str = "", *, listed: bool = False) -> str:
    """The message that refuses a name.

    Args:
        kind: What is named.
        name: What was given.
        known: What there is.
        where: In what, as in "in VGG16".
        listed: Whether all that there is is named.

    >>> unknown("layer", "block5_conv4", ["block5_conv3", "block5_pool"], "in VGG16")
    "no layer 'block5_conv4' in VGG16; did you mean 'block5_conv3'?"
    >>> unknown("pooling", "maxx", ["average", "max"], listed=True)
    "no pooling 'maxx'; did you mean 'max'? There are average, max"
    """
    known = list(known)
    end = f" There are {', '.join(known)}" if listed else ""
    return f"no {kind} {name!r}{where and f' {where}'}{did_you_mean(name, known)}{end}"
