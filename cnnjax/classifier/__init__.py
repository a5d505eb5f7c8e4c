"""A classifier of images that is saved, sent and loaded as one folder."""

import importlib
from typing import TYPE_CHECKING, Any

from cnnjax.classifier.classifier import ImageClassifier
from cnnjax.classifier.config import Config
from cnnjax.classifier.folder import SavedClassifierError
from cnnjax.classifier.prediction import Prediction

if TYPE_CHECKING:
    from cnnjax.classifier.fitting import Fit, fit
    from cnnjax.classifier.running import RuntimeConfig
    from cnnjax.classifier.training import Training

__all__ = ["Config", "Fit", "ImageClassifier", "Prediction", "RuntimeConfig", "SavedClassifierError", "Training", "fit"]

# Imported when first asked for: what the command `fit` needs, a loaded classifier does not.
_LATER = {"Fit": "fitting", "RuntimeConfig": "running", "Training": "training", "fit": "fitting"}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_LATER[name]}"), name)
