"""A whole sweep over frozen depth: one command of ours, and Keras, which trains every cell from the pictures."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

DEPTHS = ("none", "conv_pw_5_relu", "conv_pw_10_relu", "conv_pw_12_relu", "all")
KERAS = Path(__file__).parents[2] / "experiments" / "in_keras" / "frozen_depth.py"


def _timed(words: list[str], cells: int) -> tuple[list[str], list[float], float]:
    """The lines that tell of a cell, the seconds until each of them, and until the end."""
    start, lines, ends = time.perf_counter(), [], []
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONUNBUFFERED": "1"}
    ) as process:
        assert process.stdout
        for line in process.stdout:
            if ": test accuracy" in line or '"test_accuracy"' in line:
                lines.append(line)
                ends.append(time.perf_counter() - start)
    total = time.perf_counter() - start
    if process.returncode or len(ends) != cells:
        raise SystemExit(f"exit code {process.returncode} after {len(ends)} of {cells} cells: {' '.join(words)}")
    return lines, ends, total


def _keras(options: argparse.Namespace, given: list[str], depth: str, seeds: int) -> tuple[float, float]:
    """Seconds and test accuracy of a depth in a process of its own; its start counts once for all seeds."""
    words = [options.against, str(KERAS), *given, "--freeze", depth, "--seeds", str(seeds)]
    lines, _, total = _timed(words, seeds)
    records = [json.loads(line) for line in lines]
    cells = sum(record["seconds"] for record in records)
    return total - cells + cells * options.seeds / seeds, _mean(records)


def _mean(records: list[dict[str, Any]]) -> float:
    return 100 * sum(record["test_accuracy"] for record in records) / len(records)


def run(options: argparse.Namespace) -> None:
    """The command `sweep`: MobileNet 0.75 at 160x160, linear head, Adam, batches of 32.

    All of both sides' time counts, imports and compilation included: ours is one `cnnjax ablate`, Keras has a process a
    depth. Keras's cells of further seeds do the same work again: with `--keras-seeds 1` they are counted for as many as
    ours has. Keras's first depth is trained before ours, the others after it, since machines drift.
    """
    given = ["--alpha", "0.75", "--weights", str(options.weights), "--head", "linear", "--epochs", str(options.epochs)]
    given += ["--batch-size", "32", "--data", str(options.folder)]
    seeds, keras_seeds = options.seeds, min(options.keras_seeds or options.seeds, options.seeds)
    theirs: list[tuple[float, float]] = []
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "run"
        words = [sys.executable, "-m", "cnnjax", "ablate", "--backbone", "mobilenet", "--image-size", "160"]
        words += ["--optimizer", "adam", "--tuning-factor", "0.1", "--seeds", str(seeds), *given]
        words += ["--freeze", *DEPTHS, "--store", f"{scratch}/store", "--out", str(out)]
        if options.against:
            theirs.append(_keras(options, given, DEPTHS[0], keras_seeds))
        _, ends, total = _timed(words, seeds * len(DEPTHS))
        for depth in DEPTHS[1:] if options.against else ():
            theirs.append(_keras(options, given, depth, keras_seeds))
        records = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    marks = [0.0, *ends[seeds - 1 :: seeds]]
    print("| frozen through | Keras, s | test | cnnjax, s | test | ratio |\n| --- | ---: | ---: | ---: | ---: | ---: |")
    for k, depth in enumerate(DEPTHS):
        ours, tested = marks[k + 1] - marks[k], _mean([r for r in records if r["freeze"] == depth])
        other, ratio = "- | -", "-"
        if theirs:
            seconds, accuracy = theirs[k]
            other, ratio = f"{seconds:.0f} | {accuracy:.1f} %", f"{seconds / ours:.2f}"
        print(f"| {depth} | {other} | {ours:.0f} | {tested:.1f} % | {ratio} |")
    other, ratio = "-", "-"
    if theirs:
        keras = sum(seconds for seconds, _ in theirs)
        other, ratio = f"{keras:.0f}", f"{keras / total:.2f}"
    print(f"| whole sweep, {seeds} seeds | {other} | | {total:.0f} | | {ratio} |")
