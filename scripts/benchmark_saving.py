"""What checkpoints cost: the time that a save takes from training, and starting from one against starting anew.

    python scripts/benchmark_saving.py

MobileNet at 160x160 with Adam, everything trains, on random images. Windows of steps with a save at their beginning
alternate with windows without; the difference of the medians is what one save takes, also in the background. For the
starts, new processes with the compilation cache warm alternate: one begins anew, one restores first; each ends with
its first step. Shares and ratios alone are printed: compare nothing else between machines.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

_CHILD = "import benchmark_saving as b, sys; b.start(sys.argv[1], sys.argv[2], float(sys.argv[3]), float(sys.argv[4]))"


def trainer(alpha: float) -> Any:
    """MobileNet that trains whole, and rows of random images."""
    import numpy as np
    from flax import nnx

    from cnnjax import Classifier, Freeze, Trainer, linear_head, mobilenet
    from cnnjax.data import InMemory

    backbone = mobilenet(alpha, (160, 160, 3), include_top=False, rngs=nnx.Rngs(0))
    model = Classifier(backbone, linear_head(backbone.output_shape(), 2, rngs=nnx.Rngs(1)), "tf")
    images = np.random.default_rng(0).integers(0, 256, (64, 160, 160, 3), np.uint8)
    made = Trainer(model, Freeze.none().resolve(model), (160, 160), batch_size=16, optimizer="adam", stream=True)
    return made, made.rows(InMemory(images, np.arange(64) % 2, ("a", "b")))


def saves(alpha: float, pairs: int, seconds: float) -> None:
    """Windows with a save against windows without."""
    import jax

    from cnnjax import Checkpoints

    training, rows = trainer(alpha)
    state = training.init()
    with tempfile.TemporaryDirectory() as folder, Checkpoints(folder, keep=1) as checkpoints:
        done, windows = 0, {True: [], False: []}

        def window(steps: int, save: bool) -> float:
            nonlocal state, done
            begun, taken = time.perf_counter(), 0
            while taken < steps:
                for state, metrics in training.steps(state, rows, epoch=done):  # noqa: B020
                    if save and taken == 0:
                        checkpoints.save(int(state.step), {"state": state}, {"epoch": done})
                    taken += 1
                    jax.block_until_ready(metrics)
                done += 1
            return (time.perf_counter() - begun) / taken

        each = window(8, True)  # compiled, Orbax imported
        each = min(window(8, False) for _ in range(2))
        steps = max(8, round(seconds / each / 4) * 4)
        for _ in range(pairs):
            for save in (True, False):
                windows[save].append(window(steps, save) * steps)
        checkpoints.wait()
    share = [100 * (a - b) / 60 for a, b in zip(windows[True], windows[False], strict=True)]
    middle = 100 * (statistics.median(windows[True]) - statistics.median(windows[False])) / 60
    size = sum(x.nbytes for x in jax.tree.leaves(state)) / 1e6
    print(
        f"one save a minute ({size:.0f} MB) takes {middle:.2f} % of the time ({min(share):.2f} to {max(share):.2f} %)"
    )


def start(kind: str, folder: str, alpha: float, begun: float) -> None:
    """A process: anew, or from the checkpoint; prints its seconds up to the end of the first step."""
    import jax

    from cnnjax import Checkpoints, keep_programs

    keep_programs()
    training, rows = trainer(alpha)
    with Checkpoints(folder) as checkpoints:
        state = (
            training.init() if kind == "anew" else checkpoints.restore({"state": training.abstract_state()})["state"]
        )
        state, metrics = next(training.steps(state, rows))
        jax.block_until_ready(metrics)
        print(time.time() - begun)
        if kind == "anew" and checkpoints.latest() is None:
            checkpoints.save(1, {"state": state}, {})


def starts(alpha: float, pairs: int) -> None:
    """Processes that restore against processes that begin anew."""
    with tempfile.TemporaryDirectory() as folder:
        seconds: dict[str, list[float]] = {"anew": [], "restored": []}
        for number in range(pairs + 1):
            for kind, found in seconds.items():
                words = [sys.executable, "-c", _CHILD, kind, f"{folder}/checkpoints", str(alpha), str(time.time())]
                told = subprocess.run(words, capture_output=True, text=True, check=True, cwd=Path(__file__).parent)
                if number:  # the first two fill the caches
                    found.append(float(told.stdout.split()[-1]))
    ratio = [a / b for a, b in zip(seconds["restored"], seconds["anew"], strict=True)]
    middle = statistics.median(seconds["restored"]) / statistics.median(seconds["anew"])
    print(f"a start that restores takes {middle:.2f} of a start anew ({min(ratio):.2f} to {max(ratio):.2f})")


def main() -> None:
    """Read the options and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--alpha", type=float, default=1.0, help="width of MobileNet")
    parser.add_argument("--pairs", type=int, default=5, help="how often both are measured")
    parser.add_argument("--seconds", type=float, default=6.0, help="of a window of steps")
    options = parser.parse_args()
    saves(options.alpha, options.pairs, options.seconds)
    starts(options.alpha, options.pairs)


if __name__ == "__main__":
    main()
