"""The contact sheet, drawn and as it is typed."""

import numpy as np
import pytest
from PIL import Image

from cnnjax import cli
from cnnjax.show.augment import draw_augmentations


@pytest.fixture
def photograph(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    y, x = np.mgrid[:60, :90]
    Image.fromarray(np.stack([255 * (x > y), 2 * x, 3 * y], -1).astype(np.uint8)).save("a photo.png")
    return "a photo.png"


def test_every_version_stands_on_the_sheet_in_one_scale(tmp_path):
    values = np.arange(10, 80, 10, dtype=np.float32)
    images = np.broadcast_to(values[:, None, None, None] * [1, 2, 3], (7, 20, 30, 3))
    image = np.full((40, 40, 3), [200, 0, 90], np.uint8)
    path = draw_augmentations(image, images, ["flat"] * 7, "seven", []).save(tmp_path / "sheet.png")
    pixels = np.asarray(Image.open(path).convert("RGB")).reshape(-1, 3)
    scale = np.sqrt((pixels == [200, 0, 90]).all(1).sum() / 40**2)
    assert scale == int(scale) > 1
    for value in values:
        assert (pixels == value * np.array([1, 2, 3])).all(1).sum() == 20 * 30 * scale**2


def test_draws_what_the_seed_says_and_says_where(photograph, capsys, tmp_path):
    drawn = []
    for seed in ("0", "0", "1"):
        cli.main(["show", "augment", photograph, "--count", "4", "--image-size", "32", "--seed", seed])
        with Image.open(tmp_path / "augment-a photo.png") as image:
            assert f"written to augment-a photo.png ({image.width} x {image.height} pixels)" in capsys.readouterr().out
            drawn.append(np.asarray(image.convert("L"))[80:])  # below the line that names the seed
    assert np.array_equal(drawn[0], drawn[1]) and not np.array_equal(drawn[0], drawn[2])


def test_takes_ranges_and_a_crop(photograph, tmp_path):
    words = "--flip none --rotation 0.25 0.25 --zoom 0 --crop 8 16 --image-size 16 --count 1 --out deep/er.png".split()
    cli.main(["show", "augment", photograph, *words, "--brightness", "-0.1", "0.1", "--contrast", "0.1", "0.2"])
    assert (tmp_path / "deep" / "er.png").is_file()


@pytest.mark.parametrize(
    "words, message",
    [
        (["--rotation", "36"], "rotation is a fraction of a full turn, -1 to 1, not 36; for 36 degrees give 0.1"),
        (["--flip", "none", "--rotation", "0", "--zoom", "0"], "nothing is chosen, so nothing would change"),
        (["--count", "0"], "count must be 1 to 400, not 0"),
        (["--image-size", "0"], "image_size: expected a whole number of pixels from 1 on"),
        (["--image-size", "20", "--crop", "24"], "a crop of (24, 24) is larger than the images, (20, 20)"),
        (["--out", "a.jpg"], "--out must be a PNG file, such as a.png, not a.jpg"),
    ],
)
def test_bad_input_is_told_in_a_sentence(words, message, photograph, capsys, tmp_path):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["show", "augment", photograph, *words])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("augment-*"))
