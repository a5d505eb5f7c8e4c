"""Convolutional networks and transfer learning on JAX: freezing is partial evaluation."""

import importlib
from typing import TYPE_CHECKING, Any

from cnnjax.runtime.allocation import keep_freed_memory

if TYPE_CHECKING:
    from cnnjax import sizing
    from cnnjax.checkpoints import Checkpoints
    from cnnjax.classifier import ImageClassifier
    from cnnjax.features import FeatureStore
    from cnnjax.fit import Fitter, Keeping, Recipe
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
    from cnnjax.runtime.cache import keep_programs
    from cnnjax.runtime.devices import Devices
    from cnnjax.staging import Staged
    from cnnjax.summaries import summary
    from cnnjax.train.tasks import Classification, MultiLabel, Regression, Task
    from cnnjax.train.trainer import Trainer
    from cnnjax.weights.assign import load_weights

    __version__: str

__all__ = [
    "Backbone",
    "Checkpoints",
    "Classification",
    "Classifier",
    "Devices",
    "FeatureStore",
    "Fitter",
    "Freeze",
    "Frozen",
    "ImageClassifier",
    "Keeping",
    "LogMel",
    "MultiLabel",
    "Recipe",
    "Regression",
    "SoundClassifier",
    "Staged",
    "Task",
    "Trainer",
    "cifar_cnn",
    "create",
    "keep_programs",
    "lecture_cnn",
    "lecture_head",
    "linear_head",
    "load_weights",
    "mobilenet",
    "sizing",
    "summary",
    "vgg16",
]

# Imported when first asked for: a command or a process that reads pictures needs no Flax, and no JAX.
_MODULES = {
    "cnnjax.runtime.cache": ("keep_programs",),
    "cnnjax.checkpoints": ("Checkpoints",),
    "cnnjax.classifier": ("ImageClassifier",),
    "cnnjax.runtime.devices": ("Devices",),
    "cnnjax.features": ("FeatureStore",),
    "cnnjax.fit": ("Fitter", "Keeping", "Recipe"),
    "cnnjax.freeze": ("Freeze", "Frozen"),
    "cnnjax.staging": ("Staged",),
    "cnnjax.summaries": ("summary",),
    "cnnjax.train.tasks": ("Classification", "MultiLabel", "Regression", "Task"),
    "cnnjax.train.trainer": ("Trainer",),
    "cnnjax.weights.assign": ("load_weights",),
}
_LATER = {name: module for module, names in _MODULES.items() for name in names}


keep_freed_memory()


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("cnnjax")
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name == "sizing":
        return importlib.import_module("cnnjax.sizing")
    found = getattr(importlib.import_module(_LATER.get(name, "cnnjax.models")), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
