"""Convolutional networks and transfer learning on JAX: freezing is partial evaluation.

Every architecture is a function here as well, such as `cnnjax.mobilenet`; `cnnjax.models.BACKBONES` lists them.
"""

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

from cnnjax.runtime.tuning import tune_cpu

if TYPE_CHECKING:
    from cnnjax import sizing
    from cnnjax.checkpoints import Checkpoints
    from cnnjax.classifier import ImageClassifier
    from cnnjax.features import FeatureStore
    from cnnjax.fit import CheckpointConfig, Fitter, Recipe
    from cnnjax.freeze import Freeze, Frozen
    from cnnjax.functional import Leaves, functionalize, leaves_of
    from cnnjax.models import (
        Backbone,
        Classifier,
        LogMel,
        SoundClassifier,
        create,
        lecture_head,
        linear_head,
    )
    from cnnjax.runtime.cache import keep_programs
    from cnnjax.runtime.devices import Devices
    from cnnjax.staging import Staged
    from cnnjax.summaries import summary
    from cnnjax.train.callbacks import Callback
    from cnnjax.train.replicas import Replicas
    from cnnjax.train.tasks import Classification, MultiLabel, Regression, Task
    from cnnjax.train.trainer import Trainer
    from cnnjax.weights.assign import load_weights
    from cnnjax.weights.pretrained import open_backbone

    __version__: str

__all__ = [
    "Backbone",
    "Callback",
    "CheckpointConfig",
    "Checkpoints",
    "Classification",
    "Classifier",
    "Devices",
    "FeatureStore",
    "Fitter",
    "Freeze",
    "Frozen",
    "ImageClassifier",
    "Leaves",
    "LogMel",
    "MultiLabel",
    "Recipe",
    "Regression",
    "Replicas",
    "SoundClassifier",
    "Staged",
    "Task",
    "Trainer",
    "create",
    "functionalize",
    "keep_programs",
    "leaves_of",
    "lecture_head",
    "linear_head",
    "load_weights",
    "open_backbone",
    "sizing",
    "summary",
    "tune_cpu",
]

# Imported when first asked for: a command or a process that reads images needs no Flax, and no JAX.
_MODULES = {
    "cnnjax.runtime.cache": ("keep_programs",),
    "cnnjax.checkpoints": ("Checkpoints",),
    "cnnjax.classifier": ("ImageClassifier",),
    "cnnjax.runtime.devices": ("Devices",),
    "cnnjax.features": ("FeatureStore",),
    "cnnjax.fit": ("Fitter", "CheckpointConfig", "Recipe"),
    "cnnjax.freeze": ("Freeze", "Frozen"),
    "cnnjax.functional": ("Leaves", "functionalize", "leaves_of"),
    "cnnjax.weights.pretrained": ("open_backbone",),
    "cnnjax.staging": ("Staged",),
    "cnnjax.summaries": ("summary",),
    "cnnjax.train.callbacks": ("Callback",),
    "cnnjax.train.replicas": ("Replicas",),
    "cnnjax.train.tasks": ("Classification", "MultiLabel", "Regression", "Task"),
    "cnnjax.train.trainer": ("Trainer",),
    "cnnjax.weights.assign": ("load_weights",),
}
_LATER = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("cnnjax")
    if name == "sizing":
        return importlib.import_module("cnnjax.sizing")
    if name in __all__:
        found = getattr(importlib.import_module(_LATER.get(name, "cnnjax.models")), name)
    else:  # an architecture; what asks for a module first, as `from cnnjax import hooks` does, must not import them
        other = name.startswith("_") or importlib.util.find_spec(f"{__name__}.{name}") is not None
        found = None if other else importlib.import_module("cnnjax.models").BACKBONES.get(name)
        if found is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
