"""Sizes and paddings as the builder takes them, and the shapes that layers give. None is a size that is not known."""

from collections.abc import Sequence
from typing import Any

from cnnjax.models.backbone import Shape
from cnnjax.models.weightless import Padding, Pairs, correct_pad

__all__ = [
    "Pair",
    "checked_images",
    "correct_pad",
    "divisible",
    "joined",
    "pair",
    "pairs",
    "pooled",
    "same_shapes",
    "sides",
    "window_padding",
    "zeros",
]

Pair = tuple[int, int]
Named = Sequence[tuple[str, Shape]]


def sides(image_size: int | Sequence[int]) -> Pair:
    """Height and width of images: one number for both, or one each.

    Raises:
        ValueError: There are other numbers, or none is a whole number from 1 on.

    >>> sides(160), sides((96, 128))
    ((160, 160), (96, 128))
    """
    both: Any = [image_size] * 2 if _whole(image_size) else image_size if isinstance(image_size, list | tuple) else ()
    if len(both) != 2 or not all(_whole(n) and n >= 1 for n in both):
        raise ValueError(
            f"image_size: expected a whole number of pixels from 1 on, or height and width, found {image_size!r}"
        )
    return (both[0], both[1])


def checked_images(what: str, shape: Shape, smallest: int = 1) -> None:
    """Refuse what is no shape of images for an architecture: (H, W, C), H and W may be None.

    Raises:
        ValueError: It has other axes, unknown channels, or fewer pixels a side than `smallest`.

    >>> checked_images("MobileNet", (None, 32, 1), 32)
    """
    channels = shape[2] if len(shape) == 3 else None
    if channels is None or channels < 1:
        raise ValueError(
            f"{what}: input_shape must be (height, width, channels) with known channels, found {tuple(shape)}"
        )
    if any(n is not None and n < smallest for n in shape[:2]):
        raise ValueError(
            f"{what} needs images of at least {smallest}x{smallest} pixels, found input_shape {tuple(shape)}"
        )


def pair(name: str, size: Any) -> Pair:
    """A size for height and one for width.

    >>> pair("conv", 3), pair("conv", (3, 5))
    ((3, 3), (3, 5))
    """
    both = (size, size) if _whole(size) else tuple(size) if isinstance(size, list | tuple) else ()
    if len(both) != 2 or not all(_whole(n) and n >= 1 for n in both):
        raise ValueError(
            f"layer {name!r}: expected a whole number from 1 on, or one each for height and width: {size!r}"
        )
    return both


def pairs(name: str, padding: Any) -> Pairs:
    """Zeros ((above, below), (left, right)).

    >>> pairs("pad", 1), pairs("pad", (1, 2)), pairs("pad", ((0, 1), (0, 1)))
    (((1, 1), (1, 1)), ((1, 1), (2, 2)), ((0, 1), (0, 1)))
    """
    sides = (padding, padding) if _whole(padding) else tuple(padding) if isinstance(padding, list | tuple) else ()
    both = [(n, n) if _whole(n) else tuple(n) if isinstance(n, list | tuple) else () for n in sides]
    if len(both) != 2 or not all(len(side) == 2 and all(_whole(n) and n >= 0 for n in side) for side in both):
        raise ValueError(
            f"layer {name!r}: expected padding 'valid', 'same', a number of zeros, or ((above, below), (left, right)), "
            f"found {padding!r}"
        )
    return (both[0], both[1])


def divisible(channels: float, divisor: int = 8) -> int:
    """The multiple of `divisor` next to a number of channels, at least one and at least 9/10 of it.

    Source: `_make_divisible` in keras/src/applications/mobilenet_v2.py, `_depth` and `round_filters` elsewhere there.

    >>> divisible(32 * 0.35), divisible(24 * 0.75), divisible(17)
    (16, 24, 16)
    """
    near = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return near + divisor if near < 0.9 * channels else near


def window_padding(name: str, padding: object) -> Padding:
    """The padding of a window: "VALID", "SAME", or zeros on each side.

    >>> window_padding("conv", "same"), window_padding("conv", 0), window_padding("conv", 1)
    ('SAME', 'VALID', ((1, 1), (1, 1)))
    """
    if isinstance(padding, str) and padding.upper() in ("VALID", "SAME"):
        return padding.upper()
    found = pairs(name, padding)
    return "VALID" if found == ((0, 0), (0, 0)) else found


def pooled(name: str, shape: Shape, window: Pair, strides: Pair, padding: Padding, dilation: Pair = (1, 1)) -> Shape:
    """The shape of (H, W, C) behind a window.

    >>> pooled("conv", (224, None, 3), (7, 7), (2, 2), ((3, 3), (3, 3)))
    (112, None, 3)
    """
    if len(shape) != 3:
        raise ValueError(f"layer {name!r} reads images (height, width, channels), found {shape}")
    sizes: list[int | None] = []
    for k, n in enumerate(shape[:2]):
        if n is None:
            sizes.append(None)
        elif padding == "SAME":
            sizes.append(-(-n // strides[k]))
        else:
            around = 0 if isinstance(padding, str) else sum(padding[k])
            sizes.append(max(0, (n + around - dilation[k] * (window[k] - 1) - 1) // strides[k] + 1))
    return (*sizes, shape[2])


def zeros(shape: Shape, padding: Pairs) -> Shape:
    """The shape of (H, W, C) with zeros around it.

    >>> zeros((4, None, 3), ((0, 1), (0, 1)))
    (5, None, 3)
    """
    height, width = (n if n is None else n + sum(side) for n, side in zip(shape[:2], padding, strict=True))
    return (height, width, *shape[2:])


def same_shapes(name: str, inputs: Named, *, repeats: bool = False) -> Shape:
    """The common shape; with `repeats` sizes of 1 fit any.

    >>> same_shapes("add", [("a", (7, None, 8)), ("b", (7, 5, 8))])
    (7, 5, 8)
    """
    out = list(_ranks(name, inputs)[0])
    for _, shape in inputs[1:]:
        for k, n in enumerate(shape):
            have = out[k]
            if repeats and 1 in (have, n):
                out[k] = n if have == 1 else have
            elif have is None:
                out[k] = n
            elif n not in (None, have):
                raise ValueError(f"layer {name!r} reads maps of different shapes: {_listed(inputs)}")
    return tuple(out)


def joined(name: str, inputs: Named) -> Shape:
    """The shape of maps beside each other: their channels are added up.

    >>> joined("concat", [("a", (7, 7, 8)), ("b", (7, 7, 4))])
    (7, 7, 12)
    """
    shapes = _ranks(name, inputs)
    channels = [shape[-1] for shape in shapes]
    known = [n for n in channels if n is not None]
    if len(known) < len(channels):
        raise ValueError(f"layer {name!r} reads maps of unknown channels: {_listed(inputs)}")
    return (*same_shapes(name, [(n, (*shape[:-1], 1)) for n, shape in inputs])[:-1], sum(known))


def _ranks(name: str, inputs: Named) -> list[Shape]:
    if len(inputs) < 2:
        raise ValueError(f"layer {name!r} joins at least two layers, found {len(inputs)}")
    shapes = [shape for _, shape in inputs]
    if len({len(shape) for shape in shapes}) > 1:
        raise ValueError(f"layer {name!r} reads maps of different shapes: {_listed(inputs)}")
    return shapes


def _listed(inputs: Named) -> str:
    return ", ".join(f"{name or 'the input'} {shape}" for name, shape in inputs)


def _whole(n: object) -> bool:
    return isinstance(n, int) and not isinstance(n, bool)
