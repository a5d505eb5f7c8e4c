"""Convolution and max pooling: one meaning, a lowering per platform.

GPU and TPU get XLA's own operations. XLA's CPU backend is slow at some of them, so the CPU lowers these otherwise; the
choice is made at lowering (`jax.lax.platform_dependent`): a program lowered for a TPU on a laptop holds plain convolutions.

Each operation is one `jax.custom_vjp` in a named `jax.jit`: it shows in a jaxpr as one equation whose text depends on
shapes and static arguments alone. Reverse mode works to any order; forward mode (`jax.jvp`) does not.

MEASURED
"""

from cnnjax.ops.convolution import conv_general_dilated
from cnnjax.ops.pooling import max_pool

__all__ = ["conv_general_dilated", "max_pool"]
