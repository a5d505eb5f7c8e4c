"""Schedules: the factor, 0 to 1, that a step's learning rate is of the base learning rate.

Steps are optimizer steps: with gradient accumulation, one for every `accumulate` batches.
"""

import optax


def constant() -> optax.Schedule:
    """The base rate in every step.

    >>> float(constant()(7))
    1.0
    """
    return optax.constant_schedule(1.0)


def warmup_cosine(steps: int, warmup: int, end: float = 0.0) -> optax.Schedule:
    """A linear warm-up to 1, then half a cosine down to `end` (Loshchilov & Hutter 2017, without restarts).

    Step k of the warm-up takes the factor (k + 1) / (warmup + 1): none is lost on a rate of zero.

    Args:
        steps: optimizer steps of the whole run; the factor stays at `end` after them.
        warmup: how many of them warm up; 0 starts at 1.
        end: the factor that is reached after the last step.

    Raises:
        ValueError: if the warm-up does not leave a step to decay in, or `end` is not between 0 and 1.

    Example:
        >>> schedule = warmup_cosine(12, 3)
        >>> [round(float(schedule(step)), 2) for step in (0, 1, 2, 3, 6, 12)]
        [0.25, 0.5, 0.75, 1.0, 0.75, 0.0]
    """
    _check(steps, warmup, end)
    return _warmed(optax.cosine_decay_schedule(1.0, steps - warmup, alpha=end), warmup)


def warmup_linear(steps: int, warmup: int, end: float = 0.0) -> optax.Schedule:
    """A linear warm-up to 1, then a straight line down to `end`; arguments as in `warmup_cosine`.

    With a warm-up of a tenth it is the slanted triangle of ULMFiT (Howard & Ruder 2018).

    Raises:
        ValueError: as `warmup_cosine`.

    Example:
        >>> schedule = warmup_linear(11, 1)
        >>> [round(float(schedule(step)), 2) for step in (0, 1, 6, 11)]
        [0.5, 1.0, 0.5, 0.0]
    """
    _check(steps, warmup, end)
    return _warmed(optax.linear_schedule(1.0, end, steps - warmup), warmup)


def _warmed(decay: optax.Schedule, warmup: int) -> optax.Schedule:
    if not warmup:
        return decay
    return optax.join_schedules([optax.linear_schedule(1 / (warmup + 1), 1.0, warmup), decay], [warmup])


def _check(steps: int, warmup: int, end: float) -> None:
    for name, value, least in (("steps", steps, 1), ("warmup", warmup, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{name}: expected a whole number of optimizer steps from {least} on, found {value!r}")
    if warmup >= steps:
        raise ValueError(
            f"a warm-up of {warmup} steps leaves none of the run's {steps} to decay in; give at most {steps - 1}, "
            f"such as a tenth: {steps // 10}"
        )
    if not 0 <= end <= 1:
        raise ValueError(f"end: expected a factor of the base learning rate from 0 to 1, found {end}")
