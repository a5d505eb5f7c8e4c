"""Options that the commands share, declared once: which network, and the network's own options.

The latter are made of the architectures' entries (`cnnjax.models.registry`) when a command line is read.
"""

import inspect
import json
from collections.abc import Callable
from operator import getitem
from typing import Annotated, Any, Literal

import tyro

from cnnjax.models import registry


def _constructor() -> Callable[..., dict[str, Any]]:
    """A function whose arguments are the options of all architectures, and which returns those that are given."""

    def options(backbone_options: tuple[str, ...] = (), **given: Any) -> dict[str, Any]:
        found = {name: value for name, value in given.items() if value is not None}
        for name, value in map(_pair, backbone_options):
            if name in found:
                raise ValueError(f"--backbone-options: {name} is given twice")
            found[name] = value
        return found

    owners: dict[str, list[tuple[str, registry.Option]]] = {}
    for entry in registry.entries().values():
        for option in entry.options.values():
            owners.setdefault(option.name, []).append((entry.name, option))
    parameters = [_parameter(name, having) for name, having in sorted(owners.items())]
    said = tyro.conf.arg(help="KEY=VALUE ...: of a network of your own, for its function.", metavar="KEY=VALUE")
    own: Any = getitem(Annotated, (tuple[str, ...], said))
    parameters.append(inspect.Parameter("backbone_options", inspect.Parameter.KEYWORD_ONLY, default=(), annotation=own))
    vars(options)["__signature__"] = inspect.Signature(parameters)
    options.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return options


def _pair(text: str) -> tuple[str, Any]:
    """A name and a value as JSON has it, or a text.

    >>> _pair("depth=3"), _pair("widths=[4, 8]"), _pair("norm=group")
    (('depth', 3), ('widths', [4, 8]), ('norm', 'group'))
    """
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise ValueError(f"--backbone-options: expected KEY=VALUE, such as depth=3, found {text!r}")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _parameter(name: str, having: list[tuple[str, registry.Option]]) -> inspect.Parameter:
    """An option of one or several architectures."""
    texts = dict.fromkeys(option.help for _, option in having)
    told = [(", ".join(o for o, option in having if option.help == text), text) for text in texts]
    text = " ".join(f"Of {owner}: {text[:1].lower()}{text[1:]}" for owner, text in told)
    defaults = ", ".join(f"{_shown(option.default)} in {owner}" for owner, option in having)
    choices = tuple(dict.fromkeys(choice for _, option in having for choice in option.choices))
    free = any(not option.choices for _, option in having)
    kind: Any = having[0][1].kind if free else getitem(Literal, choices)
    said = tyro.conf.arg(help=text, help_behavior_hint=f"(default: {defaults})")
    annotation: Any = getitem(Annotated, (kind | None, said))
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _shown(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


ImageSize = Annotated[int | tuple[int, int], tyro.conf.arg(metavar="PIXELS|HEIGHT WIDTH")]
"""The type of an option that gives images a size."""
_NETWORK = (
    f"The network: {', '.join(registry.entries())}; or the import path of a function that builds one of your own, "
    "package.module:function or file.py:function."
)
BackboneName = Annotated[str, tyro.conf.arg(metavar="NAME", help=_NETWORK)]
"""The type of an option that names an architecture."""
BackboneOptions = Annotated[dict[str, Any], tyro.conf.arg(name="", constructor_factory=_constructor)]
"""The type of a field that holds an architecture's own options, each of which is an option of the command."""
