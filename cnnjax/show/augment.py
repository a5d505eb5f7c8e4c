"""A contact sheet of augmentation: a photograph, and what training would see of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import jax
import numpy as np
from tyro.conf import Positional

from cnnjax.augment import Augmentation, Parameters
from cnnjax.commands.options import Count, Image, Out, OwnImageSize, Seed
from cnnjax.models.sizes import sides
from cnnjax.show.images import in_colour, middle, read_image, resized
from cnnjax.show.sheet import FAINT, MARGIN, MOST_PIXELS, Sheet, text_width
from cnnjax.show.tiles import fitting_grid, resampled

_MOST = 400  # more small images than this show nothing of an augmentation
_LINE, _SIZE = 14, 7.5
_OFF = Augmentation.none()


@dataclass(frozen=True, kw_only=True)
class Augment:
    """A contact sheet of augmentation: a photograph, and random changes of it as training would see them.

    Where two numbers are allowed, x alone stands for -x to x.
    """

    image: Positional[Image]
    count: Count = None
    seed: Seed = 0
    image_size: OwnImageSize = None
    flip: Literal["none", "horizontal", "vertical", "both"] = "horizontal"
    """Which way images are flipped, each with probability one half."""
    rotation: tuple[float, ...] = (0.1,)
    """Fraction of a full turn (0.1: -36 to 36 degrees), or low and high."""
    zoom: tuple[float, ...] = (0.2,)
    """Fraction of the size, positive zooms out, or low and high."""
    translation: tuple[float, ...] = (0.0,)
    """Fraction of height and width, or one for each."""
    crop: tuple[int, ...] = ()
    """Height and width, in pixels, of a part at a random place; one number is a square."""
    contrast: tuple[float, ...] = (0.0,)
    """By how much contrast is lowered and raised, or one for each."""
    brightness: tuple[float, ...] = (0.0,)
    """Fraction of the value range that is added, or low and high."""
    fill_mode: Literal["reflect", "constant", "nearest", "wrap"] = "reflect"
    """What lies outside the image."""
    fill_value: float = 0.0
    """The value outside, for constant."""
    out: Out = None

    def draw(self) -> Path:
        """Draw and save.

        Raises:
            ValueError: A choice is out of range, or none is made.
            OSError: The image cannot be read.
        """
        if self.out is not None and self.out.suffix.lower() != ".png":
            raise ValueError(f"--out must be a PNG file, such as {self.out.with_suffix('.png')}, not {self.out}")
        count = 15 if self.count is None else self.count
        if not 1 <= count <= _MOST:
            raise ValueError(f"count must be 1 to {_MOST}, not {count}")
        height, width = sides(224 if self.image_size is None else self.image_size)
        augmentation = self.augmentation()
        image = resized(middle(in_colour(read_image(self.image)), width / height), (height, width))
        parameters = augmentation.draw(jax.random.key(self.seed), count)
        images = np.asarray(augmentation.apply(parameters, np.repeat(image[None], count, 0)))
        sheet = draw_augmentations(
            image,
            images,
            changes(augmentation, parameters),
            f"{self.image.name}: augmented as in training",
            [f"{described(augmentation)}. Seed {self.seed}."],
        )
        path = sheet.save(self.out or Path(f"augment-{self.image.stem}.png"))
        print(f"written to {path} ({sheet.width} x {sheet.height} pixels)")
        return path

    def augmentation(self) -> Augmentation:
        """What the options choose.

        Raises:
            ValueError: A choice is out of range, or none is made.
        """
        names = "rotation", "zoom", "translation", "contrast", "brightness"
        numbers = {name: _alone(getattr(self, name)) for name in names}
        crop = _alone(self.crop) if self.crop else None
        chosen = Augmentation(
            flip=self.flip, crop=crop, fill_mode=self.fill_mode, fill_value=self.fill_value, **numbers
        )  # fmt: skip
        if not chosen:
            raise ValueError("nothing is chosen, so nothing would change; give --rotation 0.1, for example")
        return chosen


def draw_augmentations(
    image: np.ndarray, images: np.ndarray, labels: Sequence[str], title: str, notes: list[str]
) -> Sheet:
    """Draw an image and its changed versions, all in one scale, each under its number and what was drawn.

    Args:
        image: u8[H, W, 3].
        images: f32[N, h, w, 3], 0 to 255.
        labels: What happened to each; left out where it is wider than the image.
        title: What is shown.
        notes: How to read it.

    Returns:
        The image; `save(path)` writes it.

    >>> sheet = draw_augmentations(np.zeros((32, 32, 3), np.uint8), np.zeros((6, 32, 32, 3)), ["+3°"] * 6, "six", [])
    >>> sheet.width, sheet.height < 1000
    (992, True)
    """
    count, shape = len(images), images.shape[1:3]
    largest = int(min(240, 480 * max(shape) / max(image.shape[:2])))
    room = MOST_PIXELS - 240, MOST_PIXELS - 480 - 4 * MARGIN
    grid = fitting_grid(count, shape, room, largest=max(1, largest), aspect=1.6, label=_LINE)
    scale = grid.tile[0] / shape[0]
    beside = resampled(image / np.float32(255), (round(image.shape[0] * scale), round(image.shape[1] * scale)))
    left = MARGIN + beside.shape[1] + 2 * MARGIN
    sheet = Sheet(max(720, left + grid.width + MARGIN), max(grid.height, _LINE + len(beside)), title, notes)
    sheet.text(MARGIN, sheet.top + _LINE - 2, "the image", size=_SIZE, va="bottom", color=FAINT)
    sheet.image(beside, MARGIN, sheet.top + _LINE)
    sheet.image(grid.filled(np.clip(images / 255, 0, 1)), left, sheet.top)
    texts = [f"{index + 1}  {label}" for index, label in enumerate(labels)]
    if max(text_width(text, _SIZE) for text in texts) > grid.tile[1] + grid.gap:
        texts = [str(index + 1) for index in range(count)]
    for index, text in enumerate(texts):
        down, right = grid.place(index)
        sheet.text(left + right, sheet.top + down - 2, text, size=_SIZE, va="bottom", color=FAINT)
    return sheet


def changes(augmentation: Augmentation, parameters: Parameters) -> list[str]:
    """What was drawn for each image, in words: only what the augmentation has on.

    >>> augmentation = Augmentation(rotation=0.25, zoom=(0.5, 0.5))
    >>> changes(augmentation, augmentation.draw(jax.random.key(0), 2)._replace(angle=np.array([0.5, -1.0])))
    ['+29°, zoom +0.50', '-57°, zoom +0.50']
    """
    drawn = jax.tree.map(np.asarray, parameters)
    found = []
    for n in range(len(drawn.angle)):
        turned = [way for way, yes in zip(("upside down", "mirrored"), drawn.flip[n], strict=True) if yes]
        every = {
            "rotation": f"{np.rad2deg(drawn.angle[n]):+.0f}°",
            "zoom": f"zoom {drawn.zoom[n] - 1:+.2f}",
            "translation": f"moved {100 * drawn.shift[n, 0]:+.0f} {100 * drawn.shift[n, 1]:+.0f} %",
            "contrast": f"contrast {drawn.contrast[n]:.2f}",
            "brightness": f"brightness {100 * drawn.brightness[n]:+.0f} %",
        }
        on = [text for name, text in every.items() if getattr(augmentation, name) != getattr(_OFF, name)]
        found.append(", ".join(turned + on))
    return found


def described(augmentation: Augmentation) -> str:
    """What the augmentation has on, and what lies outside the image, in a line.

    >>> described(Augmentation(flip=True, rotation=0.1, fill_mode="wrap"))
    'flip horizontal, rotation -0.1 to 0.1; outside the image: wrap'
    """
    lower, upper = cast(tuple[float, float], augmentation.contrast)
    on = [
        f"{name} {_text((1 - lower, 1 + upper) if name == 'contrast' else getattr(augmentation, name))}"
        for name in ("flip", "rotation", "zoom", "translation", "crop", "contrast", "brightness")
        if getattr(augmentation, name) != getattr(_OFF, name)
    ]
    fill = augmentation.fill_mode
    value = f" {augmentation.fill_value:g}" if fill == "constant" else ""
    return f"{', '.join(on)}; outside the image: {fill}{value}"


def _text(value: Any) -> str:
    if not isinstance(value, tuple):
        return str(value)
    between = " x " if isinstance(value[0], int) else " and " if isinstance(value[0], tuple) else " to "
    return between.join(_text(x) if isinstance(x, tuple) else f"{x:g}" for x in value)


def _alone(values: tuple[float, ...]) -> Any:
    return values[0] if len(values) == 1 else values
