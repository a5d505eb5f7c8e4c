"""The sweep in several processes: the same cells, nothing computed twice, and no process that outlives it."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import defaultdict
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from killing import FLAGS
from rich.console import Console

from cnnjax.ops.spread import cpu_threads
from cnnjax.runtime.preemption import EXIT_CODE
from cnnjax.sweep.ablation import sweep
from cnnjax.sweep.data import open_sweep_data
from cnnjax.sweep.options import Ablation

QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def config(shapes_folder, tmp_path_factory):
    base = tmp_path_factory.mktemp("processes")
    return Ablation(
        data=str(shapes_folder), backbone="lecture_cnn", image_size=48,
        freeze=("none", "3", "all"), head="linear", seeds=4, epochs=2,
        batch_size=11, optimizer="adam", out=base / "run", store=base / "store",
    )  # fmt: skip


@pytest.fixture(scope="module")
def in_turn(config):
    return lines(sweep(config, open_sweep_data(config, QUIET), QUIET))


def lines(run):
    return [json.loads(line) for line in (run / "results.jsonl").read_text().splitlines()]


@pytest.fixture(autouse=True)
def fast_compilation(monkeypatch):
    """In the processes that are started; they share what they compile."""
    monkeypatch.setenv("XLA_FLAGS", FLAGS)
    monkeypatch.setenv("CNNJAX_ONEDNN", "0")


def by_cell(found):
    return {record["cell"]: record for record in found}


def test_two_processes_train_the_cells_of_one_and_make_nothing_twice(config, in_turn, tmp_path):
    config = replace(config, processes=2, out=tmp_path / "run", store=tmp_path / "store")
    found, expected = by_cell(lines(sweep(config, open_sweep_data(config, QUIET), QUIET))), by_cell(in_turn)
    assert found.keys() == expected.keys()
    decoded = defaultdict(set)
    for name, record in found.items():
        # Fewer threads add up in another order, which Adam's first steps make more of.
        np.testing.assert_allclose(record["train_loss"], expected[name]["train_loss"], rtol=2e-3)
        assert record["seconds"] > 0 and record["test_accuracy"] == pytest.approx(
            expected[name]["test_accuracy"], abs=0.1
        )
        decoded[record["freeze"]].add(record["decoded_images"])
    # Both processes' cells of a depth tell what that process made for it: training or test images, all, or nothing.
    assert {freeze: sum(images) for freeze, images in decoded.items()} == {"none": 44 + 18, "3": 0, "all": 0}
    assert len(list((tmp_path / "store").iterdir())) == 2 * 3  # of each split the images, and two depths


def test_a_process_computes_with_its_share_of_the_cores():
    """By JAX's threads: without them a process could not have told XLA how many to make."""
    program = (
        "import os, pathlib, sys\n"
        "if len(sys.argv) > 1: os.environ['NPROC'] = sys.argv[1]\n"
        "import jax\n"
        "jax.numpy.zeros(3).block_until_ready()\n"
        "names = [p.read_text() for p in pathlib.Path('/proc/self/task').glob('*/comm')]\n"
        "print(sum('XLAEigen' in name for name in names))"
    )
    told = [
        subprocess.run([sys.executable, "-c", program, *n], capture_output=True, text=True, check=True)
        for n in ([], ["3"])
    ]
    assert [int(run.stdout) for run in told] == [cpu_threads(), 3]


def test_what_fails_in_a_process_is_what_the_sweep_raises(config, tmp_path):
    config = replace(config, processes=2, out=tmp_path / "run", store=tmp_path / "store")
    config.store.write_text("no folder")
    with pytest.raises(NotADirectoryError, match="is a file; give a folder") as raised:
        sweep(config, open_sweep_data(config, QUIET), QUIET)
    assert "store.py" in "".join(raised.value.__notes__)  # where it was


def test_processes_are_for_the_cpu(config, tmp_path, monkeypatch):
    config = replace(config, processes=2, out=tmp_path / "run")
    data = open_sweep_data(config, QUIET)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    with pytest.raises(ValueError, match="2 processes share a CPU's cores, and JAX computes on gpu"):
        sweep(config, data, QUIET)
    with pytest.raises(ValueError, match="processes: expected 1 or more, found 0"):
        replace(config, processes=0)


def children(process):
    """Ids of the processes that train for a process (Python's own `multiprocessing` starts one more)."""
    with suppress(OSError):  # one of them has just ended
        started = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        return [int(pid) for pid in started if "spawn_main" in Path(f"/proc/{pid}/cmdline").read_text()]
    return []


def cells_in(results):
    return results.read_bytes().count(b"\n") if results.exists() else 0


@pytest.mark.slow
def test_however_it_is_ended_nothing_is_left_running_and_it_goes_on(config, in_turn, tmp_path):
    command = [
        sys.executable, "-m", "cnnjax", "ablate", "--data", str(config.data), "--backbone", "lecture_cnn",
        "--image-size", "48", "--freeze",
        *config.freeze, "--head", "linear", "--seeds", "4", "--epochs", "2", "--batch-size", "11", "--optimizer",
        "adam", "--out", str(tmp_path / "run"), "--store", str(tmp_path / "store"), "--processes", "2",
    ]  # fmt: skip
    results = tmp_path / "run" / "results.jsonl"
    before = 0
    for kill, code, words in (
        (lambda process, others: process.kill(), -signal.SIGKILL, ""),
        # As when the kernel takes the memory back.
        (lambda process, others: os.kill(others[0], signal.SIGKILL), 2, "finished cells are kept"),
        (lambda process, others: process.terminate(), EXIT_CODE, ""),
    ):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        while process.poll() is None and (cells_in(results) <= before or not children(process)):
            time.sleep(0.005)
        others = children(process)
        kill(process, others)
        output = process.communicate(timeout=60)[0]
        assert process.returncode == code and words in output, output
        end = time.monotonic() + 30
        while any(Path(f"/proc/{pid}").exists() for pid in others):
            assert time.monotonic() < end
            time.sleep(0.02)
        assert before < cells_in(results) < 12
        before = cells_in(results)
    subprocess.run(command, check=True, capture_output=True)
    found, expected = by_cell(lines(tmp_path / "run")), by_cell(in_turn)
    assert found.keys() == expected.keys() and cells_in(results) == 12
    for name, record in found.items():
        np.testing.assert_allclose(record["train_loss"], expected[name]["train_loss"], rtol=2e-3)
