"""Tables of text, for a terminal and in Markdown: the first column to the left, numbers to the right."""

import io
from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

Rows = Sequence[Sequence[str]]


def terminal(title: str, rows: Rows, left: int = 1) -> str:
    """A table for a terminal, as wide as it needs to be.

    Args:
        title: Stands above it.
        rows: The header, then the lines.
        left: How many columns hold names.

    >>> print(terminal("scores", [("class", "recall"), ("cat", "0.5")]))
    scores
     class   recall
     ──────────────
     cat        0.5
    """
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for place, name in enumerate(rows[0]):
        table.add_column(Text(name), justify="left" if place < left else "right", no_wrap=True)
    for line in rows[1:]:
        table.add_row(*(Text(_printable(cell)) for cell in line))
    out = io.StringIO()
    Console(file=out, width=10_000, color_system=None).print(table)
    return "\n".join([title, *(line.rstrip() for line in out.getvalue().splitlines() if line.strip())])


def markdown(title: str, rows: Rows, left: int = 1) -> str:
    """The same in Markdown.

    >>> print(markdown("scores", [("class", "recall"), ("a|b", "0.5")]))
    **scores**
    <BLANKLINE>
    | class | recall |
    | --- | ---: |
    | a\\|b | 0.5 |
    """
    rule = ["---" if place < left else "---:" for place in range(len(rows[0]))]
    cells = [[_printable(cell).replace("|", "\\|") for cell in line] for line in rows]
    return "\n".join([f"**{title}**", "", *("| " + " | ".join(line) + " |" for line in (cells[0], rule, *cells[1:]))])


def _printable(cell: str) -> str:
    """A class may be called anything: line breaks and control characters must not reach a terminal or break a table."""
    return "".join(sign if sign.isprintable() else "�" for sign in cell)
