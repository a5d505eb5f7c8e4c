"""A network with its published weights, as a command names it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flax import nnx

from cnnjax.models import create
from cnnjax.models.own import ImportedBackbone
from cnnjax.models.preprocessing import checked_preprocessing
from cnnjax.models.registry import STANDARD, entry_or_own
from cnnjax.models.sizes import sides
from cnnjax.weights.assign import load_weights
from cnnjax.weights.leaves import load_leaves


def open_backbone(
    name: str,
    *,
    image_size: int | Sequence[int] | None = None,
    channels: int | None = None,
    weights: Path | None = None,
    include_top: bool = True,
    preprocessing: str | None = None,
    **kwargs: Any,
) -> tuple[Any, str]:
    """Build a network and fill it from a file.

    Args:
        name: A key of `cnnjax.models.BACKBONES`, or the import path of a function that builds a network of your own
            (`package.module:function`, `file.py:function`), whose code is run.
        image_size: Height and width in pixels, one number for both; the architecture's own if not given.
        channels: Of the images; 3 if not given.
        weights: Keras's HDF5 file, of a network of your own a .safetensors file whose tensors are its leaves; random
            numbers if not given.
        include_top: Whether the network ends in its classification layers; one of your own is taken as it is.
        preprocessing: A key of `cnnjax.models.PREPROCESSING`; what the published weights expect if not given.
        **kwargs: Further arguments of the architecture's function: its own options (`alpha` of mobilenet), `classes`.
            None stands for the function's default, but as `classifier_activation`.

    Returns:
        The network, and the name of its preprocessing ("unit" for a network without published weights).

    Raises:
        LookupError: There is no such network.
        ValueError: An argument does not fit it, or the file does not (then all misfits are named).
        FileNotFoundError: There is no such file.

    >>> model, preprocessing = open_backbone("mobilenet", image_size=96, alpha=0.25, include_top=False)
    >>> model.output_shape(), preprocessing
    ((3, 3, 256), 'tf')
    """
    found = entry_or_own(name)
    if preprocessing is not None:
        checked_preprocessing(preprocessing)
    if channels is not None and channels < 1:
        raise ValueError(f"channels must be at least 1, not {channels}")
    if isinstance(found, ImportedBackbone):
        shape = (*(found.image_size if image_size is None else sides(image_size)), channels or 3)
        own = {key: value for key, value in kwargs.items() if value is not None and key != "classifier_activation"}
        network = found.build(shape, nnx.Rngs(0), found.checked(own))
        if weights is not None:
            load_leaves(network, weights)
        return network, preprocessing or found.preprocessing(own)
    given = {key: value for key, value in kwargs.items() if value is not None or key == "classifier_activation"}
    own = {key: value for key, value in given.items() if key not in STANDARD}
    options: dict[str, Any] = {**given, **found.checked(own, include_top=include_top), "include_top": include_top}
    if image_size is not None or channels is not None:
        size = found.image_size_of(own) if image_size is None else sides(image_size)
        options["input_shape"] = (*size, channels or 3)
    model = create(name, rngs=nnx.Rngs(0), **options)
    if weights is not None:
        load_weights(model, weights, leave_out=() if include_top else "top")
    # The scaling of the pixels belongs to the published weights; a network without any takes 0 to 1.
    return model, preprocessing or found.preprocessing(own, channels or 3)
