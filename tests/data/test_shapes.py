"""The drawn data set: the same everywhere, whole or not there, and without TensorFlow."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

from cnnjax.data import Source, open_shapes
from cnnjax.data.shapes import ShapesConfig, draw

FEW = {"train": 6, "validation": 2, "test": 3}


def small(**choices: object) -> ShapesConfig:
    return ShapesConfig(**{"kind": "target", "size": 16, "per_class": FEW} | choices)


def run(program: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(program), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_splits_classes_and_images_are_as_declared(tmp_path: Path) -> None:
    config = small()
    found = open_shapes(config, tmp_path)
    assert {split: len(source) for split, source in found.items()} == {
        "train": 24,
        "validation": 8,
        "test": 12,
    }
    for split, source in found.items():
        assert isinstance(source, Source)
        assert source.class_names == config.classes and source.image_size == (16, 16)
        assert np.bincount(source.labels).tolist() == [FEW[split]] * 4
        assert len(set(source.names)) == len(source)
        # A image's name says its class: the label must agree with it.
        assert [name.split("/")[0] for name in source.names] == [config.classes[c] for c in source.labels]
    images = np.concatenate([source.read(range(len(source))) for source in found.values()])
    assert len(np.unique(images.reshape(len(images), -1), axis=0)) == len(images)


def test_images_come_back_as_drawn(tmp_path: Path) -> None:
    """Through PNG, the record file and its reader, no pixel changes."""
    source = open_shapes(small(seed=7), tmp_path)["test"]
    where = source.names.index("striped_cross/00002")
    label = source.class_names.index("striped_cross")
    expected = draw("striped_cross", 16, np.random.default_rng([7, 1, 2, label, 2]))
    np.testing.assert_array_equal(source.read([where])[0], expected)


def test_every_preparation_is_the_same_in_another_process(tmp_path: Path) -> None:
    """Order, labels and pixels; it also imports no TensorFlow, prints nothing and warns of nothing."""
    program = """
        import json, sys
        import cnnjax.data
        assert "tensorflow_datasets" not in sys.modules and "PIL" not in sys.modules
        from cnnjax.data.shapes import ShapesConfig, open_shapes
        few = {"train": 6, "validation": 2, "test": 3}
        found = open_shapes(ShapesConfig(kind="target", size=16, per_class=few), sys.argv[1])
        assert "tensorflow" not in sys.modules
        with open(sys.argv[2], "w") as file:
            json.dump([[s.digest, s.names, s.labels.tolist()] for s in found.values()], file)
    """
    there = run(program, tmp_path / "there", tmp_path / "found.json")
    here = open_shapes(small(), tmp_path / "here")
    output = there.communicate(timeout=60)
    assert there.returncode == 0, output
    assert output == ("", "")
    found = json.loads((tmp_path / "found.json").read_text())
    assert found == [[s.digest, list(s.names), s.labels.tolist()] for s in here.values()]


def test_a_killed_preparation_is_done_anew(tmp_path: Path) -> None:
    program = """
        import sys, time
        from cnnjax.data import shapes
        drawn = []
        real = shapes.draw
        def slow(*arguments):
            drawn.append(0)
            if len(drawn) == 30:  # in the second split
                open(sys.argv[1] + "/reached", "w").close()
                time.sleep(600)
            return real(*arguments)
        shapes.draw = slow
        few = {"train": 6, "validation": 2, "test": 3}
        shapes.open_shapes(shapes.ShapesConfig(kind="target", size=16, per_class=few), sys.argv[1])
    """
    process = run(program, tmp_path)
    until = time.monotonic() + 60
    while not (tmp_path / "reached").exists() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    output = process.communicate(timeout=10)
    assert (tmp_path / "reached").exists(), output
    assert list(tmp_path.rglob("*incomplete*")) and not list(tmp_path.rglob("dataset_info.json"))
    assert {split: len(source) for split, source in open_shapes(small(), tmp_path).items()} == {
        "train": 24,
        "validation": 8,
        "test": 12,
    }


def test_a_prepared_data_set_is_not_drawn_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = open_shapes(small(), tmp_path)
    monkeypatch.setattr("cnnjax.data.shapes.draw", None)
    assert open_shapes(small(), tmp_path)["train"].digest == first["train"].digest


def test_every_choice_makes_another_data_set(tmp_path: Path) -> None:
    choices = [{}, {"seed": 1}, {"size": 17}, {"per_class": FEW | {"test": 4}}, {"kind": "source"}]
    digests = [open_shapes(small(**choice), tmp_path)["test"].digest for choice in choices]
    assert len(set(digests)) == len(digests)


def test_a_damaged_copy_is_named(tmp_path: Path) -> None:
    open_shapes(small(), tmp_path)
    (file,) = tmp_path.rglob("*validation.array_record*")
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(OSError, match=f"damaged data set in {file.parent}, split 'validation'.*delete that folder"):
        open_shapes(small(), tmp_path)


def test_impossible_choices_are_refused() -> None:
    with pytest.raises(ValueError, match="kind: expected one of source, target, found 'sauce'"):
        open_shapes("sauce", "unused")  # ty: ignore[invalid-argument-type]
    with pytest.raises(ValueError, match="size: expected at least 8 pixels, found 4"):
        small(size=4)
    with pytest.raises(ValueError, match="per_class: expected a positive number for train, validation, test"):
        small(per_class={"train": 5})


def test_colours_tell_nothing_and_shapes_tell_something() -> None:
    """A nearest-mean classifier on mean colours stays near chance: the task needs more than colour."""
    rng = np.random.default_rng(0)
    classes = ShapesConfig(kind="target").classes
    means = np.array([[draw(name, 24, rng).mean((0, 1)) for _ in range(120)] for name in classes])
    centres = means[:, :60].mean(1)
    nearest = np.linalg.norm(means[:, 60:, None] - centres, axis=-1).argmin(-1)
    right = (nearest == np.arange(len(classes))[:, None]).mean()
    assert right < 0.4
