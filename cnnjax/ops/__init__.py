"""Convolution and max pooling: one meaning, a lowering per platform.

GPU and TPU get XLA's own operations. XLA's CPU backend is slow at some of them, so the CPU lowers these
otherwise. The choice is made at lowering (`jax.lax.platform_dependent`): a program lowered for a TPU on a
laptop holds plain convolutions.

Each operation is one `jax.custom_vjp` in a named `jax.jit`: it shows in a jaxpr as one equation, whose text
depends on shapes, static arguments and whether the process has oneDNN alone (that of normalisation in training also on
how many threads it has). Reverse mode works to any order; forward mode (`jax.jvp`) does not, but for `relu`.

On CPU, XLA's own libraries are Eigen and YNNPACK. jaxlib holds oneDNN too, which is asked for the convolutions, input
gradients and products that it does well (`cnnjax.ops.onednn`). Times as fast as XLA's own lowering, float32, batch 16,
each layer alone (`python scripts/benchmark.py ops`, jax 0.12). On the left with oneDNN, two cores of an Intel Xeon (2
MiB of L2 cache a core), 2026-11-28; on the right without it, two cores of an AMD EPYC, 2026-11-23, before both
gradients took Winograd's products, and depthwise kernel gradients went by rows and padded nothing:

| layer | forward | input gradient | weight gradient | without: forward | input | weight |
| --- | ---: | ---: | ---: | ---: | ---: | ---: |
| depthwise 3x3, 80x80x32 | 1 | 1 | 17 | 6.1 | 22 | 2.4 |
| the same, 80x80x64, stride 2 | 1 | 66 | 9.1 | 8.7 | 120 | 2.3 |
| 40x40x128 | 1 | 1 | 23 | 15 | 20 | 8.6 |
| 20x20x256 | 1 | 1 | 26 | 14 | 10 | 14 |
| 10x10x512 | 1 | 1 | 32 | 17 | 16 | 29 |
| 5x5x1024 | 1 | 1 | 43 | 12 | 12 | 55 |
| 1x1, 80x80x32 to 64 | 1.2 | 0.8 | 2.4 | 1.2 | 1.4 | 4.0 |
| 40x40x128 to 128 | 1.0 | 0.9 | 1.9 | 1.0 | 1.0 | 2.1 |
| 20x20x256 to 256 | 1.0 | 1.0 | 1.5 | 1.0 | 1.1 | 2.8 |
| 10x10x512 to 512 | 1.0 | 1.0 | 1.3 | 1.1 | 1.0 | 1.5 |
| 5x5x1024 to 1024 | 1.3 | 1.5 | 4.4 | 1.3 | 1.2 | 2.4 |
| 3x3, 150x150x3 to 32, by patches | 1 | 1 | 9.4 | | | 2.4 |
| 74x74x32 to 64, by parts | 1 | 1 | 2.2 | | | 1.7 |
| 36x36x64 to 128, by parts | 1 | 1 | 2.5 | | | 1.1 |
| 17x17x128 to 128 | 1 | 1 | 1.1 | | | 1.0 |
| 180x180x64 to 64, by Winograd | 1 | 1 | 2.9 | | | 2.6 |
| 90x90x64 to 128, 90x90x128 to 128, likewise | 1 | 1 | 2.0, 3.0 | | | 5.3, 6.0 |
| 45x45x256 to 256, by Winograd | 0.97 | 1.0 | 2.9 | 1.3 | 1.1 | 5.6 |
| 22x22x512 to 512, by Winograd | 1.4 | 1.5 | 3.4 | 2.1 | 1.5 | 2.9 |
| 11x11x512 to 512, by Winograd | 1.1 | 1.4 | 2.4 | 1.7 | 0.8 | 1.0 |
| 2x2x512 to 512, as products | 61 | 26 | 1 | 51 | 21 | 1 |
| max pooling 2x2, 148x148x32 | 0.9 | 14 | | 1 | 16 | |
| batch normalisation, 80x80x64, alone | 1 | 1.1 | 0.8 | 1 | 1 | 1 |

(A plain 1 is the same operation on both sides.) Depthwise convolutions are shifted multiply-adds where oneDNN is not
there or has none: strided ones' input gradients, and kernel gradients, which are a scan over rows of two images at a
time that copies nothing, but that XLA runs in one thread; 1x1 are matrix products. Kernel gradients of outputs over 2
MiB are summed a few images at a time, since oneDNN in jaxlib has none, or laid out as patches where channels are few.
Max pooling's gradient marks the first maximum; where a map is narrower than the window, forward and input gradient are
products with its patches. Winograd's products gain more in a network than alone: VGG16's features at 180x180 go 8 %
slower without them. BatchNorm's gradient gains where it stands in a network: a quarter of the elementwise work and sums
of MobileNet's step, and a tenth of the step for not storing in the forward pass what the backward one can make again.
XLA takes each sum over batch and space by itself, in all threads; where they are two at most, one loop takes two sums
from one reading, forwards in 0.6 of the time of one thread and backwards in as much, which MobileNet 0.75's step gains
1.05 by with one thread. The rectifier's gradient reads its output, so that nothing else is kept.
"""

from cnnjax.ops.convolution import conv_general_dilated
from cnnjax.ops.normalization import batch_norm
from cnnjax.ops.onednn import use_onednn
from cnnjax.ops.pooling import max_pool
from cnnjax.ops.rectifier import relu
from cnnjax.ops.spread import spread_over_devices

__all__ = ["batch_norm", "conv_general_dilated", "max_pool", "relu", "spread_over_devices", "use_onednn"]
