"""What a sweep runs on: images, and a backbone with its weights."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flax import nnx
from rich.console import Console

from cnnjax.data import account, open_sounds
from cnnjax.data.source import targets_of
from cnnjax.models import Classifier, LogMel, SoundClassifier
from cnnjax.models.layer_order import own_shape
from cnnjax.sweep.options import Ablation, seeds_text
from cnnjax.train.tasks import Classification, Task
from cnnjax.weights.pretrained import open_backbone

Splits = Mapping[str, Any]


@dataclass(frozen=True)
class SweepData:
    """What a sweep runs on: images, and a backbone with its weights.

    Attributes:
        splits: sources by name; "train" and "test" at least.
        backbone: with its starting weights.
        preprocessing: name of the pixels' scaling.
        title: for the table.
        identity: what the run folder records besides the options.
        front: makes images of sounds, where the sources hold sounds.
        pretrained: whether the backbone is.
        task: what is learned, with what it takes from the training targets; the sources' classes if not given.
    """

    splits: Splits
    backbone: nnx.Module
    preprocessing: str
    title: str
    identity: Mapping[str, Any] = field(default_factory=dict)
    front: LogMel | None = None
    pretrained: bool = True
    task: Task | None = None

    def __post_init__(self) -> None:
        train = self.splits["train"]
        task = self.task or Classification(tuple(train.class_names))
        object.__setattr__(self, "task", task.resolved(targets_of(train)))

    @property
    def example(self) -> tuple[int, ...]:
        """Height and width of an image, or the number of a sound's samples."""
        return tuple(self.splits["train"].image_size)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """What the backbone takes, (H, W, C)."""
        size = self.example if self.front is None or self.front.size is None else self.front.size
        return own_shape(self.backbone) or (*size, 3)

    def classifier(self, head: nnx.Module) -> Classifier | SoundClassifier:
        """The model: what makes images of sounds, the backbone, and this head."""
        if self.front is None:
            return Classifier(self.backbone, head, self.preprocessing)
        return SoundClassifier(self.front, self.backbone, head, self.preprocessing)


def open_sweep_data(config: Ablation, console: Console) -> SweepData:
    """The task that the options name: a folder of images and a backbone."""
    assert config.data is not None
    size = config.size
    sources, front = _open(config, config.data, size)
    for name, source in sources.items():
        if hasattr(source, "verify"):  # one of the user's may have nothing to verify
            source.verify()
        for reason in getattr(source, "skipped", ()):
            console.print(f"left out of {name}: {reason}", style="yellow", highlight=False)
    backbone, preprocessing = open_backbone(
        config.backbone, image_size=size, weights=config.weights, include_top=False,
        preprocessing=config.preprocessing, **config.backbone_options,
    )  # fmt: skip
    if config.weights is None:
        console.print("no --weights: the backbone starts from random numbers", style="yellow")
    else:
        console.print(f"every weight of the backbone from {config.weights}", highlight=False)
    console.print(f"{config.data}: {account(sources)}", highlight=False)
    title = f"{config.backbone} on {Path(config.data).name}, {seeds_text(config)}"
    return SweepData(
        sources, backbone, preprocessing, title, front=front, pretrained=config.weights is not None,
        task=config.target.make(sources),
    )  # fmt: skip


def _open(config: Ablation, data: str, size: tuple[int, int]) -> tuple[Splits, LogMel | None]:
    """The sources, and what makes images of them if they are sounds."""
    if config.sample_rate is None:
        choices: dict[str, Any] = {"on_error": config.on_error, "resizing": config.resizing, "scale": config.scale}
        return config.target.open(data, size, parts=config.splits, **choices), None
    rate = config.sample_rate
    # Frames of 32 ms every 10 ms, 64 bands: the usual ones for speech.
    front = LogMel(sample_rate=rate, frame=max(2, round(0.032 * rate)), hop=max(1, rate // 100), mels=64, size=size)
    return open_sounds(data, sample_rate=rate, seconds=config.seconds, on_error=config.on_error), front
