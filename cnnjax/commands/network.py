"""Options that name a network, shared by several commands as those of `cnnjax.commands.options` are.

A network's own options are made of the architectures' entries (`cnnjax.models.registry`) when a command line is read.
"""

import inspect
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from operator import getitem
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from cnnjax.commands.options import OwnImageSize, Storage
from cnnjax.models import registry
from cnnjax.models.sizes import sides
from cnnjax.runtime.precision import Precision
from cnnjax.runtime.tuning import OneDNN


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
    own = value is None or value == ()
    return "its own" if own else " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


_NETWORK = (
    f"The network: {', '.join(registry.entries())}; or the import path of a function that builds one of your own, "
    "package.module:function or file.py:function."
)
BackboneName = Annotated[str, tyro.conf.arg(metavar="NAME", help=_NETWORK)]
"""The type of an option that names an architecture."""
BackboneOptions = Annotated[dict[str, Any], tyro.conf.arg(name="", constructor_factory=_constructor)]
"""The type of a field that holds an architecture's own options, each of which is an option of the command."""
_FREEZE = (
    "What is frozen: none, all, a number of layers, a layer's name (up to and including), [start:stop] as in Keras, or "
    "a pattern. fit takes it with the method finetune, in place of unfreeze_from; ablate compares several, up to six "
    "from none to all if not given."
)
Frozen = Annotated[str | None, tyro.conf.arg(metavar="FREEZE", help=_FREEZE)]
"""The type of an option that says what is frozen."""
Depths = Annotated[tuple[str, ...], tyro.conf.arg(metavar="FREEZE", help=_FREEZE)]
"""The same of several."""
HeadName = Annotated[
    str,
    tyro.conf.arg(
        metavar="NAME",
        help="lecture: Flatten, Dense 256, Dropout 0.5, Dense. linear: average pooling, Dropout 0.2, Dense. Or the "
        "import path of a function of (feature_shape, outputs=..., rngs=...) that builds one of your own.",
    ),
]
"""The type of an option that names a head."""
_AUGMENT = (
    "none; lecture: random flips, rotations by 0.1 and zooms by 0.2; imagenet: flips, and parts of half of each side "
    "and more; or the import path of a function of (key, images) or (key, images, targets) that gives changed ones. "
    "The methods views and augment take the lecture's if none is given; ablate compares several."
)
Augmentations = Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME", help=_AUGMENT)]
"""The type of an option that names augmentations."""


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """Which network, of images of which size."""

    backbone: BackboneName = "mobilenet"
    """The network."""
    backbone_options: BackboneOptions = field(default_factory=dict)
    """Its own options."""
    image_size: OwnImageSize = None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images."""
        return registry.entry_or_own(self.backbone).image_size if self.image_size is None else sides(self.image_size)

    def check_backbone(self, *, include_top: bool) -> None:
        """Hold the network's own options as its function takes them.

        Raises:
            LookupError: There is no such network.
            ValueError: It has no such option, or a value is of another kind.
        """
        own = registry.entry_or_own(self.backbone).checked(self.backbone_options, include_top=include_top)
        object.__setattr__(self, "backbone_options", own)


@dataclass(frozen=True, kw_only=True)
class Network(Architecture):
    """A network with its weights."""

    weights: Path | None = None
    """Keras HDF5 file (.h5) with the network's pretrained weights, .safetensors of a network of your own; random
    numbers if not given."""
    preprocessing: str | None = None
    """tf, caffe, torch, unit or none; what the network's published weights expect if not given, unit without any."""

    def check_weights(self) -> None:
        """Raise `FileNotFoundError` where there is no such file."""
        if self.weights is not None and not self.weights.is_file():
            raise FileNotFoundError(f"no weights file {self.weights}")


@dataclass(frozen=True, kw_only=True)
class Computing(Storage):
    """What is computed with."""

    precision: Precision = "auto"
    """What is computed with; parameters, statistics and the loss stay float32. auto: bfloat16 on TPUs and on GPUs from
    NVIDIA's Ampere on, float32 elsewhere."""
    onednn: OneDNN = "auto"
    """On CPU: whether convolutions are asked of oneDNN, whose programs are faster and compiled anew at each start.
    auto: where the run is long enough for that to pay."""
