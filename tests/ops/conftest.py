"""Both libraries that convolutions on CPU are taken from."""

import jax
import pytest

from cnnjax.ops import use_onednn


@pytest.fixture(scope="module", params=["as it is", "without oneDNN"])
def lowerings(request):
    """What this process has, and what one has whose jaxlib lacks oneDNN."""
    with use_onednn(request.param == "as it is"):
        jax.clear_caches()
        yield
    jax.clear_caches()
