"""A user's own network as a backbone: an import path, a function or a module instead of an architecture's name."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from flax import nnx

from cnnjax.importing import check_call, imported, is_path, named
from cnnjax.order import output_shape

__all__ = ["Own", "OwnBackbone", "imported", "is_path", "named"]

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

    image_size = (160, 160)  # as `fit` and `ablate` take it

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
