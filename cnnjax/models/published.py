"""What is published where, and what it needs. The entries stand in each model's own file."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Published:
    """One published weights file.

    Attributes:
        name: The file's name without its ending, which is also its name here.
        backbone: The architecture, a key of `cnnjax.models.BACKBONES`.
        url: Where it is.
        digest: "sha256:..." or "md5:..." of the file, None where nobody vouches for one.
        input_size: Height and width in pixels that it was trained at.
        preprocessing: A key of `cnnjax.models.PREPROCESSING`.
        classes: How many classes it was trained on.
        licence: The licence of the weights, None where their publisher states none.
        include_top: Whether the file has the classification layers.
        options: What the architecture's function is called with for them: `{"alpha": 0.75}`.
        top1: The accuracy on ImageNet's validation images that the publisher states, 0 to 1; None where none is.
    """

    name: str
    backbone: str
    url: str
    digest: str | None
    input_size: int
    preprocessing: str
    classes: int
    licence: str | None
    include_top: bool
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    top1: float | None = None

    @property
    def alpha(self) -> float | None:
        """The width multiplier, for architectures that have one."""
        return self.options.get("alpha")
