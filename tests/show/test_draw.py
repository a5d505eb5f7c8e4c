"""The sheets: sizes, places, legible texts; and the files."""

import numpy as np
import pytest
from PIL import Image

from cnnjax.show import draw_activations, draw_cam, draw_edges, draw_field, draw_filters
from cnnjax.show.fields import Box
from cnnjax.show.maps import activation_maps, called, last_maps, visible_maps
from cnnjax.show.sheet import MOST_PIXELS, Sheet
from cnnjax.show.tiles import fitting_grid, resampled

RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 256, (60, 80, 3)).astype(np.uint8)


def assert_legible(sheet):
    """No text leaves the sheet or touches another, and no side is too long."""
    assert max(sheet.width, sheet.height) <= MOST_PIXELS
    renderer = sheet.figure.canvas.get_renderer()
    boxes = np.array([text.get_window_extent(renderer).extents for text in sheet.figure.texts])
    assert boxes[:, :2].min() >= 0 and (boxes[:, 2:] <= (sheet.width, sheet.height)).all()
    left, bottom, right, top = boxes.T[:, :, None]
    overlap = (left < right.T) & (right > left.T) & (bottom < top.T) & (top > bottom.T)
    assert overlap.sum() == len(boxes)  # each only with itself


def pixels_of(sheet, tmp_path):
    path = sheet.save(tmp_path / "new folder" / "a.png")
    assert [file.name for file in path.parent.iterdir()] == ["a.png"]
    with Image.open(path) as image:
        assert image.format == "PNG" and image.size == (sheet.width, sheet.height)
        return np.asarray(image.convert("RGB"))


def draw(kind, count):
    if kind == "activations":
        return draw_activations(IMAGE, RNG.random((6, 8, count)), "a network, a layer: maps " * 5)
    if kind == "signed":
        return draw_activations(IMAGE, RNG.normal(size=(50, 50, count)), "maps with signs")
    shape = {"colour": (7, 7, 3, count), "slices": (3, 3, count, count), "pointwise": (1, 1, count, count)}[kind]
    return draw_filters(RNG.normal(size=shape), "a network, a layer: filters " * 5)


@pytest.mark.parametrize(
    "kind, count",
    [
        *(("colour", count) for count in (1, 8, 1024)),
        *(("activations", count) for count in (1, 8, 1024)),
        *(("slices", count) for count in (8, 512)),
        ("pointwise", 256),
        ("signed", 5),
    ],
)
def test_grids_are_legible_at_any_number(kind, count):
    assert_legible(draw(kind, count))


def test_other_images_are_legible():
    kernel = RNG.normal(size=(3, 3, 3, 9))
    for count in (1, 6):
        assert_legible(draw_edges(IMAGE, IMAGE / 255, kernel, "edges", count=count))
    many = draw_edges(IMAGE, IMAGE / 255, np.tile(kernel / 1e6, 12), "edges", count=108)
    assert_legible(many)
    assert any("There is room for 49 of the 108" in text.get_text() for text in many.figure.texts)
    box, near = Box(-9, 40, 50, 99), [Box(-9, 40, 34, 83), Box(7, 56, 50, 99)]
    assert_legible(draw_field(IMAGE, box, near, np.zeros((60, 80)), "a cell that nothing moves"))
    assert_legible(draw_cam(IMAGE, RNG.random((3, 4)), "a class", ["a note " * 40]))
    assert_legible(draw_cam(IMAGE, np.zeros((3, 4)), "no class"))
    tall, effective = IMAGE[:, :8], np.ones((60, 8))
    assert_legible(draw_cam(tall, np.ones((3, 1)), "a class"))
    assert_legible(draw_field(tall, Box(20, 30, 0, 10), [Box(20, 30, 0, 10)], effective, "a cell"))
    assert_legible(draw_activations(tall, np.ones((30, 4, 8)), "maps"))
    assert_legible(draw_edges(tall, tall / 255, kernel, "edges"))


def test_every_map_is_where_its_number_says(tmp_path):
    maps = np.zeros((4, 4, 20), np.float32)
    maps[1, 2, :18] = np.arange(1, 19)
    maps[..., 18] = 6
    sheet = draw_activations(np.full((40, 40, 3), 255, np.uint8), maps, "twenty maps")
    pixels = pixels_of(sheet, tmp_path)
    numbers = {text.get_text(): text for text in sheet.figure.texts if text.get_text().isdigit()}
    assert set(numbers) >= {str(k) for k in range(20)}
    side = 60 * 4 // 4 * 4
    for k in range(20):
        x, y = numbers[str(k)].get_position()
        left, top = round(x * sheet.width), round((1 - y) * sheet.height) + 2
        tile = pixels[top : top + side, left : left + side].astype(int)
        if k >= 18:  # nothing to see: light grey, and said so
            assert (tile == tile[0, 0]).all() and tile[0, 0].min() > 200
            continue
        bright = np.argwhere(tile.sum(-1) > 600)
        assert bright.min(0).tolist() == [60, 120] and bright.max(0).tolist() == [119, 179]
    assert any("Light grey: 2 of 20 maps" in text.get_text() for text in sheet.figure.texts)


def test_more_than_a_sheet_holds_is_told():
    sheet = draw_activations(IMAGE, np.ones((2, 2, 3000), np.float32), "three thousand maps")
    assert any("Shown: the first 2,500 of 3,000 maps" in text.get_text() for text in sheet.figure.texts)
    sheet = draw_filters(np.ones((3, 3, 3, 8)), "five of eight", count=5)
    assert any("the first 5 of 8 filters" in text.get_text() for text in sheet.figure.texts)
    with pytest.raises(ValueError, match="count must be at least 1, not 0"):
        draw_filters(np.ones((3, 3, 3, 8)), "none", count=0)
    with pytest.raises(ValueError, match="too large"):
        Sheet(3000, 100, "wide", [])


@pytest.mark.parametrize("count", [1, 7, 24, 500, 2500])
@pytest.mark.parametrize("shape", [(1, 1), (7, 7), (148, 148), (20, 300)])
def test_grids_fit_their_room(count, shape):
    grid = fitting_grid(count, shape, (2100, 1800), largest=240)
    assert grid.height <= 2100 and grid.width <= 1800 and grid.rows * grid.columns >= count
    assert min(grid.tile) >= 1 and (grid.rows - 1) * grid.columns < count
    places = [grid.place(k) for k in range(count)]
    assert len(set(places)) == count


def test_shrinking_keeps_the_mean():
    tile = RNG.random((30, 42, 3)).astype(np.float32)
    np.testing.assert_allclose(resampled(tile, (10, 6)), tile.reshape(10, 3, 6, 7, 3).mean((1, 3)), atol=1e-5)
    np.testing.assert_allclose(resampled(tile, (7, 11)).mean(), tile.mean(), atol=1e-5)


def test_maps_of_a_users_model(resnet):
    model = resnet
    found = called(model, (16, 24, 3))
    assert last_maps(found, model) == "blocks/2" and found["blocks/2"].maps == (8, 12, 8)
    assert list(found)[:2] == ["stem", "norm"] and found["inner"].passes_on
    images = RNG.uniform(0, 255, (2, 16, 24, 3)).astype(np.float32)
    maps = activation_maps(model, images, "stem")
    np.testing.assert_allclose(maps, model.stem(images / 127.5 - 1), atol=1e-4)
    signed = visible_maps(maps[0])
    assert signed.shape == (8, 8, 12) and signed.min() >= 0 and signed.max() <= 1
    np.testing.assert_array_equal(signed > 0.5, np.moveaxis(maps[0], -1, 0) > 0)
    with pytest.raises(ValueError, match=r"'out' gives \(1,\), no maps to show; the last one that does is 'blocks/2'"):
        activation_maps(model, images, "out")
