"""What is computed with: float32, or bfloat16 where the hardware multiplies it many times as fast."""

from typing import Literal, get_args

import jax

Precision = Literal["auto", "float32", "bfloat16"]
_AMPERE = 8.0  # the first generation of NVIDIA's with bfloat16 in its matrix units


def resolved(precision: Precision) -> Literal["float32", "bfloat16"]:
    """The type that is computed with; parameters, statistics, sums and the loss are float32 either way.

    "auto" is bfloat16 on TPUs and on GPUs from NVIDIA's Ampere on, and float32 elsewhere.

    Raises:
        ValueError: it is none of the choices.

    >>> resolved("bfloat16")
    'bfloat16'
    """
    if precision not in get_args(Precision):
        raise ValueError(f"precision: expected one of {', '.join(get_args(Precision))}, found {precision!r}")
    if precision != "auto":
        return precision
    return "bfloat16" if _multiplies_bfloat16(jax.devices()[0]) else "float32"


def _multiplies_bfloat16(device: jax.Device) -> bool:
    if device.platform == "tpu":
        return True
    return device.platform == "gpu" and float(getattr(device, "compute_capability", None) or 0) >= _AMPERE
