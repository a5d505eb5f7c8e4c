"""Convolution and max pooling: one meaning, a lowering per platform.

GPU and TPU get XLA's own operations. XLA's CPU backend is slow at some of them, so the CPU lowers these
otherwise. The choice is made at lowering (`jax.lax.platform_dependent`): a program lowered for a TPU on a
laptop holds plain convolutions.

Each operation is one `jax.custom_vjp` in a named `jax.jit`: it shows in a jaxpr as one equation, whose text
depends on shapes and static arguments alone. Reverse mode works to any order; forward mode (`jax.jvp`) does
not.

Times as fast as XLA's own lowering on two shared CPU cores, float32, batch 16, on layers of MobileNet 0.75 at
160x160, of VGG16 and of small CNNs, each alone (2026-11-23, jax 0.12):

| operation | lowering on CPU | times as fast |
| --- | --- | --- |
| depthwise 3x3, stride 1 (2) | shifted multiply-adds | 11 to 37 (6 to 14) |
| its input gradient | the same, a phase of the stride at a time | 16 to 33 (90 to 150) |
| its kernel gradient | summed over images in a scan | 3.5 to 76 (4.6 to 18) |
| forward and both gradients | | 10 to 29 (35 to 48) |
| 1x1 | matrix product | 0.7 to 1.9 |
| its input gradient | matrix product | 0.8 to 2.1 |
| its kernel gradient | matrix product | 2.4 to 12 |
| forward and both gradients | | 1.5 to 4.3 |
| kernel gradient, output over 12 MiB | a few images at a time | 1.2 to 4.7 |
| gradient of max pooling | first maximum marked | 8 to 30 |
| MobileNet without BatchNorm, forward | | 5 |
| the same, forward and backward | | 8 |

Patches and matrix products were never over a tenth faster than XLA's own 3x3 convolution, nor faster than
its kernel gradient in chunks of images.
"""

from cnnjax.ops.convolution import conv_general_dilated, spread_over_devices
from cnnjax.ops.normalization import batch_norm
from cnnjax.ops.pooling import max_pool

__all__ = ["batch_norm", "conv_general_dilated", "max_pool", "spread_over_devices"]
