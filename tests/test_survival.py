"""Runs of `cnnjax fit`, killed again and again as real processes, end as if nothing had happened.

`CNNJAX_KILLS=50 pytest tests/test_survival.py` kills each run fifty times; a few are enough to notice a fault.
"""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from cnnjax.checkpoints import Checkpoints
from cnnjax.metrics.journal import read
from cnnjax.preemption import EXIT_CODE

KILLS = int(os.environ.get("CNNJAX_KILLS", "2"))

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
from cnnjax.training import Trainer
noted(jax._src.compiler, "compile_or_get_cached", "compiling")
noted(Run, "_save", "saving")
noted(Trainer, "evaluate", "evaluating")
noted(FeatureStore, "get", "features")
compiled = []
jax.monitoring.register_event_listener(
    lambda event, **kwargs: compiled.append(event) if event == "/jax/compilation_cache/cache_misses" else None
)
from cnnjax.cli import main
main(sys.argv[2:])
note.write(f"compiled {len(compiled)}\\n")
"""

NETWORK = ["--backbone", "mobilenet", "--alpha", "0.25", "--image-size", "32", "--head", "linear", "--batch-size", "8"]
SCRATCH = [*NETWORK, "--method", "scratch", "--augment", "lecture", "--epochs", "8", "--optimizer", "adam"]
SCRATCH += ["--ema", "0.9", "--schedule", "cosine", "--warmup", "0.1", "--keep", "best"]
TUNED = [*NETWORK, "--method", "gradual", "--stages", "conv_dw_11", "conv_dw_6", "--epochs", "12"]
TUNED += ["--tune-epochs", "3", "--optimizer", "rmsprop", "--clip", "1.0", "--accumulate", "2"]


def command(base, out, options, host=0):
    """What is started: the same each time."""
    fixed = ["--data", f"{base}/pictures", "--checkpoint-every", "0.3", "--store", f"{out}-store{host}"]
    return [sys.executable, "-c", RUNNER, f"{out}.doing{host}", "fit", *fixed, "--out", str(out), *options]


def start(words, cache, flags=None):
    environment = os.environ | {"CNNJAX_CACHE": str(cache), "PYTHONWARNINGS": "error::RuntimeWarning"} | (flags or {})
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


def finish(words, cache):
    process = start(words, cache)
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


def killed(words, out, cache, number, lasts, expected):
    """Start the command again and again, with a signal at `KILLS` random times; what each of them met.

    A run that gets through ends as `expected`, and another one begins. Two of three signals wait, from their time on,
    until something short is going on that they would hardly meet by chance.
    """
    times, met, doing = random.Random(number), Counter(), Path(f"{out}.doing0")
    for k in range(KILLS):
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


@pytest.fixture(scope="module")
def base(tmp_path_factory, shapes_folder):
    folder = tmp_path_factory.mktemp("survival")
    shutil.copytree(shapes_folder, folder / "pictures")
    shutil.copytree(shapes_folder / "test", folder / "pictures" / "validation")
    return folder


@pytest.fixture(scope="module")
def scratch(base):
    """A run from scratch that nobody interrupted."""
    out = base / "scratch"
    finish(command(base, out, SCRATCH), base / "cache")
    return out


def test_a_second_start_compiles_nothing_and_trains_nothing(scratch, base):
    before, made = result(scratch), Path(f"{scratch}.doing0").read_text().splitlines()[-1]
    assert int(made.removeprefix("compiled ")) > 20
    output = finish(command(base, scratch, SCRATCH), base / "cache")
    assert "goes on from the run's own checkpoint" in " ".join(output.split())
    assert Path(f"{scratch}.doing0").read_text().splitlines()[-1] == "compiled 0"
    assert result(scratch) == before


def test_a_run_killed_at_random_times_ends_as_one_that_was_not(scratch, base):
    out = base / "scratch-killed"
    met = killed(command(base, out, SCRATCH), out, base / "cold", signal.SIGKILL, 15.0, result(scratch))
    print(f"killed while {dict(met)}")


@pytest.mark.slow
def test_phases_on_stored_features_end_the_same_after_sigterm(scratch, base):
    options = [*TUNED, "--init-from", str(scratch), "--init-part", "backbone"]
    whole, asked = base / "tuned", base / "tuned-asked"
    assert f"starts from the backbone of {scratch}" in " ".join(
        finish(command(base, whole, options), base / "cache").split()
    )
    met = killed(command(base, asked, options), asked, base / "cache", signal.SIGTERM, 12.0, result(whole))
    print(f"asked to end while {dict(met)}")


def two_hosts(base, out, options):
    """The command on two hosts with two devices each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
    return [
        start(command(base, out, [*options, "--hosts", f"{address},{k},2"], host=k), base / "cache", flags)
        for k in range(2)
    ]


def ended(processes, seconds=240):
    return [(process.communicate(timeout=seconds)[0], process.returncode) for process in processes]


def wait_for_checkpoint(out, newer_than, processes):
    end = time.monotonic() + 200
    while max((int(p.name) for p in (out / "checkpoints").glob("*") if p.name.isdecimal()), default=-1) <= newer_than:
        codes = [process.poll() for process in processes]
        assert not any(code is not None for code in codes) and time.monotonic() < end, [codes, *ended(processes)]
        time.sleep(0.05)


@pytest.mark.slow
def test_two_hosts_one_of_which_dies_go_on_and_end_the_same(base):
    options = ["--backbone", "lecture_cnn", "--image-size", "48", "--head", "linear", "--method", "scratch", "--stream"]
    options += ["--batch-size", "8", "--epochs", "12", "--optimizer", "adam", "--augment", "imagenet"]
    whole, out = base / "hosts", base / "hosts-killed"
    for output, code in ended(two_hosts(base, whole, options)):
        assert code == 0, output
    processes = two_hosts(base, out, options)
    wait_for_checkpoint(out, 0, processes)
    processes[1].kill()
    (output, code), _ = ended(processes)
    assert code not in (0, EXIT_CODE), output  # the survivor ends too, and says why
    with Checkpoints(out / "checkpoints") as checkpoints:
        newest = checkpoints.latest()
    processes = two_hosts(base, out, options)
    wait_for_checkpoint(out, newest, processes)
    processes[0].send_signal(signal.SIGTERM)  # one host alone is asked: both save and end
    assert [code for _, code in ended(processes)] == [EXIT_CODE, EXIT_CODE]
    for output, code in ended(two_hosts(base, out, options)):
        assert code == 0, output
    assert result(out) == result(whole)


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_devices(base):
    options = ["--backbone", "lecture_cnn", "--image-size", "48", "--head", "linear", "--method", "scratch", "--stream"]
    options += ["--batch-size", "8", "--epochs", "12", "--optimizer", "adam", "--augment", "imagenet"]
    whole, out = base / "one-device", base / "one-device-then-four"
    finish(command(base, whole, options), base / "cache")
    process = start(command(base, out, options), base / "cache")
    wait_for_checkpoint(out, 0, [process])
    process.send_signal(signal.SIGTERM)
    assert ended([process])[0][1] == EXIT_CODE
    four = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"}
    ((output, code),) = ended([start(command(base, out, options), base / "cache", four)])
    assert code == 0 and "goes on from the run's own checkpoint" in output, output
    losses = [[line["train_loss"] for line in read(path / "metrics.jsonl")] for path in (whole, out)]
    assert len(losses[0]) == 12
    np.testing.assert_allclose(*losses, rtol=1e-3)  # twelve epochs of sums in another order
