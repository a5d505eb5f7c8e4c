"""The images of what a cell sees and of where a classifier looks."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from cnnjax.data.pixels import resize
from cnnjax.show.cam import placed
from cnnjax.show.fields import Box, middle_part
from cnnjax.show.sheet import FAINT, MARGIN, Sheet, coloured, fitted
from cnnjax.sizing.field import Field

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_PANEL, _HIGHEST = 640, 1600
_HEAT = "inferno"


def draw_field(image: np.ndarray, box: Box, neighbours: Sequence[Box], effective: np.ndarray, title: str) -> Sheet:
    """Draw a cell's receptive field on an image, its neighbours' and how strongly each pixel counts.

    Args:
        image: u8[H, W, 3].
        box: What the cell sees (`cell_box`).
        neighbours: What the cells beside it see.
        effective: f32[H, W], the magnitude of the cell's gradient (`effective_field`).
        title: What is shown.

    Returns:
        The image; `save(path)` writes it.

    >>> small = np.zeros((32, 32, 3), np.uint8)
    >>> draw_field(small, Box(-3, 11, 4, 18), [Box(-3, 11, 8, 22)], np.ones((32, 32)), "a cell").width
    1340
    """
    height, width, _ = image.shape
    page = Box(0, height - 1, 0, width - 1)
    reach = max(box.bottom - box.top, box.right - box.left) + 1
    whole, close = _around([box, *neighbours, page], 2), _around([box, *neighbours], max(2, reach // 4))
    parts = whole, close if close.bottom - close.top < 0.6 * height else whole
    # Each panel as wide as there is room for, or as high.
    shapes = [(part.bottom - part.top + 1, part.right - part.left + 1) for part in parts]
    scales = [min(_PANEL / across, _HIGHEST / down) for down, across in shapes]
    sizes = [(round(down * scale), round(across * scale)) for (down, across), scale in zip(shapes, scales, strict=True)]
    sheet = Sheet(2 * _PANEL + 3 * MARGIN, max(sizes)[0] + 60, title, _field_notes(page, box, neighbours, effective))
    # Few pixels are far stronger than the rest: those above the limit are drawn alike, and the others by square roots.
    limit = np.quantile(effective[effective > 0], 0.995) if effective.max() > 0 else 1.0
    strength = np.sqrt(np.minimum(effective / limit, 1))[..., None]
    grey = image.mean(-1, keepdims=True) / 255
    overlay = grey * (1 - strength) + coloured(strength[..., 0], _HEAT) * strength
    names = ["the image and the receptive fields", "the effective receptive field"]
    if parts[1] is close:
        rows, columns = _span(close.top, close.bottom), _span(close.left, close.right)
        names[1] += f", enlarged: rows {rows}, columns {columns}"
    for k, pixels in enumerate((image, overlay)):
        part, x = parts[k], MARGIN + k * (_PANEL + MARGIN)
        sheet.text(x, sheet.top, names[k], size=9, color=FAINT)
        axes = sheet.axes(x, sheet.top + 18, sizes[k][1], sizes[k][0])
        axes.axhspan(part.top - 1, part.bottom + 1, color="#d4d4d4", zorder=0)
        axes.imshow(pixels, interpolation="nearest", aspect="auto", zorder=1)
        axes.set(xlim=(part.left - 0.5, part.right + 0.5), ylim=(part.bottom + 0.5, part.top - 0.5))
        for other in neighbours:
            _outline(axes, other, "#7fe3ff", 1.3)
        _outline(axes, box, "#ffd60a", 3)
    x, y = 2 * MARGIN + _PANEL, sheet.top + sizes[1][0] + 30
    sheet.bar(x, y, _PANEL, _HEAT, "0", "strongest 0.5 % of pixels", "a quarter of that")
    return sheet


def _field_notes(page: Box, box: Box, neighbours: Sequence[Box], effective: np.ndarray) -> list[str]:
    seen = box.clipped(page.bottom + 1, page.right + 1)
    padding = 1 - seen.cells / box.cells
    notes = [
        f"Thick: what the cell sees, {box.bottom - box.top + 1} × {box.right - box.left + 1} pixels, rows "
        f"{_span(box.top, box.bottom)}, columns {_span(box.left, box.right)}"
        + (f"; {100 * padding:.0f} % of that lies in the padding (grey)." if padding else ".")
    ]
    if neighbours:
        steps = sorted({abs(b.top - box.top) + abs(b.left - box.left) for b in neighbours})
        apart = " or ".join(map(str, steps)) + " pixels apart" if steps != [0] else "which is the same"
        notes.append(f"Thin: what its {len(neighbours)} neighbours see, {apart}.")
    if effective.max() > 0:
        side = middle_part(effective, box)
        notes.append(
            "Right: how strongly each pixel moves the cell on this image (magnitude of the gradient); "
            f"90 % of it lies in the middle {side} × {side} pixels."
        )
    else:
        notes.append("Right: nothing, since no pixel moves the cell on this image (its gradient is 0).")
    return notes


def _span(first: int, last: int) -> str:
    return f"{first} to {last}".replace("-", "−")


def _around(boxes: Sequence[Box], margin: int) -> Box:
    return Box(
        min(b.top for b in boxes) - margin,
        max(b.bottom for b in boxes) + margin,
        min(b.left for b in boxes) - margin,
        max(b.right for b in boxes) + margin,
    )


def _outline(axes: "Axes", box: Box, colour: str, width: float) -> None:
    """A frame around the box's pixels, with a dark rim so that it stands out from any image."""
    from matplotlib.patches import Rectangle

    corner = (box.left - 0.5, box.top - 0.5)
    size = (box.right - box.left + 1, box.bottom - box.top + 1)
    for line, paint, order in ((width + 1.6, "#101010", 2), (width, colour, 3)):
        axes.add_patch(Rectangle(corner, *size, fill=False, linewidth=line, edgecolor=paint, zorder=order))


def draw_cam(
    image: np.ndarray,
    heat: np.ndarray,
    title: str,
    notes: Sequence[str] = (),
    *,
    fields: Sequence[Field | None] = (None, None),
) -> Sheet:
    """Draw where a classifier looks.

    Args:
        image: u8[H, W, 3].
        heat: f32[h, w], at least 0 (`grad_cam`).
        title: What is shown.
        fields: Receptive fields of the layer's rows and columns, which say where on the image its cells are.
        notes: Lines below it.

    Returns:
        The image; `save(path)` writes it.

    >>> draw_cam(np.zeros((64, 64, 3), np.uint8), np.eye(2), "a class").width
    1340
    """
    largest = float(heat.max())
    lines = [*notes]
    if all(field and field.jump for field in fields):
        lines.append("Each cell's value stands in the middle of its receptive field; between cells it is interpolated.")
    if largest == 0:
        lines.append("Nothing speaks for this class here: the heat is 0 everywhere.")
    large = fitted(image, _PANEL, _HIGHEST)
    height, width, _ = large.shape
    sheet = Sheet(2 * _PANEL + 3 * MARGIN, height + 60, title, lines)
    scaled = placed(heat / (largest or 1), fields, image.shape[:2])[..., None]
    smooth = np.clip(resize(scaled, (height, width)), 0, 1)
    cover = 0.65 * smooth**0.7
    over = large.mean(-1, keepdims=True) * (1 - cover) + cover * coloured(smooth[..., 0], _HEAT)
    names = "the image", f"class activation, {heat.shape[0]} × {heat.shape[1]} cells"
    for k, pixels in enumerate((large, over)):
        x = MARGIN + k * (_PANEL + MARGIN)
        sheet.text(x, sheet.top, names[k], size=9, color=FAINT)
        sheet.image(pixels, x, sheet.top + 18)
    sheet.bar(2 * MARGIN + _PANEL, sheet.top + height + 30, _PANEL, _HEAT, "0", f"{largest:.2g}")
    return sheet
