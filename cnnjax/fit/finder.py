"""The range test for the learning rate (Smith 2017): one short run in which the rate grows until the loss explodes."""

import math
from typing import NamedTuple

import numpy as np

from cnnjax.optim import with_rate
from cnnjax.train.dataset import FeatureDataset
from cnnjax.train.trainer import Trainer

_SMOOTH = 0.9
_EXPLODED = 4.0
_EDGE = 5


class RateTest(NamedTuple):
    """What a range test found.

    Attributes:
        rates: f64[n], the learning rate of each step.
        losses: f64[n], the loss of each step's batch, before the step.
        smoothed: f64[n], its exponential average, without bias.
        suggested: the rate at which the smoothed loss fell fastest; None where it never fell.
    """

    rates: np.ndarray
    losses: np.ndarray
    smoothed: np.ndarray
    suggested: float | None


def find_rate(
    trainer: Trainer, rows: FeatureDataset, *, low: float = 1e-6, high: float = 1.0, steps: int = 100, seed: int = 0
) -> RateTest:
    """Train from the model's own weights while the rate grows by the same factor in every step.

    It ends early where the smoothed loss is four times its lowest or NaN or Inf. Rates are numbers in the
    optimizer's state: one program runs all steps. The trainer and its model stay as they are.

    Args:
        trainer: made with an optimizer without a schedule of its own.
        rows: `trainer.rows(source)`.
        low: the first rate.
        high: the last.
        steps: how many, over as many epochs as that takes.
        seed: of order, dropout and augmentation.

    Raises:
        ValueError: rates that are not 0 < low < high, or fewer than 10 steps.

    >>> from flax import nnx
    >>> from cnnjax.data import InMemory
    >>> from cnnjax.freeze import Freeze
    >>> model = nnx.Sequential(lambda x: x.mean((1, 2)) / 255, nnx.Linear(3, 1, rngs=nnx.Rngs(0)))
    >>> images = np.concatenate([np.zeros((20, 4, 4, 3), np.uint8), np.full((20, 4, 4, 3), 255, np.uint8)])
    >>> data = InMemory(images, np.arange(40) // 20, ("dark", "bright"))
    >>> trainer = Trainer(model, Freeze.none().resolve(model), (4, 4), batch_size=8, optimizer="sgd")
    >>> found = find_rate(trainer, trainer.rows(data), low=1e-3, high=100.0, steps=40)
    >>> 0.01 < found.suggested < 10
    True
    """
    if not 0 < low < high < math.inf:
        raise ValueError(f"a range of rates needs 0 < low < high, found {low} to {high}")
    if steps < 10:
        raise ValueError(f"steps: a range test needs 10 or more, found {steps}")
    rates = np.geomspace(low, high, steps)
    losses: list[float] = []
    smoothed: list[float] = []
    state, mean, epoch = trainer.init(), 0.0, 0
    state = state._replace(optimizer=with_rate(state.optimizer, rates[0]))
    running = trainer.steps(state, rows, seed=seed, epoch=epoch)
    step = next(running)
    while True:
        state, metrics = step
        losses.append(float(metrics.loss) / (float(metrics.count) or 1.0))
        mean = _SMOOTH * mean + (1 - _SMOOTH) * losses[-1]
        smoothed.append(mean / (1 - _SMOOTH ** len(losses)))
        exploded = not math.isfinite(smoothed[-1]) or smoothed[-1] > _EXPLODED * min(smoothed)
        if exploded or len(losses) == steps:
            break
        state = state._replace(optimizer=with_rate(state.optimizer, rates[len(losses)]))
        try:
            step = running.send(state)
        except StopIteration:
            epoch += 1
            running = trainer.steps(state, rows, seed=seed, epoch=epoch)
            step = next(running)
    running.close()
    found = np.array(smoothed)
    return RateTest(rates[: len(losses)], np.array(losses), found, _steepest(rates[: len(losses)], found))


def _steepest(rates: np.ndarray, smoothed: np.ndarray) -> float | None:
    """The rate of the steepest fall over its logarithm; the first steps and the explosion do not count."""
    stop = int(np.nanargmin(smoothed)) + 1 if np.isfinite(smoothed).any() else 0
    if stop <= _EDGE + 1:
        return None
    slope = np.gradient(smoothed[:stop], np.log(rates[:stop]))[_EDGE:]
    place = int(slope.argmin())
    return float(rates[_EDGE + place]) if slope[place] < 0 else None
