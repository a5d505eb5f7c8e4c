"""Runs on two hosts one of which dies, and on another number of devices than before, as real processes."""

import signal
import socket

import numpy as np
import pytest
from killing import FLAGS, command, ended, result, start, wait_for_checkpoint, with_validation

from cnnjax.checkpoints import Checkpoints
from cnnjax.metrics.journal import read
from cnnjax.runtime.preemption import EXIT_CODE

OPTIONS = ["--backbone", "lecture_cnn", "--image-size", "48", "--head", "linear", "--method", "scratch", "--stream"]
OPTIONS += ["--batch-size", "8", "--epochs", "16", "--optimizer", "adam", "--augment", "imagenet"]
DEVICES = f"{FLAGS} --xla_force_host_platform_device_count="


@pytest.fixture(scope="module")
def base(tmp_path_factory, shapes_folder):
    return with_validation(tmp_path_factory.mktemp("survival"), shapes_folder)


def two_hosts(base, out):
    """The command on two hosts with two devices each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    flags = {"XLA_FLAGS": f"{DEVICES}2", "JAX_PLATFORMS": "cpu"}
    return [
        start(command(base, out, [*OPTIONS, "--hosts", f"{address},{k},2"], host=k), base / "cache", flags)
        for k in range(2)
    ]


@pytest.fixture(scope="module")
def whole(base):
    """A run on two hosts that nobody interrupted."""
    for output, code in ended(two_hosts(base, base / "hosts")):
        assert code == 0, output
    return base / "hosts"


@pytest.mark.slow
def test_two_hosts_one_of_which_dies_go_on_and_end_the_same(base, whole):
    out = base / "hosts-killed"
    processes = two_hosts(base, out)
    wait_for_checkpoint(out, 0, processes)
    processes[1].kill()
    (output, code), _ = ended(processes)
    assert code not in (0, EXIT_CODE), output  # the survivor ends too, and says why
    with Checkpoints(out / "checkpoints") as checkpoints:
        newest = checkpoints.latest()
    processes = two_hosts(base, out)
    wait_for_checkpoint(out, newest, processes)
    processes[0].send_signal(signal.SIGTERM)  # one host alone is asked: both save and end
    assert [code for _, code in ended(processes)] == [EXIT_CODE, EXIT_CODE]
    for output, code in ended(two_hosts(base, out)):
        assert code == 0, output
    assert result(out) == result(whole)


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_devices(base, whole):
    """On one device, then on four of one host, it learns what two hosts with two devices each learn."""
    out = base / "one-device-then-four"
    one, four = ({"XLA_FLAGS": f"{DEVICES}{count}", "JAX_PLATFORMS": "cpu"} for count in (1, 4))
    process = start(command(base, out, OPTIONS), base / "cache", one)
    wait_for_checkpoint(out, 0, [process])
    process.send_signal(signal.SIGTERM)
    assert ended([process])[0][1] == EXIT_CODE
    ((output, code),) = ended([start(command(base, out, OPTIONS), base / "cache", four)])
    assert code == 0 and "goes on from the run's own checkpoint" in output, output
    losses = [[line["train_loss"] for line in read(path / "metrics.jsonl")] for path in (whole, out)]
    assert len(losses[0]) == 16
    # Sums in another order, over epochs; of the last losses, a millionth of the first, rounding is a good part.
    np.testing.assert_allclose(*losses, rtol=1e-2, atol=1e-3)
