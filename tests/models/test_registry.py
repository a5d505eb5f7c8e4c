"""One entry makes an architecture available everywhere."""

import json
from typing import Literal

import numpy as np
import pytest
from flax import nnx

import cnnjax
from cnnjax import ImageClassifier, cli
from cnnjax.models import BACKBONES, Graph, create, registry
from cnnjax.models.registry import entries, entry, forget, register
from cnnjax.weights.pretrained import open_backbone


def gated(
    filters: int = 4,
    gate: bool = True,
    squash: Literal["sigmoid", "hard_sigmoid"] = "sigmoid",
    shrink: float = 0.5,
    dropout: float = 0.25,
    input_shape=(24, 24, 3),
    include_top=True,
    classes=10,
    classifier_activation="softmax",
    *,
    rngs,
):
    """Build a small network with a gate.

    Args:
        filters: Channels of every layer.
        gate: Whether channels are
            weighted.
        squash: What the gate ends in.
        shrink: Its width, to that of the rest.
        dropout: Rate of the top.
        input_shape: (H, W, C).
        include_top: Whether to end in classes.
        classes: Classes of the top.
        classifier_activation: Of the top.
        rngs: Keys.
    """
    net = Graph(input_shape, rngs=rngs, name="gated")
    x = net.conv("stem", net.input, filters, 3, strides=2, padding="same", bias=False)
    x = net.relu("stem_relu", net.batch_norm("stem_bn", x))
    if gate:
        y = net.conv("squeeze", net.global_avg_pool("pool", x, keepdims=True), max(1, int(filters * shrink)), 1)
        x = net.multiply("gate", x, net.conv("excite", y, filters, 1, activation=squash))
    x = net.add("add", x, net.conv("mix", x, filters, 3, padding="same"))
    if include_top:
        x = net.dropout("drop", net.global_avg_pool("top_pool", x), dropout)
        x = net.dense("predictions", x, classes, activation=classifier_activation or "linear")
    return net.backbone(x)


@pytest.fixture
def family():
    register(top=("dropout",))(gated)
    yield entry("gated")
    forget("gated")


def test_an_entry_is_read_off_its_function(family):
    options = family.options
    assert list(options) == ["filters", "gate", "squash", "shrink", "dropout"]
    assert [options[name].kind for name in options] == [int, bool, str, float, float]
    assert options["gate"].help == "Whether channels are weighted."
    assert (options["squash"].choices, options["dropout"].of_top) == (("sigmoid", "hard_sigmoid"), True)
    assert family.image_size == (24, 24)
    assert "gated" in BACKBONES and BACKBONES["gated"] is gated is cnnjax.gated
    del cnnjax.gated


def test_it_is_built_by_name_with_its_options(family):
    model = create("gated", filters=6, include_top=False, rngs=nnx.Rngs(0))
    assert (model.output_shape(), model.excite.activation) == ((12, 12, 6), "sigmoid")
    model, preprocessing = open_backbone("gated", image_size=16, gate=False, include_top=False)
    assert (model.layer_names[-2:], model.output_shape(), preprocessing) == (("mix", "add"), (8, 8, 4), "unit")
    assert cnnjax.Freeze.through("gate").resolve(create("gated", rngs=nnx.Rngs(0))).layers[-1] == "gate"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"filter": 3}, "gated has no option 'filter'; did you mean 'filters'"),
        ({"alpha": 1.0}, r"gated has no option 'alpha' \(which is one of .*mobilenet.*\); its options are"),
        ({"gate": 1}, "gate of gated: expected True or False, found 1"),
        ({"filters": 2.5}, "filters of gated: expected a whole number from 0 to 4096, found 2.5"),
        ({"squash": "softmax"}, r"squash of gated: expected sigmoid or hard_sigmoid \(did you .*\), found 'softmax'"),
        ({"dropout": 0.1}, "dropout is of gated's own classification layers, which are left out here"),
    ],
)  # fmt: skip
def test_options_are_checked_alike_everywhere(family, options, message):
    with pytest.raises(ValueError, match=message):
        open_backbone("gated", include_top=False, **options)
    with pytest.raises(ValueError, match=message):
        ImageClassifier("gated", ("a", "b"), head="linear", **options)


def test_a_classifier_of_it_is_saved_and_loaded(family, tmp_path):
    classifier = ImageClassifier(
        "gated", ("a", "b", "c"), image_size=16, head="top", dropout=0.5, squash="hard_sigmoid"
    )
    images = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), np.uint8)
    classifier.save(tmp_path / "saved")
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert config["options"] == {"dropout": 0.5, "squash": "hard_sigmoid"}
    assert ImageClassifier.load(tmp_path / "saved").predict(images) == classifier.predict(images)


def test_commands_know_it_and_its_options(family, capsys):
    for command in ("summary", "fit", "ablate"):
        with pytest.raises(SystemExit):
            cli.main([command, "--help"])
        told = " ".join(capsys.readouterr().out.replace("│", " ").split())
        assert (
            "--squash {None,sigmoid,hard_sigmoid} Of gated: what the gate ends in. (default: sigmoid in gated)" in told
        )
        # One option of two networks.
        assert "--dropout {None}|FLOAT" in told and "0.25 in gated" in told and "0.001 in mobilenet" in told
    cli.main(["summary", "gated", "--filters", "6", "--gate", "False", "--format", "json"])
    found = json.loads(capsys.readouterr().out)
    assert found["model"] == "gated" and [layer["name"] for layer in found["layers"]][4:6] == ["mix", "add"]
    cli.main(["summary", "gated", "--wide"])
    assert "connected to" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        cli.main(["summary", "mobilenet", "--squash", "sigmoid"])
    assert "mobilenet has no option 'squash' (which is one of gated)" in " ".join(
        capsys.readouterr().err.replace("│", " ").split()
    )


@pytest.mark.slow
def test_it_is_trained_and_swept(family, shapes_folder, tmp_path, capsys):
    given = ["--data", str(shapes_folder), "--backbone", "gated", "--filters", "3", "--epochs", "1"]
    given += ["--image-size", "16", "20", "--head", "linear"]
    cli.main(["fit", *given, "--method", "scratch", "--out", str(tmp_path / "fit")])
    fitted = ImageClassifier.load(tmp_path / "fit" / "classifier")
    assert fitted.config.options == {"filters": 3} and fitted.leaves["backbone/mix/kernel"].shape == (3, 3, 3, 3)
    assert fitted.image_size == (16, 20) and json.loads((tmp_path / "fit/classifier/config.json").read_text())[
        "image_size"
    ] == [16, 20]
    sweep = ["--freeze", "none", "gate", "all", "--seeds", "1", "--out", str(tmp_path / "sweep")]
    cli.main(["ablate", *given, *sweep])
    results = [json.loads(line) for line in (tmp_path / "sweep" / "results.jsonl").read_text().splitlines()]
    assert {record["freeze"] for record in results} == {"none", "gate", "all"}
    assert json.loads((tmp_path / "sweep" / "config.json").read_text())["backbone_options"] == {"filters": 3}


def test_what_cannot_be_an_entry_is_refused():
    def lacking(rngs, include_top=True):
        """Lacks arguments."""

    with pytest.raises(TypeError, match="lacking lacks input_shape, classes, classifier_activation: every backbone"):
        register()(lacking)

    def untold(input_shape, include_top, classes, classifier_activation, *, rngs, width=3, height: int):
        """Untold.

        Args:
            height: In floors.
        """

    with pytest.raises(TypeError, match="option 'width' of untold lacks a type .* and a description under Args"):
        register()(untold)

    def taken(input_shape, include_top, classes, classifier_activation, *, rngs, channels: int = 3):
        """Taken.

        Args:
            channels: Another thing everywhere.
        """

    with pytest.raises(TypeError, match="option 'channels' of taken lacks a name that no command has"):
        register()(taken)

    def other(input_shape, include_top, classes, classifier_activation, *, rngs, alpha: int = 3):
        """Other.

        Args:
            alpha: Another one.
        """

    with pytest.raises(TypeError, match=r"'alpha' is .*int.* in other, .*float.* in \w+; it needs one type"):
        register()(other)

    def mobilenet(input_shape, include_top, classes, classifier_activation, *, rngs):
        """Taken."""

    with pytest.raises(ValueError, match="two backbones 'mobilenet': in cnnjax.models.mobilenet"):
        register()(mobilenet)
    with pytest.raises(LookupError, match="no backbone 'mobilnet'; did you mean 'mobilenet'"):
        registry.entry("mobilnet")


@pytest.mark.parametrize("name", BACKBONES)
def test_every_architecture_keeps_the_rules(name):
    found = entries()[name]
    small = dict(found.small)
    height, width, _ = small.pop("input_shape")
    for channels in (1, 3, 5):  # any number of channels, and images that are not square
        shape = (height + 3, width + 8, channels)
        model = nnx.eval_shape(
            lambda s=shape: create(name, input_shape=s, include_top=False, rngs=nnx.Rngs(0), **small)
        )
        assert model.input_shape == shape and len(model.output_shape()) == 3
    found.checked({name: option.default for name, option in found.options.items()})
    with pytest.raises(ValueError, match=r"\(height, width, channels\)"):
        create(name, input_shape=(64, 64), include_top=False, rngs=nnx.Rngs(0), **small)
    with pytest.raises(ValueError, match=r"too small|at least"):
        create(name, input_shape=(4, 64, 3), include_top=False, rngs=nnx.Rngs(0), **small)
    any_size = create(name, input_shape=(None, None, 3), include_top=False, rngs=nnx.Rngs(0), **small)
    shape = (height + 32, width + 48, 3)
    fixed = create(name, input_shape=shape, include_top=False, rngs=nnx.Rngs(0), **small)
    assert any_size.output_shape(shape) == fixed.output_shape()
    for file in found.published:
        assert found.preprocessing(file.options) == file.preprocessing and file.backbone == name
        found.checked(file.options)
