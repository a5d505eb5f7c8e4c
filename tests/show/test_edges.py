"""Edge detectors: ranked, turned and put on photographs."""

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from cnnjax.show.edges import edge_detectors, edge_responses

SOBEL = np.array([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]])
DIAGONAL = np.array([[0.0, 1, 2], [-1, 0, 1], [-2, -1, 0]])
BLUR = np.array([[1.0, 2, 1], [2, 4, 2], [1, 2, 1]])


def stacked(*kernels):
    """Kernels of one channel and of norm 1, as f32[F, F, 1, K]."""
    return np.stack([k / np.linalg.norm(k) for k in kernels], -1)[:, :, None]


def gaussian_derivative(direction, size=7, sigma=1.5):
    """The derivative of a Gaussian: positive on the side that `direction` (90: up) points to."""
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    angle = np.deg2rad(direction)
    return (x * np.cos(angle) - y * np.sin(angle)) * np.exp(-(x**2 + y**2) / (2 * sigma**2))


def test_edges_rank_before_noise_and_noise_before_a_blur():
    rng = np.random.default_rng(0)
    found = edge_detectors(stacked(BLUR, rng.normal(size=(3, 3)), SOBEL, rng.normal(size=(3, 3)), -SOBEL.T, DIAGONAL))
    assert {edge.filter for edge in found[:3]} == {2, 4, 5}
    assert [edge.filter for edge in found[3:]] in ([1, 3, 0], [3, 1, 0])
    by_filter = {edge.filter: edge for edge in found}
    assert found[-1].strength == pytest.approx(0, abs=1e-6)
    assert [(by_filter[k].direction, by_filter[k].orientation) for k in (2, 4, 5)] == [(0, 90), (90, 0), (45, 135)]


def test_strength_is_the_response_to_a_step():
    # Far from a wide kernel's few middle cells the blurred edge is the step itself: half the sum of all weights.
    weights = np.zeros((11, 11, 1, 1))
    weights[:, :4], weights[:, 7:] = -1, 1
    (edge,) = edge_detectors(weights)
    assert edge.strength == pytest.approx(0.5 * np.abs(weights).sum(), rel=1e-4) and edge.direction == 0


@pytest.mark.parametrize("size", [4, 7])
def test_angles_are_found_to_three_degrees(size):
    angles = np.arange(0, 360, 15)
    colours = np.array([0.2, 0.5, 0.3])[:, None]
    kernel = np.stack([gaussian_derivative(angle, size) for angle in angles], -1)[:, :, None] * colours
    found = {edge.filter: edge.direction for edge in edge_detectors(kernel)}
    turned = [(found[k] - angle + 180) % 360 - 180 for k, angle in enumerate(angles)]
    assert np.abs(turned).max() <= 3


def test_responses_are_a_correlation_with_the_border_repeated():
    rng = np.random.default_rng(1)
    image, kernel = rng.normal(size=(9, 13, 2)), rng.normal(size=(3, 5, 2, 4))
    want = [sum(ndimage.correlate(image[..., c], kernel[..., c, k], mode="nearest") for c in (0, 1)) for k in range(4)]
    np.testing.assert_allclose(edge_responses(image, kernel), np.stack(want, -1), atol=1e-4)
    with pytest.raises(ValueError, match=r"reads 2 channels, the image is \(9, 13, 3\)"):
        edge_responses(np.zeros((9, 13, 3)), kernel)


def test_one_cell_has_no_edge():
    with pytest.raises(ValueError, match="F of at least 2"):
        edge_detectors(np.ones((1, 1, 3, 8)))


def test_a_photographs_rotated_edge_is_found(shared_data):
    # A refrigerator: its edges stand.
    with Image.open(shared_data / "imagenet_samples" / "760_n04070727_refrigerator.jpg") as image:
        photograph = image.convert("L")
    angles = np.arange(0, 180, 10)
    kernel = np.stack([gaussian_derivative(angle) for angle in angles], -1)[:, :, None]
    detectors = {edge.filter: edge for edge in edge_detectors(kernel)}
    for turned in (0, 30, 70, 130):
        grey = np.asarray(photograph.rotate(turned, Image.Resampling.BILINEAR), float) / 255
        middle = [slice(n // 2 - 60, n // 2 + 60) for n in grey.shape]
        strongest = (edge_responses(grey[tuple(middle)][..., None], kernel) ** 2).sum((0, 1)).argmax()
        away = (detectors[int(strongest)].orientation - turned) % 180 - 90
        assert abs(away) <= 5, turned
