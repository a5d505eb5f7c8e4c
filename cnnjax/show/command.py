"""`cnnjax show`: images of a network, and of what it makes of a photograph."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import jax.numpy as jnp
import numpy as np
from tyro.conf import Positional, arg

from cnnjax.commands.network import Network
from cnnjax.commands.options import Channels, Count, Image, Out
from cnnjax.files.runs import path_name
from cnnjax.functional import modules
from cnnjax.hooks import checked_layer
from cnnjax.models import Backbone, preprocess
from cnnjax.models.layer_order import output_shape
from cnnjax.models.own import is_path
from cnnjax.show.augment import Augment
from cnnjax.show.cam import class_activation
from cnnjax.show.draw import draw_activations, draw_edges, draw_filters
from cnnjax.show.fields import cell_box, checked_cell, effective_field, layer_with_field, neighbour_boxes
from cnnjax.show.filters import Convolution, convolution, first_maps
from cnnjax.show.images import in_channels, in_colour, middle, read_image, resized
from cnnjax.show.looks import draw_cam, draw_field
from cnnjax.show.maps import activation_maps, called, checked_maps
from cnnjax.show.sheet import Sheet
from cnnjax.summaries.measure import receptive_fields
from cnnjax.weights.hdf5 import WeightsError
from cnnjax.weights.pretrained import open_backbone


@dataclass(frozen=True, kw_only=True)
class _Options(Network, Channels):
    """What all drawings share."""

    layer: str | None = None
    """The layer's name; above stands which is taken if it is not given."""
    out: Out = None

    def __post_init__(self) -> None:
        if self.out is not None and self.out.suffix.lower() != ".png":
            raise ValueError(f"--out must be a PNG file, such as {self.out.with_suffix('.png')}, not {self.out}")

    def opened(self, **options: Any) -> tuple[Any, str]:
        """The network, without its top if not asked for, and the name of its preprocessing."""
        options = {"include_top": False, **options}
        model, preprocessing = open_backbone(
            self.backbone, image_size=self.image_size, channels=self.channels, weights=self.weights,
            preprocessing=self.preprocessing, **self.backbone_options, **options,
        )  # fmt: skip
        if self.layer is not None:
            checked_layer(
                self.layer, _names(model), self.backbone + ("" if options["include_top"] else " without its top")
            )
        if self.weights is None:
            print("no --weights: the network is filled with random numbers, and the image shows them")
        return model, preprocessing

    def shape(self, model: Any) -> Any:
        """What the network takes, (H, W, C)."""
        if isinstance(model, Backbone):
            return model.input_shape
        return (*self.size, self.channels or 3)

    def titled(self, layer: str, text: str) -> str:
        """A title that names network, layer and what is shown."""
        given = [v if isinstance(v, tuple) else (v,) for v in self.backbone_options.values()]
        name = " ".join([self.backbone, *(f"{n:g}" if isinstance(n, float) else str(n) for v in given for n in v)])
        return f"{name}{'' if self.weights else ' (random numbers)'}, {layer}: {text}"

    def saved(self, sheet: Sheet, *parts: str) -> Path:
        """Write the image and say where."""
        # A network of one's own is named by a path; the other parts are names of layers and of the image's file.
        name = "-".join([path_name(parts[0]), *parts[1:]])
        path = sheet.save(self.out or Path(f"{name}.png"))
        print(f"written to {path} ({sheet.width} x {sheet.height} pixels)")
        return path


@dataclass(frozen=True, kw_only=True)
class _WithImage(_Options):
    image: Positional[Image]

    def opened_for_image(self, **options: Any) -> tuple[Any, str, np.ndarray, np.ndarray]:
        """The same, the image u8[H, W, 3], and f32[H, W, C] as the network takes it."""
        pixels = read_image(self.image)
        model, preprocessing = self.opened(**options)
        height, width, channels = self.shape(model)
        assert height is not None and width is not None and channels is not None
        pixels = resized(middle(pixels, width / height), (height, width))
        seen = in_channels(pixels, channels, self.backbone)
        return model, preprocessing, in_colour(pixels), np.asarray(preprocess(seen, preprocessing))


@dataclass(frozen=True, kw_only=True)
class Filters(_Options):
    """The filters of a layer, as a grid: in colour if they read the image, otherwise slice by slice.

    The layer is a convolution: the first one if not given.
    """

    count: Count = None

    def draw(self) -> Path:
        """Draw and save."""
        model, preprocessing = self.opened()
        found = convolution(model, self.layer, input_shape=self.shape(model))
        kernel = _rgb(found, found.folded, preprocessing)
        rows, columns, channels, filters = kernel.shape
        text = f"{_many(filters, 'filter')} of {rows} × {columns} × {channels}"
        title = self.titled(found.layer, text + (f", scaled by {found.norm}" if found.norm else ""))
        sheet = draw_filters(kernel, title, count=self.count)
        return self.saved(sheet, "filters", self.backbone, found.layer)


@dataclass(frozen=True, kw_only=True)
class Activations(_WithImage):
    """The maps that a layer gives for an image, as a grid beside it.

    The layer is any with maps: the one that the second convolution reads, if not given.
    """

    count: Count = None

    def draw(self) -> Path:
        """Draw and save."""
        model, _, image, inputs = self.opened_for_image()
        layer = self.layer or first_maps(model, inputs.shape)
        maps = activation_maps(model, inputs[None], layer)[0]
        height, width, channels = maps.shape
        title = self.titled(layer, f"{_many(channels, 'map')} of {height} × {width}")
        sheet = draw_activations(image, maps, title, count=self.count)
        return self.saved(sheet, "activations", self.backbone, layer, self.image.stem)


@dataclass(frozen=True, kw_only=True)
class Edges(_WithImage):
    """The strongest edge detectors among the first layer's filters, put on an image.

    The layer is a convolution that reads the image: the first one if not given.
    """

    count: Count = None

    def draw(self) -> Path:
        """Draw and save."""
        model, preprocessing, image, inputs = self.opened_for_image()
        found = convolution(model, self.layer, input_shape=inputs.shape)
        if found.folded.shape[2] != inputs.shape[-1] or found.folded.shape[0] < 2:
            raise ValueError(
                f"{found.layer} has a kernel {tuple(found.folded.shape)}, which finds no edges in an image; edges are "
                f"found by a layer that reads the image: {convolution(model, None, input_shape=inputs.shape).layer}"
            )
        kernel = _rgb(found, found.folded, preprocessing)
        text = f"the strongest edge detectors of {_many(kernel.shape[-1], 'filter')}"
        title = self.titled(found.layer, text + (f", scaled by {found.norm}" if found.norm else ""))
        sheet = draw_edges(
            image, _rgb(found, inputs, preprocessing), kernel, title, count=6 if self.count is None else self.count
        )
        return self.saved(sheet, "edges", self.backbone, found.layer, self.image.stem)


@dataclass(frozen=True, kw_only=True)
class Field(_WithImage):
    """What a cell of a layer sees of an image, what its neighbours see, and how strongly each pixel counts.

    The layer is any with maps: if not given, the deepest whose cells see at most half of the image's height.
    """

    cell: Annotated[tuple[int, int] | None, arg(metavar="ROW COLUMN")] = None
    """Row and column in the layer's maps; the middle one if not given."""

    def draw(self) -> Path:
        """Draw and save."""
        model, _, image, inputs = self.opened_for_image()
        layer = self.layer or layer_with_field(model, inputs.shape)
        maps = checked_maps(layer, called(model, inputs.shape), model)
        row, column = checked_cell(self.cell, maps, layer)
        fields = receptive_fields(model, inputs.shape)[layer]
        title = self.titled(layer, f"cell ({row}, {column}) of {maps[0]} × {maps[1]}")
        sheet = draw_field(
            image,
            cell_box(fields, (row, column), layer),
            neighbour_boxes(fields, (row, column), maps),
            effective_field(model, inputs[None], layer, (row, column)),
            title,
        )
        return self.saved(sheet, "field", self.backbone, layer, f"{row}-{column}", self.image.stem)


@dataclass(frozen=True, kw_only=True)
class Cam(_WithImage):
    """Where a trained classifier looks: class activation by gradients (Grad-CAM).

    The layer is any with maps: the last one if not given.
    """

    class_index: int | None = None
    """The class; the top prediction if not given. One output has two: 0 (against it) and 1 (for it)."""

    def draw(self) -> Path:
        """Draw and save."""
        if self.weights is None:
            raise ValueError("cam needs --weights FILE, trained and with top: random numbers know no classes")
        # A network of the user's is taken as it is: one that gives logits of classes [N, K].
        top = {} if is_path(self.backbone) else {"include_top": True, "classifier_activation": "linear"}
        try:
            opened = self.opened_for_image(**top)
        except WeightsError as error:
            if "no_top" not in str(self.weights) and "notop" not in str(self.weights):
                raise
            raise WeightsError(f"{error}\ncam needs weights with top, such as mobilenet_7_5_224_tf.h5") from error
        model, _, image, inputs = opened
        if is_path(self.backbone) and len(given := output_shape(model, inputs.shape)) != 1:
            raise ValueError(
                f"cam needs a network that ends in classes, f32[N, K], and {self.backbone} gives [N, "
                f"{', '.join(map(str, given))}]: add the layers that make logits of its maps"
            )
        found = class_activation(model, jnp.asarray(inputs[None]), self.layer, self.class_index)
        chosen, probabilities = int(found.classes[0]), found.probabilities[0]
        order = np.argsort(-probabilities)
        rank = int(np.flatnonzero(order == chosen)[0])
        likely = ", ".join(f"{k} ({probabilities[k]:.2f})" for k in order[:5] if probabilities[k] >= 0.01)
        sure = f"{probabilities[chosen]:.2f}" if probabilities[chosen] >= 0.01 else "below 0.01"
        place = "the top prediction" if rank == 0 else f"number {rank + 1} of {len(order)}"
        notes = [f"Grad-CAM. Class {chosen} has probability {sure} and is {place}. The most likely classes: {likely}."]
        title = self.titled(found.layer, f"what speaks for class {chosen}")
        fields = receptive_fields(model, inputs.shape).get(found.layer, (None, None))
        sheet = draw_cam(image, found.heat[0], title, notes, fields=fields)
        return self.saved(sheet, "cam", self.backbone, found.layer, f"class-{chosen}", self.image.stem)


Show = Filters | Activations | Edges | Field | Cam | Augment
"""The options: a dataclass for each kind of image, whose name in small letters is the subcommand."""


def show(config: Show) -> Path:
    """The command: draw what the options name, save it as PNG and say where."""
    return config.draw()


def _names(model: Any) -> tuple[str, ...]:
    return model.layer_names if isinstance(model, Backbone) else tuple(path for path, _ in modules(model))


def _rgb(found: Convolution, array: np.ndarray, preprocessing: str) -> np.ndarray:
    """Channels (axis 2) as red, green, blue: the first layer under "caffe" reads blue first."""
    reads_image = found.kernel.shape[2] == 3
    return array[:, :, ::-1] if reads_image and preprocessing == "caffe" else array


def _many(count: int, what: str) -> str:
    return f"{count:,} {what}" + ("s" if count != 1 else "")
