"""Measurements for people who work on the library: ratios of medians, side by side in one run.

    python scripts/benchmark.py jobs [JOB ...] [--against PYTHON] [--before FOLDER]
    python scripts/benchmark.py sweep FOLDER --weights mobilenet_7_5_224_tf_no_top.h5 --against PYTHON
    python scripts/benchmark.py accelerator [--against PYTHON]
    python scripts/benchmark.py ops
    python scripts/benchmark.py start
    python scripts/benchmark.py growth [images|depths|seeds|size ...]
    python scripts/benchmark.py data FOLDER --weights mobilenet_7_5_224_tf_no_top.h5 --against PYTHON

PYTHON is that of an environment with Keras on TensorFlow, PyTorch and JAX, and PyTorch. All sides take turns, theirs,
ours, theirs, ours, each in a process of its own that stays, so that a busy machine slows them alike.

`jobs` does the same work in every system, float32, random pixels:

    features-mobilenet    MobileNet 1.0, 160x160, no top, inference, batch 20               images/s
    features-vgg16        VGG16, 180x180, no top, inference, batch 8                        images/s
    train-lecture         the lecture's 150x150 network, RMSprop, batch 32                  images/s
    train-mobilenet       MobileNet 1.0, 160x160, all trained, BatchNorm live, batch 16     images/s
    head-mobilenet        the lecture's head on 2,000 stored 5x5x1024 features, batch 20    rows/s
    augmented-vgg16       Method 2: flip, rotation .1, zoom .2, frozen VGG16, batch 16      images/s
    finetune-vgg16        block5 of VGG16 and the head trained, 180x180, batch 16           images/s
    finetune-vgg16-later  the same from the second epoch on, where ours reads stored features

For each system it prints one JSON line (median, lowest and highest rate, the first call's seconds, which compile, the
import's, the peak memory of the process) and then a table of ratios to the best peer. `sweep` times five frozen depths,
three seeds of each, in one command (`--processes 1 2`: in turn, then in two processes) against Keras in a loop;
`accelerator`, on a GPU or TPU, fine-tunes ResNet-50 and VGG16 beside PyTorch, compiled and channels last, trains 64
heads together and in turn, and gives the FLOP/s that are reached and the most that products reach; `ops` each of
`cnnjax.ops` beside XLA's own; `start` the import, the first step, and both in a second process; `growth` time and
memory against images, depths, seeds and image size; `data` reads images (see `benchmarks/reading.py`).
"""

import argparse
import sys
from pathlib import Path

from benchmarks import accelerator, growth, jobs, operations, reading, start, sweep


def main() -> None:
    """Read the options and run the job."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)

    job = commands.add_parser("jobs", help="the same work in every system")
    job.add_argument("jobs", nargs="*", metavar="JOB", help=f"of {', '.join(jobs.JOBS)}; all if none is named")
    job.add_argument("--against", metavar="PYTHON", help="the Python of an environment that holds the peers")
    job.add_argument("--systems", nargs="+", choices=jobs.SYSTEMS, default=list(jobs.SYSTEMS))
    job.add_argument("--repeats", type=int, default=5)
    job.add_argument("--bfloat16", action="store_true", help="take turns with ourselves computing in bfloat16 as well")
    job.add_argument(
        "--before", type=Path, metavar="FOLDER", help="a checkout of an earlier commit, after `uv sync`, in turns too"
    )
    job.set_defaults(run=jobs.run)

    job = commands.add_parser("sweep", help="a sweep over frozen depth")
    job.add_argument("folder", type=Path)
    job.add_argument("--weights", type=Path, required=True, help="MobileNet 0.75's HDF5 file, no top")
    job.add_argument("--against", metavar="PYTHON", help="the Python of an environment that holds Keras on TensorFlow")
    job.add_argument("--seeds", type=int, default=3)
    job.add_argument("--keras-seeds", type=int, help="how many of them Keras really trains; all if not given")
    job.add_argument("--epochs", type=int, default=5)
    job.add_argument("--processes", type=int, nargs="+", default=[1], help="ours is run with each of these numbers")
    job.set_defaults(run=sweep.run)

    job = commands.add_parser("accelerator", help="what a GPU or TPU reaches")
    job.add_argument("--against", metavar="PYTHON", help="the Python of an environment with PyTorch for the same card")
    job.add_argument("--image-size", type=int, default=224)
    job.add_argument("--batch-size", type=int, default=64)
    job.add_argument("--precision", choices=("bfloat16", "float32"), default="bfloat16")
    job.add_argument("--repeats", type=int, default=5)
    job.set_defaults(run=accelerator.run)

    job = commands.add_parser("ops", help="each operation beside XLA's own")
    job.add_argument("--repeats", type=int, default=5)
    job.set_defaults(run=operations.run)

    job = commands.add_parser("start", help="import, first step, second process")
    job.add_argument("--repeats", type=int, default=3)
    job.set_defaults(run=start.run)

    job = commands.add_parser("growth", help="time and memory against images, depths, seeds, image size")
    job.add_argument("axes", nargs="*", metavar="AXIS", help=f"of {', '.join(growth.AXES)}; all if none is named")
    job.set_defaults(run=growth.run)

    job = commands.add_parser("data", help="images a second from folder, packed and memory")
    job.add_argument("folder", type=Path)
    job.add_argument("--against", metavar="PYTHON", help="the Python of an environment that holds Keras")
    job.add_argument("--weights", type=Path, help="MobileNet's HDF5 file: also measure how long a feature pass waits")
    job.add_argument("--alpha", type=float, default=0.75)
    job.add_argument("--image-size", type=int, default=160)
    job.add_argument("--batch-size", type=int, default=32)
    job.add_argument("--repeats", type=int, default=5)
    job.set_defaults(run=reading.data)

    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":  # worker processes import this file too
    sys.exit(main())
