"""A PNG laid out in pixels: images, lines and text at exact places, on Matplotlib's Agg canvas."""

from pathlib import Path
from typing import Any

import numpy as np

from cnnjax.files.writing import whole_file

MARGIN = 20
"""Pixels around everything."""
MOST_PIXELS = 2400
"""No side of a sheet is longer."""
INK, FAINT = "#1a1a1a", "#5c5c5c"
_DPI = 100


class Sheet:
    """A white sheet with a title; x runs right and y down, in pixels, from the upper left corner.

    Args:
        width: Of the sheet, in pixels.
        body: Height of what stands below the title.
        title: What is shown, in bold.
        notes: Lines below it: how to read the image.

    Attributes:
        top: Where the title ends and the body starts.

    >>> sheet = Sheet(400, 100, "A title", ["and how to read it"])
    >>> sheet.image(np.zeros((50, 50, 3)), MARGIN, sheet.top)
    >>> sheet.width, sheet.height > 150
    (400, True)
    """

    def __init__(self, width: int, body: int, title: str, notes: list[str]):
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        room = width - 2 * MARGIN
        lines = [(line, 14.0, 27, "bold", INK) for line in wrapped(title, 14, room, weight="bold")]
        lines += [(line, 10.5, 20, "normal", FAINT) for note in notes for line in wrapped(note, 10.5, room)]
        self.width, self.top = width, MARGIN + sum(step for _, _, step, _, _ in lines) + 12
        self.height = self.top + body + MARGIN
        if max(self.width, self.height) > MOST_PIXELS:
            raise ValueError(f"an image of {self.width} x {self.height} pixels is too large ({MOST_PIXELS} a side)")
        # A hundredth of a pixel more, since inches times dots an inch may fall just short of the whole number.
        inches = [(pixels + 0.01) / _DPI for pixels in (self.width, self.height)]
        self.figure = Figure(figsize=(inches[0], inches[1]), dpi=_DPI, facecolor="white")
        FigureCanvasAgg(self.figure)
        y = MARGIN
        for line, size, step, weight, colour in lines:
            self.text(MARGIN, y, line, size=size, weight=weight, color=colour)
            y += step

    def text(self, x: float, y: float, text: str, *, size: float = 10.5, **style: Any) -> None:
        """Write a line whose upper left corner (or what `ha` and `va` say) is at (x, y)."""
        style = {"va": "top", "ha": "left", "color": INK, **style}
        self.figure.text(x / self.width, 1 - y / self.height, text, fontsize=size, parse_math=False, **style)

    def image(self, pixels: np.ndarray, x: int, y: int) -> None:
        """Put f32[H, W, 3] (0 to 1) or u8[H, W, 3] there, one pixel for one pixel."""
        self.figure.figimage(pixels, x, self.height - y - pixels.shape[0], origin="upper", vmin=0, vmax=1)

    def axes(self, x: int, y: int, width: int, height: int) -> Any:
        """Matplotlib axes without ticks or frame, to draw over an image."""
        box = (x / self.width, 1 - (y + height) / self.height, width / self.width, height / self.height)
        axes = self.figure.add_axes(box)
        axes.axis("off")
        return axes

    def bar(self, x: int, y: int, width: int, colours: str, low: str, high: str, middle: str = "") -> None:
        """Draw a colour scale, 12 pixels high, with its ends written below it."""
        self.image(coloured(np.broadcast_to(np.linspace(0, 1, width), (12, width)), colours), x, y)
        for place, text, ha in ((0, low, "left"), (width / 2, middle, "center"), (width, high, "right")):
            if text:
                self.text(x + place, y + 27, text, size=9, color=FAINT, ha=ha, va="baseline")

    def save(self, path: Path) -> Path:
        """Write the PNG; the file is either old or new, never half.

        Raises:
            OSError: It cannot be written there.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as partial:
            self.figure.savefig(partial, format="png", dpi=_DPI)
        return path


def wrapped(text: str, size: float, width: float, weight: str = "normal") -> list[str]:
    """Break a text into lines that are at most `width` pixels wide, between words.

    >>> wrapped("one two three", 10, 60)
    ['one two', 'three']
    """
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and text_width(longer, size, weight) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def text_width(text: str, size: float, weight: str = "normal") -> float:
    """How wide a line is, in pixels.

    >>> 30 < text_width("width", 10) < 45
    True
    """
    from matplotlib.backends.backend_agg import RendererAgg
    from matplotlib.font_manager import FontProperties

    font = FontProperties(size=size, weight=weight)
    return RendererAgg(1, 1, _DPI).get_text_width_height_descent(text, font, ismath=False)[0]


def coloured(values: np.ndarray, colours: str) -> np.ndarray:
    """Numbers 0 to 1 as colours of one of Matplotlib's maps: [...] to f32[..., 3]."""
    import matplotlib

    return matplotlib.colormaps[colours](np.asarray(values))[..., :3].astype(np.float32)


def fitted(pixels: np.ndarray, width: int, height: int) -> np.ndarray:
    """Resize an image smoothly, in its proportions, to the largest size that fits.

    Args:
        pixels: u8[H, W, 3], or f32[H, W, 3] 0 to 1.
        width: It is at most this wide, in pixels.
        height: It is at most this high.

    Returns:
        f32[..., ..., 3] 0 to 1.

    >>> fitted(np.full((2, 4, 3), 255, np.uint8), 100, 100).shape
    (50, 100, 3)
    """
    from PIL import Image

    scale = min(height / pixels.shape[0], width / pixels.shape[1])
    size = max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale))
    whole = pixels if pixels.dtype == np.uint8 else np.round(255 * np.clip(pixels, 0, 1)).astype(np.uint8)
    return np.asarray(Image.fromarray(whole).resize(size, Image.Resampling.BICUBIC), np.float32) / 255
