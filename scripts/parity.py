"""Every variant of every family beside `keras.applications`: names, order, what layers read, shapes and parameters.

    KERAS_BACKEND=jax python scripts/parity.py families [NAME ...]
    KERAS_BACKEND=jax python scripts/parity.py families efficientnet --outputs 64

Nothing is run: ours are abstract, and Keras's have zeros for weights. With `--outputs SIZE` both are also filled with the
same random weights, by way of the file that Keras saves, and the outputs of the last layer for two images of that size
are compared: the largest difference over the largest value. `tests/families.py` has the table of variants; the tests
compare a small network of each family, at several layers.

TABLE
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
