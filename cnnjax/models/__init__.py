"""Architectures, their heads and what their published weights need."""

import difflib
from collections.abc import Callable
from typing import Any

from cnnjax.models.backbone import Backbone, Classifier
from cnnjax.models.heads import lecture_head, linear_head
from cnnjax.models.lecture_cnn import cifar_cnn, lecture_cnn
from cnnjax.models.mobilenet import PUBLISHED as _MOBILENET
from cnnjax.models.mobilenet import mobilenet
from cnnjax.models.preprocessing import PREPROCESSING, preprocess
from cnnjax.models.sound import LogMel, SoundClassifier
from cnnjax.models.vgg16 import PUBLISHED as _VGG16
from cnnjax.models.vgg16 import vgg16

BACKBONES: dict[str, Callable[..., Backbone]] = {
    "mobilenet": mobilenet,
    "vgg16": vgg16,
    "lecture_cnn": lecture_cnn,
    "cifar_cnn": cifar_cnn,
}
"""Name to function; see `create`."""
PUBLISHED = {entry.name: entry for entry in (*_MOBILENET, *_VGG16)}
"""Name to entry of every weights file known here; see `cnnjax.weights.published.find`."""

__all__ = [
    "BACKBONES",
    "PREPROCESSING",
    "PUBLISHED",
    "Backbone",
    "Classifier",
    "LogMel",
    "SoundClassifier",
    "cifar_cnn",
    "create",
    "lecture_cnn",
    "lecture_head",
    "linear_head",
    "mobilenet",
    "preprocess",
    "vgg16",
]


def create(name: str, **kwargs: Any) -> Backbone:
    """Build the network of that name; `kwargs` go to its function (`include_top=False` for a bare backbone).

    Raises:
        LookupError: There is none; the nearest name is given.

    >>> from flax import nnx
    >>> create("mobilenet", alpha=0.25, input_shape=(96, 96, 3), rngs=nnx.Rngs(0)).output_shape()
    (1000,)
    """
    if name not in BACKBONES:
        nearest = difflib.get_close_matches(name, BACKBONES, n=1, cutoff=0)[0]
        raise LookupError(f"no backbone {name!r}; did you mean {nearest!r}? There are {', '.join(BACKBONES)}")
    return BACKBONES[name](**kwargs)
