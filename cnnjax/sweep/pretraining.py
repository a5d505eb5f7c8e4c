"""The built-in default: drawn images, and the lecture's network pretrained on some of their classes."""

from dataclasses import replace
from typing import Any

import jax
from flax import nnx
from rich.console import Console

from cnnjax.checkpoints import restore, save
from cnnjax.files.digests import digest
from cnnjax.freeze import Freeze
from cnnjax.functional import functionalize, leaves_of
from cnnjax.models import Backbone, Classifier, linear_head
from cnnjax.models.lecture_cnn import lecture_cnn
from cnnjax.runtime.cache import cache_folder
from cnnjax.runtime.progress import Bars
from cnnjax.sweep.data import SweepData
from cnnjax.sweep.options import Ablation, seeds_text
from cnnjax.train.trainer import Trainer

SIZE = 64
WIDTHS = (16, 32, 32, 64)
_EPOCHS = 12
_PREPROCESSING = "unit"


def embedded(config: Ablation, console: Console) -> tuple[Ablation, SweepData]:
    """Images and a pretrained backbone that need no download.

    Args:
        config: the options; what depends on the data set and was not given is filled in.
        console: where progress is told.

    Returns:
        The completed options, and the data: four target classes of drawn shapes, and the lecture's network
        as trained on six source classes.
    """
    from cnnjax.data.shapes import ShapesConfig, open_shapes

    if config.image_size is None:
        config = replace(config, image_size=SIZE)
    if config.size != (SIZE, SIZE):
        raise ValueError(f"the built-in images are drawn at {SIZE}x{SIZE}; --image-size is for --data")
    console.print(f"no --data: drawing textured shapes at {SIZE}x{SIZE} (kept in {cache_folder()})", highlight=False)
    splits = {
        kind: open_shapes(ShapesConfig(kind=kind, size=SIZE), cache_folder() / "tfds") for kind in ("source", "target")
    }
    backbone = pretrain(splits["source"], console)
    target = splits["target"]
    train = len(target["train"])
    title = f"lecture_cnn pretrained on {len(splits['source']['train'].class_names)} classes of drawn shapes, "
    title += f"trained on {train} images of {len(target['train'].class_names)} others, {seeds_text(config)}"
    return config, SweepData(target, backbone, _PREPROCESSING, title)


def pretrain(splits: dict[str, Any], console: Console) -> Backbone:
    """The lecture's network trained on the source classes; read from the cache if it was trained before.

    Args:
        splits: sources "train" and "test".
        console: where progress is told.
    """
    classes = len(splits["train"].class_names)
    rngs = nnx.Rngs(0)
    backbone = lecture_cnn((SIZE, SIZE, 3), WIDTHS, include_top=False, rngs=rngs)
    model = Classifier(backbone, linear_head(backbone.output_shape(), classes, rngs=rngs), _PREPROCESSING)
    recipe = f"{WIDTHS} {_EPOCHS} {_PREPROCESSING} {jax.__version__} {splits['train'].digest}"
    folder = cache_folder() / "pretrained" / f"lecture_cnn-{digest(recipe)[:12]}"
    leaves = leaves_of(backbone)
    if not folder.is_dir():
        trainer = Trainer(model, Freeze.none().resolve(model), (SIZE, SIZE), batch_size=32, optimizer="adam")
        with Bars(console) as bars:
            rows = trainer.rows(splits["train"])
            state, log = trainer.fit(trainer.init(), rows, epochs=_EPOCHS, progress=bars.bar("pretraining", "steps"))
        scores = trainer.evaluate(state, trainer.rows(splits["test"], train=False))
        seconds = sum(r["seconds"] for r in log)
        console.print(f"pretrained in {seconds:.0f} s: {100 * scores['accuracy']:.1f} % of the source's test images")
        trained = trainer.leaves(state)
        save(folder, {path: trained[f"backbone/{path}"] for path in leaves})
    trained = restore(folder, leaves)
    filled: Any = functionalize(backbone).module(trained)
    return filled
