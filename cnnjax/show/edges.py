"""Which filters of a first layer find edges, and what they give on a photograph."""

import math
from dataclasses import dataclass

import numpy as np
from jax.typing import ArrayLike

BLUR = 0.5
"""Standard deviation of the ideal edge's blur, in cells of the kernel."""


@dataclass(frozen=True)
class EdgeDetector:
    """How a filter answers to a step edge through its middle.

    Attributes:
        filter: Its number.
        strength: Its largest response to a step of height one, over all directions of the edge.
        direction: The direction in which that edge gets brighter, in degrees: 0 to the right, 90 up.
    """

    filter: int
    strength: float
    direction: int

    @property
    def orientation(self) -> int:
        """Of the edge's line, in degrees from 0 to 179: 0 lies, 45 rises to the right, 90 stands."""
        return (self.direction + 90) % 180


def step_edges(size: int, directions: ArrayLike) -> np.ndarray:
    """Draw ideal step edges: from -1/2 to 1/2, through the middle, at any angle.

    An edge turned by less than 18 degrees would leave every cell of a 3x3 kernel on its side, and the angle
    would not be determined; so it is blurred by half a cell, as every camera does.

    Args:
        size: F, the kernel's side.
        directions: [D] degrees in which the edge gets brighter: 0 to the right, 90 up.

    Returns:
        f32[D, F, F].

    >>> bright_above = step_edges(3, [90])[0]
    >>> bright_above[0].round(2), bright_above[2].round(2)
    (array([0.48, 0.48, 0.48], dtype=float32), array([-0.48, -0.48, -0.48], dtype=float32))
    """
    angle = np.deg2rad(np.asarray(directions, np.float32))[:, None, None]
    place = np.arange(size, dtype=np.float32) - (size - 1) / 2
    along = place * np.cos(angle) - place[:, None] * np.sin(angle)
    return (0.5 * np.vectorize(math.erf)(along / (BLUR * math.sqrt(2)))).astype(np.float32)


def edge_detectors(kernel: ArrayLike) -> list[EdgeDetector]:
    """Rank filters by their response to a step edge, the strongest first.

    The edge is grey (the same step in every channel) and runs through the filter's middle; the response is
    the sum of products, taken in each of 360 directions. What is even about a filter, its mean included,
    does not answer to such an edge: a blur has strength 0.

    Args:
        kernel: f32[F, F, C, K]; fold a BatchNorm's scale into it first (`convolution(model).folded`), since
            what the next layer sees is scaled by it.

    Raises:
        ValueError: The kernel has other axes, is not square, or has a single cell.

    Source: the slide on edge detection by convolution; the kernels of Sobel and Feldman 1968.

    >>> sobel = np.array([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]])
    >>> [(e.filter, e.direction, e.orientation) for e in edge_detectors(np.stack([sobel.T, 2 * sobel], -1)[:, :, None])]
    [(1, 0, 90), (0, 270, 0)]
    """
    weights = np.asarray(kernel, np.float32)
    if weights.ndim != 4 or weights.shape[0] != weights.shape[1] or weights.shape[0] < 2:
        raise ValueError(f"edges need a square kernel f32[F, F, C, K] with F of at least 2, found {weights.shape}")
    directions = np.arange(360)
    responses = np.einsum("dij,ijk->dk", step_edges(len(weights), directions), weights.sum(2))
    best = responses.argmax(0)
    found = [EdgeDetector(k, float(responses[d, k]), int(d)) for k, d in enumerate(best)]
    return sorted(found, key=lambda edge: -edge.strength)


def edge_responses(image: ArrayLike, kernel: ArrayLike) -> np.ndarray:
    """What filters give at every pixel of an image: the layer at stride 1, without its bias.

    The border is repeated outwards, so that the frame of the image is no edge.

    Args:
        image: f32[H, W, C], preprocessed as the model wants it.
        kernel: f32[F, F, C, K].

    Returns:
        f32[H, W, K]; positive where the image gets brighter in the filter's direction.

    Raises:
        ValueError: Image and kernel differ in their channels.

    >>> step = np.repeat([[0.0, 0.0, 1.0, 1.0]], 4, 0)[..., None]
    >>> edge_responses(step, np.array([[-1.0, 1.0]]).reshape(1, 2, 1, 1))[0, :, 0].tolist()
    [0.0, 1.0, 0.0, 0.0]
    """
    pixels, weights = np.asarray(image, np.float32), np.asarray(kernel, np.float32)
    rows, columns, channels, filters = weights.shape
    if pixels.ndim != 3 or pixels.shape[-1] != channels:
        raise ValueError(f"the kernel reads {channels} channels, the image is {pixels.shape}")
    pads = [((n - 1) // 2, n // 2) for n in (rows, columns)]
    padded = np.pad(pixels, (*pads, (0, 0)), "edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (rows, columns), (0, 1))  # [H, W, C, rows, columns]
    return np.tensordot(windows, np.moveaxis(weights, 2, 0), 3)
