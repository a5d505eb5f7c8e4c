"""Convolution and max pooling: one meaning, a lowering per platform.

GPU and TPU get XLA's own operations. XLA's CPU backend is slow at some of them, so the CPU lowers these
otherwise. The choice is made at lowering (`jax.lax.platform_dependent`): a program lowered for a TPU on a
laptop holds plain convolutions.

Each operation is one `jax.custom_vjp` in a named `jax.jit`: it shows in a jaxpr as one equation, whose text
depends on shapes and static arguments alone. Reverse mode works to any order; forward mode (`jax.jvp`) does
not.

Times as fast as XLA's own lowering on two shared cores of an AMD EPYC, float32, batch 16, each layer alone (`python
scripts/benchmark.py ops`, 2026-11-23, jax 0.12; before both gradients took Winograd's products and depthwise kernel
gradients went by rows):

| layer | forward | input gradient | weight gradient |
| --- | ---: | ---: | ---: |
| depthwise 3x3, 80x80x32 | 6.1 | 22 | 2.4 |
| the same, 80x80x64, stride 2 | 8.7 | 120 | 2.3 |
| 40x40x128, 20x20x256, 10x10x512, 5x5x1024 | 15, 14, 17, 12 | 20, 10, 16, 12 | 8.6, 14, 29, 55 |
| 1x1, 80x80x32 to 64 | 1.2 | 1.4 | 4.0 |
| 40x40x128, 20x20x256, 10x10x512, 5x5x1024 | 1.0, 1.0, 1.1, 1.3 | 1.0, 1.1, 1.0, 1.2 | 2.1, 2.8, 1.5, 2.4 |
| 3x3, 150x150x3 to 32 | | | 2.4 |
| 74x74x32 to 64, 36x36x64 to 128, 17x17x128 to 128 | | | 1.7, 1.1, 1.0 |
| 180x180x64 to 64, 90x90x64 to 128, 90x90x128 to 128 | | | 2.6, 5.3, 6.0 |
| 45x45x256 to 256, by Winograd | 1.3 | 1.1 | 5.6 |
| 22x22x512 to 512, by Winograd | 2.1 | 1.5 | 2.9 |
| 11x11x512 to 512, by Winograd | 1.7 | 0.8 | 1.0 |
| 2x2x512 to 512, as products | 51 | 21 | 1 |
| max pooling 2x2, 148x148x32 | 1 | 16 | |
| batch normalisation, 80x80x64, alone | 1 | 1 | 1 |

Those two, on two cores of an Intel Xeon (2 MiB of L2 cache a core), medians of six in turns, 2026-11-28, jax 0.12:

| layer | forward | input gradient | weight gradient |
| --- | ---: | ---: | ---: |
| 3x3, 90x90x128 to 128, batch 4, by Winograd | 1.0 | 1.2 | 4.6 |
| 45x45x256 to 256, batch 8 | 1.2 | 1.5 | 4.5 |
| 22x22x512 to 512, batch 8 | 1.9 | 2.7 | 5.5 |
| 11x11x512 to 512, batch 16 | 2.4 | 2.6 | 5.3 |
| 17x17x128 to 128, batch 32 | 1.0 | 0.9 | 2.5 |
| 36x36x64 to 128, batch 32: XLA's, a few images at a time (Winograd: 2.8) | | | 3.7 |
| 74x74x32 to 64, batch 32, likewise (Winograd: 1.5) | | | 2.9 |
| depthwise, batch 16, by rows beside by images: 80x80x32, 40x40x128, 20x20x256 | | | 2.2, 1.6, 1.7 |
| 80x80x64 and 40x40x128 of stride 2 | | | 1.4, 1.3 |

Depthwise convolutions are shifted multiply-adds, their kernel gradient a scan over rows of large maps, and over images
of small ones; 1x1 are matrix products; other kernel gradients of outputs over 2 MiB are summed a few images at a time;
max pooling's gradient marks the first maximum; where a map is narrower than the window, forward and input gradient are
products with its patches. Winograd's products gained nothing forwards with fewer channels (90x90x128: 1.0). BatchNorm's
gradient gains where it stands in a network: a quarter of the elementwise work and sums of MobileNet's step, and a tenth
of the step for not storing in the forward pass what the backward one can make again.
"""

from cnnjax.onednn import settle
from cnnjax.ops.convolution import conv_general_dilated, spread_over_devices
from cnnjax.ops.normalization import batch_norm
from cnnjax.ops.pooling import max_pool
from cnnjax.ops.rectifier import relu

__all__ = ["batch_norm", "conv_general_dilated", "max_pool", "relu", "spread_over_devices"]

settle()
