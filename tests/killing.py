"""Runs of `cnnjax fit` as real processes that are killed, and what is left of them."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np

from cnnjax.checkpoints import Checkpoints
from cnnjax.runtime.preemption import EXIT_CODE

# The command itself, in a process that writes down what it is doing, so that a kill is known to have met it.
RUNNER = """
import sys, time
from pathlib import Path
note = Path(sys.argv[1]).open("w", buffering=1)
def noted(owner, name, what):
    inner = getattr(owner, name)
    def wrapped(*args, **kwargs):
        note.write(f"{what} {time.monotonic()}\\n")
        try:
            return inner(*args, **kwargs)
        finally:
            note.write(f"steps {time.monotonic()}\\n")
    setattr(owner, name, wrapped)
note.write(f"starting {time.monotonic()}\\n")
import jax, jax._src.compiler
from cnnjax.checkpoints import Checkpoints
from cnnjax.features import FeatureStore
from cnnjax.fit.run import Run
from cnnjax.train.trainer import Trainer
noted(jax._src.compiler, "compile_or_get_cached", "compiling")
noted(Run, "_save", "saving")
noted(Trainer, "evaluate", "evaluating")
noted(FeatureStore, "get", "features")
compiled = []
jax.monitoring.register_event_listener(
    lambda event, **kwargs: compiled.append(event) if event == "/jax/compilation_cache/cache_misses" else None
)
from cnnjax.runtime import devices
devices.start.__kwdefaults__["lost"] = 8  # of several hosts a dead one is missed sooner than in a minute and a half
import importlib
# MobileNet in all it has, but in five blocks: each process that is killed traces it anew.
mobilenet = importlib.import_module("cnnjax.models.mobilenet")
mobilenet._BLOCKS = mobilenet._BLOCKS[:5]
from cnnjax.cli import main
main(sys.argv[2:])
note.write(f"compiled {len(compiled)}\\n")
"""


# Without oneDNN, whose programs jaxlib cannot write down: a process that goes on finds all of them in the cache. And
# compiled fast: what is compared is compiled alike.
FLAGS = "--xla_backend_optimization_level=0"


def command(base, out, options, host=0):
    """What is started: the same each time."""
    fixed = ["--data", f"{base}/images", "--checkpoint-every", "0.3", "--store", f"{out}-store{host}"]
    return [sys.executable, "-c", RUNNER, f"{out}.doing{host}", "fit", *fixed, "--out", str(out), *options]


def start(words, cache, flags=None):
    environment = os.environ | {"CNNJAX_CACHE": str(cache), "PYTHONWARNINGS": "error::RuntimeWarning"}
    environment |= {"XLA_FLAGS": FLAGS, "CNNJAX_ONEDNN": "0"} | (flags or {})
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


def finish(words, cache, flags=None):
    process = start(words, cache, flags)
    output = process.communicate(timeout=300)[0]
    assert process.returncode == 0, output
    return output


def result(out):
    """What a run ends with: weights, lines, and everything in its last checkpoint."""
    with Checkpoints(out / "checkpoints") as checkpoints:
        step = checkpoints.latest()
        tree = checkpoints.read(step)
    leaves = {}

    def walk(node, path):
        for name, value in node.items():
            if isinstance(value, dict):
                walk(value, f"{path}/{name}")
            else:
                leaves[f"{path}/{name}"] = np.asarray(value).tobytes()

    walk(tree, "")
    report = json.loads((out / "report.json").read_text())
    return (
        (out / "classifier" / "model.safetensors").read_bytes(),
        (out / "metrics.jsonl").read_bytes(),
        step,
        leaves,
        report,
    )


def killed(words, out, cache, number, lasts, expected, kills):
    """Start the command again and again, with a signal at `kills` random times; what each of them met.

    A run that gets through ends as `expected`, and another one begins. Two of three signals wait, from their time on,
    until something short is going on that they would hardly meet by chance.
    """
    times, met, doing = random.Random(number), Counter(), Path(f"{out}.doing0")
    for k in range(kills):
        process, wish = start(words, cache), ("saving", "", "evaluating")[k % 3]
        signalled = time.monotonic() + times.uniform(0.0, lasts)
        while process.poll() is None:
            notes = doing.read_text().splitlines() if doing.exists() else []
            now = notes[-1].split()[0] if notes else "starting"
            if time.monotonic() > signalled and (now == wish or not wish or time.monotonic() > signalled + lasts):
                process.send_signal(number)
                met[now] += 1
                break
            time.sleep(0.001)
        output = process.communicate(timeout=120)[0]
        if process.returncode == 0:
            assert result(out) == expected
            shutil.rmtree(out)
        elif number == signal.SIGTERM:
            # Before it listens the signal simply ends it; afterwards it saves and says so.
            assert process.returncode in (EXIT_CODE, -number), output
            assert process.returncode == -number or "saving after this step" in output
        else:
            assert process.returncode == -number, output
    finish(words, cache)
    assert result(out) == expected
    return met


def with_validation(folder, shapes_folder):
    """The drawn images with a validation split, in a folder of the test's own."""
    shutil.copytree(shapes_folder, folder / "images")
    shutil.copytree(shapes_folder / "test", folder / "images" / "validation")
    return folder


def ended(processes, seconds=240):
    return [(process.communicate(timeout=seconds)[0], process.returncode) for process in processes]


def wait_for_checkpoint(out, newer_than, processes):
    end = time.monotonic() + 200
    while max((int(p.name) for p in (out / "checkpoints").glob("*") if p.name.isdecimal()), default=-1) <= newer_than:
        codes = [process.poll() for process in processes]
        assert not any(code is not None for code in codes) and time.monotonic() < end, [codes, *ended(processes)]
        time.sleep(0.05)
