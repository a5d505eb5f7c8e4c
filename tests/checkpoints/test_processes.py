"""Real processes: killed while saving, out of disk, on eight devices, on two hosts."""

import multiprocessing
import socket
import time

import jax
import numpy as np
import pytest
from checkpoints import processes
from checkpoints.processes import content, same

from cnnjax.checkpoints import Checkpoints


@pytest.fixture(scope="module")
def context():
    """Forked from a process that has imported everything and started nothing."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["cnnjax.checkpoints", "orbax.checkpoint", "jax.experimental.multihost_utils"])
    return context


def run(context, target, *arguments):
    answer = context.Queue()
    process = context.Process(target=target, args=(*arguments, answer))
    process.start()
    found = answer.get(timeout=60)
    process.join()
    assert process.exitcode == 0
    return found


def test_killed_while_saving_the_newest_whole_one_restores(context, tmp_path):
    rng, cut_short, newest = np.random.default_rng(), 0, []
    for _ in range(5):
        begun = context.Event()
        process = context.Process(target=processes.save_for_ever, args=(tmp_path, begun))
        process.start()
        assert begun.wait(60)
        time.sleep(rng.uniform(0, 0.4))
        process.kill()
        process.join()
        assert process.exitcode == -9  # it found what its forerunner left as it was written
        cut_short += any("tmp" in p.name for p in tmp_path.iterdir())
        checkpoints = Checkpoints(tmp_path)
        newest.append(checkpoints.latest())
        for step in checkpoints.steps():
            assert same(checkpoints.restore(content(0), step), content(step))
            assert checkpoints.metadata(step)["step"] == step
    assert newest == sorted(set(newest))
    assert cut_short  # else no kill fell into a save
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(newest[-1] + 1, content(0), {})
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(str(s) for s in checkpoints.steps())


def test_a_full_disk_is_said_and_the_checkpoint_before_restores(context, tmp_path):
    limits = (1_000_000, 20_000, 1_000, 100)  # what is too long: the numbers, then Orbax's files, then every file
    said, restored, later, left = run(context, processes.fill_the_disk, tmp_path / "run", limits)
    where = f"the checkpoint of step 2 could not be saved in {tmp_path / 'run'}"
    assert said == [f"{where}: File too large; step 1 can still be restored"] * len(limits)
    assert restored and later
    assert left == ["1", "4"]


def test_a_checkpoint_of_one_device_restores_on_eight_and_back(context, tmp_path):
    with Checkpoints(tmp_path / "one") as checkpoints:
        checkpoints.save(5, jax.tree.map(jax.numpy.asarray, content(5)), {})
    devices, pieces, right = run(context, processes.reshard, tmp_path / "one", tmp_path / "eight")
    assert (devices, pieces, right) == (8, [(), (processes.LENGTH // 8,)], True)
    like = jax.tree.map(jax.numpy.asarray, content(0))
    assert same(Checkpoints(tmp_path / "eight").restore(like), content(5))


def test_two_hosts_write_one_checkpoint(context, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder, answer = tmp_path / "run", context.Queue()
    hosts = [context.Process(target=processes.host, args=(k, 2, port, folder, answer)) for k in range(2)]
    for process in hosts:
        process.start()
    found = sorted(answer.get(timeout=60) for _ in hosts)
    for process in hosts:
        process.join()
    assert [answer[:3] for answer in found] == [(k, (1, 3), True) for k in range(2)]
    assert all("the processes do not share this folder" in answer[3] for answer in found)
    for step in (1, 3):
        assert same(Checkpoints(folder).restore(content(0), step), content(step))
        writers = {p.parts[len(folder.parts) + 1] for p in (folder / str(step)).rglob("d/*")}
        assert {"ocdbt.process_0", "ocdbt.process_1"} <= writers
