"""Networks of strangers, which know nothing of this library, as backbones everywhere."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from cnnjax import Classifier, Freeze, ImageClassifier, Trainer, linear_head
from cnnjax.cli import main
from cnnjax.data import InMemory
from cnnjax.freeze import layer_names, num_weighted_layers
from cnnjax.functional import leaves_of
from cnnjax.models.layer_order import output_shape
from cnnjax.models.own import imported
from cnnjax.sweep.ablation import ablate
from cnnjax.sweep.options import Ablation

HERE = Path(__file__).parent
VIT, RESNET = f"{HERE / 'vit.py'}:model", f"{HERE / 'resnet18.py'}:model"
SHAPE = (16, 24, 3)


def built(path, shape=SHAPE, **options):
    return imported(path)(input_shape=shape, rngs=nnx.Rngs(0), **options)


def block(k):
    own = ("norm1", "attention/query", "attention/key", "attention/value", "attention/out", "scale")
    return [f"blocks/{k}/{name}" for name in (*own, "norm2", "mlp/layers/0", "mlp/layers/2")]


def residual(stage, k, names=("conv1", "norm1", "conv2", "norm2", "down", "down_norm", "join")):
    down = bool(stage) and not k
    return [f"stages/{stage}/{k}/{name}" for name in names if down or not name.startswith("down")]


@pytest.mark.parametrize("copied", [lambda model: model, nnx.clone, lambda model: nnx.merge(*nnx.split(model))])
def test_the_vits_layers_are_those_of_its_call(copied):
    model = copied(built(VIT))
    expected = ["embed", "token", "position", "dropout", *block(0), *block(1), "norm"]
    found = list(layer_names(model, example=SHAPE))
    assert sorted(found[1:4]) == sorted(expected[1:4])  # a dropout that is off does nothing: its place is not told
    assert found[:1] + found[4:] == expected[:1] + expected[4:]
    assert num_weighted_layers(model) == 1 + 2 * 6
    frozen = Freeze.depth(5).resolve(model, example=SHAPE)
    assert set(frozen.layers) == {*expected[:4], *block(0)[:7]}
    assert frozen("token") and frozen("blocks/0/scale") and not frozen("blocks/0/mlp/layers/0/kernel")


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_the_resnets_layers_are_those_of_its_call(norm):
    model = built(RESNET, norm=norm)
    expected = ["stem", "norm", *(name for s in range(4) for k in range(2) for name in residual(s, k))]
    assert list(layer_names(model, example=SHAPE)) == expected and num_weighted_layers(model) == 1 + 16 + 3
    cut = Freeze.through("stages/0").resolve(model, example=SHAPE).layers
    assert list(cut) == expected[: expected.index("stages/1/0/conv1")]


@pytest.mark.parametrize(("path", "depth", "options", "channels"), [
    (VIT, 7, {}, 3), (VIT, 7, {"pool": "all"}, 1), (RESNET, 5, {"blocks": (1, 1, 1)}, 2),
    (RESNET, 5, {"norm": "group", "blocks": (1, 1, 1)}, 3),
])  # fmt: skip
def test_staged_training_equals_unstaged(path, depth, options, channels):
    """Stored features, and images that run through the frozen part in every step, give the same weights."""
    shape = (*SHAPE[:2], channels)

    def model():
        backbone = built(path, shape, **options)
        return Classifier(backbone, linear_head(output_shape(backbone, shape), 3, rngs=nnx.Rngs(1)), "unit")

    source = InMemory(
        np.random.default_rng(0).integers(0, 256, (12, *shape), np.uint8), np.arange(12) % 3, ("a", "b", "c")
    )
    assert tuple(source.image_size)[:2] == (16, 24)
    frozen = Freeze.depth(depth).resolve(model(), "backbone", example=shape)
    ends = []
    for stream in (False, True):  # stored features; or images that run through the frozen part in every step
        trainer = Trainer(model(), frozen, shape, batch_size=4, optimizer="sgd", stream=stream, precision="float32")
        state, _ = trainer.fit(trainer.init(None, 0.05), trainer.rows(source), epochs=2)
        assert trainer.rows(source).kind == ("source" if stream else "features")
        ends.append(trainer.leaves(state))
    before = leaves_of(model())
    for name, found in ends[0].items():
        np.testing.assert_allclose(found, ends[1][name], rtol=2e-4, atol=2e-5, err_msg=name)
        if frozen(name):
            np.testing.assert_array_equal(found, before[name])
    assert any((np.asarray(ends[0][name]) != np.asarray(before[name])).any() for name in ends[0])


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Bright and dark images, SPLIT/CLASS/FILE."""
    root, rng = tmp_path_factory.mktemp("drawn"), np.random.default_rng(0)
    for split, count in (("train", 6), ("validation", 4), ("test", 4)):
        for name, low in (("bright", 150), ("dark", 0)):
            (root / split / name).mkdir(parents=True)
            for k in range(count):
                pixels = rng.integers(low, low + 100, (16, 24, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{k}.png")
    return root


@pytest.mark.parametrize(("path", "options", "depths"), [
    (VIT, ["depth=1"], ["none", "1", "blocks/0", "all"]),
    (RESNET, ["blocks=[1, 1]", "norm=batch"], ["none", "2", "stages/*", "all"]),
])  # fmt: skip
def test_a_sweep_over_four_depths_from_the_command_line(path, options, depths, images, tmp_path):
    out = tmp_path / "sweep"
    main([
        "ablate", "--data", str(images), "--backbone", path, "--backbone-options", *options,
        "--image-size", "16", "24", "--freeze", *depths, "--head", "linear", "--seeds", "1", "--epochs", "2",
        "--batch-size", "4", "--out", str(out), "--store", str(tmp_path / "store"),
    ])  # fmt: skip
    records = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert {record["freeze"] for record in records} == set(depths)
    assert all(np.isfinite(record["test_loss"]) for record in records)


def test_fit_saves_and_the_folder_runs_no_code_that_is_not_named(images, tmp_path, monkeypatch, capsys):
    file = tmp_path / "mine.py"
    file.write_text((HERE / "vit.py").read_text() + "\nprint('my code runs')\n")
    monkeypatch.chdir(tmp_path)
    main([
        "fit", "--data", str(images), "--backbone", "mine.py:model", "--backbone-options", "depth=1", "pool=all",
        "--image-size", "16", "24", "--method", "scratch", "--epochs", "1", "--batch-size", "4", "--head", "linear",
        "--out", "run", "--store", "store",
    ])  # fmt: skip
    saved = next(path.parent for path in Path("run").rglob("model.safetensors"))
    config = json.loads((saved / "config.json").read_text())
    assert config["backbone"] == "mine.py:model" and config["options"] == {"depth": 1, "pool": "all"}
    files = sorted((images / "test").rglob("*.png"))
    mine = ImageClassifier.load(saved, backbone="mine.py:model")
    predicted = mine.predict(files)
    # Another process, which has not imported the file.
    code = f"from cnnjax import ImageClassifier; ImageClassifier.load({str(saved)!r})"
    refused = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "my code runs" not in refused.stdout and refused.returncode
    assert (
        "mine.py:model, which is not run unless you name it: --code mine.py:model, or load(..., code=['mine.py:model'])"
        in refused.stderr
    )
    for given in ("mine.py:model", imported("mine.py:model"), mine.model.backbone):
        again = ImageClassifier.load(saved, backbone=given)
        assert again.predict(files) == predicted
    capsys.readouterr()
    main(["predict", str(saved), *map(str, files[:2]), "--code", "mine.py:model"])
    assert str(files[0].name) in capsys.readouterr().out
    main(["evaluate", str(saved), "--data", str(images), "--code", "mine.py:model", "--samples", "0"])
    with pytest.raises(SystemExit):
        main(["predict", str(saved), str(files[0])])
    with pytest.raises(ValueError, match=r"mine.py:model, and cannot be read as mobilenet"):
        ImageClassifier.load(saved, backbone="mobilenet")
    # Its backbone's weights begin another run.
    begun = ImageClassifier(
        "mine.py:model", ("a", "b"), weights=saved / "model.safetensors", image_size=(16, 24), head="linear", depth=1,
        pool="all",
    )  # fmt: skip
    for name, x in leaves_of(mine.model.backbone).items():
        if not jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) and x.dtype != np.uint32:
            np.testing.assert_array_equal(x, leaves_of(begun.model.backbone)[name])


def test_modules_and_functions_are_backbones(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (3, *SHAPE), np.uint8)
    module, function = built(RESNET, blocks=(1, 1)), imported(RESNET)
    for backbone, options in ((module, {}), (function, {"blocks": [1, 1]}), (RESNET, {"blocks": [1, 1]})):
        classifier = ImageClassifier(backbone, ("a", "b", "c"), image_size=(16, 24), head="linear", **options)
        classifier.save(tmp_path / "saved")
        loaded = ImageClassifier.load(tmp_path / "saved", backbone=backbone)
        np.testing.assert_array_equal(loaded.predict_logits(images), classifier.predict_logits(images))
        if backbone is module:
            for name, x in leaves_of(module, nnx.Param).items():
                np.testing.assert_array_equal(x, leaves_of(classifier.model.backbone)[name])


def test_summary_and_show_take_a_network_of_ones_own(images, tmp_path, capsys):
    options = ["--image-size", "16", "24", "--backbone-options", "depth=1"]
    main(["summary", VIT, *options, "--freeze", "2", "--format", "json"])
    table = {row["name"]: row for row in json.loads(capsys.readouterr().out)["layers"]}
    assert next(iter(table)) == "embed" and table["embed"]["output_shape"] == [None, 2, 3, 8]
    assert not table["embed"]["trainable"] and table["blocks/0/mlp/layers/0"]["trainable"] == 8 * 16 + 16
    image = str(next((images / "test").rglob("*.png")))
    size = ["--image-size", "16", "24", "--out", str(tmp_path / "shown.png")]
    main(["show", "filters", "--backbone", RESNET, *size])
    main(["show", "activations", image, "--backbone", RESNET, "--layer", "stages/0/1/conv1", *size])
    main(["show", "field", image, "--backbone", RESNET, "--layer", "stages/0/1/join", *size])
    assert (tmp_path / "shown.png").is_file()


@pytest.mark.parametrize(("code", "text"), [
    ("def model(input_shape, rngs): return 3", "must give a Flax NNX module, found int: 3"),
    ("def model(rngs): return None", r"called with input_shape=.*but it is model\(rngs\): got an unexpected"),
    ("def model(input_shape, rngs, depth=1): return None", r"wide=\.\.\., but it is model.*unexpected .*'wide'"),
    ("def other(): pass", "there is no 'model' in .*; it has other"),
    ("model = 3", "must be a function that builds a module, found int"),
    ("from flax import nnx\nclass M(nnx.Module):\n  def __call__(self, x): return 1\n"
     "def model(input_shape, rngs, **k): return M()", "M: expected an array with a row an example, "
     r"found shape \(\) for a batch of 2"),
    ("from flax import nnx\ndef model(input_shape, rngs, **k): return nnx.Linear(4, 4, rngs=rngs)",
     r"Linear cannot be called with one input of shape \(N, 8, 8, 3\) and type float32: "),
])  # fmt: skip
def test_functions_that_are_no_backbones_are_refused_with_the_reason(code, text, tmp_path):
    (tmp_path / "net.py").write_text(code)
    options = {"wide": 2} if "wide" in text else {}
    with pytest.raises(ValueError, match=text):
        ImageClassifier(f"{tmp_path / 'net.py'}:model", ("a", "b"), image_size=8, head="linear", **options)


def test_import_paths_that_lead_nowhere():
    for path, text in (
        ("nowhere.py:model", "there is no file nowhere.py"), ("no.such:model", "there is no module 'no'"),
        ("net.py", "names no function: expected .* such as net.py:model"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=text):
            imported(path)
    with pytest.raises(ValueError, match="without a top; give lecture or linear"):
        ImageClassifier("net.py:model", ("a", "b"), head="top")


def test_a_package_is_found_in_the_current_folder(tmp_path, monkeypatch):
    (tmp_path / "stranger_package").mkdir()
    (tmp_path / "stranger_package" / "net.py").write_text((HERE / "resnet18.py").read_text())
    monkeypatch.chdir(tmp_path)
    path = "stranger_package.net:model"
    found = ImageClassifier(path, ("a", "b"), image_size=16, head="linear", blocks=[1])
    assert found.config.backbone == path and sys.path[0] != str(tmp_path)


def test_a_sweep_in_processes_sends_the_network_of_a_file(images, tmp_path):
    config = Ablation(
        data=str(images), backbone=RESNET, backbone_options={"blocks": [1]}, image_size=16, freeze=("1",),
        head="linear", seeds=2, epochs=1, batch_size=4, processes=2, out=tmp_path / "run", store=tmp_path / "store",
    )  # fmt: skip
    assert len((ablate(config) / "results.jsonl").read_text().splitlines()) == 2
