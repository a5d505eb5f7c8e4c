"""What a sweep is asked for."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from cnnjax.arguments import BackboneName, BackboneOptions, ImageSize
from cnnjax.data.order import LastBatch
from cnnjax.data.pixels import Resizing
from cnnjax.fit.targets import TaskOptions
from cnnjax.freeze import Freeze
from cnnjax.models.registry import entry_or_own
from cnnjax.models.sizes import sides
from cnnjax.optim import make_optimizer
from cnnjax.runtime.precision import Precision


@dataclass(frozen=True)
class Ablation:
    """Train the same model with its backbone frozen to several depths, and compare.

    With no option at all it makes its own images, pretrains the lecture's network on some classes and
    sweeps the frozen depth on others.
    """

    data: str | None = None
    """Folder of images, SPLIT/CLASS/FILE or CLASS/FILE, packed or not; or tfds:NAME[:CONFIG]. Drawn shapes if not
    given."""
    target: Annotated[TaskOptions, tyro.conf.arg(name="")] = field(default_factory=TaskOptions)
    splits: dict[str, str] | None = None
    """Slices of a TFDS data set: train 'train[:80%]' test 'train[80%:]'. Its own splits if not given."""
    backbone: BackboneName = "lecture_cnn"
    """The network."""
    backbone_options: BackboneOptions = field(default_factory=dict)
    """Its own options."""
    weights: Path | None = None
    """Keras HDF5 file (.h5) with the backbone's pretrained weights; .safetensors for a network of your own."""
    image_size: ImageSize | None = None
    """Height and width the images are resized to, one number for both; 160 if not given."""
    freeze: tuple[str, ...] = ()
    """The depths to compare, each: none, all, a number of layers, a layer's name (up to and including),
    [start:stop] as in Keras, or a pattern. Up to six from none to all if not given."""
    preprocessing: str | None = None
    """tf, caffe, torch, unit or none; what the network's published weights expect if not given, unit without any."""
    head: Literal["lecture", "linear"] = "lecture"
    """lecture: Flatten, Dense 256, Dropout 0.5, Dense. linear: average pooling, Dropout 0.2, Dense."""
    seeds: int = 3
    """Number of seeds; each makes a head of its own and an order of the images."""
    first_seed: int = 0
    """The first seed; the others follow it."""
    optimizer: str | None = None
    """rmsprop, adam, adamw or sgd, with Keras's defaults; rmsprop if not given (adam for the drawn shapes)."""
    learning_rates: tuple[float, ...] = (1e-3,)
    """Every depth is trained at every rate."""
    tuning_factor: float = 1.0
    """The rates are multiplied by this where part of the backbone trains (the lecture fine-tunes at a tenth)."""
    epochs: int | None = None
    """Passes over the training images; 30 if not given (12 for the drawn shapes)."""
    batch_size: int = 20
    """Images a step."""
    last_batch: LastBatch = "pad"
    """pad: an epoch's short last batch is filled up with rows that count nowhere, also in no statistics of BatchNorm.
    drop: it is left out, for models with a normalisation over the batch that is not BatchNorm's."""
    resizing: Resizing = "bilinear"
    """How images come to their size: bilinear (as Keras), antialias, crop_to_aspect_ratio or center_crop."""
    scale: str | None = None
    """LOW:HIGH, the values of 16-bit files that become black and white: 0:4095 for 12-bit data; 0:65535 if not given,
    and then files that would come out nearly black are refused."""
    sample_rate: int | None = None
    """For sounds, SPLIT/CLASS/FILE: read at this many samples a second, and made log-mel images in the step."""
    seconds: float = 1.0
    """For sounds: how long each is, cut or followed by silence."""
    augment: tuple[Literal["none", "lecture"], ...] = ("none",)
    """lecture: random flips, rotations by 0.1 and zooms by 0.2 of the training images. Both: the sweep compares."""
    methods: tuple[Literal["direct", "head-first"], ...] = ("direct",)
    """direct: what is not frozen trains from the start. head-first: the head alone first, at its own rate, then so."""
    sizes: tuple[int, ...] = ()
    """Numbers of training images to compare, as many of each class; all of them if not given."""
    views: int = 0
    """With --augment: 0 augments in every step, with the frozen part inside; K stores the features of K views of
    each image, and shows a random one in each epoch."""
    precision: Precision = "auto"
    """What is computed with; parameters, statistics and the loss stay float32. auto: bfloat16 on TPUs and on GPUs from
    NVIDIA's Ampere on, float32 elsewhere."""
    workers: int = 0
    """Processes that read images; 0 reads in threads of this one."""
    processes: int = 1
    """Processes that train cells beside each other, each with its share of the cores and its own memory; on CPU."""
    on_error: Literal["refuse", "skip"] = "refuse"
    """What to do with an image that cannot be decoded; what is skipped is listed in skipped.csv."""
    out: Path | None = None
    """The run folder; by default runs/ablate-BACKBONE-DIGEST, so that the same command goes on where it stopped."""
    store: Path | None = None
    """Where features are kept; by default in the user's cache folder, shared by all runs."""
    store_gib: float = 40.0
    """How much the store may hold, in GiB; the oldest features make room."""

    def __post_init__(self) -> None:
        own = entry_or_own(self.backbone).checked(self.backbone_options, include_top=False)
        object.__setattr__(self, "backbone_options", own)
        if self.weights is not None and not self.weights.is_file():
            raise FileNotFoundError(f"no weights file {self.weights}")
        if self.data is None and (self.weights is not None or self.backbone != "lecture_cnn" or own):
            raise ValueError(
                "give --data FOLDER as well: without it the built-in default is run, which takes no backbone"
            )
        if self.image_size is not None:
            sides(self.image_size)  # raises
        for name in ("seeds", "epochs", "batch_size"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if not self.learning_rates or not all(rate > 0 for rate in (*self.learning_rates, self.tuning_factor)):
            raise ValueError(f"learning rates must be positive, not {self.learning_rates} times {self.tuning_factor}")
        for name in ("augment", "methods", "sizes"):
            found = getattr(self, name)
            values = (found,) if isinstance(found, str | int) else tuple(dict.fromkeys(found))
            if not values and name != "sizes":
                raise ValueError(f"{name}: expected at least one")
            object.__setattr__(self, name, values)
        if any(size < 1 for size in self.sizes):
            raise ValueError(f"sizes must be at least 1 image, found {self.sizes}")
        augmented = "lecture" in self.augment
        if self.data is None and (self.splits or augmented or self.resizing != "bilinear" or self.scale):
            raise ValueError("splits, augment, resizing and scale are for images of your own: give --data as well")
        if self.views < 0 or (self.views and not augmented):
            raise ValueError(f"views: expected 0 or more, and --augment to draw them with, found {self.views}")
        if self.target.changed() and (self.data is None or self.sample_rate is not None):
            raise ValueError(f"{', '.join(self.target.changed())}: for images of your own; give --data as well")
        if self.sample_rate is not None and (self.data is None or self.splits or augmented):
            raise ValueError("sample_rate is for a folder of sounds, which have no TFDS splits and no augmentation")
        if self.workers < 0:
            raise ValueError(f"workers: expected 0 or more processes, found {self.workers}")
        if self.processes < 1:
            raise ValueError(f"processes: expected 1 or more, found {self.processes}")
        if self.first_seed < 0:
            raise ValueError(f"first_seed must be at least 0, not {self.first_seed}")
        if self.optimizer is not None:
            make_optimizer(self.optimizer)
        for text in self.freeze:
            Freeze.parse(text)


def seeds_text(config: Ablation) -> str:
    """`3 seeds`, `1 seed`."""
    return f"{config.seeds} seed{'s' if config.seeds > 1 else ''}"
