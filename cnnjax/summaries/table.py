"""The table of a model: what it holds; and as text, Markdown and JSON."""

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rich.box import HEAVY_HEAD
from rich.console import Console
from rich.table import Table

from cnnjax.hooks import checked_layer
from cnnjax.sizing.field import Field
from cnnjax.summaries.frontier import Frontier

_LEFT = {"layer", "output shape", "trains", "computed", "connected to"}


@dataclass(frozen=True)
class Layer:
    """One line of the table. What is None is not known.

    Attributes:
        name: Its path in the model: `conv_pw_13`, `blocks/0/conv1`.
        kind: The name of its class.
        output_shape: None for the batch.
        parameters: All its numbers, moving statistics included, as Keras counts them.
        trainable: Those that an optimizer moves.
        multiplications: Of convolutions and matrix products for one image, F·F·D·W'·H'·D'; biases,
            normalisation and activations are not counted, as on the slide.
        fields: Receptive field of rows and of columns, or of whatever axes the input has.
        once: Whether its output is computed once an image and never again; False: in every step.
        reads: The layers whose outputs it reads, in a graph with branches; () in a chain, or where it is not known.
    """

    name: str
    kind: str
    output_shape: tuple[int | None, ...] | None
    parameters: int
    trainable: int
    multiplications: int | None
    fields: tuple[Field | None, ...]
    once: bool | None
    reads: tuple[str, ...] = ()

    @property
    def non_trainable(self) -> int:
        """Parameters that no optimizer moves: frozen ones and moving statistics."""
        return self.parameters - self.trainable


@dataclass(frozen=True, repr=False)
class Summary:
    """What `summary` gives; prints as Keras's table.

    Attributes:
        model: The model's name, or that of its class.
        layers: In the model's order.
        nbytes: Bytes of all parameters.
        multiplications: Of one image through the whole model; None if those of some layer are not known.
        frozen: The freeze specification, "none" if there is none.
        frontier: What is stored for each image; None where nothing is frozen or it is not known.
    """

    model: str
    layers: tuple[Layer, ...]
    nbytes: int
    multiplications: int | None
    frozen: str
    frontier: Frontier | None

    @property
    def parameters(self) -> int:
        """All numbers, moving statistics included: Keras's `count_params()`."""
        return sum(layer.parameters for layer in self.layers)

    @property
    def trainable(self) -> int:
        """Numbers that an optimizer moves."""
        return sum(layer.trainable for layer in self.layers)

    @property
    def non_trainable(self) -> int:
        """Numbers that no optimizer moves."""
        return self.parameters - self.trainable

    def layer(self, name: str) -> Layer:
        """The layer of that name.

        Raises:
            LookupError: There is none; the nearest name is given.
        """
        checked_layer(name, [layer.name for layer in self.layers], self.model)
        return next(layer for layer in self.layers if layer.name == name)

    def text(self, *, wide: bool = False, width: int | None = None) -> str:
        """The table for a terminal; `wide` adds multiplications, fields, what trains and the frontier."""
        return _text(self, wide=wide, width=width)

    def markdown(self, *, wide: bool = False) -> str:
        """The table in Markdown."""
        return _markdown(self, wide=wide)

    def json(self) -> str:
        """Everything as JSON; null where it is not known."""
        return _json(self)

    def __str__(self) -> str:
        return self.text()

    __repr__ = __str__


def _text(found: Summary, *, wide: bool = False, width: int | None = None) -> str:
    """The table for a terminal, as wide as it needs to be, or at most `width` characters."""
    header, *lines = _cells(found, wide)
    table = Table(title=f"Model: {found.model}", title_justify="left", box=HEAVY_HEAD)
    for name in header:
        table.add_column(name, justify="left" if name in _LEFT else "right", overflow="fold")
    for line, layer in zip(lines, found.layers, strict=True):
        table.add_row(*line)
        if wide and layer.name == _last_once(found):
            table.add_section()
    out = io.StringIO()
    console = Console(file=out, width=width or 1000, highlight=False, color_system=None)
    console.print(table)
    for line in _totals(found, wide):
        console.print(line, highlight=False)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


def _markdown(found: Summary, *, wide: bool = False) -> str:
    """The table in Markdown, the totals below it."""
    header, *lines = _cells(found, wide)
    rule = [" --- " if name in _LEFT else " ---: " for name in header]
    rows = ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in (header, *lines)]
    rows.insert(1, "|" + "|".join(rule) + "|")
    return "\n".join([*rows, "", *(f"- {line}" for line in _totals(found, wide))])


def _json(found: Summary) -> str:
    """Everything as JSON; null where it is not known."""
    cut = found.frontier
    content = {
        "model": found.model,
        "parameters": found.parameters,
        "trainable": found.trainable,
        "non_trainable": found.non_trainable,
        "bytes": found.nbytes,
        "multiplications": found.multiplications,
        "frozen": found.frozen,
        "frontier": cut
        and {
            "stored": [{"dtype": dtype, "shape": shape} for dtype, shape in cut.stored],
            "bytes_per_image": cut.bytes_per_image,
        },
        "layers": [_record(layer) for layer in found.layers],
    }
    return json.dumps(content, indent=1)


def _record(layer: Layer) -> dict[str, Any]:
    def each(of: Callable[[Field], float]) -> list[float | None] | None:
        return [None if field is None else of(field) for field in layer.fields] or None

    return {
        "name": layer.name,
        "kind": layer.kind,
        "output_shape": layer.output_shape,
        "parameters": layer.parameters,
        "trainable": layer.trainable,
        "non_trainable": layer.non_trainable,
        "multiplications": layer.multiplications,
        "receptive_field": each(lambda field: field.size),
        "jump": each(lambda field: field.jump),
        "first_centre": each(lambda field: field.centre(0)),
        "computed": None if layer.once is None else "once" if layer.once else "step",
        "connected_to": list(layer.reads) or None,
    }


def _cells(found: Summary, wide: bool) -> list[list[str]]:
    """The header and a line for every layer."""
    header, branches = ["layer", "output shape", "parameters"], any(layer.reads for layer in found.layers)
    if wide:
        header += ["multiplications", "receptive field", "jump", "first centre", "trains"]
        header += ["computed"] if found.frontier else []
        header += ["connected to"] if branches else []
    lines = [header]
    for layer in found.layers:
        line = [f"{layer.name} ({layer.kind})", _shape(layer.output_shape), f"{layer.parameters:,}"]
        if wide:
            line.append("" if layer.multiplications is None else f"{layer.multiplications:,}")
            line += [_pair(layer.fields, of) for of in (_size, _jump, _centre)]
            line.append(("yes" if layer.trainable else "no") if layer.parameters else "")
            line += [{None: "", True: "once", False: "every step"}[layer.once]] if found.frontier else []
            line += [", ".join(layer.reads)] if branches else []
        lines.append(line)
    return lines


def _totals(found: Summary, wide: bool) -> list[str]:
    lines = [
        f"Total params: {found.parameters:,} ({_bytes(found.nbytes)})",
        f"Trainable params: {found.trainable:,}",
        f"Non-trainable params: {found.non_trainable:,}",
    ]
    if wide and found.multiplications is not None:
        lines.append(f"Multiplications an image: {found.multiplications:,}")
    if wide and found.frontier:
        stored = ", ".join(f"{dtype}{list(shape)}" for dtype, shape in found.frontier.stored)
        behind = f"the frontier lies behind {_last_once(found)}: " if _last_once(found) else ""
        size = f"{stored} an image, {_bytes(found.frontier.bytes_per_image)}"
        lines.append(f"Frozen: {found.frozen}; {behind}{size} stored")
    return lines


def _last_once(found: Summary) -> str | None:
    """The last layer of those that are computed once, if all the others come after it."""
    times = [(layer.name, layer.once) for layer in found.layers if layer.once is not None]
    count = sum(once for _, once in times)
    return times[count - 1][0] if count and all(once for _, once in times[:count]) else None


def _shape(shape: tuple[int | None, ...] | None) -> str:
    return "" if shape is None else f"({', '.join(map(str, shape))}{',' * (len(shape) == 1)})"


def _pair(fields: Sequence[Field | None], of: Callable[[Field], str]) -> str:
    """A figure of rows and columns: once where they agree, blank where either is not known."""
    if not fields or any(field is None for field in fields):
        return ""
    texts = [of(field) for field in fields if field is not None]
    return texts[0] if len(set(texts)) == 1 else "x".join(texts)


def _size(field: Field) -> str:
    return str(field.size)


def _jump(field: Field) -> str:
    return str(field.jump) if field.jump else ""


def _centre(field: Field) -> str:
    return f"{field.centre(0):g}"


def _bytes(count: int) -> str:
    """As Keras prints it, in units of 1024."""
    size, units = float(count), ["B", "KB", "MB", "GB", "TB"]
    while size >= 1024 and len(units) > 1:
        size, units = size / 1024, units[1:]
    return f"{size:.2f} {units[0]}"
