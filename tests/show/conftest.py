"""A user's network, made once."""

import jax
import numpy as np
import pytest
from flax import nnx
from residual import ResNet


@pytest.fixture(scope="session")
def resnet() -> nnx.Module:
    """A residual network that is not ours, in inference mode; NumPy draws its numbers, since JAX compiles to do so."""
    rng = np.random.default_rng(0)
    graph, state = nnx.split(nnx.eval_shape(lambda: ResNet(rngs=nnx.Rngs(0))))

    def drawn(path, variable):
        if isinstance(variable, nnx.RngState):
            return variable.replace(jax.random.key(0) if isinstance(variable, nnx.RngKey) else np.uint32(0))
        low, high = (0.5, 1.5) if path[-1] in ("var", "scale") else (-0.4, 0.4)
        return variable.replace(jax.numpy.asarray(rng.uniform(low, high, variable.get_value().shape), np.float32))

    flat = [(path, drawn(path, variable)) for path, variable in nnx.to_flat_state(state)]
    model = nnx.merge(graph, nnx.from_flat_state(flat))
    model.eval()
    return model
