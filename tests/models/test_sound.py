"""The log-mel front as a module, and a classifier of sounds through training."""

import importlib.util
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.io import wavfile

from cnnjax import Classifier, Freeze, LogMel, SoundClassifier, Trainer, lecture_cnn, linear_head
from cnnjax.data import SoundFolder, split_by_group
from cnnjax.functional import leaves_of
from cnnjax.ops.spectrogram import as_image, log_mel

RATE, SAMPLES = 8000, 4000
BANDS = dict(sample_rate=RATE, frame=256, hop=128, mels=32, low=100.0, high=3500.0, fft=512, scale="slaney")


def tones(count: int, seed: int) -> np.ndarray:
    """Tones that rise and tones that fall, by turns, at other heights and levels each: f32[count, SAMPLES]."""
    rng = np.random.default_rng(seed)
    time = np.arange(SAMPLES) / RATE
    waves = [
        rng.uniform(0.1, 0.9) * np.sin(2 * np.pi * (rng.uniform(900, 1500) + (-1) ** (k % 2) * 800 * time) * time)
        for k in range(count)
    ]
    return (np.stack(waves) + rng.normal(0, 1e-3, (count, SAMPLES))).astype(np.float32)


def build(size: tuple[int, int] | None = (32, 32), **settings: float) -> SoundClassifier:
    rngs = nnx.Rngs(0)
    backbone = lecture_cnn((32, 32, 3), (4, 8), include_top=False, rngs=rngs)
    head = linear_head(backbone.output_shape(), 2, rngs=rngs)
    return SoundClassifier(LogMel(**BANDS, **settings, size=size), backbone, head, "unit")


def test_the_front_is_the_functions_and_holds_nothing() -> None:
    waves = tones(3, 0)
    front = LogMel(**BANDS, top_db=60, loudest=-20, size=(24, 40))
    options = dict(top_db=60, size=(24, 40))
    want = jax.jit(lambda x: as_image(log_mel(x, **BANDS, top_db=60, loudest=-20), **options))(waves)
    np.testing.assert_allclose(jax.jit(front)(waves), want, atol=1e-2)
    assert want.shape == (3, 24, 40, 3) and 0 <= want.min() < 1 and 250 < want.max() <= 255
    assert leaves_of(front) == {}
    again = nnx.merge(*nnx.split(front))
    np.testing.assert_allclose(jax.jit(again)(waves), want, atol=1e-2)


def test_one_scaling_for_a_set() -> None:
    """With the set's level the loudest clip looks as by itself, and the others keep their distance to it."""
    waves = tones(4, 0) * np.float32([[1], [0.1], [0.5], [0.01]])
    alone = LogMel(**BANDS)
    levels = [alone.level(waves[k : k + 1]) for k in range(4)]
    level = max(levels)
    together, apart = jax.jit(lambda x: (LogMel(**BANDS, loudest=level)(x), alone(x)))(waves)
    most = np.asarray(together).max((1, 2, 3))
    assert most.argmax() == 0 and most.argmin() == 3
    np.testing.assert_allclose(together[0], apart[0], atol=0.01)
    np.testing.assert_allclose(most, 255 * (1 + (np.array(levels) - level) / 80), atol=0.1)


def test_logits_and_paths_are_the_classifiers() -> None:
    waves, sounds = tones(4, 0), build()
    images = Classifier(sounds.backbone, sounds.head, "unit")
    sounds.eval()
    logits, gradient = jax.jit(lambda x: (sounds(x), jax.grad(lambda x: sounds(x).sum())(x)))(waves)
    np.testing.assert_allclose(logits, jax.jit(lambda x: images(sounds.front(x)))(waves), atol=1e-5)
    assert set(leaves_of(sounds)) == set(leaves_of(images)) > {"head/dense/bias", "head/dense/kernel"}
    assert {path.partition("/")[0] for path in leaves_of(sounds)} == {"backbone", "head"}
    assert jnp.isfinite(gradient).all() and (gradient != 0).any(axis=1).all()
    without = SoundClassifier(sounds.front, sounds.backbone, None, "unit")
    assert jax.eval_shape(without, waves).shape == (4, *sounds.backbone.output_shape())


def test_parts_that_do_not_fit_are_named() -> None:
    with pytest.raises(ValueError, match=r"expected a batch of shape .N, 32, 32, 3., found .1, 24, 32, 3."):
        build((24, 32))
    with pytest.raises(ValueError, match="size: expected height and width of at least 1 pixel"):
        build((0, 32))
    with pytest.raises(ValueError, match="top_db"):
        build(top_db=-3)
    with pytest.raises(ValueError, match="hold no frequency of a transform of 256"):
        LogMel(**BANDS | {"mels": 200, "fft": 256})
    sounds = build()
    with pytest.raises(LookupError, match="no preprocessing 'unti'; did you mean 'unit'"):
        SoundClassifier(sounds.front, sounds.backbone, sounds.head, "unti")


def test_sounds_of_a_folder_are_learned_and_images_are_made_once(tmp_path) -> None:
    """Rising tones against falling ones, from files to accuracy through the trainer."""
    for split, count, seed in (("train", 48, 1), ("test", 24, 2)):
        for k, wave in enumerate(tones(count, seed)):
            folder = tmp_path / split / ("rising", "falling")[k % 2]
            folder.mkdir(parents=True, exist_ok=True)
            wavfile.write(folder / f"{k}.wav", RATE, wave)
    sources = {
        split: SoundFolder(tmp_path, split, sample_rate=RATE, seconds=SAMPLES / RATE) for split in ("train", "test")
    }
    model = build()
    # Where the backbone is frozen, its pooled features are stored.
    frozen = Trainer(model, Freeze.all().resolve(model, within="backbone"), (SAMPLES,), batch_size=16)
    assert [feature.shape for feature in frozen.staged.features] == [(8,)]
    # Where it is not, the image, once and not three times.
    trainer = Trainer(model, Freeze.none().resolve(model), (SAMPLES,), batch_size=16, optimizer="adam")
    assert [feature.shape for feature in trainer.staged.features] == [(32, 32, 1)]
    assert frozen.staged.blocked == trainer.staged.blocked == ()
    rows, test = trainer.rows(sources["train"]), trainer.rows(sources["test"], train=False)
    state, _ = trainer.fit(trainer.init(learning_rate=1e-2), rows, epochs=12)
    assert trainer.evaluate(state, test)["accuracy"] > 0.9
    assert [made.images for made in trainer.store.passes] == [48, 24]
    # What is stored is what the model sees.
    model.eval()
    logits = trainer.predict(trainer.init(), test)[1]
    np.testing.assert_allclose(logits[:2], jax.jit(model)(sources["test"].read([0, 1])), atol=1e-4)


def test_the_record_of_spoken_digits_is_of_what_it_runs(shared_data) -> None:
    spec = importlib.util.spec_from_file_location("digits", Path(__file__).parents[2] / "experiments/spoken_digits.py")
    record = importlib.util.module_from_spec(spec)
    sys.modules["digits"] = record  # dataclasses look their module up
    spec.loader.exec_module(record)
    sounds = record.recordings(shared_data / "fsdd", record.NAMES)
    folds = list(record.folds(sounds))
    assert sorted(name for fold in folds for name in fold["test"]) == sorted({sound.group for sound in sounds})
    for fold in folds:
        assert len(fold["train"]) == 4 and not set(fold["train"]) & set(fold["test"])
        assert f" {', '.join(fold['test'])} |" in record.__doc__
    for method in record.METHODS:
        assert f"| {method.name} | {method.epochs} | {method.rate:g} |" in record.__doc__
    (source,) = split_by_group(
        shared_data / "fsdd",
        [sound for sound in sounds if sound.group == "theo"],
        {"theo": ["theo"]},
        sample_rate=record.RATE,
        seconds=record.SECONDS,
    ).values()
    images = np.asarray(record.front()(source.read(range(0, 200, 20))))
    # Every digit is an image that uses the whole range and is neither blank nor full.
    assert images.shape == (10, record.SIZE, record.SIZE, 3)
    assert (images.max((1, 2, 3)) > 200).all() and (images.min((1, 2, 3)) == 0).all()
    assert ((images > 40).mean((1, 2, 3)) > 0.03).all() and ((images > 40).mean((1, 2, 3)) < 0.6).all()
