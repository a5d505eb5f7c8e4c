"""Freezing as partial evaluation: what can be computed once is found and cut off."""

from cnnjax.staging.staged import Feature, Maker, Staged
from cnnjax.staging.times import ProgramDiffers, Time

__all__ = ["Feature", "Maker", "ProgramDiffers", "Staged", "Time"]
