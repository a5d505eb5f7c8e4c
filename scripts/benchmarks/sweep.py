"""A whole sweep over frozen depth, depth by depth in turns with Keras, which trains every cell from the pictures."""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

DEPTHS = ("none", "conv_pw_5_relu", "conv_pw_10_relu", "conv_pw_12_relu", "all")
KERAS = Path(__file__).parents[2] / "experiments" / "in_keras" / "frozen_depth.py"


def _timed(words: list[str]) -> tuple[float, str]:
    start = time.perf_counter()
    out = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True).stdout
    return time.perf_counter() - start, out


def run(options: argparse.Namespace) -> None:
    """The command `sweep`: MobileNet 0.75 at 160x160, linear head, Adam, batches of 32.

    Both sides start a process a depth, and its whole time counts, imports and compilation included. Keras's cells of
    further seeds do the same work again: with `--keras-seeds 1` they are counted for as many as ours has.
    """
    given = ["--alpha", "0.75", "--weights", str(options.weights), "--head", "linear", "--epochs", str(options.epochs)]
    given += ["--batch-size", "32", "--data", str(options.folder)]
    keras_seeds = min(options.keras_seeds or options.seeds, options.seeds)
    total = {"keras": 0.0, "cnnjax": 0.0}
    print("| trained behind | Keras, s | test | cnnjax, s | test | ratio |\n| --- | ---: | ---: | ---: | ---: | ---: |")
    with tempfile.TemporaryDirectory() as scratch:
        for depth in DEPTHS:
            theirs, tested = 0.0, "-"
            if options.against:
                words = [options.against, str(KERAS), *given, "--freeze", depth, "--seeds", str(keras_seeds)]
                seconds, out = _timed(words)
                lines = [json.loads(line) for line in out.splitlines()]
                cells = sum(line["seconds"] for line in lines)
                # One process for all seeds: its start counts once.
                theirs = seconds - cells + cells * options.seeds / keras_seeds
                tested = f"{100 * sum(line['test_accuracy'] for line in lines) / len(lines):.1f} %"
            out = Path(scratch) / depth
            words = [sys.executable, "-m", "cnnjax", "ablate", "--backbone", "mobilenet", "--image-size", "160"]
            words += ["--optimizer", "adam", "--tuning-factor", "0.1", "--seeds", str(options.seeds), *given]
            words += ["--freeze", depth, "--store", f"{scratch}/store", "--out", str(out)]
            ours, _ = _timed(words)
            lines = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
            accuracy = 100 * sum(line["test_accuracy"] for line in lines) / len(lines)
            total["keras"] += theirs
            total["cnnjax"] += ours
            ratio = f"{theirs / ours:.2f}"
            print(f"| {depth} | {theirs:.0f} | {tested} | {ours:.0f} | {accuracy:.1f} % | {ratio} |", flush=True)
    ratio = f"{total['keras'] / total['cnnjax']:.2f}"
    print(f"| whole sweep, {options.seeds} seeds | {total['keras']:.0f} | | {total['cnnjax']:.0f} | | {ratio} |")
