"""A network with its published weights, as a command names it."""

from pathlib import Path
from typing import Any

from flax import nnx

from cnnjax.models import BACKBONES, PUBLISHED, Backbone, create
from cnnjax.weights.assign import load_weights


def open_backbone(
    name: str,
    *,
    image_size: int | None = None,
    alpha: float | None = None,
    weights: Path | None = None,
    include_top: bool = True,
    **kwargs: Any,
) -> tuple[Backbone, str]:
    """Build a network and fill it from a file.

    Args:
        name: A key of `cnnjax.models.BACKBONES`.
        image_size: Height and width in pixels; the architecture's own if not given.
        alpha: The width multiplier, for architectures that have one.
        weights: Keras's HDF5 file; random numbers if not given.
        include_top: Whether the network ends in its classification layers.
        **kwargs: Further arguments of the architecture's function.

    Returns:
        The network, and the name of the preprocessing that its published weights expect ("unit" for a network
        without any).

    Raises:
        LookupError: There is no such network.
        ValueError: An argument does not fit it, or the file does not (then all misfits are named).
        FileNotFoundError: There is no such file.

    >>> model, preprocessing = open_backbone("mobilenet", image_size=96, alpha=0.25, include_top=False)
    >>> model.output_shape(), preprocessing
    ((3, 3, 256), 'tf')
    """
    options: dict[str, Any] = {"include_top": include_top, **kwargs}
    if alpha is not None:
        if name in BACKBONES and name != "mobilenet":
            raise ValueError(f"alpha is the width of mobilenet; {name} has none")
        options["alpha"] = alpha
    if image_size is not None:
        if image_size < 1:
            raise ValueError(f"image_size must be at least 1 pixel, not {image_size}")
        options["input_shape"] = (image_size, image_size, 3)
    model = create(name, rngs=nnx.Rngs(0), **options)
    if weights is not None:
        load_weights(model, weights, leave_out=() if include_top else "top")
    # The scaling of the pixels belongs to the published weights; a network without any takes 0 to 1.
    scaling = {entry.preprocessing for entry in PUBLISHED.values() if entry.backbone == name}
    return model, scaling.pop() if scaling else "unit"
