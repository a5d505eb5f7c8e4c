"""`cnnjax show`, as it is typed."""

import numpy as np
import pytest
from flax import nnx
from PIL import Image

from cnnjax import cli
from cnnjax.models import create, preprocess
from cnnjax.show import command
from cnnjax.show.images import open_image, resized

SMALL = ["--backbone", "cifar_cnn"]


@pytest.fixture
def photograph(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    y, x = np.mgrid[:60, :90]
    pixels = np.stack([255 * (x > y), 2 * x, 3 * y], -1).astype(np.uint8)
    Image.fromarray(pixels).save("a photo.png")
    return "a photo.png"


@pytest.mark.parametrize(
    "words, name",
    [
        (["filters"], "filters-cifar_cnn-conv2d_1.png"),
        (["filters", "--layer", "conv2d_2", "--count", "4", "--out", "deep/er.png"], "deep/er.png"),
        (["activations", "IMAGE"], "activations-cifar_cnn-conv2d_1-a photo.png"),
        (["edges", "IMAGE", "--count", "3"], "edges-cifar_cnn-conv2d_1-a photo.png"),
        (["field", "IMAGE", "--cell", "0", "4"], "field-cifar_cnn-max_pooling2d_2-0-4-a photo.png"),
    ],
)
def test_draws_and_says_where(words, name, photograph, capsys, tmp_path):
    cli.main(["show", *(photograph if word == "IMAGE" else word for word in words), *SMALL])
    said = capsys.readouterr().out
    with Image.open(tmp_path / name) as image:
        assert f"written to {name} ({image.width} x {image.height} pixels)" in said
        assert len(np.unique(np.asarray(image.convert("L")))) > 20
    assert "no --weights: the network is filled with random numbers" in said


def test_other_channels_and_shapes_are_drawn(photograph, tmp_path, capsys):
    np.save("five.npy", np.random.default_rng(0).integers(0, 255, (60, 90, 5)))
    small = ["--backbone", "resnet", "--widths", "4", "--image-size", "32", "48"]
    cli.main(["show", "activations", "five.npy", "--channels", "5", *small])
    cli.main(["show", "field", photograph, "--channels", "1", *small])
    cli.main(["show", "edges", "five.npy", "--channels", "5", "--count", "2", *small])
    assert capsys.readouterr().out.count("written to") == 3
    for words in (["field", "five.npy", "--channels", "4"], ["edges", photograph, "--channels", "2"]):
        with pytest.raises(SystemExit):
            cli.main(["show", *words, *small])
        told = capsys.readouterr().err
        assert f"resnet takes images of {words[-1]} channels, found" in told and "(.npy), or --channels" in told
    np.save("flat.npy", np.zeros((4, 4)))
    with pytest.raises(SystemExit):
        cli.main(["show", "field", "flat.npy", *small])
    assert "flat.npy: expected numbers [height, width, channels], found float64[4, 4]" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words, message",
    [
        (["cam", "IMAGE"], "cam needs --weights FILE, trained and with top"),
        (["field", "IMAGE", "--cell", "5", "0"], "cell 5 0 lies outside the maps of max_pooling2d_2, 5 x 5"),
        (["activations", "IMAGE", "--layer", "conv2d_9"], "no layer 'conv2d_9' in cifar_cnn without its top"),
        (["activations", "none.png"], "no image none.png"),
        (["activations", "."], ". is a folder"),
        (["edges", "text.jpg"], "text.jpg: not an image"),
        (["edges", "IMAGE", "--layer", "conv2d_2"], "edges are found by a layer that reads the image: conv2d_1"),
        (["filters", "--count", "0"], "count must be at least 1"),
        (["filters", "--out", "a.jpg"], "--out must be a PNG file, such as a.png, not a.jpg"),
    ],
)
def test_bad_input_is_told_in_a_sentence(words, message, photograph, capsys, tmp_path):
    (tmp_path / "text.jpg").write_text("no image at all")
    with pytest.raises(SystemExit) as stopped:
        cli.main(["show", *(photograph if word == "IMAGE" else word for word in words), *SMALL])
    assert stopped.value.code == 2
    said = capsys.readouterr()
    assert message in " ".join((said.err + said.out).replace("│", " ").split())
    assert not list(tmp_path.glob("*-cifar_cnn-*.png*"))


@pytest.fixture
def blue_first(monkeypatch):
    """A network whose published weights read blue, green, red."""
    model = create("cifar_cnn", classifier_activation=None, rngs=nnx.Rngs(0))
    monkeypatch.setattr(command, "open_backbone", lambda name, **options: (model, "caffe"))
    return model


def test_a_first_layer_that_reads_blue_first_is_drawn_in_its_colours(photograph, blue_first, monkeypatch):
    drawn = {}
    for name in ("draw_filters", "draw_edges"):
        original = getattr(command, name)
        monkeypatch.setattr(
            command,
            name,
            lambda *args, name=name, original=original, **k: drawn.update({name: args}) or original(*args, **k),
        )
    cli.main(["show", "filters"])
    cli.main(["show", "edges", photograph])
    kernel = np.asarray(blue_first.conv2d_1.kernel[...])
    np.testing.assert_array_equal(drawn["draw_filters"][0], kernel[:, :, ::-1])
    image, inputs, turned, _ = drawn["draw_edges"]
    np.testing.assert_array_equal(turned, kernel[:, :, ::-1])
    np.testing.assert_allclose(inputs, image - np.array([123.68, 116.779, 103.939]), atol=1e-3)


def test_cam_names_the_class_and_its_place(photograph, blue_first, capsys, tmp_path):
    pixels = resized(open_image(tmp_path / photograph), (32, 32))
    order = np.argsort(-np.asarray(blue_first(preprocess(pixels, "caffe")[None]))[0])
    cli.main(["show", "cam", photograph, "--weights", "a.h5", "--class-index", str(order[2])])
    assert f"written to cam-mobilenet-conv2d_5-class-{order[2]}-a photo.png" in capsys.readouterr().out
