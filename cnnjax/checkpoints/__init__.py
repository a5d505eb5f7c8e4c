"""Orbax: training that goes on where it stopped; what is restored is what was written, or an error says why not.

>>> import tempfile
>>> import jax.numpy as jnp
>>> from cnnjax.checkpoints import Checkpoints
>>> state = {"step": jnp.int32(7), "trainable": {"conv1/kernel": jnp.ones((3, 3, 1, 4))}}
>>> with tempfile.TemporaryDirectory() as folder, Checkpoints(folder) as checkpoints:
...     checkpoints.save(7, state, {"epoch": 0}, metric=0.4, wait=True)
...     restored = checkpoints.restore(state)
...     checkpoints.steps(), int(restored["step"]), checkpoints.metadata()["epoch"]
True
((7,), 7, 0)
"""

from cnnjax.checkpoints.errors import CheckpointMismatch, CorruptCheckpoint, SaveFailed
from cnnjax.checkpoints.nested import as_nested, from_nested
from cnnjax.checkpoints.series import Checkpoints
from cnnjax.checkpoints.trees import restore, save

__all__ = [
    "CheckpointMismatch", "Checkpoints", "CorruptCheckpoint", "SaveFailed", "as_nested", "from_nested", "restore",
    "save",
]  # fmt: skip
