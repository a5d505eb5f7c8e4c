"""`cnnjax show cam` of a network of the user's that ends in classes, against the formula of CAM."""

import numpy as np
import pytest
from flax import nnx
from PIL import Image
from safetensors.numpy import save_file

from cnnjax.cli import main
from cnnjax.files.importing import imported
from cnnjax.functional import leaves_of
from cnnjax.show import command

CODE = """
import jax
from flax import nnx

class Net(nnx.Module):
    def __init__(self, channels, top, rngs):
        self.conv = nnx.Conv(channels, 5, (3, 3), strides=4, rngs=rngs)
        self.out = nnx.Linear(5, 3, rngs=rngs) if top else None
    def __call__(self, x):
        maps = jax.nn.relu(self.conv(x))
        return maps if self.out is None else self.out(maps.mean((1, 2)))

def classes(input_shape, rngs):
    return Net(input_shape[-1], True, rngs)

def maps(input_shape, rngs):
    return Net(input_shape[-1], False, rngs)
"""


def test_the_heat_is_that_of_class_activation_maps(tmp_path, monkeypatch):
    file, seen = tmp_path / "net.py", []
    file.write_text(CODE)
    model = imported(f"{file}:classes")(input_shape=(16, 16, 3), rngs=nnx.Rngs(3))
    leaves = {name: np.asarray(x) for name, x in leaves_of(model).items()}
    save_file(leaves, tmp_path / "net.safetensors")
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    draw = command.draw_cam
    monkeypatch.setattr(command, "draw_cam", lambda *args, **more: (seen.append(args[1]), draw(*args, **more))[1])
    words = ["show", "cam", f"{tmp_path}/image.png", "--image-size", "16", "--weights", f"{tmp_path}/net.safetensors"]
    main([*words, "--backbone", f"{file}:classes", "--class-index", "1", "--out", f"{tmp_path}/cam.png"])
    maps = np.asarray(model.conv(pixels[None].astype(np.float32) / 255))[0]
    # The convolution is the last module with maps: what it gives before the rectifier, whose slope weights it.
    slope = (maps > 0) * leaves["out/kernel"][:, 1] / maps[..., 0].size
    np.testing.assert_allclose(seen[0], np.maximum((maps * slope.mean((0, 1))).sum(-1), 0), atol=1e-5)
    assert (tmp_path / "cam.png").is_file()


def test_a_network_that_ends_in_maps_is_told_what_it_lacks(tmp_path, capsys):
    file = tmp_path / "net.py"
    file.write_text(CODE)
    model = imported(f"{file}:maps")(input_shape=(16, 16, 3), rngs=nnx.Rngs(3))
    save_file({name: np.asarray(x) for name, x in leaves_of(model).items()}, tmp_path / "net.safetensors")
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(tmp_path / "image.png")
    with pytest.raises(SystemExit):
        main(["show", "cam", f"{tmp_path}/image.png", "--image-size", "16", "--weights", f"{tmp_path}/net.safetensors",
              "--backbone", f"{file}:maps"])  # fmt: skip
    assert "cam needs a network that ends in classes, f32[N, K]" in " ".join(capsys.readouterr().err.split())
