"""Both libraries that XLA's CPU backend takes convolutions from."""

import jax
import pytest

from cnnjax import onednn


@pytest.fixture(scope="module", params=["as it is", "without oneDNN"])
def lowerings(request):
    """What this process's XLA gets, and what one gets that has no oneDNN."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param != "as it is":
            patch.setattr(onednn, "answers", lambda: False)
            jax.clear_caches()
        yield
    jax.clear_caches()
