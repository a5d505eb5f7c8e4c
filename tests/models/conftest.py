"""Keras as the oracle, and photographs as pixels."""

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="session")
def keras_oracle() -> Iterator[SimpleNamespace]:
    """Keras with its Glorot-uniform values drawn by NumPy: its own take JAX 8 s of compiling for a model."""
    import keras

    rng = np.random.default_rng(0)

    def draw(self, shape, dtype=None):
        fans = np.prod(shape[:-2]) * (shape[-2] + shape[-1])
        limit = np.float32(np.sqrt(6 / fans))
        return keras.ops.convert_to_tensor((2 * rng.random(shape, dtype=np.float32) - 1) * limit)

    def run(model, x: np.ndarray, names: tuple[str, ...]) -> dict[str, np.ndarray]:
        """Return the named layers' outputs in inference, computed in one compiled program."""
        ends = keras.Model(model.inputs, [model.get_layer(name).output for name in names])
        weights = [
            [v.value for v in ends.trainable_variables],
            [v.value for v in ends.non_trainable_variables],
        ]
        outputs, _ = jax.jit(lambda w, x: ends.stateless_call(*w, x, training=False))(weights, x)
        outputs = outputs if isinstance(outputs, list | tuple) else [outputs]
        return {name: np.asarray(out) for name, out in zip(names, outputs, strict=True)}

    def save(model, path: Path) -> None:
        with warnings.catch_warnings():  # Keras's Variable.__array__ knows no copy=, which NumPy 2 asks for
            warnings.filterwarnings("ignore", "__array__ implementation doesn't accept a copy", DeprecationWarning)
            model.save(path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keras.initializers.VarianceScaling, "__call__", draw)
        yield SimpleNamespace(keras=keras, run=run, save=save)


@pytest.fixture(scope="session")
def photographs(shared_data: Path) -> Callable[[int, int], np.ndarray]:
    """A function of (size, count): uint8[count, size, size, 3], the same ImageNet photographs at any size."""
    files = sorted((shared_data / "imagenet_samples").glob("*.jpg"))

    def at_size(size: int, count: int) -> np.ndarray:
        chosen = files[:: len(files) // count][:count]
        return np.stack([np.asarray(Image.open(f).convert("RGB").resize((size, size))) for f in chosen])

    return at_size


@pytest.fixture(scope="session")
def assert_same() -> Callable[[dict[str, jax.Array], dict[str, np.ndarray]], None]:
    """A function that compares layers' outputs: the largest difference within 1e-4 of the largest value."""

    def compare(ours: dict[str, jax.Array], theirs: dict[str, np.ndarray]) -> None:
        assert ours.keys() == theirs.keys()
        for name, want in theirs.items():
            assert ours[name].shape == want.shape, name
            assert np.abs(want).max() > 0.0, name
            error = np.abs(np.asarray(ours[name]) - want).max() / np.abs(want).max()
            assert error < 1e-4, f"{name}: relative error {error:.1e}"

    return compare
