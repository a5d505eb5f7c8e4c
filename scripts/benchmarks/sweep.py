"""A whole sweep over frozen depth: one command of ours, and Keras, which trains every cell from the images."""

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


def _ours(words: list[str], processes: int, cells: int) -> tuple[list[dict[str, Any]], list[float], float]:
    """Each cell's record in the order of their ends, the seconds until those, and until the end."""
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "run"
        _, ends, total = _timed(
            [*words, "--store", f"{scratch}/store", "--out", str(out), "--processes", str(processes)], cells
        )
        return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()], ends, total


def run(options: argparse.Namespace) -> None:
    """The command `sweep`: MobileNet 0.75 at 160x160, linear head, Adam, batches of 32.

    All of both sides' time counts, imports and compilation included: ours is one `cnnjax ablate` for each number of
    processes, Keras has a process a depth. Keras's cells of further seeds do the same work again: with `--keras-seeds
    1` they are counted for as many as ours has. Keras's first depth is trained before ours, the others after it, since
    machines drift.
    """
    given = ["--alpha", "0.75", "--weights", str(options.weights), "--head", "linear", "--epochs", str(options.epochs)]
    given += ["--batch-size", "32", "--data", str(options.folder)]
    seeds, keras_seeds = options.seeds, min(options.keras_seeds or options.seeds, options.seeds)
    words = [sys.executable, "-m", "cnnjax", "ablate", "--backbone", "mobilenet", "--image-size", "160"]
    words += ["--optimizer", "adam", "--tuning-factor", "0.1", "--seeds", str(seeds), *given, "--freeze", *DEPTHS]
    theirs = [_keras(options, given, DEPTHS[0], keras_seeds)] if options.against else []
    ours = {count: _ours(words, count, seeds * len(DEPTHS)) for count in options.processes}
    theirs += [_keras(options, given, depth, keras_seeds) for depth in DEPTHS[1:] if options.against]
    print("| frozen through | Keras, s | test | cnnjax, s | test | ratio |\n| --- | ---: | ---: | ---: | ---: | ---: |")
    records, ends, _ = ours[options.processes[0]]
    # Beside each other, the cells of one depth have no time of their own.
    marks = [0.0, *ends[seeds - 1 :: seeds]] if options.processes[0] == 1 else []
    for k, depth in enumerate(DEPTHS):
        tested = _mean([r for r in records if r["freeze"] == depth])
        own = marks[k + 1] - marks[k] if marks else None
        seconds, accuracy = theirs[k] if theirs else (None, None)
        columns = depth, _told(seconds), _told(accuracy, ".1f"), _told(own), f"{tested:.1f}", _ratio(seconds, own)
        print(f"| {' | '.join(columns)} |")
    keras = sum(seconds for seconds, _ in theirs) if theirs else None
    for count, (_, _, total) in ours.items():
        name = f"whole sweep, {seeds} seeds, {count} process{'es' if count > 1 else ''}"
        print(f"| {name} | {_told(keras)} | | {_told(total)} | | {_ratio(keras, total)} |")


def _told(value: float | None, form: str = ".0f") -> str:
    return "-" if value is None else f"{value:{form}}"


def _ratio(theirs: float | None, ours: float | None) -> str:
    return "-" if theirs is None or ours is None else f"{theirs / ours:.2f}"
