"""Waveforms to log-mel images as a module, and the classifier of sounds built on it."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import ArrayLike

from cnnjax.models.backbone import Backbone, Classifier
from cnnjax.models.preprocessing import preprocess
from cnnjax.ops import spectrogram


class LogMel(nnx.Module):
    """Waveforms to grey images that a backbone's preprocessing takes. It holds no weights.

    Time runs to the right, frequency upwards on the mel scale; the loudest band is white, and black is
    `top_db` decibels below it. The same settings serve a file and a device: all of it runs inside the step.

    Args:
        sample_rate: In hertz.
        frame: Length of a frame in samples, under a periodic Hann window.
        hop: Samples from one frame to the next.
        mels: Number of mel bands.
        low: Where the first band begins, in hertz.
        high: Where the last band ends, in hertz; half the sample rate if not given.
        fft: Length of the transform, frames being filled up with zeros; `frame` if not given.
        scale: Mel scale, "htk" or "slaney" (see `cnnjax.ops.spectrogram.hertz_to_mel`).
        top_db: Decibels from white to black.
        loudest: What is white, in decibels; each clip's loudest band if not given. For one scaling of a whole
            set, measure it with the method `level`.
        size: Height and width to resize the images to; one pixel a band and a frame if not given.

    Raises:
        ValueError: The settings do not fit one another; see `cnnjax.ops.spectrogram.mel_filters`.
        LookupError: There is no such mel scale.

    >>> front = LogMel(sample_rate=8000, frame=256, hop=80, mels=32, size=(96, 96))
    >>> front(jnp.zeros((5, 8000))).shape
    (5, 96, 96, 3)
    """

    def __init__(
        self,
        *,
        sample_rate: int,
        frame: int,
        hop: int,
        mels: int,
        low: float = 0.0,
        high: float | None = None,
        fft: int | None = None,
        scale: str = "htk",
        top_db: float = 80.0,
        loudest: float | None = None,
        size: tuple[int, int] | None = None,
    ):
        if size is not None and (len(size) != 2 or min(size) < 1):
            raise ValueError(f"size: expected height and width of at least 1 pixel, found {tuple(size)}")
        self.sample_rate, self.frame, self.hop, self.mels = sample_rate, frame, hop, mels
        self.low, self.high, self.fft, self.scale = low, high, fft, scale
        self.top_db, self.loudest = top_db, loudest
        self.size = None if size is None else (int(size[0]), int(size[1]))
        jax.eval_shape(self, jax.ShapeDtypeStruct((1, frame), jnp.float32))  # settings that do not fit fail here

    def __call__(self, waveforms: ArrayLike) -> jax.Array:
        """Turn f32[N, T] in -1..1 into images f32[N, H, W, 3] in 0..255.

        Raises:
            ValueError: The waveforms are no floats, or shorter than a frame.
        """
        levels = spectrogram.to_decibels(self._power(waveforms), top_db=self.top_db, loudest=self.loudest)
        return spectrogram.as_image(levels, top_db=self.top_db, size=self.size)

    def level(self, waveforms: ArrayLike) -> float:
        """Return the decibels of the loudest band of f32[N, T]; the maximum over a set serves as `loudest`.

        >>> tone = jnp.sin(2 * jnp.pi * 1000 * jnp.arange(8000) / 8000)
        >>> round(LogMel(sample_rate=8000, frame=256, hop=80, mels=32).level(tone[None]), 1)
        -3.3
        """
        return float(10 * jnp.log10(jnp.maximum(self._power(waveforms).max(), 1e-20)))

    def _power(self, waveforms: ArrayLike) -> jax.Array:
        return spectrogram.mel_power(
            waveforms,
            sample_rate=self.sample_rate,
            frame=self.frame,
            hop=self.hop,
            mels=self.mels,
            low=self.low,
            high=self.high,
            fft=self.fft,
            scale=self.scale,
        )


class SoundClassifier(nnx.Module):
    """Waveforms to logits: log-mel images, then a classifier of images.

    Leaves have the paths they have in `Classifier` (`backbone/...`, `head/...`), so weights, freezing and
    everything built on them work alike. The front depends on no weight: the trainer makes each image once.

    Attributes:
        front: Waveforms to images, of the size that the backbone takes.
        backbone, head, preprocessing: As in `Classifier`.

    >>> from cnnjax.models import lecture_cnn, linear_head
    >>> rngs = nnx.Rngs(0)
    >>> front = LogMel(sample_rate=8000, frame=256, hop=80, mels=32, size=(32, 32))
    >>> backbone = lecture_cnn((32, 32, 3), (4, 8), include_top=False, rngs=rngs)
    >>> model = SoundClassifier(front, backbone, linear_head(backbone.output_shape(), 10, rngs=rngs), "unit")
    >>> model.eval()
    >>> model(jnp.zeros((2, 8000))).shape
    (2, 10)
    """

    def __init__(self, front: LogMel, backbone: Any, head: Any, preprocessing: str):
        checked = Classifier(backbone, head, preprocessing)
        if front.size is not None and isinstance(backbone, Backbone):
            backbone.check_shape((1, *front.size, 3))
        self.front = front
        self.backbone, self.head, self.preprocessing = checked.backbone, checked.head, checked.preprocessing

    def __call__(self, waveforms: ArrayLike) -> jax.Array:
        """Return logits f32[N, classes] (f32[N, 1] for two) of f32[N, T] in -1..1."""
        out = self.backbone(preprocess(self.front(waveforms), self.preprocessing))
        return out if self.head is None else self.head(out)
