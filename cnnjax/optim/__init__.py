"""Optimizers: optax's parts under Keras's names and defaults, and what transfer learning asks of them.

Parameters are flat dictionaries from path to array. The learning rate is a number in the optimizer's state, so
that rates share one compiled program; a schedule is a factor 0 to 1 of it.

>>> from cnnjax.optim import by_groups, make_optimizer, warmup_cosine
>>> paths = ["backbone/block5_conv1/kernel", "backbone/block5_conv1/bias", "head/dense/kernel"]
>>> optimizer = make_optimizer(
...     "adam", 1e-4, schedule=warmup_cosine(1000, 50), weight_decay=1e-2, clip=1.0, ema=0.99,
...     factors=by_groups({"backbone": 0.1}, paths),
... )
"""

from cnnjax.optim.average import averaged
from cnnjax.optim.factors import Factors, by_depth, by_groups
from cnnjax.optim.optimizer import OPTIMIZERS, decays, make_optimizer, with_rate
from cnnjax.optim.schedules import constant, warmup_cosine, warmup_linear
from cnnjax.optim.transfer import Moved, transfer_optimizer_state

__all__ = [
    "OPTIMIZERS",
    "Factors",
    "Moved",
    "averaged",
    "by_depth",
    "by_groups",
    "constant",
    "decays",
    "make_optimizer",
    "transfer_optimizer_state",
    "warmup_cosine",
    "warmup_linear",
    "with_rate",
]  # fmt: skip
