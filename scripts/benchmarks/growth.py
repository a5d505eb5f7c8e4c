"""Time and memory against images, depths, seeds and image size."""

# ruff: noqa: E402

import cnnjax  # isort: skip

cnnjax.tune_cpu()  # before NumPy's and JAX's threads begin

import argparse
import json
import subprocess
import sys
from pathlib import Path

AXES = {
    "images": (250, 500, 1000, 2000),
    "depths": (1, 3, 9, 27),
    "seeds": (1, 2, 4, 8),
    "size": (64, 96, 128, 160),
}


def once(axis: str, value: int) -> dict[str, float]:
    """MobileNet 0.25, everything frozen but for the axis "depths": features, then three epochs of the head."""
    import resource
    import time

    import jax
    import numpy as np
    from flax import nnx

    from cnnjax.data import InMemory
    from cnnjax.freeze import Freeze, num_weighted_layers
    from cnnjax.train.replicas import Replicas

    given = {"images": 500, "depths": 1, "seeds": 1, "size": 96} | {axis: value}
    size, count, random = given["size"], given["images"], np.random.default_rng(0)
    pixels = random.integers(0, 256, (count, size, size, 3), np.uint8)
    source = InMemory(pixels, random.integers(0, 2, count), ("no", "yes"))
    backbone = cnnjax.mobilenet(0.25, (size, size, 3), include_top=False, rngs=nnx.Rngs(0))
    head = cnnjax.linear_head(backbone.output_shape(), 2, rngs=nnx.Rngs(1))
    model, store = cnnjax.Classifier(backbone, head, "tf"), cnnjax.FeatureStore()
    compiled = 0.0

    def count_seconds(event: str, seconds: float, **_: object) -> None:
        nonlocal compiled
        if event in ("/jax/core/compile/backend_compile_duration", "/jax/core/compile/jaxpr_trace_duration"):
            compiled += seconds

    jax.monitoring.register_event_duration_secs_listener(count_seconds)
    # Frozen to the last layers first: each depth's features are made from those of the depth before it.
    last = num_weighted_layers(backbone)
    start, features = time.perf_counter(), 0.0
    for depth in range(last - given["depths"] + 1, last + 1):
        trainer = cnnjax.Trainer(model, Freeze.depth(depth).resolve(model, "backbone"), (size, size), store=store)
        begun = time.perf_counter()
        rows = trainer.rows(source)
        features += time.perf_counter() - begun
        if depth == last:
            states = [trainer.init() for _ in range(given["seeds"])]
            Replicas(trainer).fit(states, rows, epochs=3, seeds=list(range(given["seeds"])))
    total = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    equations = sum(made.equations for made in store.passes)
    return {
        "seconds": total, "of them features": features, "of them compiling": compiled, "passes": len(store.passes),
        "equations run a batch": equations, "peak MiB": peak,
    }  # fmt: skip


def run(options: argparse.Namespace) -> None:
    """The command `growth`: a process for each point."""
    if unknown := set(options.axes) - set(AXES):
        raise SystemExit(f"no axis {', '.join(sorted(unknown))}; there are {', '.join(AXES)}")
    for axis in options.axes or AXES:
        for k, value in enumerate(AXES[axis]):
            words = [sys.executable, str(Path(__file__)), axis, str(value)]
            out = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True).stdout
            found = json.loads(out.splitlines()[-1])
            if not k:
                print(f"\n| {axis} | {' | '.join(found)} |\n| --- |{' ---: |' * len(found)}")
            print(
                f"| {value} | {' | '.join(f'{v:,.1f}' if v % 1 else f'{v:,.0f}' for v in found.values())} |", flush=True
            )


if __name__ == "__main__":
    print(json.dumps(once(sys.argv[1], int(sys.argv[2]))))
