"""Convolutional networks and transfer learning on JAX: freezing is partial evaluation."""

from importlib.metadata import version

from cnnjax import sizing
from cnnjax.features import FeatureStore
from cnnjax.freeze import Freeze, Frozen
from cnnjax.models import (
    Backbone,
    Classifier,
    LogMel,
    SoundClassifier,
    cifar_cnn,
    create,
    lecture_cnn,
    lecture_head,
    linear_head,
    mobilenet,
    vgg16,
)
from cnnjax.staging import Staged
from cnnjax.summaries import summary
from cnnjax.training import Trainer
from cnnjax.weights.assign import load_weights

__version__ = version("cnnjax")

__all__ = [
    "Backbone",
    "Classifier",
    "FeatureStore",
    "Freeze",
    "Frozen",
    "LogMel",
    "SoundClassifier",
    "Staged",
    "Trainer",
    "cifar_cnn",
    "create",
    "lecture_cnn",
    "lecture_head",
    "linear_head",
    "load_weights",
    "mobilenet",
    "sizing",
    "summary",
    "vgg16",
]
