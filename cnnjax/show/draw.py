"""The images of filters, activation maps and edges."""

import numpy as np
from jax.typing import ArrayLike

from cnnjax.show.edges import EdgeDetector, edge_detectors, edge_responses
from cnnjax.show.filters import DEAD, filter_images
from cnnjax.show.maps import visible_maps
from cnnjax.show.sheet import FAINT, MARGIN, MOST_PIXELS, Sheet, coloured, fitted
from cnnjax.show.tiles import Grid, fitting_grid, resampled

MOST_TILES = 2500
"""A sheet shows no more small images."""
_BODY = MOST_PIXELS - 240  # what a title of several lines leaves
_NARROWEST = 720


def draw_filters(kernel: ArrayLike, title: str, *, count: int | None = None) -> Sheet:
    """Draw a layer's filters: in colour for three channels, otherwise slice by slice, a row for each filter.

    Args:
        kernel: f32[F, F, C, K], its channels red, green, blue if there are three.
        title: What is shown.
        count: How many filters to show; all that there is room for, if not given.

    Returns:
        The image; `save(path)` writes it.

    Raises:
        ValueError: The kernel has other axes, or `count` is no number of filters.

    >>> draw_filters(np.ones((3, 3, 3, 8)), "eight filters").width
    720
    """
    images = filter_images(kernel)
    filters, slices = len(images), np.shape(kernel)[2]
    notes = [
        "Each filter is scaled by its own largest weight; mid-grey is 0"
        + (", black and white that weight.", ".")[slices == 3]
    ]
    dead = int((images == 0.5).reshape(filters, -1).all(1).sum())
    if dead:
        notes.append(
            f"Grey all over: {dead} of {filters} filters, no weight of which reaches {DEAD:g} of the layer's largest."
        )
    if slices not in (1, 3):
        return _draw_slices(images, title, notes, count)
    shown = _shown(filters, count, "filters", notes)
    tiles = images if slices == 3 else np.repeat(images[:, 0, :, :, None], 3, -1)
    grid = fitting_grid(shown, tiles.shape[1:3], (_BODY, MOST_PIXELS - 2 * MARGIN), largest=120, aspect=1.6)
    sheet = Sheet(max(_NARROWEST, grid.width + 2 * MARGIN), grid.height, title, notes)
    _put(sheet, grid, tiles[:shown], MARGIN)
    return sheet


def _draw_slices(images: np.ndarray, title: str, notes: list[str], count: int | None) -> Sheet:
    """Rows are filters, columns their slices: f32[K, C, F, F]."""
    filters, slices, rows, columns = images.shape
    room, head = (_BODY, MOST_PIXELS - 2 * MARGIN), 44
    gap = 0 if rows == columns == 1 else 2
    least = 2 if gap == 0 else 6 * max(rows, columns)  # of a slice, in pixels
    most = [(pixels - head) // (least + gap) for pixels in room]
    shown, across = min(_shown(filters, count, "filters", notes), most[0]), min(slices, most[1])
    fits = [(pixels - head) // n - gap for pixels, n in zip(room, (shown, across), strict=True)]
    scale = max(1, min(fits[0] // rows, fits[1] // columns, (48 if gap else 24) // max(rows, columns)))
    notes.append(
        f"A row is a filter, a column one of its slices (input channels): filters 0 to {shown - 1} of {filters}, "
        f"slices 0 to {across - 1} of {slices}."
    )
    pitch = rows * scale + gap, columns * scale + gap
    sheet = np.ones((shown, pitch[0], across, pitch[1]), np.float32)
    tiles = images[:shown, :across].repeat(scale, 2).repeat(scale, 3)
    sheet[:, : rows * scale, :, : columns * scale] = tiles.transpose(0, 2, 1, 3)
    mosaic = np.repeat(sheet.reshape(shown * pitch[0], across * pitch[1])[..., None], 3, -1)
    page = Sheet(max(_NARROWEST, mosaic.shape[1] + head + 2 * MARGIN), len(mosaic) + 20, title, notes)
    page.image(mosaic, MARGIN + head, page.top + 20)
    for row in range(0, shown, -(-16 // pitch[0])):
        y = page.top + 20 + (row + 0.5) * pitch[0]
        page.text(MARGIN + head - 6, y, str(row), size=7.5, ha="right", va="center", color=FAINT)
    for column in range(0, across, -(-36 // pitch[1])):
        x = MARGIN + head + (column + 0.5) * pitch[1]
        page.text(x, page.top + 16, str(column), size=7.5, ha="center", va="bottom", color=FAINT)
    return page


def draw_activations(image: np.ndarray, maps: ArrayLike, title: str, *, count: int | None = None) -> Sheet:
    """Draw a layer's maps, each under its number, beside the image they were made of.

    Args:
        image: u8[H, W, 3].
        maps: f32[h, w, K], of this image.
        title: What is shown.
        count: How many maps to show; all that there is room for, if not given.

    Returns:
        The image; `save(path)` writes it.

    Raises:
        ValueError: `count` is no number of maps.

    >>> draw_activations(np.zeros((64, 64, 3), np.uint8), np.ones((8, 8, 8)), "eight maps").height < 1000
    True
    """
    values = np.asarray(maps, np.float32)
    height, width, channels = values.shape
    signed = bool((values < 0).any())
    notes = ["Each map is scaled by its own largest value" + (", of either sign." if signed else ".")]
    # What varies by less than a colour would look like a map that is full of its largest value.
    still = np.ptp(values, (0, 1)) <= np.abs(values).max((0, 1)) / 256
    if still.any():
        notes.append(f"Light grey: {still.sum()} of {channels:,} maps, which are the same everywhere on this image.")
    shown = _shown(channels, count, "maps", notes)
    beside = 448 if shown > 100 else 320
    room = _BODY, MOST_PIXELS - beside - 4 * MARGIN
    grid = fitting_grid(shown, (height, width), room, largest=300 if shown <= 16 else 240, aspect=1.6)
    colours = "RdBu_r" if signed else "magma"
    tiles = coloured(visible_maps(values[..., :shown]), colours)
    tiles[still[:shown]] = 0.85
    small = fitted(image, beside, 1600)
    body = max(grid.height, 14 + len(small) + 70)
    sheet = Sheet(max(_NARROWEST, beside + grid.width + 4 * MARGIN), body, title, notes)
    sheet.text(MARGIN, sheet.top, "the image", size=7.5, color=FAINT)
    sheet.image(small, MARGIN, sheet.top + 14)
    low, middle = ("− largest", "0") if signed else ("0", "")
    sheet.bar(MARGIN, sheet.top + 14 + len(small) + 20, beside, colours, low, "the map's largest", middle)
    _put(sheet, grid, tiles, beside + 3 * MARGIN)
    return sheet


def draw_edges(image: np.ndarray, inputs: ArrayLike, kernel: ArrayLike, title: str, *, count: int = 6) -> Sheet:
    """Draw the strongest edge detectors of a layer and what they give on an image.

    Args:
        image: u8[H, W, 3].
        inputs: f32[H, W, C], the same, preprocessed as the model wants it.
        kernel: f32[F, F, C, K], with a BatchNorm's scale folded in (`convolution(model).folded`).
        title: What is shown.
        count: How many detectors to show; those whose response is as good as none are left out.

    Returns:
        The image; `save(path)` writes it.

    Raises:
        ValueError: The kernel is not square or does not fit the image's channels; `count` is no number of filters.

    >>> sobel = np.array([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]])[:, :, None, None]
    >>> draw_edges(np.zeros((32, 32, 3), np.uint8), np.zeros((32, 32, 1)), sobel, "one filter").width
    752
    """
    weights = np.asarray(kernel, np.float32)
    ranked = edge_detectors(weights)
    answering = max(1, sum(edge.strength > DEAD * ranked[0].strength for edge in ranked))
    wanted = _shown(answering, count, "filters", [])
    columns, side, tile = (min(3, wanted), 336, 96) if wanted <= 6 else (min(7, -(-wanted // 2)), 250, 64)
    large = fitted(image, side, 2 * side)
    height, strip = len(large), tile + 16
    pitch = strip + height + 24
    shown = min(wanted, columns * max(1, _BODY // pitch))
    notes = [
        "Ranked by the response to a step edge of height 1. Beside each kernel: the edge it answers to most (0° lies, "
        "90° stands).",
        "Below: the kernel less its mean, on the image. Red: an edge with its bright side as drawn; blue: reversed. "
        "Each map has its own scale; its strongest 0.5 % of pixels look alike.",
    ]
    if shown < wanted:
        notes.append(f"There is room for {shown} of the {wanted} filters that were asked for.")
    if answering < min(count, len(ranked)):
        left = f"{len(ranked) - answering} of {len(ranked)} filters"
        notes.append(f"Left out: {left}, whose response is below {DEAD:g} of the first one's.")
    edges = ranked[:shown]
    # Without the mean an even area gives 0; the response to an edge through the middle is the same.
    chosen = weights[..., [edge.filter for edge in edges]]
    responses = edge_responses(inputs, chosen - chosen.mean((0, 1)))
    images = filter_images(weights)
    if weights.shape[2] != 3:
        images = images.mean(1)[..., None].repeat(3, -1)
    body = max(-(-shown // columns) * pitch - 24, strip + height + 48)
    sheet = Sheet(side * (columns + 1) + (columns + 3) * MARGIN, body, title, notes)
    sheet.text(MARGIN, sheet.top + strip - 16, "the image", size=9, color=FAINT)
    sheet.image(large, MARGIN, sheet.top + strip)
    sheet.bar(MARGIN, sheet.top + strip + height + 16, side, "RdBu_r", "− strongest", "strongest", "0")
    for index, edge in enumerate(edges):
        x = 2 * MARGIN + (side + MARGIN) * (index % columns + 1)
        y = sheet.top + pitch * (index // columns)
        _put_detector(sheet, edge, images[edge.filter], x, y, tile)
        # A few pixels are far stronger than the rest, which would be pale beside them.
        limit = float(np.quantile(np.abs(responses[..., index]), 0.995)) or 1.0
        colours = coloured(np.clip(0.5 + responses[..., index] / (2 * limit), 0, 1), "RdBu_r")
        sheet.image(fitted(colours, side, 2 * side), x, y + strip)
    return sheet


def _put_detector(sheet: Sheet, edge: EdgeDetector, image: np.ndarray, x: int, y: int, tile: int) -> None:
    """A filter, the edge it answers to, and what there is to say."""
    sheet.image(resampled(image, (tile, tile)), x, y)
    place, angle = np.arange(tile) - (tile - 1) / 2, np.deg2rad(edge.direction)
    ideal = np.clip(0.5 + place * np.cos(angle) - place[:, None] * np.sin(angle), 0, 1)
    sheet.image(np.repeat(0.2 + 0.7 * ideal[..., None], 3, -1), x + tile + 8, y)
    texts = f"filter {edge.filter}", f"edge at {edge.orientation}°", f"response {edge.strength:.2g}"
    for line, text in enumerate(texts):
        style = {"size": tile / 16 + 4.5, "weight": "normal" if line else "bold", "va": "center"}
        sheet.text(x + 2 * tile + 18, y + tile // 2 + 20 * (line - 1), text, **style)


def _shown(total: int, count: int | None, what: str, notes: list[str]) -> int:
    """How many to show; says so where that is not all."""
    if count is not None and count < 1:
        raise ValueError(f"count must be at least 1, not {count}")
    shown = min(total, MOST_TILES if count is None else min(count, MOST_TILES))
    if shown < total:
        notes.append(f"Shown: the first {shown:,} of {total:,} {what}.")
    return shown


def _put(sheet: Sheet, grid: Grid, tiles: np.ndarray, x: int) -> None:
    """Put numbered tiles f32[n, h, w, 3] onto the sheet's body."""
    sheet.image(grid.filled(tiles), x, sheet.top)
    for index in range(grid.count):
        down, right = grid.place(index)
        sheet.text(x + right, sheet.top + down - 2, str(index), size=7.5, va="bottom", color=FAINT)
