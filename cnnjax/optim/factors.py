"""Discriminative learning rates: each leaf's own factor of the learning rate (Howard & Ruder 2018, ULMFiT)."""

import fnmatch
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import optax

from cnnjax.runtime.nearest import did_you_mean, unknown

Factors = Mapping[str, float] | Callable[[str], float]


def path_of(keys: tuple[Any, ...]) -> str:
    """A leaf's path in a flat or nested tree, as `"backbone/conv1/kernel"`."""
    return jax.tree_util.keystr(keys, simple=True, separator="/")


def by_groups(
    groups: Mapping[str, float], paths: Iterable[str] | Mapping[str, Sequence[str]]
) -> Callable[[str], float]:
    """One factor for each group of leaves.

    Args:
        groups: shell pattern -> factor. A pattern names leaves, or modules above them (`"head"`,
            `"backbone/block5*"`; `*` also crosses `/`). A leaf takes its first match, or 1 without any.
        paths: paths of the model's leaves, also those that train later only; `cnnjax.functional.names_of` gives
            all paths of those that are shared.

    Raises:
        ValueError: if a pattern matches no path (all such are named, with the nearest), or a factor is not
            positive.

    Example:
        >>> factor = by_groups({"head": 1.0, "*/block5*": 0.3, "backbone": 0.1},
        ...                    ["backbone/block4_conv1/kernel", "backbone/block5_conv1/kernel", "head/dense/bias"])
        >>> factor("head/dense/bias"), factor("backbone/block5_conv1/kernel"), factor("backbone/block4_conv1/kernel")
        (1.0, 0.3, 0.1)
    """
    names = paths if isinstance(paths, Mapping) else {path: (path,) for path in paths}
    paths = [name for every in names.values() for name in every]
    modules = {"/".join(parts[: k + 1]) for parts in (p.split("/") for p in paths) for k in range(len(parts))}
    missed = []
    for pattern, factor in groups.items():
        _checked(factor, pattern)
        if not any(_matches(path, pattern) for path in paths):
            missed.append(f"  {pattern!r}{did_you_mean(pattern.strip('*'), sorted(modules))}")
    if missed:
        raise ValueError(f"patterns that match none of {len(paths)} leaves:\n" + "\n".join(missed))

    def look_up(path: str) -> float:
        own = names.get(path, (path,))
        return next((factor for pattern, factor in groups.items() if any(_matches(n, pattern) for n in own)), 1.0)

    return look_up


def by_depth(paths: Sequence[str], factor: float) -> Callable[[str], float]:
    """A rate that falls with the distance from the output: 1 for the last layer, times `factor` for each before it.

    A layer is a module with a leaf called `kernel`. Modules without one (normalisation) belong to the layer that
    they follow, those before the first kernel to the first layer.

    Args:
        paths: leaf paths of the whole model, layer by layer from the input to the output.
        factor: above 0, at most 1. ULMFiT has 1/2.6 for 4 layers; over MobileNet's 27 that leaves the first
            layer 1e-11 of the learning rate, 0.8 leaves it 0.003.

    Raises:
        ValueError: if the factor is none, or no leaf is a kernel. The function given back raises it for a leaf
            that is not in `paths`.

    Example:
        >>> from flax import nnx
        >>> from cnnjax.freeze import layer_names
        >>> from cnnjax.functional import leaves_of
        >>> model = nnx.Sequential(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), nnx.BatchNorm(3, rngs=nnx.Rngs(0)),
        ...                        nnx.Linear(3, 1, rngs=nnx.Rngs(0)))
        >>> leaves = leaves_of(model)
        >>> paths = [leaf for layer in layer_names(model) for leaf in leaves if leaf.startswith(f"{layer}/")]
        >>> rate = by_depth(paths, 0.5)
        >>> rate("layers/0/kernel"), rate("layers/1/scale"), rate("layers/2/bias")
        (0.5, 0.5, 1.0)
    """
    if not 0 < factor <= 1:
        hint = f"; did you mean 1/{factor:g} = {1 / factor:.3g}?" if 1 < factor < math.inf else ""
        raise ValueError(f"a factor by depth lies above 0 and is at most 1, not {factor}{hint}")
    parents = list(dict.fromkeys(path.rpartition("/")[0] for path in paths))
    kernels = {path.rpartition("/")[0] for path in paths if path.rpartition("/")[2] == "kernel"}
    if not kernels:
        raise ValueError(f"no kernel among {len(paths)} leaves: by_depth needs whole paths such as 'head/dense/kernel'")
    place, places = 0, {}
    for parent in parents:
        place += parent in kernels
        places[parent] = max(place, 1)
    # The path itself counts, not its module alone: a leaf nobody listed has no certain place.
    known = {path: factor ** (place - places[path.rpartition("/")[0]]) for path in paths}

    def look_up(path: str) -> float:
        if path not in known:
            raise ValueError(unknown("depth for leaf", path, known, "in the list of layers"))
        return known[path]

    return look_up


def scale_by_path(factors: Factors) -> optax.GradientTransformation:
    """Multiply each leaf's update by its factor; a mapping is checked against the leaves that train."""

    def factors_of(tree: Any) -> Any:
        paths = [path_of(keys) for keys, _ in jax.tree_util.tree_leaves_with_path(tree)]
        look_up: Any = factors
        if isinstance(factors, Mapping):
            try:
                look_up = by_groups(factors, paths)
            except ValueError as error:
                hint = "for leaves that train later, give by_groups(groups, paths) all of the model's paths"
                raise ValueError(f"{error}\n({hint})") from None
        return jax.tree_util.tree_map_with_path(lambda keys, _: _checked(look_up(path_of(keys)), path_of(keys)), tree)

    def init(params: Any) -> optax.EmptyState:
        factors_of(params)
        return optax.EmptyState()

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        return jax.tree.map(lambda update, factor: factor * update, updates, factors_of(updates)), state

    return optax.GradientTransformation(init, update)


def _matches(path: str, pattern: str) -> bool:
    return fnmatch.fnmatchcase(path, pattern) or fnmatch.fnmatchcase(path, f"{pattern}/*")


def _checked(factor: float, what: str) -> float:
    if not 0 < factor < math.inf:
        hint = "; freeze what is not to move" if factor == 0 else ""
        raise ValueError(f"{what}: expected a positive factor of the learning rate, found {factor}{hint}")
    return factor
