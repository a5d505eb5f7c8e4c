"""Which random changes, and their making: `Augmentation`."""

import math
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp

from cnnjax.augment import choices
from cnnjax.augment.choices import Range
from cnnjax.augment.mixing import draw_mixing, mix
from cnnjax.augment.resampling import FILL_MODES, cropped, flipped, float_type, resample
from cnnjax.runtime import Tree

FLIPS = ("none", "horizontal", "vertical", "both")
_MIX = 0x7FFFFFFE  # mixing and changing the images may be given the same key
_DRAWN = 10  # numbers for each image, drawn whatever is on: one choice does not change what another draws


class Parameters(NamedTuple):
    """What is drawn for a batch, in units that do not depend on the images' size.

    Attributes:
        flip: bool[N, 2], upside down and left to right.
        angle: f32[N], radians; positive turns the image counterclockwise.
        zoom: f32[N], side of what is seen over side of the image: above 1 zooms out.
        shift: f32[N, 2], fractions of height and width; positive moves down and right.
        corner: f32[N, 2] in [0, 1), where the crop is taken: 0 top or left.
        contrast: f32[N], what distances from the mean are multiplied with.
        brightness: f32[N], fraction of the value range that is added.
    """

    flip: jax.Array
    angle: jax.Array
    zoom: jax.Array
    shift: jax.Array
    corner: jax.Array
    contrast: jax.Array
    brightness: jax.Array


@dataclass(frozen=True)
class Augmentation:
    """Random changes of a batch, for every image its own. Numbers mean what they mean in Keras.

    In this order: flip, rotation, zoom, translation and crop, all in one bilinear resampling (Keras
    resamples in every layer, and blurs each time; it also fills the corners before the next layer sees them,
    where here the image itself goes on); then contrast, then brightness. Image i draws from
    `jax.random.fold_in(key, i)`, so the same key gives the same images on any number of devices.

    The choices are stored in one form: `Augmentation(rotation=0.1) == Augmentation(rotation=(-0.1, 0.1))`.

    Args:
        flip: True or "horizontal", "vertical", or "both": each direction with probability 1/2 of its own
            (Keras's "horizontal_and_vertical" flips both or neither).
        rotation: Fraction of a full turn: 0.1 is -36 to 36 degrees; or (low, high). `RandomRotation`.
        zoom: Fraction of the size: positive zooms out, negative in; 0.2 is -0.2 to 0.2; or (low, high). The
            aspect stays. `RandomZoom`.
        translation: Fraction of height and width, or (height, width), each a number or (low, high); positive
            moves down and right. `RandomTranslation`.
        crop: Height and width in pixels (one number: a square) of a part at a random place, which becomes the
            image: outputs are of this size. `RandomCrop`, but for every image its own place.
        contrast: Distances from each channel's mean are multiplied by 1 - x to 1 + x, or by 1 - lower to
            1 + upper for (lower, upper), and the result clipped. `RandomContrast` as documented (one number
            there draws only upwards).
        brightness: Up to this fraction of the value range is added or taken away, and the result clipped;
            or (low, high). `RandomBrightness`.
        fill_mode: What lies outside the image: "reflect", "constant", "nearest" or "wrap".
        fill_value: The value outside, for "constant".
        value_range: Of the pixels, for contrast and brightness.
        mixup: Alpha of mixup, 0 is off. Only `mix` looks at it and at `cutmix`.
        cutmix: Alpha of CutMix, 0 is off. With both on, each image draws one of them.

    Raises:
        ValueError: A choice is out of range; the nearest right one is given.

    >>> augmentation = Augmentation(flip=True, rotation=0.1, crop=24)
    >>> augmentation(jax.random.key(0), jnp.zeros((4, 32, 32, 3))).shape
    (4, 24, 24, 3)
    >>> bool(augmentation), bool(Augmentation.none())
    (True, False)
    """

    flip: bool | str = False
    rotation: float | Range = 0.0
    zoom: float | Range = 0.0
    translation: float | tuple[float | Range, float | Range] = 0.0
    crop: int | tuple[int, int] | None = None
    contrast: float | Range = 0.0
    brightness: float | Range = 0.0
    fill_mode: str = "reflect"
    fill_value: float = 0.0
    value_range: Range = (0.0, 255.0)
    mixup: float = 0.0
    cutmix: float = 0.0

    def __post_init__(self) -> None:
        flip = {True: "horizontal", False: "none"}[self.flip] if isinstance(self.flip, bool) else self.flip
        checked: dict[str, Any] = {
            "flip": choices.checked_name("flip", flip, FLIPS),
            "rotation": choices.checked_range("rotation", self.rotation),
            "zoom": choices.checked_range("zoom", self.zoom),
            "translation": choices.checked_translation(self.translation),
            "crop": choices.checked_crop(self.crop),
            "contrast": choices.checked_contrast(self.contrast),
            "brightness": choices.checked_range("brightness", self.brightness),
            "fill_mode": choices.checked_name("fill_mode", self.fill_mode, FILL_MODES),
            "fill_value": choices.number("fill_value", self.fill_value),
            "value_range": choices.checked_values(self.value_range),
            "mixup": choices.checked_alpha("mixup", self.mixup),
            "cutmix": choices.checked_alpha("cutmix", self.cutmix),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    @classmethod
    def none(cls) -> "Augmentation":
        """No change at all."""
        return cls()

    def __bool__(self) -> bool:
        """Whether anything is changed, by calling or by mixing."""
        colours = self._on(self.contrast) or self._on(self.brightness)
        return bool(self._axes or self.crop or self._warps or colours or self.mixup or self.cutmix)

    @property
    def digest(self) -> str:
        """All choices as a text, for the keys of what is stored.

        >>> Augmentation(zoom=0.2).digest[:66]
        "augmentation 1: flip='none', rotation=(0.0, 0.0), zoom=(-0.2, 0.2)"
        """
        return "augmentation 1: " + ", ".join(f"{f.name}={getattr(self, f.name)!r}" for f in fields(self))

    @property
    def takes_targets(self) -> bool:
        """Whether it mixes images, and so needs their targets."""
        return bool(self.mixup or self.cutmix)

    def __call__(self, key: jax.Array, images: jax.Array, targets: Tree = None) -> Any:
        """Draw and make the changes; mix as well where targets are given.

        Args:
            key: A JAX random key; with targets it is split, for the changes and for `mix`.
            images: f32[N, H, W, C]; integers become float32.
            targets: As `mix` takes them.

        Returns:
            f32[N, H, W, C], or f32[N, *crop, C]; with targets a pair of these and the targets.

        Raises:
            ValueError: The images have other axes, or the crop is larger than they are.
        """
        if targets is None:
            return self._changed(key, images)
        drawn, mixed = jax.random.split(key)
        return self.mix(mixed, self._changed(drawn, images), targets)

    @partial(jax.jit, static_argnums=0)
    def _changed(self, key: jax.Array, images: jax.Array) -> jax.Array:
        return self.apply(self.draw(key, len(images)), images)

    @partial(jax.jit, static_argnums=(0, 2))
    def draw(self, key: jax.Array, count: int) -> Parameters:
        """Draw what `apply` needs for a batch of `count` images.

        >>> Augmentation(rotation=(0.25, 0.25)).draw(jax.random.key(0), 2).angle
        Array([1.5707964, 1.5707964], dtype=float32)
        """

        def one(index: jax.Array) -> jax.Array:
            return jax.random.uniform(jax.random.fold_in(key, index), (_DRAWN,))

        def between(ends: Any, u: jax.Array) -> jax.Array:
            low, high = cast(Range, ends)
            return low + (high - low) * u

        u = jax.vmap(one)(jnp.arange(count))
        down, right = cast(tuple[Range, Range], self.translation)
        lower, upper = cast(Range, self.contrast)
        return Parameters(
            flip=(u[:, :2] < 0.5) & jnp.array([1 in self._axes, 2 in self._axes]),
            angle=2 * math.pi * between(self.rotation, u[:, 2]),
            zoom=1 + between(self.zoom, u[:, 3]),
            shift=jnp.stack([between(down, u[:, 4]), between(right, u[:, 5])], 1),
            corner=u[:, 6:8],
            contrast=between((1 - lower, 1 + upper), u[:, 8]),
            brightness=between(self.brightness, u[:, 9]),
        )

    @partial(jax.jit, static_argnums=0)
    def apply(self, parameters: Parameters, images: jax.Array) -> jax.Array:
        """Make the changes that were drawn; what is not chosen is not looked at.

        Args:
            parameters: From `draw`.
            images: f32[N, H, W, C]; integers become float32.

        Returns:
            f32[N, H, W, C], or f32[N, *crop, C].

        Raises:
            ValueError: The images have other axes, or the crop is larger than they are.
        """
        if images.ndim != 4:
            raise ValueError(f"an augmentation takes images of shape [N, H, W, C], found {images.shape}")
        dtype = float_type(images)
        whole = images.shape[1], images.shape[2]
        size = cast(tuple[int, int] | None, self.crop) or whole
        if size[0] > whole[0] or size[1] > whole[1]:
            fits = min(size[0], whole[0]), min(size[1], whole[1])
            raise ValueError(f"a crop of {size} is larger than the images, {whole}; the largest is {fits}")
        room = jnp.array([whole[0] - size[0], whole[1] - size[1]])
        corner = jnp.minimum((parameters.corner * (room + 1)).astype(jnp.int32), room)
        if self._warps:
            images = self._warped(parameters, images, corner, size)
        else:
            images = flipped(images, parameters.flip, self._axes)
            images = images if size == whole else cropped(images, corner, size)
        images = images.astype(jnp.promote_types(dtype, jnp.float32))
        low, high = self.value_range
        if self._on(self.contrast):
            mean = images.mean(1, keepdims=True).mean(2, keepdims=True)  # twice as fast on a CPU as both at once
            images = jnp.clip((images - mean) * parameters.contrast[:, None, None, None] + mean, low, high)
        if self._on(self.brightness):
            images = jnp.clip(images + (high - low) * parameters.brightness[:, None, None, None], low, high)
        return images.astype(dtype)

    def mix(self, key: jax.Array, images: jax.Array, targets: Tree) -> tuple[jax.Array, Any]:
        """Mix images and their targets in random pairs, by mixup or CutMix; as they are if neither is chosen.

        Args:
            key: A JAX random key; may be the one that the images were changed with.
            images: f32[N, H, W, C]; integers become float32.
            targets: f32[N, K] one-hot, or f32[N, 1] probabilities; or a tree of f32[N, ...], mixed in proportion.

        Returns:
            Images and targets of the same shapes.

        Raises:
            ValueError: Targets are labels, or not as many as images.

        >>> images, targets = Augmentation(mixup=0.2).mix(jax.random.key(0), jnp.ones((4, 8, 8, 3)), jnp.eye(4))
        >>> images.shape, targets.sum(1).tolist()
        ((4, 8, 8, 3), [1.0, 1.0, 1.0, 1.0])
        """
        if not (self.mixup or self.cutmix):
            return images, targets
        return self._mixed(key, images, targets)

    @partial(jax.jit, static_argnums=0)
    def _mixed(self, key: jax.Array, images: jax.Array, targets: Tree) -> tuple[jax.Array, Any]:
        if images.ndim != 4:
            raise ValueError(f"an augmentation takes images of shape [N, H, W, C], found {images.shape}")
        for x in jax.tree.leaves(targets):
            if not x.ndim or len(x) != len(images) or not jnp.issubdtype(x.dtype, jnp.floating):
                raise ValueError(
                    f"mixing {len(images)} images needs targets f32[{len(images)}, K], "
                    f"found {x.dtype}{list(x.shape)}; jax.nn.one_hot(labels, classes) makes them of labels"
                )
        return mix(draw_mixing(jax.random.fold_in(key, _MIX), len(images), self.mixup, self.cutmix), images, targets)

    def _warped(self, parameters: Parameters, images: jax.Array, corner: jax.Array, size: tuple[int, int]) -> jax.Array:
        """Places in the output are taken back through translation, zoom, rotation and flip to the image."""
        angle = parameters.angle if self._on(self.rotation) else jnp.zeros_like(parameters.angle)
        zoom = parameters.zoom if self._on(self.zoom) else jnp.ones_like(parameters.zoom)
        lengths = jnp.array(images.shape[1:3], jnp.float32)
        origin = (lengths - 1) / 2 - corner
        if any(self._on(ends) for ends in cast(tuple[Range, Range], self.translation)):
            origin = origin + parameters.shift * lengths
        cos, sin = zoom * jnp.cos(angle), zoom * jnp.sin(angle)
        turn = jnp.stack([jnp.stack([cos, sin], 1), jnp.stack([-sin, cos], 1)], 1)
        flip = parameters.flip & jnp.array([1 in self._axes, 2 in self._axes])
        linear = jnp.where(flip, -1.0, 1.0)[:, :, None] * turn
        return resample(images, linear, origin, size, self.fill_mode, self.fill_value)

    @staticmethod
    def _on(ends: object) -> bool:
        return ends != (0.0, 0.0)

    @property
    def _axes(self) -> tuple[int, ...]:
        """Those that images may be flipped along."""
        return {"none": (), "vertical": (1,), "horizontal": (2,), "both": (1, 2)}[cast(str, self.flip)]

    @property
    def _warps(self) -> bool:
        return any(map(self._on, (self.rotation, self.zoom, *cast(tuple[Range, Range], self.translation))))
