"""The sweep over frozen depth and what else its grid varies."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cnnjax.sweep.ablation import ablate
    from cnnjax.sweep.options import Ablation

__all__ = ["Ablation", "ablate"]

# Imported when first asked for: a process that trains one cell needs no command.
_LATER = {"Ablation": "cnnjax.sweep.options", "ablate": "cnnjax.sweep.ablation"}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_LATER[name]), name)
