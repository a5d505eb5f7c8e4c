"""What a GPU or TPU reaches: fine-tuning beside compiled PyTorch, heads at once and in turn, FLOP/s of the most."""

import argparse
import json
import statistics
import sys
from contextlib import ExitStack
from pathlib import Path

from benchmarks.jobs import Side

HERE = Path(__file__).parent
JOBS = ("products", "resnet50", "vgg16", "vgg16-stored", "heads-together", "heads-in-turn")
_IN_TORCH = ("resnet50", "vgg16", "vgg16-stored")


def run(options: argparse.Namespace) -> None:
    """The command `accelerator`."""
    shape, peak, kinds, rates = [str(options.image_size), str(options.batch_size), options.precision], 0.0, "", {}
    rows = []
    for job in JOBS:
        with ExitStack() as sides:
            words = [sys.executable, str(HERE / "accelerated.py"), job, *shape]
            running = [sides.enter_context(Side("cnnjax", words))]
            if options.against and job in _IN_TORCH:
                words = [options.against, str(HERE / "compiled_torch.py"), job, *shape]
                running.append(sides.enter_context(Side("torch, compiled", words)))
            for _ in range(options.repeats):
                for side in running:
                    side.once()
            for side in running:
                print(json.dumps(side.summary(job)), flush=True)
            ours, *theirs = running
            rates[job] = statistics.median(ours.rates)
            flops = rates[job] * ours.start["flops"] / ours.start["units"]
            if job == "products":
                peak, kinds = flops, ours.start["device"]
            ratio = f"{rates[job] / statistics.median(theirs[0].rates):.2f}" if theirs else ""
            if not job.startswith("heads"):
                rows.append(f"| {job} | {rates[job]:.0f} | {flops / 1e12:.2f} | {flops / peak:.2f} | {ratio} |")
    print(f"\n{kinds}, {options.precision}, {options.image_size}x{options.image_size}, batch {options.batch_size}\n")
    print("| job | a second | TFLOP/s | of the products' | to compiled PyTorch |\n| --- | ---: | ---: | ---: | ---: |")
    print(*rows, sep="\n")
    gain = rates["heads-together"] / rates["heads-in-turn"]
    print(f"\n64 heads trained together: {gain:.2f} times as fast as in turn")
