"""The cells of a sweep: every combination of what its options name, in the order that computes least."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby, product
from typing import Any

import jax
import numpy as np
from flax import nnx

from cnnjax.freeze import Freeze, Frozen, num_weighted_layers
from cnnjax.models import Classifier, SoundClassifier
from cnnjax.models.layer_order import Example, layers, layers_in_order
from cnnjax.sweep.options import Ablation


@dataclass(frozen=True)
class Cell:
    """One training run of the sweep.

    Attributes:
        freeze: how deep, as the options say it.
        frozen: the same, resolved.
        learning_rate: what the cell trains at: the asked one, or the tuning factor's part of it.
        head_rate: the asked one, at which a head trains alone.
        seed: of the head, the order and dropout.
        augment: what happens to the training images.
        size: how many of them are used, None for all.
        method: "direct" or "lp-ft".
        axes: which of augment, size and method the sweep varies: they are part of the name.
    """

    freeze: str
    frozen: Frozen
    learning_rate: float
    head_rate: float
    seed: int
    augment: str = "none"
    size: int | None = None
    method: str = "direct"
    axes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The cell's name in `results.jsonl`."""
        varied = "".join(f" {axis} {getattr(self, axis)}" for axis in self.axes)
        return f"{self.freeze} rate {self.learning_rate:g} seed {self.seed}{varied}"

    @property
    def program(self) -> tuple[str, str]:
        """What cells of one trainer have in common."""
        return self.freeze, self.augment

    @property
    def group(self) -> tuple[str, str, int | None, str]:
        """What cells that are trained together have in common: all but rate and seed."""
        return self.freeze, self.augment, self.size, self.method


def default_depths(backbone: nnx.Module, count: int = 6) -> tuple[str, ...]:
    """At most `count` freezing depths, evenly from nothing to everything."""
    kernels = num_weighted_layers(backbone)
    steps = min(kernels, count - 1)
    depths = [round(k * kernels / steps) for k in range(steps)]
    return tuple(str(Freeze.depth(d)) for d in depths) + ("all",)


def cells(
    config: Ablation, model: Classifier | SoundClassifier, example: Example | None = None, *, pretrained: bool = True
) -> list[Cell]:
    """Every cell of the sweep, least frozen first, so that each depth's features come from the one before.

    Args:
        config: the options.
        model: the whole model.
        example: what it takes.
        pretrained: whether its backbone is: then a part of it that trains does at the tuning factor's part of the
            learning rate.
    """
    texts = config.freeze or default_depths(model.backbone)
    faults, resolved = [], {}
    for text in dict.fromkeys(text.strip() for text in texts):
        try:
            resolved[text] = Freeze.parse(text).resolve(model, within="backbone", example=example)
        except ValueError as error:
            faults.append(str(error))
    if faults:
        raise ValueError("\n".join(faults))
    ordered = sorted(resolved.items(), key=lambda item: len(item[1].layers))
    seeds = range(config.first_seed, config.first_seed + config.seeds)
    sizes: tuple[int | None, ...] = config.sizes or (None,)
    axes = tuple(
        axis
        for axis, values in (("augment", config.augment), ("size", sizes), ("method", config.methods))
        if len(values) > 1
    )
    found: dict[str, Cell] = {}
    for (text, frozen), augment, size, method in product(ordered, config.augment, sizes, config.methods):
        tuned = tunes(model.backbone, frozen)
        if method == "lp-ft" and not tuned and "direct" in config.methods:
            continue  # with everything frozen the head is all there is
        for rate, seed in product(config.learning_rates, seeds):
            own = rate * config.tuning_factor if tuned and pretrained else rate
            cell = Cell(text, frozen, own, rate, seed, augment, size, method if tuned else "direct", axes)
            found.setdefault(cell.name, cell)
    return list(found.values())


def groups(wanted: Iterable[Cell]) -> list[list[Cell]]:
    """Cells that are trained together, side by side those of one trainer."""
    return [list(group) for _, group in groupby(wanted, key=lambda cell: cell.group)]


def first_trainable(model: nnx.Module, frozen: Frozen, example: Example | None = None) -> str:
    """Name of the backbone's first layer with parameters that trains, "" if there is none."""
    for layer in layers_in_order(model, "backbone", example=example):
        if layer.name not in frozen.layers and _has_parameters(layer.node):
            return layer.name
    return ""


def tunes(backbone: nnx.Module, frozen: Frozen) -> bool:
    """Whether any of the backbone trains."""
    return any(layer.name not in frozen.layers and _has_parameters(layer.node) for layer in layers(backbone))


def _has_parameters(node: Any) -> bool:
    if isinstance(node, nnx.Variable):
        return isinstance(node, nnx.Param)
    return bool(jax.tree.leaves(nnx.state(node, nnx.Param)))


def subset(labels: np.ndarray, size: int) -> np.ndarray:
    """Places of `size` examples, every class the same number; a smaller subset is part of a larger one.

    Args:
        labels: i32[N].
        size: how many, a multiple of the number of classes.

    Raises:
        ValueError: there are not so many of each class, or the classes do not divide the size.

    >>> subset(np.array([0, 0, 0, 1, 1, 1]), 4).tolist(), subset(np.array([0, 0, 0, 1, 1, 1]), 2).tolist()
    ([0, 2, 3, 5], [2, 5])
    """
    classes, counts = np.unique(labels, return_counts=True)
    each, rest = divmod(size, len(classes))
    if rest or each < 1:
        raise ValueError(f"sizes: {size} images are not the same number of each of {len(classes)} classes")
    if each > min(counts.tolist()):
        raise ValueError(f"sizes: {size} images need {each} of each class, and one has {min(counts.tolist())}")
    chosen = [np.random.default_rng([0, int(k)]).permutation(np.flatnonzero(labels == k))[:each] for k in classes]
    return np.sort(np.concatenate(chosen))
