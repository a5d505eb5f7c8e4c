"""Where what is made once is kept between runs."""

import os
import time
import warnings
from contextlib import suppress
from pathlib import Path

_KEPT_SECONDS = 30 * 24 * 3600


def cache_folder() -> Path:
    """Where features, compiled programs and drawn data sets are kept.

    It is `$CNNJAX_CACHE`, or `cnnjax` in the user's cache folder.
    """
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("CNNJAX_CACHE") or Path(base) / "cnnjax")


def keep_programs() -> None:
    """Keep compiled programs on disk, so that a second start need not compile them; the commands do so by themselves.

    It is JAX's own persistent cache, in `cache_folder()/programs`; a folder that was set before (by
    `JAX_COMPILATION_CACHE_DIR`, say) stays, and `JAX_ENABLE_COMPILATION_CACHE=false` turns it off. Programs that were
    compiled more than 30 days ago are removed: those of former versions would stay for ever.

    Programs with oneDNN's operations (see `cnnjax.ops.onednn`), steps and passes over images on CPU, cannot be kept:
    jaxlib 0.11 and 0.12 fail to write them, which JAX warns of (that warning is filtered). Each process compiles them;
    with `CNNJAX_ONEDNN=0` there are none.
    """
    import jax

    warnings.filterwarnings("ignore", "Error writing persistent compilation cache entry(.|\n)*bad_alloc", UserWarning)

    if jax.config.jax_compilation_cache_dir is None:
        folder = cache_folder() / "programs"
        for program in folder.glob("*-cache"):
            with suppress(OSError):  # removed meanwhile by another process
                if time.time() - program.stat().st_mtime > _KEPT_SECONDS:
                    program.unlink()
        jax.config.update("jax_compilation_cache_dir", str(folder))
        # The many small programs around a step add up to seconds; JAX keeps only what took a second each.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
