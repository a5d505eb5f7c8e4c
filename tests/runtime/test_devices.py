"""The same runs on one device, on several, and on two hosts; and what happens when a host dies."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from cnnjax.runtime.devices import Devices, start

RUNS = Path(__file__).parents[1] / "hosts" / "runs.py"
LOST = 6  # seconds until a dead process is missed
# Sums in another order: of losses of about 0.5 the largest difference measured is 9e-8, of leaves 9e-7 of the largest.
LOSS, LEAF = 1e-6, 1e-5


def begin(count, out, images, *args):
    environment = os.environ | {
        # Fast compilation: what is compared is compiled alike.
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={count} --xla_backend_optimization_level=0",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(RUNS.parents[2]),
    }
    with (out / f"{args[0]}.txt").open("w") as errors:
        return subprocess.Popen(
            [sys.executable, str(RUNS), str(out), str(images), *args], env=environment, stdout=errors, stderr=errors
        )


def until(there, processes, out, seconds):
    """Waits for files to be there."""
    end = time.monotonic() + seconds
    while not all((out / name).exists() for name in there):
        codes = [process.poll() for process in processes]
        text = "\n".join(path.read_text()[-3000:] for path in out.glob("*.txt"))
        assert codes == [None] * len(processes) and time.monotonic() < end, f"{codes}: {text}"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def ended(tmp_path_factory, shapes_folder):
    """What came of the runs: of a process with eight devices, and of two with two each, one of them killed."""
    out = tmp_path_factory.mktemp("runs")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    alone = begin(8, out, shapes_folder, "one_process")
    assert alone.wait(120) == 0, (out / "one_process.txt").read_text()[-3000:]
    hosts = [begin(2, out, shapes_folder, f"{address},{k},2", str(LOST)) for k in range(2)]
    try:
        until(["goes on 0", "goes on 1"], hosts, out, 120)
        hosts[1].send_signal(signal.SIGKILL)
        killed = time.monotonic()
        code = hosts[0].wait(LOST + 30)
    finally:
        for process in hosts:
            process.kill()
    last_words = (out / f"{address},0,2.txt").read_text()
    return out, {"code": code, "seconds": time.monotonic() - killed, "words": last_words}


def told(out, name):
    return json.loads((out / f"{name}.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "where"),
    [
        ("streamed", "on 4"),
        ("streamed", "on 8"),
        ("streamed", "on 8 sharded"),
        ("streamed", "as 0"),
        ("streamed", "as 1"),
        ("stored", "on 8"),
        ("stored", "as 0"),
        ("stored", "as 1"),
    ],
)
def test_devices_and_hosts_change_nothing_but_rounding(ended, kind, where):
    out, _ = ended
    one, several = told(out, f"{kind} on 1"), told(out, f"{kind} {where}")
    assert one["kind"] == several["kind"] == {"streamed": "source", "stored": "features"}[kind]
    assert one["losses"][-1] < 0.8 * one["losses"][0] and len(one["losses"]) == 3
    np.testing.assert_allclose(several["losses"], one["losses"], atol=LOSS)
    assert several["score"] == pytest.approx(one["score"], abs=LOSS)
    with np.load(out / f"{kind} on 1.npz") as expected, np.load(out / f"{kind} {where}.npz") as found:
        assert set(found) == set(expected) >= {"conv/kernel", "norm/mean", "norm/var", "hidden/kernel", "logits"}
        for path, value in expected.items():
            np.testing.assert_allclose(found[path], value, atol=LEAF * np.abs(value).max(), err_msg=path)
    # Nothing is traced or compiled again when the state comes out of the step that it goes into.
    programs = {"streamed": "step", "stored": "epoch"}[kind], "evaluate"
    assert several["traces"] == dict.fromkeys(programs, 1) and several["compiled"] == 2


@pytest.mark.slow
def test_a_large_leaf_lies_in_parts_with_what_the_optimizer_keeps_of_it(ended):
    out, _ = ended
    numbers = 8 * 12 * 12 * 16
    for name, parts in (("streamed on 8 sharded", 8), ("stored as 1", 4), ("streamed on 8", 1)):
        found = told(out, name)
        assert found["held"]["hidden/kernel"] == numbers // parts, name
        assert found["held"]["out/kernel"] == 16 * 2, name  # too small to be worth it
        assert found["beside"] == [numbers // parts] * 2, name  # Adam's two moments


@pytest.mark.slow
def test_the_step_sends_its_gradients_once_and_no_images(ended):
    out, _ = ended
    found = told(out, "told")
    assert list(found["collectives"]) == ["all-reduce"]
    _, sent = found["collectives"]["all-reduce"]
    assert found["trained bytes"] <= sent <= found["trained bytes"] + 64  # the sums that make the metrics


@pytest.mark.slow
def test_each_host_reads_its_own_images(ended):
    out, _ = ended
    whole = np.array(told(out, "streamed on 1")["seen"]).reshape(9, 2, 8)
    for host in (0, 1):
        np.testing.assert_array_equal(
            np.sort(np.array(told(out, f"streamed as {host}")["seen"])), np.sort(whole[:, host].ravel())
        )


@pytest.mark.slow
def test_hosts_agree_and_refuse_to_differ(ended):
    out, _ = ended
    for host in (0, 1):
        found = told(out, f"told by {host}")
        assert found["agreed"] == [True, False, True]
        assert found["same"] == "no error"
        assert "the weights are not the same on every host: host 1 differs from host 0" in found["differ"]
        assert "a run on 2 hosts takes all 4, found 2" in found["few"]
        assert found["primary"] is (host == 0) and found["hosts"] == 2


@pytest.mark.slow
def test_a_host_that_dies_ends_the_other(ended):
    _, survivor = ended
    assert survivor["code"] not in (0, None) and survivor["seconds"] < LOST + 15
    assert "another task died" in survivor["words"]


@pytest.mark.slow
def test_what_devices_cannot_do_is_refused(ended):
    found = told(ended[0], "told")
    text = "a batch of {} cannot be spread evenly over 8 devices: batch_size {} can; or take fewer devices"
    assert found["uneven"] == text.format(30, "24 or 32")
    assert found["small"] == text.format(3, "8")
    assert found["too many"] == "devices: expected 1 to 8 (cpu), found 9"
    assert found["late"] == "hosts: JAX was used in this process before; join the hosts first"


@pytest.mark.slow
def test_the_largest_dimension_that_the_devices_divide_is_cut(ended):
    # Of 1,024 numbers or more, as runs.py sets the bound.
    assert told(ended[0], "told")["rule"] == {
        "(3, 3, 16, 32)": "P(None, None, None, 'data')",
        "(64, 32)": "P('data',)",
        "(32, 64)": "P(None, 'data')",
        "(1001, 16)": "P(None, 'data')",
        "(33, 65)": "P()",
        "(8,)": "P()",
    }


@pytest.mark.parametrize(
    ("hosts", "message"),
    [
        ("many", "expected auto, or HOST:PORT,ID,COUNT such as 10.0.0.1:1234,0,2; found 'many'"),
        ("10.0.0.1,0,2", "expected auto, or HOST:PORT,ID,COUNT"),
        ("10.0.0.1:1234,2,2", "of 2 processes the last is 1, found 2"),
    ],
)
def test_hosts_that_cannot_be_are_refused(hosts, message):
    with pytest.raises(ValueError, match=message):
        start(hosts)


def test_one_process_is_no_cluster():
    start(None)
    start("10.0.0.1:1234,0,1")
    devices = Devices.all(count=1)
    assert (devices.host, devices.hosts, devices.primary, devices.count) == (0, 1, True, 1)
    assert devices.agree(True, False) == (True, False)


@pytest.mark.parametrize(
    ("hosts", "error", "message"),
    [
        ("auto", "ValueError", "no cluster was found"),
        ("127.0.0.1:9,1,2", "TimeoutError", "not all processes of '127.0.0.1:9,1,2' came within 1 seconds"),
    ],
)
def test_who_does_not_come_is_an_error_like_others(hosts, error, message):
    program = f"from cnnjax.runtime.devices import start\nstart({hosts!r}, join=1)"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert found.returncode == 1 and f"{error}: hosts: {message}" in found.stderr
