"""What stands for a layer's output while a graph is built, and the shapes of such outputs."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx

from cnnjax.models.backbone import Shape

# Stand in for a size that is not known where any module is traced: what differs between them depends on it.
_SIZES = (224, 288)


@dataclass(frozen=True, eq=False)
class Tensor:
    """What a layer gives, while a graph is built.

    Attributes:
        name: The layer's; "" for the input of a graph whose input is no layer.
        shape: Of one example, (H, W, C) for images; None where it is not known.
        graph: The graph to which the layer belongs.
    """

    name: str
    shape: Shape
    graph: object

    @property
    def channels(self) -> int:
        """The size of the last axis.

        Raises:
            ValueError: It is not known.
        """
        if not self.shape or self.shape[-1] is None:
            raise ValueError(f"{self.name or 'the input'} has {self.shape}: the number of its channels is not known")
        return self.shape[-1]


def counted(shape: Iterable[int | None]) -> int | None:
    """How many numbers there are, None if not known."""
    count = 1
    for n in shape:
        if n is None:
            return None
        count *= n
    return count


def traced_shape(name: str, module: nnx.Module, inputs: Sequence[Tensor]) -> Shape:
    """The shape that a module gives, found by tracing it; None where it depends on sizes that are not known."""
    graphdef, state = nnx.split(module)
    found = []
    for size in _SIZES:
        shapes = [tuple(size if n is None else n for n in x.shape) for x in inputs]
        arrays = [jax.ShapeDtypeStruct((1, *shape), jnp.float32) for shape in shapes]
        try:
            out = jax.eval_shape(lambda s, *xs: nnx.merge(graphdef, s)(*xs), state, *arrays)
        except Exception as error:
            text = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ValueError(f"layer {name!r} ({type(module).__name__}) does not take {shapes}: {text}") from error
        if not isinstance(out, jax.ShapeDtypeStruct):
            raise ValueError(f"layer {name!r} ({type(module).__name__}) gives {type(out).__name__}, not one array")
        found.append(out.shape[1:])
    return tuple(a if a == b else None for a, b in zip(*found, strict=True))
