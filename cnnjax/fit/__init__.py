"""Training by recipe: the lecture's methods, fine-tuning, and what researchers add."""

from cnnjax.fit.finder import RateTest, find_rate
from cnnjax.fit.fitter import Fitted, Fitter
from cnnjax.fit.progress import CheckpointConfig
from cnnjax.fit.recipe import Phase, Recipe, phases

__all__ = ["CheckpointConfig", "Fitted", "Fitter", "Phase", "RateTest", "Recipe", "find_rate", "phases"]
