"""The sweep: what it writes, what it never computes twice, and going on after a kill."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
from flax import nnx
from PIL import Image
from rich.console import Console

from cnnjax.cli import main
from cnnjax.data import Folder, shapes
from cnnjax.models import Classifier, lecture_cnn, linear_head, mobilenet, vgg16
from cnnjax.runtime.preemption import EXIT_CODE
from cnnjax.sweep.ablation import ablate, sweep
from cnnjax.sweep.data import SweepData, open_sweep_data
from cnnjax.sweep.grid import cells, default_depths
from cnnjax.sweep.options import Ablation

QUIET = Console(quiet=True)
pytestmark = pytest.mark.usefixtures("compiled_fast")


@pytest.fixture(scope="module")
def config(shapes_folder, tmp_path_factory):
    base = tmp_path_factory.mktemp("ablation")
    return Ablation(
        data=str(shapes_folder), backbone="lecture_cnn", image_size=48,
        freeze=("none", "2", "all"), head="linear", seeds=2, epochs=2,
        batch_size=16, optimizer="adam", out=base / "run", store=base / "store",
    )  # fmt: skip


@pytest.fixture(scope="module")
def finished(config):
    return sweep(config, open_sweep_data(config, QUIET), QUIET)


def lines(run):
    return [json.loads(line) for line in (run / "results.jsonl").read_text().splitlines()]


def test_the_run_folder_holds_everything(finished, config):
    found = lines(finished)
    assert [(r["freeze"], r["seed"]) for r in found] == [(f, s) for f in config.freeze for s in (0, 1)]
    assert json.loads((finished / "config.json").read_text())["freeze"] == ["none", "2", "all"]
    with (finished / "table.csv").open() as file:
        table = list(csv.DictReader(file))
    for row, freeze in zip(table, config.freeze, strict=True):
        accuracies = [r["test_accuracy"] for r in found if r["freeze"] == freeze]
        assert row["freeze"] == freeze and float(row["test_accuracy_mean"]) == pytest.approx(np.mean(accuracies))
    with Image.open(finished / "accuracy.png") as image:
        assert image.format == "PNG"
    # Trained numbers by the lecture's arithmetic: F*F*D1*K + K a convolution, D*K + K the head.
    sizes = [3 * 9 * 32 + 32, 32 * 9 * 64 + 64, 64 * 9 * 128 + 128, 128 * 9 * 128 + 128]
    expected = {"none": sum(sizes) + 129, "2": sum(sizes[2:]) + 129, "all": 129}
    assert {r["freeze"]: r["trainable_parameters"] for r in found} == expected
    assert [r["first_trainable"] for r in found[::2]] == ["conv2d_1", "conv2d_3", ""]


def test_a_whole_sweep_is_one_backbone_pass_a_split(finished):
    # Depth 2 starts from the stored images, everything frozen from the features at depth 2.
    passes = {r["freeze"]: r["backbone_passes"] for r in lines(finished)}
    assert passes == {"none": 2, "2": 2, "all": 2}
    decoded = {r["freeze"]: r["decoded_images"] for r in lines(finished)}
    assert decoded == {"none": 62, "2": 0, "all": 0}


def test_the_same_command_again_runs_nothing(finished, config):
    before = (finished / "results.jsonl").read_bytes()
    sweep(config, open_sweep_data(config, QUIET), QUIET)
    assert (finished / "results.jsonl").read_bytes() == before


def test_other_seeds_make_no_pass(finished, config, tmp_path):
    other = replace(config, first_seed=7, seeds=1, out=tmp_path / "other")
    for record in lines(sweep(other, open_sweep_data(other, QUIET), QUIET)):
        assert record["features_reused"] and record["backbone_passes"] == 0 and record["seed"] == 7


def test_another_configuration_is_refused(finished, config):
    changed = replace(config, epochs=3)
    with pytest.raises(ValueError, match="epochs: 2 there, 3 now"):
        sweep(changed, open_sweep_data(changed, QUIET), QUIET)


def test_killed_and_asked_to_end_it_goes_on_to_the_same_numbers(finished, config, tmp_path):
    command = [
        sys.executable, "-m", "cnnjax", "ablate", "--data", str(config.data), "--backbone", "lecture_cnn",
        "--image-size", "48", "--freeze",
        *config.freeze, "--head", "linear", "--seeds", "2", "--epochs", "2", "--batch-size", "16", "--optimizer",
        "adam", "--out", str(tmp_path / "run"), "--store", str(tmp_path / "store"),
    ]  # fmt: skip
    results = tmp_path / "run" / "results.jsonl"
    environment = os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}  # as `finished` is compiled
    cells_in = 0
    for number, code in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, EXIT_CODE)):
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
        )
        while process.poll() is None and not (results.exists() and results.read_bytes().count(b"\n") > cells_in):
            time.sleep(0.005)
        os.kill(process.pid, number)
        output = process.communicate(timeout=60)[0]
        assert process.returncode == code, output
        assert not cells_in or f"{cells_in} of 6 cells are in" in output
        cells_in, before = len(lines(tmp_path / "run")), cells_in
        assert before < cells_in < 6
    out = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    assert f"{cells_in} of 6 cells are in" in out
    found, expected = lines(tmp_path / "run"), lines(finished)
    assert [r["cell"] for r in found] == [r["cell"] for r in expected]
    for a, b in zip(found, expected, strict=True):
        assert a["test_accuracy"] == b["test_accuracy"] and a["train_loss"] == b["train_loss"]


def test_relabelled_images_are_another_run(finished, config, shapes_folder, tmp_path):
    shutil.copytree(shapes_folder, tmp_path / "images")
    (tmp_path / "images" / "test" / "across").rename(tmp_path / "images" / "test" / "away")
    (tmp_path / "images" / "train" / "across").rename(tmp_path / "images" / "train" / "away")
    data = open_sweep_data(replace(config, data=str(tmp_path / "images")), QUIET)
    with pytest.raises(ValueError, match="test_images"):
        sweep(config, data, QUIET)


def test_rates_are_a_second_axis_and_fine_tuning_takes_a_fraction(config):
    backbone = lecture_cnn((48, 48, 3), include_top=False, rngs=nnx.Rngs(0))
    model = Classifier(backbone, linear_head(backbone.output_shape(), 2, rngs=nnx.Rngs(0)), "unit")
    grid = cells(replace(config, learning_rates=(1e-2, 1e-3), tuning_factor=0.1, freeze=("all", "2", " 2")), model)
    assert [(c.freeze, round(c.learning_rate, 9), c.seed) for c in grid] == [
        ("2", 1e-3, 0), ("2", 1e-3, 1), ("2", 1e-4, 0), ("2", 1e-4, 1),
        ("all", 1e-2, 0), ("all", 1e-2, 1), ("all", 1e-3, 0), ("all", 1e-3, 1),
    ]  # fmt: skip
    same = cells(replace(config, learning_rates=(1e-2, 1e-2), tuning_factor=0.1, freeze=("4",)), model)
    assert [c.learning_rate for c in same] == [1e-2, 1e-2]  # all is frozen; two seeds, one rate
    with pytest.raises(ValueError, match=r"(?s)no layer 'conv2d_9'.*cannot freeze 7 layers"):
        cells(replace(config, freeze=("conv2d_9", "all", "7")), model)


def test_the_default_depths_span_the_backbone():
    assert default_depths(lecture_cnn((48, 48, 3), include_top=False, rngs=nnx.Rngs(0))) == (
        "none",
        "1",
        "2",
        "3",
        "all",
    )
    assert default_depths(mobilenet(alpha=0.25, include_top=False, rngs=nnx.Rngs(0))) == (
        "none",
        "5",
        "11",
        "16",
        "22",
        "all",
    )
    assert default_depths(vgg16(input_shape=(32, 32, 3), include_top=False, rngs=nnx.Rngs(0))) == (
        "none",
        "3",
        "5",
        "8",
        "10",
        "all",
    )


def test_the_built_in_default(tmp_path, monkeypatch, capsys):
    """Drawn images, pretraining, sweep: as the command runs it, with fewer epochs and images."""
    monkeypatch.setenv("CNNJAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("cnnjax.sweep.pretraining._EPOCHS", 1)
    for kind, counts in (("source", (40, 4, 8)), ("target", (20, 4, 10))):
        per_class = dict(zip(("train", "validation", "test"), counts, strict=True))
        monkeypatch.setitem(shapes._PER_CLASS, kind, per_class)
    config = Ablation.drawn(seeds=1, epochs=2, freeze=("3", "all"), out=tmp_path / "run")
    run = ablate(config)
    assert [r["freeze"] for r in lines(run)] == ["3", "all"]
    assert "pretrained in" in capsys.readouterr().out
    ablate(replace(config, out=tmp_path / "again"))
    assert "pretrained in" not in capsys.readouterr().out  # the trained backbone was kept
    assert all(r["backbone_passes"] == 0 for r in lines(tmp_path / "again"))
    assert [r["test_accuracy"] for r in lines(tmp_path / "again")] == [r["test_accuracy"] for r in lines(run)]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["abalte"], "no command 'abalte'; did you mean 'ablate'?"),
        (["ablate", "--backbone", "mobilnet"], "no backbone 'mobilnet'; did you mean 'mobilenet'?"),
        (["ablate", "--data", "/nowhere"], "/nowhere"),
        (["ablate", "--backbone", "vgg16"], "give --data FOLDER as well"),
        (["ablate", "--data", ".", "--weights", "no.h5"], "no weights file no.h5"),
        (
            ["ablate", "--data", ".", "--backbone", "lecture_cnn", "--alpha", "0.5"],
            "lecture_cnn has no option 'alpha'",
        ),
        (["ablate", "--epochs", "0"], "epochs must be at least 1, not 0"),
        (["ablate", "--freeze", " "], "is no freeze: give none, all, a depth"),
        (["ablate", "--optimizer", "adm"], "no optimizer 'adm'; did you mean 'adam'?"),
        (["ablate", "--image-size", "32"], "drawn at 64x64"),
        (["ablate", "--learning-rates", "-1"], "learning rates must be positive"),
        (["ablate", "--learning-rates", "nan"], "learning rates must be positive"),
        (["ablate", "--first-seed", "-1"], "first_seed must be at least 0"),
        (
            ["ablate", "--freeze", "all", "--freeze", "none"],
            "--freeze is given more than once; give its values together",
        ),
    ],
)
def test_what_a_user_can_mend_is_told_in_a_sentence(args, message, capsys):
    with pytest.raises(SystemExit) as stop:
        main(args)
    assert stop.value.code == 2
    captured = capsys.readouterr()
    assert message in captured.err + captured.out and "Traceback" not in captured.err


def test_help_lists_the_commands(capsys):
    main([])
    assert "ablate" in capsys.readouterr().out
    main(["--version"])
    assert capsys.readouterr().out.strip().count(".") == 2


@pytest.mark.slow
@pytest.mark.usefixtures("optimized")
def test_cats_and_dogs_with_imagenet_features(shared_data, tmp_path):
    """Real photographs, real weights: the lecture's head on a quarter of the images."""
    from cnnjax.weights.assign import load_weights

    root = shared_data / "cats_and_dogs_small"
    splits = {
        name: Folder(root, name, (160, 160)).take(np.arange(0, total, step))
        for name, total, step in (("train", 2000, 4), ("test", 1000, 4))
    }
    backbone = mobilenet(alpha=0.75, input_shape=(160, 160, 3), include_top=False, rngs=nnx.Rngs(0))
    load_weights(backbone, shared_data / "weights" / "mobilenet_7_5_224_tf_no_top.h5")
    config = Ablation(
        data=str(root), backbone="lecture_cnn", image_size=160, freeze=("all",), seeds=3, epochs=5, optimizer="rmsprop",
        out=tmp_path / "run", store=tmp_path / "store",
    )  # fmt: skip
    found = lines(sweep(config, SweepData(splits, backbone, "tf", "cats and dogs"), QUIET))
    # Keras on TensorFlow reaches 96.6 to 97.4 % with all images and 30 epochs.
    assert np.mean([r["test_accuracy"] for r in found]) >= 0.94
    # Fifteen epochs and three evaluations, and the backbone saw each image once.
    assert {(r["backbone_passes"], r["decoded_images"]) for r in found} == {(2, 500 + 250)}


def test_packed_images_views_and_bad_files_in_one_sweep(config, shapes_folder, tmp_path, capsys):
    shutil.copytree(shapes_folder, tmp_path / "images")
    (tmp_path / "images" / "train" / "down" / "torn.png").write_bytes(b"\x89PNG torn")
    options = replace(
        config, data=str(tmp_path / "images"), freeze=("all",), seeds=1, out=tmp_path / "run", on_error="skip",
        augment="lecture", views=2,
    )  # fmt: skip
    run = sweep(options, open_sweep_data(options, QUIET), QUIET)
    with (run / "skipped.csv").open() as file:
        (left_out,) = csv.DictReader(file)
    assert left_out["split"] == "train" and "torn.png" in left_out["path"]
    (viewed,) = lines(run)
    main(["pack", str(tmp_path / "images"), "--on-error", "skip"])
    packed = replace(options, data=str(tmp_path / "images-packed"), out=tmp_path / "packed-run")
    (again,) = lines(sweep(packed, open_sweep_data(packed, QUIET), QUIET))
    # The same images in the same order: the features are found, the numbers are the same.
    assert again["features_reused"] and again["train_loss"] == viewed["train_loss"]
    with pytest.raises(ValueError, match=r"torn\.png"):
        open_sweep_data(replace(options, on_error="refuse"), QUIET)
    with pytest.raises(ValueError, match="and --augment to draw them with, found 2"):
        replace(options, augment="none")
