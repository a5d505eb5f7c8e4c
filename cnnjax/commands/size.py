"""The command `cnnjax size`: a stack of layers as a table."""

import json
import os
import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from tyro.conf import Positional, arg

from cnnjax.commands.options import Format
from cnnjax.sizing.field import Field
from cnnjax.sizing.notation import parse_input
from cnnjax.sizing.stack import Row, size_stack, total

_HEADINGS = (
    "layer", "output", "size", "weights\na filter", "parameters", "multiplications", "receptive\nfield", "jump",
)  # fmt: skip
_LEFT = ("layer", "output", "size")


@dataclass(frozen=True)
class Size:
    """Output sizes, parameters, multiplications and receptive fields of a stack of layers.

    Example: cnnjax size 32x32x3 conv5-6 conv5-10 pool2 dense10

    - convF-K: convolution with K filters FxF
    - dwconvF: depthwise convolution, one filter FxF a channel
    - poolF: pooling over FxF cells, stride F
    - gap or globalpool: pooling over all cells
    - flatten: a vector of all values
    - denseN: N units, each of which reads all values

    Behind a convolution or pooling, in any order: /S stride, +P padding, same (padding for ceil(N/S) cells);
    behind a convolution also dD dilation, gG groups.

    Every convolution and dense layer has biases.
    """

    input: Annotated[Positional[str], arg(metavar="INPUT")]
    """Height, width and channels, 32x32x3; 32x32 or 7 where only sizes are asked for."""
    layers: Annotated[Positional[tuple[str, ...]], arg(metavar="LAYER...", help_behavior_hint="(at least one)")]
    """In order, such as conv3-64/2+1 pool2 dense10."""
    rule: Literal["exact", "floor"] = "exact"
    """exact: (N - F + 2P)/S + 1 must be a whole number. floor: it is rounded down, as all frameworks do."""
    format: Format = "text"


def size(config: Size) -> None:
    """Print the table of a stack.

    Raises:
        ValueError: The input or a layer cannot be read or does not fit.

    >>> size(Size("7", ("conv3/2",), format="markdown"))
    | layer | output | size | weights a filter | parameters | multiplications | receptive field | jump |
    | :-- | :-- | :-- | --: | --: | --: | --: | --: |
    | input | 7 |  |  |  |  | 1 | 1 |
    | conv3/2 | 3 | (7 - 3 + 2·0)/2 + 1 = 3 |  |  |  | 3 | 2 |
    | total |  |  |  |  |  |  |  |
    """
    rows = size_stack(config.input, *config.layers, rule=config.rule)
    if config.format == "json":
        print(json.dumps(as_json(config, rows), indent=2, ensure_ascii=False))
    elif config.format == "markdown":
        marks = [":--" if name in _LEFT else "--:" for name in _HEADINGS]
        for line in (_HEADINGS, marks, *_cells(config, rows)):
            print("| " + " | ".join(line).replace("\n", " ") + " |")
    else:
        console = Console()
        if not console.is_terminal and "COLUMNS" not in os.environ:  # a file or pipe has no width of its own
            console = Console(width=100)
        console.print(_widest(config, rows, console))
        for note in _notes(config, rows):
            console.print(note, highlight=False)


def as_table(config: Size, rows: tuple[Row, ...], *, gap: int = 2, broken: bool = False) -> Table:
    """The rows as a table for a terminal.

    Args:
        config: what was asked.
        rows: of its stack.
        gap: spaces between columns.
        broken: whether formulas have their results on a line of their own.
    """
    table = Table(box=box.SIMPLE, padding=(0, gap - 1, 0, 0), pad_edge=False, show_edge=False, show_footer=True)
    *lines, last = _cells(config, rows)
    for name, footer in zip(_HEADINGS, last, strict=True):
        table.add_column(name, footer, justify="left" if name in _LEFT else "right", overflow="fold")
    for line in lines:
        table.add_row(*(re.sub("^(.*?) = ", r"\1\n= ", cell, flags=re.M) if broken else cell for cell in line))
    return table


def _widest(config: Size, rows: tuple[Row, ...], console: Console) -> Table:
    """The widest layout that the console has room for; the narrowest one wraps and cuts nothing."""
    *layouts, narrow = (
        as_table(config, rows, gap=gap, broken=broken) for gap, broken in ((2, False), (1, False), (1, True))
    )
    endless = console.options.update(width=10_000)
    for table in layouts:
        if Measurement.get(console, endless, table).maximum <= console.width:
            return table
    return narrow


def as_json(config: Size, rows: tuple[Row, ...]) -> dict[str, Any]:
    """The rows for JSON: shapes as lists, one entry an axis for fields, null for what is not known."""
    start = parse_input(config.input)

    def shape(cells: tuple[int, ...], channels: int | None) -> list[int | None]:
        return [*cells, channels]

    return {
        "input": shape(start.cells, start.channels),
        "rule": config.rule,
        "layers": [
            {
                "layer": row.layer,
                "output": shape(row.output.cells, row.output.channels),
                "size": list(row.formulas),
                "weights_per_filter": row.weights_per_filter,
                "weights": row.weights,
                "biases": row.biases,
                "parameters": row.parameters,
                "multiplications": row.multiplications,
                "receptive_field": [field.size for field in row.fields],
                "receptive_field_start": [field.start for field in row.fields],
                "jump": row.jump,
            }
            for row in rows
        ],
        "total": total(rows),
    }


def _cells(config: Size, rows: tuple[Row, ...]) -> list[list[str]]:
    """The table's lines: the input, the layers, the total."""
    start = parse_input(config.input)
    lines = [["input", str(start), "", "", "", "", _field(tuple(Field() for _ in start.cells)), "1"]]
    for row in rows:
        numbers = (row.weights_per_filter, row.parameters, row.multiplications)
        sizes = ",\n".join(row.formulas)
        lines.append([row.layer, str(row.output), sizes, *map(_number, numbers), _field(row.fields), _number(row.jump)])
    sums = total(rows)
    numbers = [_number(sums[name]) for name in ("parameters", "multiplications")]
    return [*lines, ["total", "", "", "", *numbers, "", ""]]


def _number(value: int | None) -> str:
    return "" if value is None else f"{value:,}"


def _field(fields: tuple[Field, ...]) -> str:
    return "x".join(str(field.size) for field in fields)


def _notes(config: Size, rows: tuple[Row, ...]) -> list[str]:
    """What the table alone does not say."""
    sums, start = total(rows), parse_input(config.input)
    notes = []
    if sums["parameters"] is None:
        notes.append("Blank where channels are not known: give the input as 32x32x3 and filters as conv5-6.")
    else:
        notes.append(f"{sums['weights']:,} weights + {sums['biases']:,} biases = {sums['parameters']:,} parameters")
    if any(field.size > n for row in rows for field, n in zip(row.fields, start.cells, strict=True)):
        notes.append("A receptive field larger than the input reaches into the padding.")
    return notes
