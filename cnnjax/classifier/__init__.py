"""A classifier of images that is saved, sent and loaded as one folder."""

from cnnjax.classifier.classifier import ImageClassifier
from cnnjax.classifier.config import Config
from cnnjax.classifier.folder import SavedClassifierError
from cnnjax.classifier.prediction import Prediction

__all__ = ["Config", "ImageClassifier", "Prediction", "SavedClassifierError"]
