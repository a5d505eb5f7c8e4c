"""A small network with normalisation, and images that it can tell apart."""

import numpy as np
from flax import nnx

from cnnjax.data import InMemory
from cnnjax.models import Classifier
from cnnjax.models.backbone import Backbone
from cnnjax.models.heads import linear_head
from cnnjax.models.layers import ReLU, batch_normalization, conv2d

SIZE = (12, 12)


def make(classes=2, seed=0):
    """Two convolutions with normalisation, and a head."""
    rngs = nnx.Rngs(seed)
    layers = [
        ("conv_1", conv2d(3, 4, (3, 3), rngs=rngs)),
        ("bn_1", batch_normalization(4, rngs=rngs)),
        ("relu_1", ReLU()),
    ]
    layers += [
        ("conv_2", conv2d(4, 6, (3, 3), rngs=rngs)),
        ("bn_2", batch_normalization(6, rngs=rngs)),
        ("relu_2", ReLU()),
    ]
    backbone = Backbone(layers, input_shape=(*SIZE, 3))
    return Classifier(backbone, linear_head(backbone.output_shape(), classes, rngs=rngs), "unit")


def images(count, seed, classes=2):
    """Squares whose brightness tells the class, in noise."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    images = rng.integers(0, 120, (count, *SIZE, 3)) + (labels * 60)[:, None, None, None]
    return InMemory(images.clip(0, 255).astype(np.uint8), labels, tuple("abcdef"[:classes]))
