"""Freezing as partial evaluation: what can be computed once is found and cut off."""

from cnnjax.staging.staged import Feature, Maker, Staged
from cnnjax.staging.times import Time

__all__ = ["Feature", "Maker", "Staged", "Time"]
