"""The lecture's arithmetic: output sizes, padding, parameters, multiplications, receptive fields."""

from cnnjax.sizing.costs import (
    conv_multiplications,
    conv_parameters,
    conv_volume,
    dense_multiplications,
    dense_parameters,
    depthwise_multiplications,
    depthwise_parameters,
    pool_volume,
    weights_per_filter,
)
from cnnjax.sizing.field import Field
from cnnjax.sizing.notation import Layer, Volume, parse_input, parse_layer
from cnnjax.sizing.stack import Row, size_stack, total
from cnnjax.sizing.windows import RULES, fitting_paddings, formula, keeping_padding, output_size, same_padding

__all__ = [
    "RULES",
    "Field",
    "Layer",
    "Row",
    "Volume",
    "conv_multiplications",
    "conv_parameters",
    "conv_volume",
    "dense_multiplications",
    "dense_parameters",
    "depthwise_multiplications",
    "depthwise_parameters",
    "fitting_paddings",
    "formula",
    "keeping_padding",
    "output_size",
    "parse_input",
    "parse_layer",
    "pool_volume",
    "same_padding",
    "size_stack",
    "total",
    "weights_per_filter",
]
