"""oneDNN for XLA's CPU backend, which holds it since jaxlib 0.11 but asks it for nothing by default.

Forward convolutions (grouped ones too), inputs' gradients of those without a stride, and larger products become its
operations, with what follows them: a bias, `max(x, 0)`, `clip(x, 0, 6)`. Kernel gradients do not. A program with such
operations cannot be written to a compilation cache (jaxlib 0.12: `std::bad_alloc`). YNNPACK, XLA's default, must be
confined to sums for that. It still takes convolutions along that stand beside a maximum over windows: `cnnjax.ops`
keeps them apart.
"""

import os
import platform
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

_FLAGS = {
    "xla_cpu_experimental_onednn_custom_call": "true",
    # XLA's default, YNNPACK, would take convolutions and products first; only its sums are left to it.
    "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE",
}
_FIRST, _BEYOND = (0, 11), (0, 13)  # XLA ends a process for a flag that it does not know
_PLUGINS = ("libtpu", "jax_cuda12_plugin", "jax_cuda13_plugin", "jax_rocm7_plugin", "jax_rocm60_plugin")
_before: str | None = None
_written: str | None = None


def ask() -> bool:
    """Ask XLA, by `XLA_FLAGS`, to hand convolutions and matrix products on CPU to oneDNN.

    XLA reads its flags once, when the process compiles its first program: `import cnnjax` calls this, so import it
    before JAX computes anything. Whoever sets one of these flags, to whatever value, is left alone: with
    `XLA_FLAGS=--xla_cpu_experimental_onednn_custom_call=false` nothing is asked for. Nor is it where JAX has an
    accelerator's plugin, whose own XLA reads the same variable and may be of another version, unless
    `JAX_PLATFORMS=cpu`.

    Returns:
        Whether it was asked for.
    """
    global _before, _written
    flags = os.environ.get("XLA_FLAGS")
    if _written or any(name in (flags or "") for name in _FLAGS):
        return bool(_written)
    platforms = os.environ.get("JAX_PLATFORMS", "")
    if platforms != "cpu" and (platforms or any(map(find_spec, _PLUGINS))):
        return False
    try:
        jaxlib = tuple(int(part) for part in version("jaxlib").split(".")[:2])
    except (PackageNotFoundError, ValueError):
        return False
    if not _FIRST <= jaxlib < _BEYOND or (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        return False
    _before = flags
    _written = " ".join(filter(None, [flags, *(f"--{name}={value}" for name, value in _FLAGS.items())]))
    os.environ["XLA_FLAGS"] = _written
    return True


def settle() -> None:
    """Let XLA read its flags now, and take back what `ask` wrote: other libraries with an XLA may not know them.

    What somebody else has written to `XLA_FLAGS` meanwhile is read and stays.
    """
    global _written
    if not _written:
        return
    from jaxlib import xla_client

    _ = xla_client.CompileOptions().executable_build_options.debug_options
    if os.environ.get("XLA_FLAGS") == _written:
        if _before is None:
            del os.environ["XLA_FLAGS"]
        else:
            os.environ["XLA_FLAGS"] = _before
    _written = None


@cache
def answers() -> bool:
    """Whether this process's programs for the CPU get oneDNN's convolutions: one is compiled and looked at."""
    import jax
    import jax.numpy as jnp
    from jax import lax

    if jax.default_backend() != "cpu":
        return False
    image, kernel = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((1, 8, 8, 8), (3, 3, 8, 8)))

    def convolve(image: jax.Array, kernel: jax.Array) -> jax.Array:
        return lax.conv_general_dilated(image, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    return "__onednn$convolution" in (jax.jit(convolve).lower(image, kernel).compile().as_text() or "")
