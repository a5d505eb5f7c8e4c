"""A small classifier with numbers of its own in every leaf, and real images."""

from pathlib import Path

import numpy as np
import pytest

from cnnjax.classifier import ImageClassifier


@pytest.fixture(scope="session")
def small() -> ImageClassifier:
    """Three classes at 32 pixels, decided by random numbers: every logit moves with the image."""
    made = ImageClassifier("lecture_cnn", ("a", "b", "c"), image_size=32, head="linear", widths=(4, 8))
    rng = np.random.default_rng(0)
    leaves = {path: rng.normal(0, 0.5, x.shape).astype(np.float32) for path, x in made.leaves.items()}
    history = [{"epoch": 0, "loss": 0.5}]
    return made.with_leaves(leaves, metrics={"test": {"accuracy": np.float32(0.75), "auc": np.nan}}, history=history)


@pytest.fixture(scope="session")
def stripes() -> ImageClassifier:
    """Two classes at 32 pixels, untrained."""
    return ImageClassifier("lecture_cnn", ("across", "down"), image_size=32, head="linear", widths=(4, 8), seed=1)


@pytest.fixture(scope="session")
def pets(shared_data: Path) -> ImageClassifier:
    """MobileNet 0.25 at 96 pixels with its published weights, under the lecture's head."""
    weights = shared_data / "weights/mobilenet_2_5_224_tf_no_top.h5"
    return ImageClassifier("mobilenet", ("cats", "dogs"), weights=weights, alpha=0.25, image_size=96)


@pytest.fixture(scope="session")
def photographs(shared_data: Path) -> list[str]:
    """Nine photographs of several shapes."""
    return [str(path) for path in sorted((shared_data / "cats_and_dogs_small/test/cats").iterdir())[:9]]
