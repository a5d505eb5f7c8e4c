"""The architectures: one entry each, made by `register`, from which everything else is derived."""

import importlib
import inspect
import pkgutil
import re
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from cnnjax.models.own import ImportedBackbone, is_path
from cnnjax.models.preprocessing import OF_RGB
from cnnjax.models.published import Published
from cnnjax.runtime.nearest import did_you_mean, nearest, unknown

STANDARD = ("input_shape", "include_top", "classes", "classifier_activation", "rngs")
"""Arguments that every architecture's function takes; all others are its options."""
RESERVED = frozenset(
    """name backbone backbone_options class_names task_path input_shape
    accumulate augment batch_size batchnorm callbacks cell channels checkpoint_every class_index class_weights classes
    classifier clip code count data devices ema epochs fall_back find_learning_rate first_seed focal format freeze head
    hosts image image_size include_top init_from init_part keep keep_checkpoints label_smoothing labels last_batch layer
    layer_factor learning_rate learning_rate_groups learning_rates loss method methods metrics not_finite on_error
    optimizer out patience pos_weight precision preprocessing processes rate recipe resizing running sample_rate scale
    schedule seconds seed seeds shard_parameters sizes splits stages store store_gib stream target targets task training
    tune_epochs tuning_factor unfreeze_from units verbose views warmup weight_decay weights wide workers
    gradient_fn onednn""".split()
)
"""What `ImageClassifier`, `open_backbone` and the commands call other things; a test compares it with the commands."""

# An option may come from a stranger's file: what would take hours only to describe is refused.
_MOST_FACTOR, _MOST_NUMBERS, _MOST_NUMBER = 4.0, 16, 4096
_KINDS: dict[Any, str] = {
    bool: "True or False",
    int: f"a whole number from 0 to {_MOST_NUMBER}",
    float: f"a number from 0 to {_MOST_FACTOR:g}",
    str: "a name",
    tuple[int, ...]: f"up to {_MOST_NUMBERS} whole numbers, none above {_MOST_NUMBER}",
}
_F = TypeVar("_F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Option:
    """An argument of an architecture's function that is its own.

    Attributes:
        name: The argument's.
        kind: Its type: bool, int, float, str or tuple[int, ...].
        choices: The values of a Literal, () for any.
        default: Its default.
        help: What the docstring says of it.
        of_top: Whether only the classification layers depend on it.
    """

    name: str
    kind: Any
    choices: tuple[str, ...]
    default: Any
    help: str
    of_top: bool

    def checked(self, value: Any, owner: str) -> Any:
        """The value as the function takes it.

        Raises:
            ValueError: It is of another kind, or out of all proportion.
        """
        if value is None and self.default is None:
            return None
        if self.kind is float and _is(value, int | float) and 0 <= value <= _MOST_FACTOR:
            return float(value)
        if self.kind is int and _is(value, int) and 0 <= value <= _MOST_NUMBER:
            return value
        if self.kind is bool and isinstance(value, bool):
            return value
        if self.kind is str and isinstance(value, str) and (not self.choices or value in self.choices):
            return value
        whole = isinstance(value, list | tuple) and all(_is(n, int) and n <= _MOST_NUMBER for n in value)
        if self.kind == tuple[int, ...] and whole and len(value) <= _MOST_NUMBERS:
            return tuple(value)
        expected = _KINDS[self.kind]
        if self.choices:
            expected = f"{' or '.join(self.choices)} (did you mean {nearest(value, self.choices)!r}?)"
        raise ValueError(f"{self.name} of {owner}: expected {expected}, found {value!r}")


@dataclass(frozen=True)
class Entry:
    """An architecture.

    Attributes:
        name: The function's name.
        function: Builds it.
        options: Its own arguments by name.
        published: Its published weights.
        small: Arguments that make a network which is quickly traced, for tests of every architecture.
        sizes: Height and width of the images of each `variant`, where these differ.
    """

    name: str
    function: Any
    options: Mapping[str, Option]
    published: tuple[Published, ...]
    small: Mapping[str, Any]
    sizes: Mapping[str, int]

    def checked(self, options: Mapping[str, Any], *, include_top: bool = True) -> dict[str, Any]:
        """The options as the function takes them.

        Args:
            options: Values by name.
            include_top: Whether the network ends in its classification layers; options of these are refused otherwise.

        Raises:
            ValueError: It has no such option (who has it is told), a value is of another kind, or the option is one of
                the classification layers, which are left out.

        >>> entry("mobilenet").checked({"alpha": 1})
        {'alpha': 1.0}
        """
        for name in options:
            if name not in self.options:
                owners = [other.name for other in entries().values() if name in other.options]
                known = ", ".join(self.options)
                hint = f" (which is one of {', '.join(owners)})" if owners else did_you_mean(name, self.options, 0.6)
                has = f"its options are {known}" if known else "it has no options"
                raise ValueError(f"{self.name} has no option {name!r}{hint}; {has}")
            if self.options[name].of_top and not include_top:
                raise ValueError(
                    f"{name} is of {self.name}'s own classification layers, which are left out here: they are built by "
                    "head='top', or include_top"
                )
        return {name: self.options[name].checked(value, self.name) for name, value in options.items()}

    def preprocessing(self, options: Mapping[str, Any], channels: int = 3) -> str:
        """What the published weights of a network with these options expect of their pixels; "unit" where none are.

        A network of another width has the same preprocessing; one of another variant (a text), or of other channels
        than the preprocessing is made for, has not.
        """
        full = {name: option.default for name, option in self.options.items()} | dict(options)
        for found in self.published:
            if all(full.get(name) == value for name, value in found.options.items() if isinstance(value, str)):
                return found.preprocessing if channels == 3 or found.preprocessing not in OF_RGB else "unit"
        return "unit"

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of its images if nothing else is said."""
        return self.image_size_of({})

    def image_size_of(self, options: Mapping[str, Any]) -> tuple[int, int]:
        """The same of a network with these options.

        >>> entry("efficientnet").image_size_of({"variant": "b3"})
        (300, 300)
        """
        if self.sizes:
            size = self.sizes[options.get("variant") or self.options["variant"].default]
            return size, size
        height, width, _ = inspect.signature(self.function).parameters["input_shape"].default
        return height, width


_entries: dict[str, Entry] = {}


def register(
    *,
    published: Iterable[Published] = (),
    top: Iterable[str] = (),
    small: Mapping[str, Any] | None = None,
    sizes: Mapping[str, int] | None = None,
) -> Callable[[_F], _F]:
    """Make an architecture available: to `create`, `ImageClassifier`, `open_backbone` and every command, by name.

    The function takes `input_shape`, `include_top`, `classes`, `classifier_activation` and `rngs` as all do. Each other
    argument is an option of its own: a default, a type (bool, int, float, str, a Literal of texts or tuple[int, ...])
    and a line in the docstring, of which the command line's option and its help are made. It checks its values itself.

    Args:
        published: Its published weights.
        top: The options on which only the classification layers depend.
        small: Arguments that make a network which is quickly traced.
        sizes: Height and width of the images by the choices of the option `variant`, where these differ; `input_shape`
            is None by default then, and stands for three channels of that size.

    Raises:
        TypeError: The function lacks an argument that all have, or an option lacks type, default, description or a name
            that is free, or has another type than in another architecture.
        ValueError: The name is taken.
    """

    def kept(function: Any) -> Any:
        name = function.__name__
        found = Entry(
            name, function, _options(function, tuple(top)), tuple(published), dict(small or {}), dict(sizes or {})
        )
        if sizes and set(sizes) != set(found.options["variant"].choices):
            raise TypeError(f"{name} has sizes of {sorted(sizes)}, and variants {found.options['variant'].choices}")
        known = _entries.get(name)
        if known and known.function.__module__ != function.__module__:
            raise ValueError(f"there are two backbones {name!r}: in {known.function.__module__}, {function.__module__}")
        others = [other for other in _entries.values() if other.name != name]
        for option, other in ((option, other) for option in found.options.values() for other in others):
            twin = other.options.get(option.name, option)
            if twin.kind != option.kind:
                raise TypeError(
                    f"the option {option.name!r} is {option.kind} in {name}, {twin.kind} in {other.name}; "
                    "it needs one type everywhere"
                )
        _entries[name] = found
        return function

    return kept


def forget(name: str) -> None:
    """Take an architecture out again, such as one that a test has registered."""
    del _entries[name]


def discover(package: str, path: Iterable[str]) -> dict[str, Entry]:
    """Import every module of a package, so that its architectures register; return all entries."""
    for module in pkgutil.iter_modules(path, f"{package}."):
        importlib.import_module(module.name)
    return dict(_entries)


def entries() -> dict[str, Entry]:
    """Every architecture by name."""
    return dict(_entries)


def entry_or_own(name: str) -> Entry | ImportedBackbone:
    """The same, or what stands for a network of the user's; its code is not imported yet.

    Raises:
        LookupError: It is neither an architecture's name nor an import path.

    >>> entry_or_own("networks.py:vit")
    ImportedBackbone(name='networks.py:vit', code=None)
    """
    return ImportedBackbone(name) if is_path(name) else entry(name)


def entry(name: str) -> Entry:
    """The architecture of that name.

    Raises:
        LookupError: There is none; the nearest name is given.

    >>> list(entry("mobilenet").options)
    ['alpha', 'dropout']
    """
    if name not in _entries:
        raise LookupError(
            f"{unknown('backbone', name, _entries, listed=True)}; a network of your own is named by its import path, "
            "package.module:function or file.py:function"
        )
    return _entries[name]


class Functions(Mapping[str, Callable[..., Any]]):
    """The architectures' functions by name, as they are registered now."""

    def __getitem__(self, name: str) -> Callable[..., Any]:
        return _entries[name].function

    def __iter__(self) -> Iterator[str]:
        return iter(entries())

    def __len__(self) -> int:
        return len(_entries)


class AllPublished(Mapping[str, Published]):
    """Every published weights file by its name."""

    def __getitem__(self, name: str) -> Published:
        return self._found()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._found())

    def __len__(self) -> int:
        return len(self._found())

    def _found(self) -> dict[str, Published]:
        return {found.name: found for entry in _entries.values() for found in entry.published}


def find(name: str) -> Published:
    """The published weights file of that name.

    Raises:
        LookupError: There is none; the nearest name is given.

    >>> find("mobilenet_7_5_224_tf_no_top").preprocessing
    'tf'
    """
    known = AllPublished()
    if name not in known:
        raise LookupError(unknown("published weights", name, known))
    return known[name]


def _is(value: object, kind: Any) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def _options(function: Any, top: tuple[str, ...]) -> dict[str, Option]:
    """The options of an architecture's function, in its order."""
    what, parameters = function.__name__, inspect.signature(function).parameters
    if missing := [name for name in STANDARD if name not in parameters]:
        raise TypeError(f"{what} lacks {', '.join(missing)}: every backbone takes {', '.join(STANDARD)}")
    hints, described, options = get_type_hints(function), _described(function.__doc__ or ""), {}
    for name, parameter in parameters.items():
        if name in STANDARD:
            continue
        kind, choices = _kind(hints.get(name))
        faults = [
            *(["a type (bool, int, float, str, a Literal of texts or tuple[int, ...])"] if kind is None else []),
            *(["a name that no command has"] if name in RESERVED else []),
            *(["a default"] if parameter.default is inspect.Parameter.empty else []),
            *(["a description under Args in the docstring"] if name not in described else []),
        ]
        if faults:
            raise TypeError(f"the option {name!r} of {what} lacks {' and '.join(faults)}")
        options[name] = Option(name, kind, choices, parameter.default, described[name], name in top)
    if unknown := [name for name in top if name not in options]:
        raise TypeError(f"{what} has no option {unknown[0]!r} of its top; its options are {', '.join(options)}")
    return options


def _kind(hint: Any) -> tuple[Any, tuple[str, ...]]:
    """A type without its None, and the choices of a Literal; None if it is none that an option may have."""
    if get_origin(hint) in (Union, types.UnionType):
        rest = [part for part in get_args(hint) if part is not type(None)]
        hint = rest[0] if len(rest) == 1 else None
    if get_origin(hint) is Literal and all(isinstance(choice, str) for choice in get_args(hint)):
        return str, get_args(hint)
    return (hint if hint in _KINDS else None), ()


def _described(doc: str) -> dict[str, str]:
    """The arguments' descriptions in a docstring of Google's style.

    >>> _described(register.__doc__)["published"]
    'Its published weights.'
    """
    _, _, section = inspect.cleandoc(doc).partition("\nArgs:\n")
    section = re.split(r"\n(?=\S)", section)[0]
    found: dict[str, str] = {}
    for argument in re.split(r"\n(?=    \S)", section):
        name, colon, text = argument.strip().partition(":")
        if colon:
            found[name] = " ".join(text.split())
    return found
