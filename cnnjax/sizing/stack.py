"""A stack of layers written in text: shape, parameters, multiplications and receptive field of each."""

import math
from dataclasses import dataclass, replace

from cnnjax.sizing import costs, windows
from cnnjax.sizing.field import Field
from cnnjax.sizing.notation import Layer, Volume, parse_input, parse_layer


@dataclass(frozen=True)
class Row:
    """A layer of a stack; what cannot be known (channels that are not given) is None.

    Attributes:
        layer: as written.
        output: shape of one example behind it.
        formulas: the arithmetic of its sizes, once for axes that are alike.
        weights_per_filter: F·F·D1 of a convolution, F·F of a depthwise one.
        weights: number of weights, biases apart.
        biases: number of biases.
        multiplications: with weights, for one example; a pooling has none.
        fields: what its cells see of the input, along each axis.
    """

    layer: str
    output: Volume
    formulas: tuple[str, ...]
    weights_per_filter: int | None
    weights: int | None
    biases: int | None
    multiplications: int | None
    fields: tuple[Field, ...]

    @property
    def parameters(self) -> int | None:
        """Weights and biases."""
        return None if self.weights is None or self.biases is None else self.weights + self.biases

    @property
    def jump(self) -> int | None:
        """How far apart the fields of two neighbouring cells are; None for a vector, which has no neighbours."""
        return self.fields[0].jump if self.output.cells else None


def size_stack(volume: str, *layers: str, rule: str = "exact") -> tuple[Row, ...]:
    """Return a row for each layer of a stack.

    Every convolution and dense layer has biases. Parameters are left open where channels are not given, and
    channels are left open along one axis alone (input `7`).

    Args:
        volume: the input, `32x32x3`; `32x32` or `7` where only sizes are asked for.
        *layers: as in `parse_layer`.
        rule: "exact" or "floor" (see `output_size`), for all layers that are not written with `same`.

    Raises:
        ValueError: A layer cannot be read or does not fit; it is named, with what does fit.

    Source: the lecture's slides on sizes, parameters and multiplications.

    >>> for row in size_stack("32x32x3", "conv5-6", "conv5-10", "pool2"):
    ...     print(row.layer, row.output, row.parameters, row.multiplications, row.fields[0].size, row.jump)
    conv5-6 28x28x6 456 352800 5 1
    conv5-10 24x24x10 1510 864000 9 1
    pool2 12x12x10 0 0 10 2
    """
    if windows.checked_rule(rule) == "same":
        raise ValueError("the rule of a stack is 'exact' or 'floor'; write same behind a layer: conv3-64same")
    start = parse_input(volume)
    if not layers:
        raise ValueError(f"no layers after the input {volume}; give at least one, such as conv5-6")
    shape, extent, fields = start, start.cells, tuple(Field() for _ in start.cells)
    rows: list[Row] = []
    for index, text in enumerate(layers, 1):
        try:
            layer = parse_layer(text)
            row = _row(layer, shape, extent, fields, rule)
        except ValueError as error:
            # Padding that is not the same on both sides has no spelling of its own, and a rule is an option.
            same = f"{text.partition('+')[0]}same pads as it needs"
            told = str(error).replace(
                "; the rule 'floor' gives", f"; {same}, and the rule 'floor' (--rule floor) gives"
            )
            raise ValueError(f"layer {index} of {len(layers)}, {text!r}, on {shape}: {told}") from error
        rows.append(row)
        shape, fields = row.output, row.fields
        if shape.cells:
            extent = shape.cells
        elif layer.kind != "flatten":
            extent = tuple(1 for _ in extent)
    return tuple(rows)


def total(rows: tuple[Row, ...]) -> dict[str, int | None]:
    """Return the sums over a stack: weights, biases, parameters, multiplications; None where a layer's is open.

    >>> total(size_stack("32x32x3", "conv5-6", "conv5-10"))
    {'weights': 1950, 'biases': 16, 'parameters': 1966, 'multiplications': 1216800}
    """
    sums: dict[str, int | None] = {}
    for name in ("weights", "biases", "parameters", "multiplications"):
        found = [getattr(row, name) for row in rows]
        sums[name] = None if None in found else sum(found)
    return sums


def _row(layer: Layer, shape: Volume, extent: tuple[int, ...], fields: tuple[Field, ...], rule: str) -> Row:
    """The row of a layer on `shape`; `extent` is the size of the last map, which a flattened vector came from."""
    free = Row(layer.text, shape, (), None, 0, 0, 0, fields)
    values = math.prod(shape.cells) * shape.channels if shape.channels is not None else None
    spelled = "·".join(map(str, (*shape.cells, shape.channels)))
    whole_map = tuple(field.after(n) for field, n in zip(fields, extent, strict=True))
    if layer.kind == "flatten":
        formulas = (f"{spelled} = {values}",) if shape.cells and values is not None else ()
        return replace(free, output=Volume((), values), formulas=formulas)
    if layer.kind == "dense":
        units = layer.units or 0
        formulas = (f"{spelled} = {values} inputs",) if shape.cells and values is not None else ()
        if values is None:
            row = replace(free, weights=None, biases=units, multiplications=None)
        else:
            weights = costs.dense_parameters(values, units, bias=False)
            products = costs.dense_multiplications(values, units)
            row = replace(free, weights=weights, biases=units, multiplications=products)
        return replace(row, output=Volume((), units), formulas=formulas, fields=whole_map)
    if not shape.cells:
        raise ValueError(f"{layer.kind} needs a map, but an earlier layer left a vector; put it before that layer")
    if layer.kind == "globalpool":
        return replace(free, output=Volume((), shape.channels), fields=whole_map)
    return _windowed(layer, shape, fields, rule)


def _windowed(layer: Layer, shape: Volume, fields: tuple[Field, ...], rule: str) -> Row:
    """The row of a convolution or pooling."""
    f, stride, dilation = layer.window, layer.stride, layer.dilation
    padding, rule = (0, "same") if layer.padding == "same" else (layer.padding, rule)
    cells, formulas, seen = [], [], []
    for n, field in zip(shape.cells, fields, strict=True):
        cells.append(windows.output_size(n, f, stride, padding, dilation=dilation, rule=rule))
        formulas.append(windows.formula(n, f, stride, padding, dilation=dilation, rule=rule))
        before = windows.same_padding(n, f, stride, dilation=dilation)[0] if rule == "same" else padding
        seen.append(field.after(f, stride, before, dilation))
    depth = shape.channels
    filters = layer.units if layer.kind == "conv" and len(cells) > 1 else depth
    output = Volume(tuple(cells), filters)
    row = Row(layer.text, output, tuple(dict.fromkeys(formulas)), None, 0, 0, 0, tuple(seen))
    if layer.kind == "pool":
        return row
    groups = layer.groups if layer.kind == "conv" else depth
    row = replace(row, weights=None, biases=filters, multiplications=None)
    if depth is None or groups is None:
        # One filter of a depthwise convolution is F x F whatever the channels are.
        each = f * f if layer.kind == "dwconv" and len(cells) > 1 else None
        return replace(row, weights_per_filter=each)
    row = replace(row, weights_per_filter=costs.weights_per_filter(f, depth, groups=groups))
    if filters is None:
        return row
    return replace(
        row,
        weights=costs.conv_parameters(f, depth, filters, groups=groups, bias=False),
        multiplications=costs.conv_multiplications(f, depth, (*cells, filters), groups=groups),
    )
