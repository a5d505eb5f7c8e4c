"""A user's own network as a backbone: an import path, a function or a module instead of an architecture's name."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from flax import nnx

from cnnjax.files.importing import called, check_call, imported, is_path, named
from cnnjax.models.heads import HEADS
from cnnjax.models.layer_order import output_shape
from cnnjax.runtime.nearest import unknown

__all__ = ["ImportedBackbone", "OwnBackbone", "build_head", "imported", "is_path", "named"]

OwnHead = Callable[..., nnx.Module]
"""A function of a feature shape, `outputs` and `rngs` that builds a module."""

OwnBackbone = Callable[..., nnx.Module] | nnx.Module
"""A function of `input_shape`, `rngs` and options of its own that builds a module, or the module itself."""


@dataclass(frozen=True)
class ImportedBackbone:
    """What `registry.entry` is for an architecture, for a network of the user's; nothing is imported to make one.

    Attributes:
        name: The import path, `package.module:function` or `file.py:function`.
        code: The function or module itself; imported when the network is built if not given.
    """

    name: str
    code: OwnBackbone | None = None

    image_size = (160, 160)  # where the network does not tell and nobody says

    def checked(self, options: Mapping[str, Any], *, include_top: bool = False) -> dict[str, Any]:
        """The options as the function takes them: plain values.

        Raises:
            ValueError: An option is no plain value.
        """
        for name, value in options.items():
            try:
                json.dumps(value, allow_nan=False)
            except (TypeError, ValueError):
                raise ValueError(
                    f"{name} of {self.name}: expected a number, a text, or a list of some, found {value!r}"
                ) from None
        return dict(options)

    def preprocessing(self, options: Mapping[str, Any], channels: int = 3) -> str:
        """ "unit": what its weights expect is not known."""
        return "unit"

    def build(self, input_shape: tuple[int, ...], rngs: nnx.Rngs, options: Mapping[str, Any]) -> nnx.Module:
        """Call the function.

        Args:
            input_shape: (H, W, C).
            rngs: For its weights.
            options: Its own.

        Raises:
            ValueError: There is no such function, it takes other arguments, or gives no module from
                f32[N, H, W, C] to an array.
        """
        code = imported(self.name) if self.code is None else self.code
        if isinstance(code, nnx.Module):
            if options:
                raise ValueError(f"{self.name} is a module, and takes no options; found {', '.join(options)}")
            model: Any = nnx.clone(code)
        else:
            told = "".join(f", {name}=..." for name in options)
            how = f"input_shape=(height, width, channels), rngs=nnx.Rngs(seed){told}"
            check_call(self.name, code, how, input_shape=None, rngs=None, **options)
            model = code(input_shape=input_shape, rngs=rngs, **options)
        if not isinstance(model, nnx.Module):
            raise ValueError(f"{self.name} must give a Flax NNX module, found {type(model).__name__}: {model!r:.60}")
        output_shape(model, input_shape)  # raises
        return model


def build_head(
    name: str, feature_shape: tuple[int, ...], outputs: int, rngs: nnx.Rngs, code: OwnHead | None = None
) -> nnx.Module:
    """A head on features, by name or the user's.

    Args:
        name: A key of `cnnjax.models.heads.HEADS`, or the import path of a function of the same arguments.
        feature_shape: One example's features.
        outputs: How many numbers it gives for an example.
        rngs: Keys for weights and dropout.
        code: The function itself; imported if not given.

    Raises:
        LookupError: There is no such head; the nearest is given.
        ValueError: There is no such function, it takes other arguments, or gives no module from the features to
            f32[N, outputs].

    >>> build_head("linear", (4, 4, 8), 3, nnx.Rngs(0)).output_shape()
    (3,)
    """
    if code is None and not is_path(name):
        return HEADS[checked_head(name)](feature_shape, outputs=outputs, rngs=rngs)
    function = imported(name, "a function that builds a head", "heads.py:head") if code is None else code
    how = "(feature_shape), outputs=..., rngs=nnx.Rngs(seed)"
    given: dict[str, Any] = {"outputs": outputs, "rngs": rngs}
    head = called(name, function, how, feature_shape, expected=nnx.Module, gives="a Flax NNX module", **given)
    if (found := output_shape(head, feature_shape)) != (outputs,):
        raise ValueError(f"{name}: the head must give [N, {outputs}] of features {feature_shape}, found [N, *{found}]")
    return head


def checked_head(name: str, *others: str) -> str:
    """The name of a head, or an import path.

    Raises:
        LookupError: It is neither; the nearest is given.
    """
    if is_path(name) or name in HEADS or name in others:
        return name
    raise LookupError(f"{unknown('head', name, [*HEADS, *others], listed=True)}, and import paths, file.py:function")
