"""What a layer costs: its volume, its parameters and its multiplications."""

import math
from collections.abc import Sequence

from cnnjax.sizing.windows import Padding, any_of, near, output_size, whole

Kernel = int | Sequence[int]


def conv_volume(
    volume: Sequence[int],
    f: int,
    filters: int,
    stride: int = 1,
    padding: Padding = 0,
    *,
    dilation: int = 1,
    rule: str = "exact",
) -> tuple[int, ...]:
    """Return the output volume (W2, H2, D2) of a convolution on (W1, H1, D1); D2 = K, the number of filters.

    Args:
        volume: sizes of the axes, channels last.
        f: filter size F.
        filters: number of filters K.
        stride: S.
        padding: P on each side, or (before, after).
        dilation: distance of the filter's entries.
        rule: as in `output_size`.

    Raises:
        ValueError: As `output_size`, on the first axis that does not fit.

    >>> conv_volume((32, 32, 3), 5, 6), conv_volume((224, 224, 3), 3, 64, 2, rule="same")
    ((28, 28, 6), (112, 112, 64))
    """
    *cells, _ = _checked_volume(volume)
    sizes = [output_size(n, f, stride, padding, dilation=dilation, rule=rule) for n in cells]
    return *sizes, whole("number of filters", filters)


def pool_volume(
    volume: Sequence[int], f: int, stride: int | None = None, padding: Padding = 0, *, rule: str = "exact"
) -> tuple[int, ...]:
    """Return the output volume of a pooling: (W - F)/S + 1, (H - F)/S + 1 and the same depth.

    Pooling has no parameters.

    Args:
        volume: sizes of the axes, channels last.
        f: window size F.
        stride: S; F where none is given.
        padding: P on each side, or (before, after).
        rule: as in `output_size`.

    Raises:
        ValueError: As `output_size`, on the first axis that does not fit.

    >>> pool_volume((224, 224, 64), 2), pool_volume((55, 55, 96), 3, 2)
    ((112, 112, 64), (27, 27, 96))
    """
    *cells, depth = _checked_volume(volume)
    return *(output_size(n, f, f if stride is None else stride, padding, rule=rule) for n in cells), depth


def weights_per_filter(kernel: Kernel, depth: int, *, groups: int = 1) -> int:
    """Return the weights of one filter: F·F·D1, or F·F·D1/G where the channels are in G groups.

    Args:
        kernel: filter size F (for F x F), or its size along each axis.
        depth: channels D1 of the input.
        groups: G.

    Raises:
        ValueError: A number is not whole or less than 1, or the groups do not divide the channels.

    >>> weights_per_filter(5, 3), weights_per_filter((3, 3), 64, groups=64)
    (75, 9)
    """
    return _area(kernel) * (whole("number of channels", depth) // _divided("channels", depth, groups))


def conv_parameters(kernel: Kernel, depth: int, filters: int, *, groups: int = 1, bias: bool = True) -> int:
    """Return the parameters of a convolution: K(F·F·D1 + 1), a bias for every filter included.

    Args:
        kernel: filter size F (for F x F), or its size along each axis.
        depth: channels D1 of the input.
        filters: number of filters K.
        groups: groups of channels, as in AlexNet; `depth` of them make the convolution depthwise.
        bias: whether filters have biases.

    Raises:
        ValueError: A number is not whole or less than 1, or the groups do not divide channels or filters.

    >>> conv_parameters(5, 3, 6), conv_parameters(5, 6, 10)
    (456, 1510)
    """
    _divided("filters", filters, groups)
    return filters * (weights_per_filter(kernel, depth, groups=groups) + bool(bias))


def depthwise_parameters(kernel: Kernel, depth: int, *, bias: bool = True) -> int:
    """Return the parameters of a depthwise convolution: D1(F·F + 1), one filter of depth 1 a channel.

    Args:
        kernel: filter size F (for F x F), or its size along each axis.
        depth: channels D1 of input and output.
        bias: whether filters have biases (MobileNet's have none).

    Raises:
        ValueError: A number is not whole or less than 1.

    >>> depthwise_parameters(3, 32, bias=False)
    288
    """
    return conv_parameters(kernel, depth, depth, groups=depth, bias=bias)


def dense_parameters(inputs: int, units: int, *, bias: bool = True) -> int:
    """Return the parameters of a dense layer: D·D' weights and D' biases.

    Raises:
        ValueError: A number is not whole or less than 1.

    >>> dense_parameters(32 * 32 * 3, 6, bias=False), dense_parameters(32 * 32 * 3, 6)
    (18432, 18438)
    """
    return (whole("number of inputs", inputs) + bool(bias)) * whole("number of units", units)


def conv_multiplications(kernel: Kernel, depth: int, output: Sequence[int], *, groups: int = 1) -> int:
    """Return the multiplications of a convolution: F·F·D · W'·H' · D'.

    Those with the zeros of the padding are counted, as the slide and the papers do.

    Args:
        kernel: filter size F (for F x F), or its size along each axis.
        depth: channels D of the input.
        output: the output volume (W', H', D').
        groups: groups of channels; `depth` of them make the convolution depthwise.

    Raises:
        ValueError: A number is not whole or less than 1, or the groups do not divide channels or filters.

    >>> conv_multiplications(5, 3, (28, 28, 6))
    352800
    """
    *cells, filters = _checked_volume(output)
    _divided("filters", filters, groups)
    return weights_per_filter(kernel, depth, groups=groups) * math.prod(cells) * filters


def depthwise_multiplications(kernel: Kernel, output: Sequence[int]) -> int:
    """Return the multiplications of a depthwise convolution: F·F · W'·H' · D'.

    Raises:
        ValueError: A number is not whole or less than 1.

    >>> depthwise_multiplications(3, (112, 112, 32))
    3612672
    """
    return _area(kernel) * math.prod(_checked_volume(output))


def dense_multiplications(inputs: int, units: int) -> int:
    """Return the multiplications of a dense layer: D·D'.

    A convolution that maps D to D' channels takes F·F·W'·H' times as many.

    Raises:
        ValueError: A number is not whole or less than 1.

    >>> conv_multiplications(5, 3, (28, 28, 6)) // dense_multiplications(3, 6) == 5 * 5 * 28 * 28
    True
    """
    return dense_parameters(inputs, units, bias=False)


def _area(kernel: Kernel) -> int:
    sides = kernel if isinstance(kernel, Sequence) and not isinstance(kernel, str) else (kernel, kernel)
    return math.prod(whole("filter", side) for side in sides)


def _checked_volume(volume: Sequence[int]) -> tuple[int, ...]:
    if not isinstance(volume, Sequence) or isinstance(volume, str) or len(volume) < 2:
        raise ValueError(f"a volume is (width, height, depth), channels last, not {volume!r}")
    return tuple(whole("size of a volume", size) for size in volume)


def _divided(what: str, number: int, groups: int) -> int:
    """Return the groups, which divide the number."""
    number, groups = whole(f"number of {what}", number), whole("number of groups", groups)
    if number % groups:
        fitting = near(lambda g: number % g == 0, groups, 1, number, 2) or [number]
        raise ValueError(f"{groups} groups do not divide {number} {what}; {any_of(fitting)} would")
    return groups
