"""What an import brings along: a process that only reads images starts without JAX."""

import json
import subprocess
import sys

import pytest

import cnnjax

_PROGRAM = """
import importlib, json, sys
importlib.import_module({module!r})
print(json.dumps([name for name in {heavy} if name in sys.modules]))
"""
_HEAVY = ["jax", "flax", "optax", "orbax", "grain", "tensorflow_datasets", "matplotlib", "h5py", "scipy", "keras"]


@pytest.mark.parametrize(
    ("module", "brings"),
    [
        ("cnnjax", []),
        ("cnnjax.sizing", []),
        ("cnnjax.data", []),
        ("cnnjax.cli", []),
        ("cnnjax.train.trainer", ["jax", "flax", "optax"]),
    ],
)
def test_nothing_heavy_is_imported_before_it_is_used(module, brings):
    program = _PROGRAM.format(module=module, heavy=_HEAVY)
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    # Flax itself imports Orbax.
    assert [name for name in json.loads(found.stdout) if name != "orbax"] == brings


def test_every_public_name_is_there():
    for name in cnnjax.__all__:
        assert getattr(cnnjax, name) is not None
    assert set(cnnjax.__all__) <= set(dir(cnnjax))
    with pytest.raises(AttributeError, match="has no attribute 'mobilnet'"):
        cnnjax.mobilnet  # noqa: B018
