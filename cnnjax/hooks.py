"""See or change what any layer gives, in any NNX model."""

from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from functools import cache
from typing import Any

import jax
from flax import nnx

from cnnjax.functional import functionalize, leaves_of, model_name, modules
from cnnjax.runtime.nearest import unknown

Hook = Callable[[str, Any], Any]
"""(path of a module, what it gave) -> what it gives instead."""
Reader = Callable[[str, tuple[Any, ...]], None]
"""(path of a module, what it is called with): called before the module is."""


def with_hook(model: nnx.Module, hook: Hook, reader: Reader | None = None) -> nnx.Module:
    """Let `hook` see, and if it likes change, what every module below `model` gives; `reader` sees what each is given.

    The model itself is changed: hand over a copy (`functionalize(model).module(leaves)` makes one). Each
    module's operations also carry its path as a `jax.named_scope`.

    >>> from cnnjax.models import lecture_head
    >>> model, seen = lecture_head((2, 2, 3), 2, rngs=nnx.Rngs(0)), {}
    >>> model.eval()
    >>> hooked = with_hook(model, lambda path, out: seen.setdefault(path, out))
    >>> hooked(jax.numpy.ones((1, 2, 2, 3))).shape, list(seen)
    ((1, 1), ['flatten', 'dense', 'dropout', 'dense_1'])
    """
    for path, module in list(modules(model)):
        # The path and the hook stand on the object, so that they live on in what nnx.scan and the like copy.
        object.__setattr__(module, "__class__", _hooked_class(type(module)))
        setattr(module, _HOOK, _Hooked(path, hook, reader))
    return model


_HOOK = "cnnjax_hook"
_OPEN, _CLOSE = "layer<", ">"


class _Hooked:
    """A path and its hook: static for NNX, so hashable by identity."""

    def __init__(self, path: str, hook: Hook, reader: Reader | None):
        self.path, self.hook, self.reader = path, hook, reader


@cache
def _hooked_class(cls: type) -> type:
    plain: Any = cls

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        mine = getattr(self, _HOOK)
        if mine.reader is not None:
            mine.reader(mine.path, args)
        with jax.named_scope(_OPEN + mine.path.replace("/", "|") + _CLOSE):
            out = plain.__call__(self, *args, **kwargs)
        return mine.hook(mine.path, out)

    return type(cls)(cls.__name__, (cls,), {"__call__": call, "__module__": cls.__module__})


def layer_of(scope: str) -> str | None:
    """Path of the innermost hooked module in a name stack (`str(eqn.source_info.name_stack)`).

    >>> layer_of("layer<blocks|0>/jit(relu)/layer<blocks|0|conv1>"), layer_of("relu")
    ('blocks/0/conv1', None)
    """
    _, found, tail = scope.rpartition(_OPEN)
    return tail.partition(_CLOSE)[0].replace("|", "/") if found else None


def outputs(model: nnx.Module, images: Any, layers: Iterable[str]) -> dict[str, Any]:
    """What the named modules give for a batch of images, in inference mode.

    Args:
        model: any NNX module from images to anything; it is not changed.
        images: f32[N, H, W, C], or whatever the model takes.
        layers: paths of modules, such as `"conv_pw_13"` or `"backbone/conv1"`.

    Returns:
        Output by path. A module that is called several times gives its last output.

    Raises:
        LookupError: There is no such module, or it was not called; the nearest name is given.

    >>> from cnnjax.models import lecture_cnn
    >>> model = lecture_cnn((32, 32, 3), (4, 8), include_top=False, rngs=nnx.Rngs(0))
    >>> outputs(model, jax.numpy.ones((1, 32, 32, 3)), ["conv2d_1"])["conv2d_1"].shape
    (1, 30, 30, 4)
    """
    layers, names = tuple(layers), [path for path, _ in modules(model)]
    for layer in layers:
        checked_layer(layer, names, model_name(model))
    functional = functionalize(model)

    def run(leaves: Any, images: Any) -> dict[str, Any]:
        found: dict[str, Any] = {}

        def keep(path: str, out: Any) -> Any:
            if path in layers:
                found[path] = out
            return out

        hooked: Any = with_hook(functional.module(leaves), keep)
        hooked(images)
        return found

    with reachable(layers):
        found = jax.jit(run)(leaves_of(model), images)
    if missing := [layer for layer in layers if layer not in found]:
        raise LookupError(f"{model_name(model)} does not call {', '.join(missing)}: there is no output to show")
    return {layer: found[layer] for layer in layers}


@contextmanager
def reachable(layers: Iterable[str]) -> Generator[None]:
    """Say which layers could not be reached, where a hook takes values out of a transformed call.

    Raises:
        ValueError: A layer runs inside nnx.remat, nnx.jit or nnx.scan, whose values stay inside.
    """
    try:
        yield
    except jax.errors.UnexpectedTracerError:
        names = ", ".join(layers)
        raise ValueError(
            f"{names} runs inside nnx.remat, nnx.jit or nnx.scan, and what it gives cannot be taken out; "
            "choose a layer outside of it"
        ) from None


def checked_layer(name: str, names: Iterable[str], what: str) -> str:
    """Return `name` if it is among `names`.

    Raises:
        LookupError: It is not; the nearest name is given.
    """
    names = list(names)
    if name not in names:
        raise LookupError(unknown("layer", name, names, f"in {what}"))
    return name
