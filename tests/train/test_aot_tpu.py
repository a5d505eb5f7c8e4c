"""The compiler of TPUs on a machine that has none."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "aot_tpu.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("aot_tpu", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["aot_tpu"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["aot_tpu"]


def test_without_libtpu_it_names_what_installs_it(script, monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert script.main([]) == 2
    assert capsys.readouterr().err == (
        "aot_tpu needs TPU's compiler: pip install '.[tpu]' installs the libtpu of this JAX\n"
    )


@pytest.mark.parametrize(
    ("message", "needed", "available"),
    [
        ("total memory required for HLO temporaries (8.00T) exceeds available HBM (15.75G). HLO", 2**43, 63 * 2**28),
        ("Ran out of memory in memory space hbm. Used 17.25G of 15.75G hbm. Exceeded", 69 * 2**28, 63 * 2**28),
    ],
)
def test_a_shortage_of_memory_is_read_from_the_compilers_words(script, message, needed, available):
    assert script.shortage(message) == (needed, available)


def test_other_complaints_of_the_compiler_are_passed_on(script):
    with pytest.raises(ValueError, match="the compiler refuses: INTERNAL: no such layout"):
        script.shortage("INTERNAL: no such layout\nat line 3")


def test_the_table_tells_what_does_not_fit(script):
    fitting = script.Found(
        "cnn", "v5e:2x2", 4, 1024, "float32", True, 63 << 28, 3 << 30, 1 << 30, 1 << 30, 5e9, 0.0125, 2_500_000,
        {"all-reduce": (2, 4_096_000)},
    )  # fmt: skip
    found = [fitting, script.Found("cnn", "v5e:2x2", 4, 8192, "float32", False, 63 << 28, 24 << 30)]
    lines = script.table(found, "markdown").splitlines()
    assert lines[-2].split(" | ")[3:] == [
        "1,024", "yes", "3.00 of 15.75", "1.00", "1.00", "0.0200", "5.00", "12.5", "2.50", "2 all-reduce 4.10 MB |",
    ]  # fmt: skip
    assert lines[-1].split(" | ")[3:6] == ["8,192", "no", "24.00 of 15.75"]
    assert json.loads(script.table(found, "json"))[1]["needed"] == 24 << 30


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="pip install '.[tpu]' brings libtpu")
def test_a_step_is_compiled_for_a_slice():
    options = "--model lecture_cnn --image-size 64 --batch 256 4194304 --topology v5e:2x2 --format json".split()
    run = subprocess.run([sys.executable, SCRIPT, *options], capture_output=True, text=True, check=True)
    fits, not_ = json.loads(run.stdout)
    assert fits["fits"] and not not_["fits"] and not_["needed"] > not_["available"] == fits["available"]
    # 3x3 convolutions on 62, 29, 12 and 4 cells a side, 256 images on 4 devices, an addition for each multiplication:
    # forward, gradient of the kernel, and of the input but for the first.
    layers = [62**2 * 27 * 32, 29**2 * 9 * 32 * 64, 12**2 * 9 * 64 * 128, 4**2 * 9 * 128 * 128]
    operations = 2 * 64 * (3 * sum(layers) - layers[0] + 3 * 128 * 1000)
    assert operations <= fits["flops"] <= 1.1 * operations
    parameters = 28 * 32 + 289 * 64 + 577 * 128 + 1153 * 128 + 129 * 1000
    count, size = fits["messages"]["all-reduce"]
    assert 4 * parameters <= size <= 4 * parameters + 100
    assert size == sum(size for _, size in fits["messages"].values())
    for options, complaint in (
        (["--topology", "v9z:2x2"], "libtpu knows no topology 'v9z:2x2'"),
        (["--batch", "6"], "a batch of 6 cannot be spread evenly over 4 devices; 4 or 8 can"),
        (["--freeze", "all"], "--freeze needs a --model"),
    ):
        command = [sys.executable, SCRIPT, "--topology", "v5e:2x2", *options]
        run = subprocess.run(command, capture_output=True, text=True)
        assert run.returncode == 2 and complaint in run.stderr
