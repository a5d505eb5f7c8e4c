"""A user's own network as a backbone: an import path, a function or a module instead of an architecture's name."""

import hashlib
import importlib
import importlib.util
import inspect
import json
import sys
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flax import nnx

from cnnjax.models.layer_order import output_shape

OwnBackbone = Callable[..., nnx.Module] | nnx.Module
"""A function of `input_shape`, `rngs` and options of its own that builds a module, or the module itself."""


def is_path(name: str) -> bool:
    """Whether a backbone's name is an import path.

    >>> is_path("networks/vit.py:model"), is_path("package.module:function"), is_path("mobilenet")
    (True, True, False)
    """
    return ":" in name or name.endswith(".py")


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
            _check_arguments(self.name, code, options)
            model = code(input_shape=input_shape, rngs=rngs, **options)
        if not isinstance(model, nnx.Module):
            raise ValueError(f"{self.name} must give a Flax NNX module, found {type(model).__name__}: {model!r:.60}")
        output_shape(model, input_shape)  # raises
        return model


def named(code: OwnBackbone) -> str:
    """The import path of a function or module's class, as a saved classifier names it.

    >>> from cnnjax.models import vgg16
    >>> named(vgg16)
    'cnnjax.models.vgg:vgg16'
    """
    kind: Any = type(code) if isinstance(code, nnx.Module) else code
    module = getattr(kind, "__module__", type(kind).__module__)
    place = _FILES.get(module, module)
    if module == "__main__" and (file := getattr(sys.modules["__main__"], "__file__", None)):
        place = file
    return f"{place}:{getattr(kind, '__qualname__', type(kind).__qualname__)}"


_FILES: dict[str, str] = {}
"""By module, the file that it was read from by `imported`, as it was named."""


def imported(path: str) -> Any:
    """The function at an import path. Its module's code is run.

    Modules are looked for in the current folder too, and what a file imports also beside it.

    Args:
        path: `package.module:function` or `file.py:function`.

    Raises:
        ValueError: There is no such file, module or function.
    """
    place, _, attribute = path.rpartition(":")
    if not place or not attribute:
        raise ValueError(
            f"{path!r} names no function: expected package.module:function or file.py:function, such as "
            f"{(path if path.endswith('.py') else place or 'networks.py')}:model"
        )
    found: Any = _module_of_file(path, place) if place.endswith(".py") else _module(path, place)
    for name in attribute.split("."):
        if not hasattr(found, name):
            public = [n for n, x in vars(found).items() if callable(x) and not n.startswith("_")]
            raise ValueError(
                f"{path}: there is no {name!r} in {place}; it has {', '.join(public[:8]) or 'no functions'}"
            )
        found = getattr(found, name)
    if not callable(found):
        raise ValueError(f"{path} must be a function that builds a module, found {type(found).__name__}")
    return found


def _module(path: str, place: str) -> Any:
    with _looking_in(Path.cwd()):
        try:
            return importlib.import_module(place)
        except ModuleNotFoundError as error:
            if error.name and (place == error.name or place.startswith(f"{error.name}.")):
                raise ValueError(
                    f"{path}: there is no module {error.name!r}, neither installed nor in {Path.cwd()}"
                ) from error
            raise


def _module_of_file(path: str, place: str) -> Any:
    file = Path(place)
    if not file.is_file():
        raise ValueError(f"{path}: there is no file {file}")
    content = file.read_bytes()
    # The same in every process, so that what its classes make can be sent from one to another.
    name = f"cnnjax_own_{hashlib.sha256(str(file.resolve()).encode() + content).hexdigest()[:12]}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, file)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        try:
            with _looking_in(file.resolve().parent):
                spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
        _FILES[name] = place
    return sys.modules[name]


@contextmanager
def _looking_in(folder: Path) -> Generator[None]:
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        if str(folder) in sys.path:
            sys.path.remove(str(folder))


def _check_arguments(path: str, code: Any, options: Mapping[str, Any]) -> None:
    try:
        signature = inspect.signature(code)
    except (TypeError, ValueError):
        return  # written in C: the call will tell
    try:
        signature.bind(input_shape=None, rngs=None, **options)
    except TypeError as error:
        raise ValueError(
            f"{path} is called with input_shape=(height, width, channels), rngs=nnx.Rngs(seed)"
            f"{''.join(f', {name}=...' for name in options)}, but it is {path.rpartition(':')[2]}{signature}: {error}"
        ) from None
