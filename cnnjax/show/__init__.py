"""Images of networks, and tables and images of what was measured.

Functions give NumPy arrays; `draw_...` put them on a `Sheet`, which `save(path)` writes as PNG.

>>> import numpy as np
>>> from cnnjax import show
>>> show.filter_images(np.ones((3, 3, 3, 8))).shape
(8, 3, 3, 3)
"""

from cnnjax.show import curves
from cnnjax.show.cam import ClassActivation, class_activation, grad_cam, placed
from cnnjax.show.draw import draw_activations, draw_edges, draw_filters
from cnnjax.show.edges import EdgeDetector, edge_detectors, edge_responses, step_edges
from cnnjax.show.fields import Box, cell_box, effective_field, middle_part, neighbour_boxes
from cnnjax.show.filters import Convolution, convolution, filter_images
from cnnjax.show.images import open_image
from cnnjax.show.looks import draw_cam, draw_field
from cnnjax.show.maps import activation_maps, visible_maps
from cnnjax.show.sheet import Sheet

__all__ = [
    "Box",
    "ClassActivation",
    "Convolution",
    "EdgeDetector",
    "Sheet",
    "activation_maps",
    "cell_box",
    "class_activation",
    "convolution",
    "curves",
    "draw_activations",
    "draw_cam",
    "draw_edges",
    "draw_field",
    "draw_filters",
    "edge_detectors",
    "edge_responses",
    "effective_field",
    "filter_images",
    "grad_cam",
    "middle_part",
    "neighbour_boxes",
    "open_image",
    "placed",
    "step_edges",
    "visible_maps",
]
