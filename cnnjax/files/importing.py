"""Code of the user's by its import path, `package.module:function` or `file.py:function`."""

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cnnjax.files.digests import content_digest, joined_digest
from cnnjax.runtime.nearest import did_you_mean


def is_path(name: str) -> bool:
    """Whether a name is an import path.

    >>> is_path("networks/vit.py:model"), is_path("package.module:function"), is_path("mobilenet")
    (True, True, False)
    """
    return (":" in name and not name.startswith("tfds:")) or name.endswith(".py")


def named(code: Any) -> str:
    """The import path of a function, a class, or an object's class.

    >>> from cnnjax.models import vgg16
    >>> named(vgg16)
    'cnnjax.models.vgg:vgg16'
    """
    kind = code if hasattr(code, "__qualname__") else type(code)
    module = kind.__module__
    place = _FILES.get(module, module)
    if module == "__main__" and (file := getattr(sys.modules["__main__"], "__file__", None)):
        place = file
    return f"{place}:{kind.__qualname__}"


_FILES: dict[str, str] = {}
"""By module, the file that it was read from by `imported`, as it was named."""


def imported(path: str, what: str = "a function that builds a module", such_as: str = "networks.py:model") -> Any:
    """The function or class at an import path. Its module's code is run.

    Modules are looked for in the current folder too, and what a file imports also beside it.

    Args:
        path: `package.module:function` or `file.py:function`.
        what: What is expected there, for the errors.
        such_as: An example of such a path.

    Raises:
        ValueError: There is no such file, module or function.

    >>> imported("math:sqrt", "a function of a number")(4.0)
    2.0
    """
    place, _, attribute = path.rpartition(":")
    if not place or not attribute:
        file, _, function = such_as.rpartition(":")
        raise ValueError(
            f"{path!r} names no function: expected package.module:function or file.py:function, such as "
            f"{(path if path.endswith('.py') else place or file)}:{function}"
        )
    found: Any = _module_of_file(path, place) if place.endswith(".py") else _module(path, place)
    for name in attribute.split("."):
        if not hasattr(found, name):
            public = [n for n, x in vars(found).items() if callable(x) and not n.startswith("_")]
            near = did_you_mean(name, public, 0.6)
            hint = f"{near} It has" if near else "; it has"
            raise ValueError(f"{path}: there is no {name!r} in {place}{hint} {', '.join(public[:8]) or 'no functions'}")
        found = getattr(found, name)
    if not callable(found):
        raise ValueError(f"{path} must be {what}, found {type(found).__name__}")
    return found


def called(
    path: str, code: Callable[..., Any], what: str, /, *args: Any, expected: type | tuple[type, ...] = object,
    gives: str = "", **options: Any,
) -> Any:  # fmt: skip
    """Call the user's function; refuse one that takes other arguments, or gives something else.

    Args:
        path: Its import path, for the errors.
        code: The function.
        what: How it is called, for the errors: "rngs=nnx.Rngs(seed)".
        *args: Its arguments.
        expected: The type of what it must give.
        gives: What that is, in words.
        **options: Further arguments by name.

    Raises:
        ValueError: It takes other arguments, or gives another type.

    >>> called("math:sqrt", lambda x: x * 2, "(number)", 3, expected=int, gives="a number")
    6
    """
    check_call(path, code, what, *args, **options)
    found = code(*args, **options)
    if not isinstance(found, expected):
        raise ValueError(f"{path} must give {gives}, found {type(found).__name__}: {found!r:.60}")
    return found


def check_call(path: str, code: Callable[..., Any], what: str, /, *args: Any, **options: Any) -> None:
    """Refuse a function that does not take these arguments, without calling it.

    Raises:
        ValueError: It takes others.
    """
    try:
        signature = inspect.signature(code)
    except (TypeError, ValueError):
        return  # written in C: the call will tell
    try:
        signature.bind(*args, **options)
    except TypeError as error:
        raise ValueError(
            f"{path} is called with {what}, but it is {path.rpartition(':')[2]}{signature}: {error}"
        ) from None


def source_digest(code: Any) -> str:
    """SHA-256 (hex) of the files that a function or class is made of: its own, and those that this one takes names from
    and that lie beside or below it; of its name where there is none.

    >>> len(source_digest(source_digest))
    64
    """
    kind = code if hasattr(code, "__qualname__") else type(code)
    module = sys.modules.get(kind.__module__)
    if module is None or getattr(module, "__file__", None) is None:  # built in, or typed at a prompt
        return joined_digest(kind.__qualname__, [named(code).encode()])
    folder = Path(str(module.__file__)).resolve().parent
    files: dict[Path, bytes] = {}
    waiting: list[Any] = [module]
    while waiting:
        file = getattr(waiting[-1], "__file__", None)
        names = vars(waiting.pop())
        if file is None or not str(file).endswith(".py") or (path := Path(file).resolve()) in files:
            continue
        if path.is_relative_to(folder):
            files[path] = path.read_bytes()
            waiting += [
                other
                for value in tuple(names.values())
                if (
                    other := value
                    if inspect.ismodule(value)
                    else sys.modules.get(str(getattr(value, "__module__", "")))
                )
            ]
    return joined_digest(kind.__qualname__, (content_digest(files[path]) for path in sorted(files)))


def trusted(wanted: Mapping[str, str], given: Iterable[str], where: str) -> dict[str, str]:
    """The import paths that may be run for code which a stranger's file names.

    Args:
        wanted: What is needed -> the import path that the file names.
        given: The import paths that the caller has named; a function of the same name at another place stands for it.
        where: The file, for the errors.

    Returns:
        What is needed -> the import path that is run.

    Raises:
        ValueError: The caller has not named one of them, or has named one that is not needed.

    >>> trusted({"head": "old/heads.py:wide"}, ["heads.py:wide"], "a classifier")
    {'head': 'heads.py:wide'}
    """
    rest, found = list(given), dict[str, str]()
    for what, path in wanted.items():
        same = [own for own in rest if own == path] or [
            own for own in rest if own.split(":")[-1] == path.split(":")[-1]
        ]
        if not same:
            every = " ".join(dict.fromkeys(wanted.values()))
            raise ValueError(
                f"{where} has code of its own as its {what}, {path}, which is not run unless you name it: "
                f"--code {every}, or load(..., code={list(dict.fromkeys(wanted.values()))!r}), if you trust that code"
            )
        found[what] = same[0]
    if strange := [own for own in rest if own not in found.values()]:
        needs = ", ".join(dict.fromkeys(wanted.values())) or "no code of its own"
        raise ValueError(f"{strange[0]} is not what {where} needs; it needs {needs}")
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
        beside = sorted(p.name for p in file.parent.glob("*.py")) if file.parent.is_dir() else []
        raise ValueError(f"{path}: there is no file {file}{did_you_mean(file.name, beside, 0.6)}")
    content = file.read_bytes()
    # The same in every process, so that what its classes make can be sent from one to another.
    name = f"cnnjax_own_{joined_digest(str(file.resolve()), [content])[:12]}"
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
