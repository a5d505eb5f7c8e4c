"""Runs whose numbers must not depend on where they run; a process of its own for each number of devices and hosts.

python runs.py OUT IMAGES one_process
python runs.py OUT IMAGES HOST:PORT,ID,COUNT SECONDS
"""

import json
import sys
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from cnnjax.augment import Augmentation
from cnnjax.data import open_data
from cnnjax.freeze import Freeze
from cnnjax.runtime import devices as devices_module
from cnnjax.runtime.devices import Devices, start
from cnnjax.train.dataset import FeatureDataset
from cnnjax.train.lowering import collectives
from cnnjax.train.trainer import Trainer

BATCH = 16  # of 44 images: the last of an epoch's three batches is short


class Net(nnx.Module):
    """A convolution with live statistics, and dropout before and after a layer that is worth sharding."""

    def __init__(self, rngs: nnx.Rngs):
        self.conv = nnx.Conv(3, 8, (3, 3), strides=2, use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(8, momentum=0.9, rngs=rngs)
        self.drop = nnx.Dropout(0.3, rngs=rngs)
        self.hidden = nnx.Linear(8 * 12 * 12, 16, rngs=rngs)
        self.out = nnx.Linear(16, 2, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = nnx.relu(self.norm(self.conv(x / 127.5 - 1)))
        x = self.drop(x.reshape(len(x), -1))
        return self.out(self.drop(nnx.relu(self.hidden(x))))


class Watched:
    """A source that remembers what was read of it."""

    def __init__(self, source):
        self._source, self.seen = source, []
        self.labels, self.image_size, self.digest = source.labels, source.image_size, source.digest

    def __len__(self) -> int:
        return len(self._source)

    def read(self, indices: np.ndarray) -> np.ndarray:
        self.seen += indices.tolist()
        return self._source.read(indices)


def trainer(kind: str, devices: Devices | None) -> Trainer:
    """ "streamed" reads and augments images in every step, "stored" trains what follows the convolution."""
    model = Net(nnx.Rngs(0, dropout=1))
    frozen = Freeze.parse("none" if kind == "streamed" else "norm").resolve(model, example=(24, 24, 3))
    augment = Augmentation(flip=True, brightness=0.1) if kind == "streamed" else None
    return Trainer(
        model, frozen, (24, 24), batch_size=BATCH, optimizer="adam", augment=augment, stream=kind == "streamed",
        devices=devices,
    )  # fmt: skip


def run(kind: str, devices: Devices | None, images: Path, out: Path, name: str) -> tuple[Trainer, FeatureDataset]:
    """Trains for three epochs and writes down what came of it; returns what it was made with."""
    made, sources = trainer(kind, devices), open_data(str(images), (24, 24))
    read = Watched(sources["train"])
    rows = made.rows(read)
    read.seen.clear()
    state, log = made.fit(made.init(learning_rate=1e-3), rows, epochs=3, seed=3)
    score, logits = made.predict(state, made.rows(sources["test"], train=False))
    leaves = made.leaves(state)
    np.savez(out / f"{name}.npz", logits=logits, **leaves)
    told = {
        "kind": rows.kind,
        "losses": [record["loss"] for record in log],
        "score": score,
        "traces": dict(made.traces),
        "compiled": sum(getattr(made.programs, program)._cache_size() for program in made.traces),
        "seen": read.seen,
        "held": {path: held(x) for path, x in state.trainable.items()},
        "beside": [held(x) for x in jax.tree.leaves(state.optimizer) if x.shape == leaves["hidden/kernel"].shape],
    }
    (out / f"{name}.json").write_text(json.dumps(told))
    return made, rows


def held(x: jax.Array) -> int:
    """How many of an array's numbers one device has."""
    return x.addressable_shards[0].data.size


def refused(fn, *args, **kwargs) -> str:
    """What an error says."""
    try:
        fn(*args, **kwargs)
    except ValueError as error:
        return str(error)
    return "no error"


def one_process(images: Path, out: Path) -> None:
    """One device, and several of this process."""
    eight, parts = Devices.all(), Devices.all(shard_parameters=True)
    for devices, name in ((None, "1"), (Devices.all(count=4), "4"), (eight, "8"), (parts, "8 sharded")):
        run("streamed", devices, images, out, f"streamed on {name}")
    run("stored", None, images, out, "stored on 1")
    made, rows = run("stored", eight, images, out, "stored on 8")
    state = made.init()
    context, order = made.context(rows), made.feed.order(rows, 0, 0)
    batch = made.feed.spread(tuple(part[0] for part in order))
    step = made.programs.taking_step.lower(state, context, rows.arrays, rows.labelled, *batch, np.uint32(0)).compile()
    told = {
        "collectives": collectives(step.as_text()),
        "trained bytes": 4 * made.trainable_parameters,
        "uneven": refused(eight.check_batch, 30),
        "small": refused(eight.check_batch, 3),
        "too many": refused(Devices.all, count=9),
        "late": refused(start, "127.0.0.1:1,0,2"),
        "rule": {
            str(shape): str(parts.shardings(jax.ShapeDtypeStruct(shape, np.float32)).spec)
            for shape in ((3, 3, 16, 32), (64, 32), (32, 64), (1001, 16), (33, 65), (8,))
        },
    }
    (out / "told.json").write_text(json.dumps(told))


def one_of_several(hosts: str, images: Path, out: Path, lost: int) -> None:
    """A process of several; after its runs it trains on, until it is killed or another is."""
    start(hosts, join=60, lost=lost)
    devices = Devices.all(shard_parameters=True)
    run("stored", devices, images, out, f"stored as {devices.host}")
    made, rows = run("streamed", devices, images, out, f"streamed as {devices.host}")
    told = {
        "primary": devices.primary,
        "hosts": devices.hosts,
        "agreed": devices.agree(devices.host == 1, False, True),
        "differ": refused(devices.check_same, {"w": np.full(3, devices.host)}, "the weights"),
        "same": refused(devices.check_same, {"w": np.zeros(3)}, "the weights"),
        "few": refused(Devices.all, count=2),
    }
    (out / f"told by {devices.host}.json").write_text(json.dumps(told))
    made.fit(
        made.init(),
        rows,
        epochs=10_000,
        on_epoch_end=lambda trainer, state, record: (out / f"goes on {devices.host}").touch(),
    )


if __name__ == "__main__":
    devices_module.BIG = 1 << 10
    folder, given, where = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    if where == "one_process":
        one_process(given, folder)
    else:
        one_of_several(where, given, folder, int(sys.argv[4]))
