"""What may be asked of an augmentation; anything else is refused with the nearest right answer."""

import math
from collections.abc import Iterable
from typing import Any

from cnnjax.runtime.nearest import unknown

Range = tuple[float, float]

_MEANING = {
    "rotation": "a fraction of a full turn, -1 to 1",
    "zoom": "a fraction of the size, above -1 and at most 1",
    "translation": "a fraction of the height or width, -1 to 1",
    "contrast": "a fraction, 0 to 1",
    "brightness": "a fraction of the value range, -1 to 1",
}


def checked_range(name: str, value: Any) -> Range:
    """The (low, high) that a choice means: x is -x to x, a pair is itself.

    >>> checked_range("zoom", 0.2), checked_range("rotation", (0, 0.25))
    ((-0.2, 0.2), (0.0, 0.25))
    """
    pair = _is_pair(value)
    given = tuple(number(name, x) for x in value) if pair else (number(name, value),)
    for x in given:
        if abs(x) > 1 or (name == "zoom" and x <= -1):
            raise ValueError(f"{name} is {_MEANING[name]}, not {x:g}; {_advice(name, x)}")
    if len(given) == 2:
        if given[0] > given[1]:
            raise ValueError(f"{name} {given} has its low end above its high end; did you mean {given[::-1]}?")
        return given
    x = given[0]
    if x < 0:
        raise ValueError(f"{name} {x:g} stands for a range: give {-x:g} for {x:g} to {-x:g}, or a pair ({x:g}, 0)")
    if name == "zoom" and x == 1:
        raise ValueError("zoom 1 would go down to -1, where nothing is left; give (-0.9, 1) or 0.9")
    return (-x, x) if x else (0.0, 0.0)


def checked_contrast(value: Any) -> Range:
    """The (lower, upper) of a contrast factor in [1 - lower, 1 + upper]: x is (x, x)."""
    given = tuple(number("contrast", x) for x in (value if _is_pair(value) else (value, value)))
    for x in given:
        if not 0 <= x <= 1:
            nearest = abs(x) if abs(x) <= 1 else 1
            raise ValueError(f"contrast is {_MEANING['contrast']}, not {x:g}; did you mean {nearest:g}?")
    return given[0], given[1]


def checked_translation(value: Any) -> tuple[Range, Range]:
    """The ranges of height and width: one number stands for both.

    >>> checked_translation(0.1), checked_translation((0.1, (0, 0.2)))
    (((-0.1, 0.1), (-0.1, 0.1)), ((-0.1, 0.1), (0.0, 0.2)))
    """
    height, width = value if _is_pair(value) else (value, value)
    return checked_range("translation", height), checked_range("translation", width)


def checked_crop(value: Any) -> tuple[int, int] | None:
    """Height and width in pixels: one number is a square."""
    if value is None:
        return None
    sides = [number("crop", x) for x in (value if _is_pair(value) else (value, value))]
    if any(x < 1 or x != int(x) for x in sides):
        whole = tuple(max(1, round(x)) for x in sides)
        raise ValueError(f"crop is a height and a width in pixels, not {value}; did you mean {whole}?")
    return int(sides[0]), int(sides[1])


def checked_alpha(name: str, value: Any) -> float:
    """Alpha of a Beta distribution; 0 is off."""
    alpha = number(name, value)
    if alpha < 0:
        raise ValueError(
            f"{name} is the alpha of Beta(alpha, alpha), 0 (off) or more, not {alpha:g}; did you mean {-alpha:g}?"
        )
    return alpha


def checked_values(value: Any) -> Range:
    """The lowest and the highest value of a pixel."""
    if not _is_pair(value):
        raise ValueError(f"value_range is the lowest and the highest value, such as (0, 255), not {value!r}")
    low, high = (number("value_range", x) for x in value)
    if low >= high:
        raise ValueError(f"value_range ({low:g}, {high:g}) is empty; did you mean (0, 255)?")
    return low, high


def checked_name(name: str, value: Any, names: Iterable[str]) -> str:
    """One of `names`."""
    names = tuple(names)
    if value not in names:
        raise ValueError(unknown(name, value, names, listed=True))
    return value


def number(name: str, value: Any) -> float:
    """A finite number as a float."""
    try:
        found = math.nan if isinstance(value, bool | str) else float(value)
    except (TypeError, ValueError):
        found = math.nan
    if not math.isfinite(found):
        pair = " or a pair of them" if name in _MEANING or name == "crop" else ""
        raise ValueError(f"{name} must be a number{pair}, not {value!r}")
    return found


def _is_pair(value: Any) -> bool:
    return isinstance(value, tuple | list) and len(value) == 2


def _advice(name: str, x: float) -> str:
    if name == "rotation":
        return f"for {x:g} degrees give {x / 360:.3g}"
    if name == "zoom" and 1 < x < 2:
        return f"did you mean {x - 1:.3g}?"
    return f"the nearest is {-0.9 if name == 'zoom' and x < 0 else math.copysign(1, x):g}"
