"""Weights files, written by h5py in the layouts that Keras writes."""

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

Layers = dict[str, dict[str, np.ndarray]]


@pytest.fixture
def values() -> Layers:
    """Tensors of a network of a convolution, BatchNorm and a dense layer, under their names in the file."""
    rng = np.random.default_rng(0)
    shapes = {
        "conv1": {"conv1/kernel:0": (3, 3, 3, 4)},
        "conv1_bn": {f"conv1_bn/{name}:0": (4,) for name in ("gamma", "beta", "moving_mean", "moving_variance")},
        "conv1_relu": {},
        "conv_dw_1": {"conv_dw_1/depthwise_kernel:0": (3, 3, 4, 1)},
        "predictions": {"predictions/kernel:0": (4, 2), "predictions/bias:0": (2,)},
    }
    return {
        layer: {name: rng.random(shape, dtype=np.float32) for name, shape in tensors.items()}
        for layer, tensors in shapes.items()
    }


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """A function that writes layers to a file, at the root or under `model_weights`."""

    def write_file(layers: Layers, group: str = "/", name: str = "weights.h5") -> Path:
        path = tmp_path / name
        with h5py.File(path, "w") as file:
            root = file.require_group(group)
            root.attrs["layer_names"] = [layer.encode() for layer in layers]
            for layer, tensors in layers.items():
                root.create_group(layer).attrs["weight_names"] = [tensor.encode() for tensor in tensors]
                for tensor, array in tensors.items():
                    root[layer][tensor] = array
        return path

    return write_file
