"""The same work in every system, in turns."""

import argparse
import json
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SYSTEMS = ("keras-tensorflow", "keras-torch", "keras-jax", "torch")
JOBS = (
    "features-mobilenet", "features-vgg16", "train-lecture", "train-mobilenet", "head-mobilenet", "augmented-vgg16",
    "finetune-vgg16", "finetune-vgg16-later",
)  # fmt: skip
_SETTLE_SECONDS = 0.3  # threads of the one before spin a little before they sleep


class Side:
    """One system's process, which does the job once for each line it is sent."""

    def __init__(self, system: str, words: list[str]):
        self.system = system
        self._process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.start = self._answer()
        self.rates: list[float] = []
        self.peak_bytes = 0

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.system} ended with exit code {self._process.wait()}: {self._process.args}")
        return json.loads(line)

    def once(self) -> None:
        """Do the job, and keep its rate."""
        assert self._process.stdin
        time.sleep(_SETTLE_SECONDS)
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        found = self._answer()
        self.rates.append(self.start["units"] / found["seconds"])
        self.peak_bytes = found["peak_bytes"]

    def summary(self, job: str) -> dict[str, Any]:
        """What was measured, under the peers' names."""
        measured = {
            "rate": statistics.median(self.rates), "low": min(self.rates), "high": max(self.rates),
            "first_call_s": self.start["first_call_s"], "import_s": self.start["import_s"],
            "peak_gib": self.peak_bytes / (1 << 30),
        }  # fmt: skip
        return {"system": self.system, "job": job, **{name: round(value, 3) for name, value in measured.items()}}

    def __enter__(self) -> "Side":
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()


def measure(
    job: str, against: str | None, systems: list[str], repeats: int, bfloat16: bool = False, before: Path | None = None
) -> list[dict[str, Any]]:
    """One job in all systems, ours first; in bfloat16 and by an earlier checkout too, if that is asked for."""
    own = [sys.executable, str(HERE / "ours.py"), job]
    with ExitStack() as sides:
        running = [sides.enter_context(Side("cnnjax", own))]
        if bfloat16:
            running.append(sides.enter_context(Side("cnnjax-bfloat16", [*own, "bfloat16"])))
        if before:
            words = [str(before / ".venv/bin/python"), str(before / "scripts/benchmarks/ours.py"), job]
            running.append(sides.enter_context(Side("before", words)))
        theirs = job.removesuffix("-later")  # a later epoch is to them what the first one is
        for system in systems if against else ():
            if system != "torch" or theirs != "augmented-vgg16":  # which has no augmentation of its own
                words = [str(against), str(HERE / "peers.py"), system, theirs]
                running.append(sides.enter_context(Side(system, words)))
        for _ in range(repeats):
            for side in running:
                side.once()
        return [side.summary(job) for side in running]


def run(options: argparse.Namespace) -> None:
    """The command `jobs`."""
    if unknown := set(options.jobs) - set(JOBS):
        raise SystemExit(f"no job {', '.join(sorted(unknown))}; there are {', '.join(JOBS)}")
    lines, halved, earlier = [], [], []
    for job in options.jobs or JOBS:
        found = measure(
            job, options.against, options.systems, options.repeats, options.bfloat16, options.before
        )  # fmt: skip
        for line in found:
            print(json.dumps(line), flush=True)
        ours = found.pop(0)
        if options.bfloat16:
            halved.append(f"| {job} | {found.pop(0)['rate'] / ours['rate']:.2f} |")
        if options.before:
            earlier.append(f"| {job} | {ours['rate'] / found.pop(0)['rate']:.2f} |")
        if found:
            best = max(found, key=lambda line: line["rate"])
            # The least and the most that the turns allow.
            low, high = ours["low"] / best["high"], ours["high"] / best["low"]
            lines.append(f"| {job} | {best['system']} | {ours['rate'] / best['rate']:.2f} ({low:.2f} to {high:.2f}) |")
            print(lines[-1], file=sys.stderr, flush=True)
    if lines:
        print("\n| job | best peer | ours to its rate, medians (range) |\n| --- | --- | ---: |", *lines, sep="\n")
    if earlier:
        print("\n| job | now to before |\n| --- | ---: |", *earlier, sep="\n")
    if halved:
        print("\n| job | ours in bfloat16 to float32 |\n| --- | ---: |", *halved, sep="\n")
