"""A data set that draws itself: textured shapes from a seed, as a TFDS builder that needs no TensorFlow."""

import dataclasses
import io
import math
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Literal

import numpy as np
import tensorflow_datasets as tfds

from cnnjax.data.pixels import decode
from cnnjax.data.prepared import quiet
from cnnjax.data.source import InMemory

SPLITS = ("train", "validation", "test")

_CLASSES = {
    "source": (
        "checked_ring",
        "checked_square",
        "dotted_disc",
        "dotted_ring",
        "striped_disc",
        "striped_square",
    ),
    "target": ("checked_cross", "checked_triangle", "striped_cross", "striped_triangle"),
}
_PER_CLASS = {
    "source": {"train": 400, "validation": 60, "test": 60},
    "target": {"train": 125, "validation": 75, "test": 125},
}

# Signed distances to a shape's edge (negative inside) of points given in the shape's own frame.
_SHAPES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "disc": lambda x, y: np.sqrt(x * x + y * y) - 0.95,
    "ring": lambda x, y: np.abs(np.sqrt(x * x + y * y) - 0.72) - 0.3,
    "square": lambda x, y: np.maximum(np.abs(x), np.abs(y)) - 0.85,
    "triangle": lambda x, y: np.maximum(-y, 0.5 * y + 0.866 * np.abs(x)) - 0.6,
    "cross": lambda x, y: np.minimum(
        np.maximum(np.abs(x) - 1.0, np.abs(y) - 0.38), np.maximum(np.abs(y) - 1.0, np.abs(x) - 0.38)
    ),
}


def _wave(x: np.ndarray) -> np.ndarray:
    """A triangle wave in -1..1 with period 1; only exact arithmetic, so that every machine draws the same."""
    return 4 * np.abs(x - np.floor(x) - 0.5) - 1


_TEXTURES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "striped": lambda x, y: _wave(x),
    "checked": lambda x, y: _wave(x) * _wave(y) * 2,
    "dotted": lambda x, y: _wave(x) + _wave(y) - 0.5,
}


@dataclasses.dataclass(eq=False, kw_only=True)
class ShapesConfig(tfds.core.BuilderConfig):
    """Which classes are drawn, how large, and how many of each.

    Attributes:
        kind: "source" (six classes to pretrain on) or "target" (four others, for transfer).
        size: height and width in pixels.
        per_class: images a class in every split; the kind's own numbers by default.
        seed: of everything drawn.
    """

    name: str = ""  # made of the others
    kind: Literal["source", "target"] = "source"
    size: int = 40
    per_class: Mapping[str, int] = dataclasses.field(default_factory=dict)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in _CLASSES:
            raise ValueError(f"kind: expected one of {', '.join(_CLASSES)}, found {self.kind!r}")
        if self.size < 8:
            raise ValueError(f"size: expected at least 8 pixels, found {self.size}")
        self.per_class = dict(self.per_class or _PER_CLASS[self.kind])
        if set(self.per_class) != set(SPLITS) or min(self.per_class.values()) < 1:
            raise ValueError(f"per_class: expected a positive number for {', '.join(SPLITS)}, found {self.per_class}")
        # All that decides the images is in the name: another choice is another folder in the cache.
        counts = "-".join(str(self.per_class[split]) for split in SPLITS)
        self.name = f"{self.kind}-{self.size}px-{counts}-seed{self.seed}"
        self.description = f"{len(self.classes)} classes of textured shapes, {self.size} pixels square."

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names, in the order of their labels."""
        return _CLASSES[self.kind]


class Shapes(tfds.core.GeneratorBasedBuilder):
    """Draws shapes filled with textures, at random places, scales, turns and colours, over busy backgrounds.

    Colours tell nothing: a class is a texture and a shape. The target's textures occur in the source, its
    shapes do not.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar[dict[str, str]] = {"1.0.0": "First version."}
    BUILDER_CONFIGS: ClassVar[list[Any]] = [ShapesConfig(kind="source"), ShapesConfig(kind="target")]
    builder_config: ShapesConfig

    def _info(self) -> tfds.core.DatasetInfo:
        config = self.builder_config
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.__doc__,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(config.size, config.size, 3), encoding_format="png"),
                    "label": tfds.features.ClassLabel(names=config.classes),
                    "name": tfds.features.Text(),
                }
            ),
            supervised_keys=("image", "label"),
        )

    def _split_generators(self, dl_manager: Any, **_: Any) -> dict[str, Iterator[tuple[str, dict[str, Any]]]]:
        return {split: self._generate_examples(split) for split in SPLITS}

    def _generate_examples(self, split: str, **_: Any) -> Iterator[tuple[str, dict[str, Any]]]:
        config = self.builder_config
        for label, class_name in enumerate(config.classes):
            for index in range(config.per_class[split]):
                place = [config.seed, list(_CLASSES).index(config.kind), SPLITS.index(split), label, index]
                name = f"{class_name}/{index:05d}"
                image = draw(class_name, config.size, np.random.default_rng(place))
                yield name, {"image": _png(image), "label": label, "name": name}


def open_shapes(
    config: Literal["source", "target"] | ShapesConfig, cache_dir: str | os.PathLike[str]
) -> dict[str, InMemory]:
    """Opens the drawn data set; draws it first where `cache_dir` does not hold it (a second a thousand).

    TFDS writes into a folder of another name and renames it when all is there, so a run that was killed
    leaves nothing that could be taken for a whole data set: the next one draws anew.

    Args:
        config: "source", "target", or a `ShapesConfig` of other sizes and numbers.
        cache_dir: where prepared data sets are kept, as TFDS's `data_dir`.

    Returns:
        The splits "train", "validation" and "test", their images in memory as uint8.

    Raises:
        ValueError: an unknown `config`.
        OSError: `cache_dir` cannot be written, or holds a damaged copy; the message names its folder.

    >>> import tempfile
    >>> few = ShapesConfig(kind="target", size=16, per_class={"train": 2, "validation": 1, "test": 1})
    >>> with tempfile.TemporaryDirectory() as cache:
    ...     found = open_shapes(few, cache)
    >>> found["train"].read([0]).shape, len(found["test"])
    ((1, 16, 16, 3), 4)
    """
    chosen = config if isinstance(config, ShapesConfig) else ShapesConfig(kind=config)
    with quiet(bars=False):
        builder = _builder(chosen, cache_dir)
        if not builder.is_prepared():
            try:
                builder.download_and_prepare()
            except OSError:
                # Another process may have drawn the same and renamed its folder first.
                builder = _builder(chosen, cache_dir)
                if not builder.is_prepared():
                    raise
        return {split: _in_memory(builder, split, chosen) for split in SPLITS}


def _builder(config: ShapesConfig, cache_dir: str | os.PathLike[str]) -> Shapes:
    # TFDS wants its own object for a configuration it has listed.
    known = Shapes.builder_configs.get(config.name, config)
    return Shapes(config=known, data_dir=os.fspath(cache_dir), file_format="array_record")


def _in_memory(builder: Shapes, split: str, config: ShapesConfig) -> InMemory:
    count = len(config.classes) * config.per_class[split]
    try:
        # Left to itself TFDS decodes with whatever it finds installed.
        records = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
        if len(records) != count:
            raise ValueError(f"expected {count} images, found {len(records)}")
        images = np.empty((count, config.size, config.size, 3), np.uint8)
        labels, names = np.empty(count, np.int32), []
        for i, record in enumerate(records):
            images[i], labels[i] = decode(record["image"]), record["label"]
            names.append(record["name"].decode())
    # What the record reader raises for a damaged file is not specified.
    except Exception as error:
        raise OSError(
            f"damaged data set in {builder.data_dir}, split {split!r}: {error}; delete that folder and it is drawn anew"
        ) from error
    return InMemory(images, labels, config.classes, names)


def draw(class_name: str, size: int, rng: np.random.Generator) -> np.ndarray:
    """Draws one image of a class named "texture_shape" as u8[size, size, 3].

    Only uniform draws and arithmetic are used, which NumPy keeps stable from version to version.

    >>> draw("striped_disc", 16, np.random.default_rng(0)).shape
    (16, 16, 3)
    """
    texture, shape = class_name.split("_")
    grid = (np.arange(size) + 0.5) * (2 / size) - 1
    y, x = np.meshgrid(grid, grid, indexing="ij")

    def between(low: float, high: float) -> float:
        return low + (high - low) * rng.random()

    def turned(angle: float, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        cos, sin = math.cos(angle), math.sin(angle)
        return cos * x + sin * y, cos * y - sin * x

    # The background: a slope between two middling colours, with faint bars that are no class's texture.
    ramp, across = turned(between(0, 2 * math.pi), x, y)
    mix = np.clip(0.5 + 0.5 * ramp + between(0, 0.25) * _wave(between(0.3, 0.8) * across + rng.random()), 0, 1)
    first, second = 0.25 + 0.5 * rng.random((2, 3))
    image = first + (second - first) * mix[:, :, None]
    for _ in range(2):
        image = _blend(image, rng.random(3), _blob(x, y, between), size)

    scale = between(0.5, 0.8)
    reach = max(0.0, 0.95 - scale)
    x, y = turned(between(-0.6, 0.6), x - between(-reach, reach), y - between(-reach, reach))
    x, y = x / scale, y / (scale * between(0.8, 1.2))
    tx, ty = turned(between(0, 2 * math.pi), x, y)
    pitch = between(1.2, 1.8)
    weave = np.clip(0.5 + 1.5 * _TEXTURES[texture](tx * pitch + rng.random(), ty * pitch + rng.random()), 0, 1)
    light, dark = 0.6 + 0.4 * rng.random(3), 0.4 * rng.random(3)
    fill = light + (dark - light) * weave[:, :, None]
    image = _blend(image, fill, _SHAPES[shape](x, y) * scale, size)

    noise = between(0.05, 0.2)
    image = image + noise * (rng.random((size, size, 3)) + rng.random((size, size, 3)) - 1)
    return np.floor(np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)


def _blob(x: np.ndarray, y: np.ndarray, between: Callable[[float, float], float]) -> np.ndarray:
    """The distance to a small disc anywhere: clutter that is no class's shape."""
    across, down = x - between(-1, 1), y - between(-1, 1)
    return np.sqrt(across * across + down * down) - between(0.08, 0.25)


def _blend(image: np.ndarray, colour: np.ndarray, distance: np.ndarray, size: int) -> np.ndarray:
    """Paints `colour` where `distance` is negative, with an edge of one pixel."""
    cover = np.clip(0.5 - distance * (size / 2), 0, 1)[:, :, None]
    return image + (colour - image) * cover


def _png(image: np.ndarray) -> bytes:
    """Encodes an image: TFDS asks TensorFlow to encode arrays, and takes bytes as they are."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
