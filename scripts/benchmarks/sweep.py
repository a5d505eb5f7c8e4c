"""A whole sweep over frozen depth: one command of ours, and Keras, which trains every cell from the pictures."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

DEPTHS = ("none", "conv_pw_5_relu", "conv_pw_10_relu", "conv_pw_12_relu", "all")
KERAS = Path(__file__).parents[2] / "experiments" / "in_keras" / "frozen_depth.py"


def _timed(words: list[str], cells: int) -> tuple[list[float], float]:
    """Seconds until each of the first lines that tell of a cell, and until the end."""
    start, ends = time.perf_counter(), []
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONUNBUFFERED": "1"}
    ) as process:
        assert process.stdout
        for line in process.stdout:
            if ": test accuracy" in line or '"test_accuracy"' in line:
                ends.append(time.perf_counter() - start)
    total = time.perf_counter() - start
    if process.returncode or len(ends) != cells:
        raise SystemExit(f"exit code {process.returncode} after {len(ends)} of {cells} cells: {' '.join(words)}")
    return ends, total


def _keras(options: argparse.Namespace, given: list[str], depth: str, seeds: int) -> float:
    """Seconds for a depth in a process of its own; its start counts once, further seeds do the same work again."""
    words = [options.against, str(KERAS), *given, "--freeze", depth, "--seeds", str(seeds)]
    ends, total = _timed(words, seeds)
    # The first cell has the process's start before it.
    each = (ends[-1] - ends[0]) / (seeds - 1) if seeds > 1 else ends[0] - _start(options.against)
    return total + each * (options.seeds - seeds)


def _start(python: str) -> float:
    start = time.perf_counter()
    subprocess.run([python, "-c", "import keras"], check=True, capture_output=True)
    return time.perf_counter() - start


def run(options: argparse.Namespace) -> None:
    """The command `sweep`: MobileNet 0.75 at 160x160, linear head, Adam, batches of 32.

    All of both sides' time counts, imports and compilation included: ours is one `cnnjax ablate`, Keras has a process a
    depth. Keras's cells of further seeds do the same work again: with `--keras-seeds 1` they are counted for as many as
    ours has. Keras's first depth is trained before ours, the others after it, since machines drift.
    """
    given = ["--alpha", "0.75", "--weights", str(options.weights), "--head", "linear", "--epochs", str(options.epochs)]
    given += ["--batch-size", "32", "--data", str(options.folder)]
    seeds, keras_seeds = options.seeds, min(options.keras_seeds or options.seeds, options.seeds)
    theirs: list[float] = []
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "run"
        words = [sys.executable, "-m", "cnnjax", "ablate", "--backbone", "mobilenet", "--image-size", "160"]
        words += ["--optimizer", "adam", "--tuning-factor", "0.1", "--seeds", str(seeds), *given]
        words += ["--freeze", *DEPTHS, "--store", f"{scratch}/store", "--out", str(out)]
        if options.against:
            theirs.append(_keras(options, given, DEPTHS[0], keras_seeds))
        ends, total = _timed(words, seeds * len(DEPTHS))
        for depth in DEPTHS[1:] if options.against else ():
            theirs.append(_keras(options, given, depth, keras_seeds))
        records = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    marks = [0.0, *ends[seeds - 1 :: seeds]]
    print("| frozen through | Keras, s | cnnjax, s | test | ratio |\n| --- | ---: | ---: | ---: | ---: |")
    for k, depth in enumerate(DEPTHS):
        ours = marks[k + 1] - marks[k]
        tested = [r["test_accuracy"] for r in records if r["freeze"] == depth]
        other = (f"{theirs[k]:.0f}", f"{theirs[k] / ours:.2f}") if theirs else ("-", "-")
        print(f"| {depth} | {other[0]} | {ours:.0f} | {100 * sum(tested) / len(tested):.1f} % | {other[1]} |")
    other = (f"{sum(theirs):.0f}", f"{sum(theirs) / total:.2f}") if theirs else ("-", "-")
    print(f"| whole sweep, {seeds} seeds | {other[0]} | {total:.0f} | | {other[1]} |")
