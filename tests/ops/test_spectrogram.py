"""Log-mel images against SciPy, the published formulas in double precision, and what must hold for any sound."""

import inspect
from functools import partial

import jax
import numpy as np
import pytest
from scipy import signal

from cnnjax.ops import spectrogram
from cnnjax.ops.spectrogram import as_image, log_mel, mel_filters, power_spectrogram

RATE = 8000
BANDS = dict(sample_rate=RATE, frame=256, hop=80, mels=40, fft=512)
power = jax.jit(power_spectrogram, static_argnames=("frame", "hop", "fft"))
levels = jax.jit(log_mel, static_argnames=list(inspect.signature(log_mel).parameters)[1:])


def tone(hertz: float, amplitude: float = 0.5, samples: int = 4000) -> np.ndarray:
    return (amplitude * np.sin(2 * np.pi * hertz * np.arange(samples) / RATE)).astype(np.float32)


def hand_made_filters(scale: str, fft: int, mels: int, low: float, high: float) -> np.ndarray:
    """One weight at a time, from the formulas as they are printed."""

    def mel(f: float) -> float:
        if scale == "htk":
            return 2595 * np.log10(1 + f / 700)
        return f / (200 / 3) if f < 1000 else 15 + np.log(f / 1000) / (np.log(6.4) / 27)

    def solve(m: float) -> float:
        ends = [0.0, 50_000.0]
        for _ in range(200):
            ends[int(mel(sum(ends) / 2) > m)] = sum(ends) / 2
        return sum(ends) / 2

    corners = [solve(m) for m in np.linspace(mel(low), mel(high), mels + 2)]
    filters = np.zeros((fft // 2 + 1, mels))
    for k in range(fft // 2 + 1):
        f = k * RATE / fft
        for band in range(mels):
            left, peak, right = corners[band : band + 3]
            if left < f <= peak:
                filters[k, band] = (f - left) / (peak - left)
            elif peak < f < right:
                filters[k, band] = (right - f) / (right - peak)
    return filters


@pytest.mark.parametrize("frame, hop, fft", [(256, 80, None), (256, 80, 512), (101, 37, None), (64, 64, 75)])
def test_power_is_scipys_spectrogram(frame: int, hop: int, fft: int | None) -> None:
    waves = np.random.default_rng(0).uniform(-1, 1, (2, 1000)).astype(np.float32)
    window = signal.get_window("hann", frame)
    _, _, want = signal.spectrogram(
        waves.astype(np.float64), RATE, window, frame, frame - hop, fft, detrend=False, scaling="spectrum"
    )
    found = power(waves, frame=frame, hop=hop, fft=fft)
    np.testing.assert_allclose(found, np.swapaxes(want, 1, 2), rtol=1e-4, atol=1e-9)
    # SciPy's complex spectrum, squared by hand: the first two frames of the first clip.
    _, _, spectrum = signal.stft(
        waves[0].astype(np.float64), RATE, window, frame, frame - hop, fft, boundary=None, padded=False
    )
    twice = np.where((np.arange(spectrum.shape[0]) == 0) | (np.arange(spectrum.shape[0]) == (fft or frame) / 2), 1, 2)
    np.testing.assert_allclose(found[0, :2], (twice[:, None] * abs(spectrum) ** 2).T[:2], rtol=1e-4, atol=1e-9)


def test_frames_may_lie_apart() -> None:
    wave = tone(700)
    found = power(wave, frame=64, hop=100)
    assert found.shape == (1 + (4000 - 64) // 100, 33)
    for k in (0, 7, 39):
        _, want = signal.periodogram(wave[100 * k : 100 * k + 64], RATE, "hann", detrend=False, scaling="spectrum")
        np.testing.assert_allclose(found[k], want, rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize("scale", spectrogram.SCALES)
@pytest.mark.parametrize("low, high", [(0, 4000), (150, 3300)])
def test_filters_are_the_printed_formulas(scale: str, low: float, high: float) -> None:
    found = mel_filters(sample_rate=RATE, fft=512, mels=32, low=low, high=high, scale=scale)
    np.testing.assert_allclose(found, hand_made_filters(scale, 512, 32, low, high), atol=1e-6)


def test_log_mel_is_its_parts_in_double_precision() -> None:
    waves = np.random.default_rng(1).normal(0, 0.1, (3, 3000)).astype(np.float32) * np.float32([[1], [0.01], [3]])
    window = signal.get_window("hann", 256)
    _, _, powers = signal.spectrogram(
        waves.astype(np.float64), RATE, window, 256, 176, 512, detrend=False, scaling="spectrum"
    )
    bands = np.swapaxes(powers, 1, 2) @ hand_made_filters("htk", 512, 40, 0, 4000)
    per_clip = 10 * np.log10(bands / bands.max((1, 2), keepdims=True))
    assert (per_clip < -21).any()
    found = levels(waves, **BANDS, top_db=21)
    np.testing.assert_allclose(found, np.maximum(per_clip, -21), atol=1e-3)
    # One scale for the set: the clips keep their distances, and what is louder than the loudest is white.
    per_set = np.clip(10 * np.log10(bands) + 40, -45, 0)
    assert (per_set == 0).any() and (per_set == -45).any()
    np.testing.assert_allclose(levels(waves, **BANDS, top_db=45, loudest=-40), per_set, atol=1e-3)


@pytest.mark.parametrize("hertz", [150, 440, 1000, 2345, 3800])
def test_a_pure_tone_peaks_in_its_band(hertz: float) -> None:
    found = np.asarray(levels(tone(hertz)[None], **BANDS))[0]
    corners = 700 * (10 ** (np.linspace(0, 2595 * np.log10(1 + 4000 / 700), 42) / 2595) - 1)
    nearest = np.abs(corners[1:-1] - hertz).argmin()
    assert (abs(found.argmax(1) - nearest) <= 1).all()
    image = np.asarray(as_image(found))
    assert abs((39 - nearest) - image[:, 10, 0].argmax()) <= 1  # high bands are on top


def test_silence_gives_the_floor_and_quiet_sounds_do_not() -> None:
    waves = np.stack([np.zeros(4000, np.float32), tone(440, 1e-6), tone(440, 1e-4), tone(440)])
    found = np.asarray(levels(waves, **BANDS))
    assert (found[0] == -80).all()
    assert -26 < found[1].max() < -20  # -123 dB, of which no more than 100 are made up for
    np.testing.assert_allclose(found[2], found[3], atol=0.01)
    assert (np.asarray(levels(waves, **BANDS, loudest=-3, top_db=50))[0] == -50).all()


def test_gradients_are_finite_and_right() -> None:
    def mean(waves: jax.Array) -> jax.Array:
        alone, together = log_mel(waves, **BANDS), log_mel(waves, **BANDS, loudest=-10)
        return as_image(alone, size=(24, 24)).mean() + as_image(together).mean()

    noise = np.random.default_rng(2).normal(0, 0.1, 1000)
    waves = np.stack([np.zeros(1000), tone(440, samples=1000), noise]).astype(np.float32)
    both = jax.jit(jax.value_and_grad(mean))
    gradient = np.asarray(both(waves)[1])
    assert np.isfinite(gradient).all() and (gradient[0] == 0).all() and (gradient[1] != 0).any()
    # A step along the noise's gradient changes the value by what it promises.
    along = np.float32(3e-4) * gradient * np.float32([[0], [0], [1]]) / np.linalg.norm(gradient[2])
    change = (both(waves + along)[0] - both(waves - along)[0]) / 6e-4
    np.testing.assert_allclose(change, np.linalg.norm(gradient[2]), rtol=0.05)


def test_jit_and_vmap_change_nothing() -> None:
    waves = np.random.default_rng(3).normal(0, 0.1, (4, 1000)).astype(np.float32)

    def images(waves: jax.Array) -> jax.Array:
        return as_image(log_mel(waves, **BANDS), size=(20, 30))

    together = jax.jit(images)(waves)
    assert together.shape == (4, 20, 30, 3)
    np.testing.assert_allclose(jax.jit(jax.vmap(images))(waves), together, atol=0.01)


def test_images_are_grey_upright_and_resized_without_aliasing() -> None:
    ramp = np.linspace(-80, 0, 12).reshape(4, 3).astype(np.float32)  # 4 frames, 3 bands
    image = as_image(ramp)
    assert image.shape == (3, 4, 3)
    np.testing.assert_allclose(image[..., 1], 255 * (ramp.T[::-1] + 80) / 80, atol=1e-3)
    stripes = np.tile(np.float32([0, -80, -80, -80]), (64, 16))  # every fourth band is loud
    np.testing.assert_allclose(as_image(stripes, size=(16, 16))[2:-2, 2:-2], 255 / 4, atol=2)


FAULTS = {
    "mel_filters: a band that holds no frequency": (
        BANDS | {"mels": 128, "fft": None},
        "6 of 128 mel bands .* at most 86 bands or .*fft=512",
    ),
    "high above half the rate": (BANDS | {"high": 5000}, "from 0 to 5000 Hz do not fit a sample rate of 8000"),
    "low above high": (BANDS | {"low": 900, "high": 800}, "0 <= low < high <= 4000"),
    "no band": (BANDS | {"mels": 0}, "at least 1 band"),
    "no hop": (BANDS | {"hop": 0}, "a hop of at least 1, found 256 and 0"),
    "transform shorter than the frame": (BANDS | {"fft": 128, "mels": 8}, "transform of 128 samples is shorter"),
    "no decibels": (BANDS | {"top_db": 0}, "top_db: expected more than 0"),
    "clip shorter than a frame": (BANDS | {"frame": 512}, "at least 512 samples .one frame., found .2, 400."),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_impossible_settings_are_named(fault: str) -> None:
    settings, message = FAULTS[fault]
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(partial(log_mel, **settings), np.zeros((2, 400), np.float32))


def test_whole_numbers_and_unknown_scales_are_refused() -> None:
    with pytest.raises(ValueError, match="expected floats in -1..1, found int16"):
        log_mel(np.zeros((2, 400), np.int16), **BANDS)
    with pytest.raises(LookupError, match="no mel scale 'slany'; did you mean 'slaney'"):
        log_mel(np.zeros((2, 400), np.float32), **BANDS, scale="slany")
