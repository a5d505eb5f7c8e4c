"""Every variant of every family beside `keras.applications`: names, order, what layers read, shapes and parameters.

    KERAS_BACKEND=jax python scripts/parity.py families [NAME ...]
    KERAS_BACKEND=jax python scripts/parity.py families efficientnet --outputs 64

Nothing is run: ours are abstract, and Keras's have zeros for weights. With `--outputs SIZE` both are also filled with
the same random weights, by way of the file that Keras saves, and what the last layer but two gives for two images of
that size is compared: the largest difference over the largest value. `tests/families.py` has the table of variants; the
tests compare a small network of each family, at several layers.

2026-11-29, two cores, keras 3.15.1 on jax 0.12.0.1. Counted: the layers that Keras lists; the others are arithmetic on
tensors. Parameters are without the counter that Keras's `Normalization` has (one in each EfficientNet).

| network | layers | counted | parameters | of Keras's |
| --- | ---: | ---: | ---: | --- |
| mobilenet_v2 0.35 | 156 | 156 | 1,691,208 | all equal |
| mobilenet_v2 0.5 | 156 | 156 | 1,987,224 | all equal |
| mobilenet_v2 0.75 | 156 | 156 | 2,663,064 | all equal |
| mobilenet_v2 1.0 | 156 | 156 | 3,538,984 | all equal |
| mobilenet_v2 1.3 | 156 | 156 | 5,431,048 | all equal |
| mobilenet_v2 1.4 | 156 | 156 | 6,156,712 | all equal |
| mobilenet_v3 small 1.0 False | 182 | 164 | 2,554,968 | all equal |
| mobilenet_v3 small 0.75 False | 182 | 164 | 2,051,552 | all equal |
| mobilenet_v3 small 1.0 True | 110 | 110 | 2,056,848 | all equal |
| mobilenet_v3 large 1.0 False | 210 | 194 | 5,507,432 | all equal |
| mobilenet_v3 large 0.75 False | 210 | 194 | 4,012,616 | all equal |
| mobilenet_v3 large 1.0 True | 146 | 146 | 3,948,688 | all equal |
| efficientnet b0 | 240 | 240 | 5,330,570 | all equal |
| efficientnet b1 | 342 | 342 | 7,856,238 | all equal |
| efficientnet b2 | 342 | 342 | 9,177,568 | all equal |
| efficientnet b3 | 387 | 387 | 12,320,534 | all equal |
| efficientnet b4 | 477 | 477 | 19,466,822 | all equal |
| efficientnet b5 | 579 | 579 | 30,562,526 | all equal |
| efficientnet b6 | 669 | 669 | 43,265,142 | all equal |
| efficientnet b7 | 816 | 816 | 66,658,686 | all equal |
| efficientnet_v2 b0 | 273 | 273 | 7,200,312 | all equal |
| efficientnet_v2 b1 | 337 | 337 | 8,212,124 | all equal |
| efficientnet_v2 b2 | 352 | 352 | 10,178,374 | all equal |
| efficientnet_v2 b3 | 412 | 412 | 14,467,622 | all equal |
| efficientnet_v2 s | 516 | 516 | 21,612,360 | all equal |
| efficientnet_v2 m | 743 | 743 | 54,431,388 | all equal |
| efficientnet_v2 l | 1031 | 1031 | 119,027,848 | all equal |
| convnext tiny | 153 | 135 | 28,589,128 | all equal |
| convnext small | 297 | 261 | 50,223,688 | all equal |
| convnext base | 297 | 261 | 88,591,464 | all equal |
| convnext large | 297 | 261 | 197,767,336 | all equal |
| convnext xlarge | 297 | 261 | 350,196,968 | all equal |
| xception | 134 | 134 | 22,910,480 | all equal |
| inception_v3 | 313 | 313 | 23,851,784 | all equal |
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "jax")
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import jax
import keras
import numpy as np
from families import ALL, Pair, differences, parameters, randomize, run

from cnnjax.weights.assign import load_weights


def main() -> None:
    """Print a table, and end with 1 if a variant differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["families"])
    parser.add_argument("names", nargs="*", metavar="NAME", help="families; all if not given")
    parser.add_argument("--outputs", type=int, metavar="SIZE", help="compare outputs too, for images of that size")
    given = parser.parse_args()
    if unknown := set(given.names) - {pair.name for pair in ALL}:
        parser.error(f"no family {', '.join(sorted(unknown))}")
    faults = 0
    head = "| network | layers | counted | parameters | of Keras's |"
    print(head + (" error of outputs |" if given.outputs else ""))
    print("| --- | ---: | ---: | ---: | --- |" + (" ---: |" if given.outputs else ""))
    for pair in ALL:
        if not given.names or pair.name in given.names:
            started = time.perf_counter()
            line, differs = compared(pair, given.outputs)
            print(line, flush=True)
            faults += differs
            print(f"{pair}: {time.perf_counter() - started:.0f} s", file=sys.stderr)
    sys.exit(faults > 0)


def compared(pair: Pair, size: int | None) -> tuple[str, bool]:
    """A line of the table, and whether something differs."""
    keras.initializers.VarianceScaling.__call__ = _drawn if size else _zeros
    shape = {"input_shape": (size, size, 3)} if size else {}
    ours, theirs = pair.ours(**shape), pair.theirs(keras, **shape)
    found = differences(ours, theirs)
    told = "all equal" if not found else f"{len(found)} differ: {found[0]}"
    line = f"| {pair} | {len(ours.layer_names)} | {len(ours.layers)} | {parameters(ours):,} | {told} |"
    if not size:
        return line, bool(found)
    error = _error(ours, theirs, size)
    return f"{line} {error:.0e} |", bool(found) or not error < 1e-4


def _error(ours: Any, theirs: Any, size: int) -> float:
    randomize(theirs, last=lambda name: name.endswith(("project_bn", "project_BN", "sepconv3_bn")))
    with tempfile.TemporaryDirectory() as folder:
        theirs.save(Path(folder) / "keras.h5")
        load_weights(ours, Path(folder) / "keras.h5")
    ours.eval()
    x, name = np.random.default_rng(0).uniform(0, 255, (2, size, size, 3)).astype("float32"), ours.layer_names[-3]
    want = run(theirs, x, [name], keras)[name]
    got = jax.jit(lambda m, x: m.activations(x, [name])[name])(ours, x)
    return float(np.abs(np.asarray(got) - want).max() / np.abs(want).max())


def _zeros(self: Any, shape: Any, dtype: Any = None) -> Any:
    return np.zeros(shape, np.float32)


def _drawn(self: Any, shape: Any, dtype: Any = None) -> Any:
    limit = np.sqrt(6 / (np.prod(shape[:-2]) * (shape[-2] + shape[-1])))
    return np.random.default_rng(int(np.prod(shape))).uniform(-limit, limit, shape).astype(np.float32)


if __name__ == "__main__":
    main()
