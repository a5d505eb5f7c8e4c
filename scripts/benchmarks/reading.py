"""Images a second from a folder, packed and memory, beside Keras's reading of the same files."""

import argparse
import json
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

# Runs in the peer's environment: one line asks for a pass, one line answers with its seconds.
_PEER = """
import json, sys, time, warnings
import keras
root, size, batch = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
images = keras.utils.image_dataset_from_directory(root, image_size=(size, size), batch_size=batch, verbose=False)
for line in sys.stdin:
    start, count = time.perf_counter(), 0
    for images, labels in images:
        count += len(labels)
        images.numpy()
    print(json.dumps({"seconds": time.perf_counter() - start, "images": count}), flush=True)
"""


class Peer:
    """`image_dataset_from_directory` in another environment, one pass at a time."""

    def __init__(self, python: str, root: Path, size: int, batch: int):
        command = [python, "-c", _PEER, str(root), str(size), str(batch)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )

    def __call__(self) -> float:
        """Images a second of one pass."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self._process.args[0]} has no keras that can read images (exit {self._process.wait()})")
        found = json.loads(line)
        return found["images"] / found["seconds"]


def passes(source: Any, workers: int, batch: int) -> Callable[[], float]:
    """One epoch after another through the loader, worker processes kept: each call is one of them."""
    from cnnjax.data import Loader
    from cnnjax.data.loader import HEAD_START, READ_AHEAD

    def epochs() -> Iterator[float]:
        loader = Loader(source, batch, epochs=10_000, workers=workers)
        steps = loader.order.steps_per_epoch
        while True:
            for _ in range(
                HEAD_START + 3 * READ_AHEAD * max(workers, 1)
            ):  # what was read while other jobs ran does not count
                next(loader)
            start = time.perf_counter()
            count = sum(int(next(loader).weights.sum()) for _ in range(steps))
            yield count / (time.perf_counter() - start)

    running = epochs()
    return lambda: next(running)


def memory(source: Any, batch: int) -> Callable[[], float]:
    """Batches of uint8 images that lie on the device, shuffled there."""
    import jax
    import jax.numpy as jnp

    from cnnjax.data import in_memory
    from cnnjax.data.order import epoch_batches

    kept = in_memory(source, 8 << 30)
    if kept is None:
        raise SystemExit("these images take more than 8 GiB of memory; give fewer or smaller ones")
    images = jnp.asarray(kept.images)
    take = jax.jit(lambda images, index: images[index].astype(jnp.float32))
    epoch = iter(range(1_000_000))

    def once() -> float:
        start = time.perf_counter()
        for index in epoch_batches(len(source), batch, 0, next(epoch))[0]:
            take(images, index).block_until_ready()
        return len(source) / (time.perf_counter() - start)

    return once


def waiting(source: Any, weights: Path, alpha: float, workers: int) -> Callable[[], float]:
    """Share of a MobileNet feature pass that is spent waiting for images."""
    from flax import nnx

    from cnnjax import Classifier, FeatureStore, Freeze, Trainer, linear_head
    from cnnjax.weights.pretrained import open_backbone

    size = source.image_size
    backbone, preprocessing = open_backbone(
        "mobilenet", image_size=size[0], alpha=alpha, weights=weights, include_top=False
    )
    model = Classifier(backbone, linear_head(backbone.output_shape(), 2, rngs=nnx.Rngs(0)), preprocessing)

    def once() -> float:
        store = FeatureStore()
        trainer = Trainer(model, Freeze.all().resolve(model, "backbone"), size, store=store, workers=workers)
        trainer.rows(source)
        (made,) = store.passes
        return made.waited / made.seconds

    return once


def measure(jobs: dict[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """Every job once to warm up, then all in turn, `repeats` times."""
    for job in jobs.values():
        job()
    found: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(repeats):
        for name, job in jobs.items():
            found[name].append(job())
    return found


def data(options: argparse.Namespace) -> None:
    """The job `data`."""
    from cnnjax.data import open_data, pack_folder
    from cnnjax.data.decoded import DecodedFormat

    size = (options.image_size, options.image_size)
    folder = open_data(options.folder, size)["train"]
    with tempfile.TemporaryDirectory() as scratch:
        sources = {"folder": folder}
        for name, kept in (
            ("packed", None),
            ("packed, decoded", DecodedFormat()),
            ("packed, decoded and resized", DecodedFormat(size)),
        ):
            pack_folder(options.folder, Path(scratch) / name, decoded=kept)
            sources[name] = open_data(Path(scratch) / name, size)["train"]
            # Also hashes each image once, as a process does when it first reads it.
            for start in range(0, len(folder), 64):
                rows = range(start, min(start + 64, len(folder)))
                assert np.array_equal(folder.read(rows), sources[name].read(rows))
        jobs: dict[str, Callable[[], float]] = {}
        if options.against:
            jobs["keras, folder"] = Peer(options.against, folder.root, options.image_size, options.batch_size)
        for workers in (0, 1, 2):
            for name, source in sources.items():
                jobs[f"{name}, {workers} workers"] = passes(source, workers, options.batch_size)
        jobs["memory (uint8, on the device)"] = memory(folder, options.batch_size)
        found = measure(jobs, options.repeats)
        base = statistics.median(found[next(iter(jobs))])
        print(f"{len(folder)} images of {folder.root} at {size[0]}x{size[1]}, batches of {options.batch_size}")
        print(f"| read from | images a second, median (range) | ratio to {next(iter(jobs))} |")
        print("| --- | ---: | ---: |")
        for name, rates in found.items():
            middle = statistics.median(rates)
            print(f"| {name} | {middle:,.0f} ({min(rates):,.0f} to {max(rates):,.0f}) | {middle / base:.2f} |")
        if options.weights:
            jobs = {
                f"{kind}, {workers} workers": waiting(source, options.weights, options.alpha, workers)
                for workers in (0, 1, 2)
                for kind, source in list(sources.items())[:2]
            }
            print("\n| MobileNet feature pass from | time spent waiting for images, median (range) |")
            print("| --- | ---: |")
            for name, shares in measure(jobs, max(1, options.repeats // 2)).items():
                low, high = (100 * f(shares) for f in (min, max))
                print(f"| {name} | {100 * statistics.median(shares):.0f} % ({low:.0f} to {high:.0f} %) |")
