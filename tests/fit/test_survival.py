"""Runs of `cnnjax fit`, killed again and again as real processes, end as if nothing had happened.

`CNNJAX_KILLS=50 pytest tests/fit/test_survival.py` kills each run fifty times; a few are enough to notice a fault.
"""

import os
import signal
from pathlib import Path

import pytest
from killing import command, finish, killed, result, with_validation

KILLS = int(os.environ.get("CNNJAX_KILLS", "2"))

NETWORK = ["--backbone", "mobilenet", "--alpha", "0.25", "--image-size", "32", "--head", "linear", "--batch-size", "8"]
SCRATCH = [*NETWORK, "--method", "scratch", "--augment", "lecture", "--epochs", "8", "--optimizer", "adam"]
SCRATCH += ["--ema", "0.9", "--schedule", "cosine", "--warmup", "0.1", "--keep", "best"]
TUNED = [*NETWORK, "--method", "gradual", "--stages", "conv_dw_4", "conv_dw_2", "--epochs", "8"]
TUNED += ["--tune-epochs", "2", "--optimizer", "rmsprop", "--clip", "1.0", "--accumulate", "2"]


@pytest.fixture(scope="module")
def base(tmp_path_factory, shapes_folder):
    return with_validation(tmp_path_factory.mktemp("survival"), shapes_folder)


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
    met = killed(command(base, out, SCRATCH), out, base / "cold", signal.SIGKILL, 6.0, result(scratch), KILLS)
    print(f"killed while {dict(met)}")


@pytest.mark.slow
def test_phases_on_stored_features_end_the_same_after_sigterm(scratch, base):
    options = [*TUNED, "--init-from", str(scratch), "--init-part", "backbone"]
    whole, asked = base / "tuned", base / "tuned-asked"
    assert f"starts from the backbone of {scratch}" in " ".join(
        finish(command(base, whole, options), base / "cache").split()
    )
    met = killed(command(base, asked, options), asked, base / "cache", signal.SIGTERM, 5.0, result(whole), KILLS)
    print(f"asked to end while {dict(met)}")
