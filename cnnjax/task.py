"""What a sweep runs on: pictures, and a backbone with its weights."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from cnnjax.data import account, open_data
from cnnjax.models import Backbone, lecture_head, linear_head
from cnnjax.options import Ablation, seeds_text
from cnnjax.pretrained import open_backbone

HEADS = {"lecture": lecture_head, "linear": linear_head}
Splits = Mapping[str, Any]


@dataclass(frozen=True)
class Task:
    """What a sweep runs on: pictures, and a backbone with its weights.

    Attributes:
        splits: sources by name; "train" and "test" at least.
        backbone: with its starting weights.
        preprocessing: name of the pixels' scaling.
        title: for the table.
        identity: what the run folder records besides the options.
    """

    splits: Splits
    backbone: Backbone
    preprocessing: str
    title: str
    identity: Mapping[str, Any] = field(default_factory=dict)

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.splits["train"].class_names)


def open_task(config: Ablation, console: Console) -> Task:
    """The task that the options name: a folder of pictures and a backbone."""
    assert config.data is not None and config.image_size is not None
    size = (config.image_size, config.image_size)
    sources = open_data(config.data, size, parts=config.splits, on_error=config.on_bad, resizing=config.resizing)
    for name, source in sources.items():
        source.verify()
        for reason in source.skipped:
            console.print(f"left out of {name}: {reason}", style="yellow", highlight=False)
    backbone, preprocessing = open_backbone(
        config.backbone, image_size=config.image_size, alpha=config.alpha, weights=config.weights, include_top=False
    )
    if config.weights is None:
        console.print("no --weights: the backbone starts from random numbers", style="yellow")
    else:
        console.print(f"every weight of the backbone from {config.weights}", highlight=False)
    console.print(f"{config.data}: {account(sources)}", highlight=False)
    title = f"{config.backbone} on {Path(config.data).name}, {seeds_text(config)}"
    return Task(sources, backbone, preprocessing, title)
