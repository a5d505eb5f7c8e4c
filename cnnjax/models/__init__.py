"""Architectures, their heads and what their published weights need.

Every architecture that a module of this package registers (`cnnjax.models.registry.register`) is a function here.
"""

from typing import Any

from cnnjax.models import layers, registry
from cnnjax.models.backbone import Backbone, Classifier
from cnnjax.models.graph import Graph
from cnnjax.models.heads import lecture_head, linear_head
from cnnjax.models.preprocessing import PREPROCESSING, preprocess
from cnnjax.models.registry import register
from cnnjax.models.sound import LogMel, SoundClassifier

BACKBONES = registry.Functions()
"""Name to function; see `create`."""
PUBLISHED = registry.AllPublished()
"""Name to entry of every weights file known here; see `cnnjax.models.registry.find`."""

__all__ = [
    "BACKBONES",
    "PREPROCESSING",
    "PUBLISHED",
    "Backbone",
    "Classifier",
    "Graph",
    "LogMel",
    "SoundClassifier",
    "create",
    "layers",
    "lecture_head",
    "linear_head",
    "preprocess",
    "register",
]


def create(name: str, **kwargs: Any) -> Backbone:
    """Build the network of that name; `kwargs` go to its function (`include_top=False` for a bare backbone).

    Raises:
        LookupError: There is none; the nearest name is given.

    >>> from flax import nnx
    >>> create("mobilenet", alpha=0.25, input_shape=(96, 96, 3), rngs=nnx.Rngs(0)).output_shape()
    (1000,)
    """
    return registry.entry(name).function(**kwargs)


# The functions take the place of modules of the same name.
globals().update({name: found.function for name, found in registry.discover(__name__, __path__).items()})
