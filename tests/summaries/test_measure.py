"""Receptive fields and multiplications of real models, against gradients and the compiler's own count."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from residual import ResNet, randomized

from cnnjax.functional import functionalize, leaves_of
from cnnjax.hooks import with_hook
from cnnjax.models import lecture_cnn, mobilenet, vgg16
from cnnjax.summaries import receptive_field, receptive_fields
from cnnjax.summaries.measure import measure


class Odd(nnx.Module):
    """What our own models do not have: branches, dilation, unequal kernels, pooling as functions, a slice."""

    def __init__(self, rngs):
        self.wide = nnx.Conv(3, 6, (3, 5), strides=(1, 2), rngs=rngs)
        self.left = nnx.Conv(6, 6, (3, 3), kernel_dilation=2, rngs=rngs)
        self.right = nnx.Conv(6, 6, (1, 1), rngs=rngs)
        self.last = nnx.Conv(12, 6, (2, 2), padding="VALID", rngs=rngs)
        self.turn = nnx.Conv(6, 6, (3, 1), padding="VALID", rngs=rngs)

    def __call__(self, x):
        x = self.wide(x)
        x = jnp.concatenate([nnx.leaky_relu(self.left(x)), self.right(x)], -1)
        x = self.last(nnx.avg_pool(x, (3, 2), (2, 1), "SAME")[:, 1:-1])
        return self.turn(x.transpose(0, 2, 1, 3)) * 2.0


def seen_by_gradient(model, shape, cells):
    """Layer -> for each cell the rows and columns of the input that move it: the union over random inputs."""
    functional = functionalize(model)
    measured = {p: m.shape for p, m in measure(model, shape).items() if p and m.shape and len(m.shape) == 4}
    maps = {p: shape for p, shape in measured.items() if "pad" not in p}  # a cell of padding sees nothing

    def probes(x):
        found = {}

        def keep(path, out):
            weights = jnp.asarray(np.random.default_rng(len(found)).normal(size=out.shape[-1:]), jnp.float32)
            if path in maps:
                found[path] = jnp.stack([out[0, i, j] @ weights for i, j in cells(maps[path][1:3])])
            return out

        with_hook(functional.module(leaves_of(model)), keep)(x[None])
        return found

    gradients = jax.jit(jax.vmap(jax.jacrev(probes)))
    inputs = np.random.default_rng(0).normal(size=(3, *shape)).astype(np.float32)
    boxes = {}
    for path, values in gradients(inputs).items():
        used = np.abs(np.asarray(values)).max((0, -1)) > 0  # [cells, rows, columns]
        boxes[path] = [tuple(tuple(np.flatnonzero(u.any(1 - a))[[0, -1]].tolist()) for a in (0, 1)) for u in used]
    return boxes, maps


def corners_and_middle(size):
    return [(0, 0), (size[0] // 2, size[1] // 2), (size[0] - 1, size[1] - 1)]


@pytest.mark.parametrize(
    ("build", "shape"),
    [
        (lambda: lecture_cnn((50, 46, 3), (12, 12, 12), include_top=False, rngs=nnx.Rngs(1)), (50, 46, 3)),
        (lambda: mobilenet(0.5, (64, 50, 3), False, rngs=nnx.Rngs(0)).ends_at("conv_pw_4"), (64, 50, 3)),
        (lambda: randomized(ResNet(rngs=nnx.Rngs(0))), (48, 40, 3)),
        (lambda: Odd(nnx.Rngs(0)), (26, 30, 3)),
    ],
    ids=["lecture_cnn", "mobilenet", "resnet", "odd"],
)
def test_slide_retinotopy_fields_are_where_gradients_are(build, shape):
    model = build()
    boxes, maps = seen_by_gradient(model, shape, corners_and_middle)
    fields = {
        path: tuple(view.field for view in found.views[1:])
        for path, found in measure(model, shape).items()
        if path in boxes
    }
    assert len(boxes) >= 5
    for path, found in boxes.items():
        for cell, box in zip(corners_and_middle(maps[path][1:3]), found, strict=True):
            turned = isinstance(model, Odd) and path == "turn"  # its rows run along the input's columns
            for axis in (0, 1):
                low, high = fields[path][axis].interval(cell[1 - axis if turned else axis])
                want = (max(low, 0), min(high, shape[axis] - 1))
                assert box[axis] == want, f"{path} cell {cell} axis {axis}: gradient {box[axis]}, arithmetic {want}"


class Squeeze(nnx.Module):
    """Squeeze and excite by a pooling of the whole map: the product repeats its one cell."""

    def __init__(self, rngs):
        self.first = nnx.Conv(3, 4, (3, 3), rngs=rngs)
        self.last = nnx.Conv(4, 4, (3, 3), rngs=rngs)

    def __call__(self, x):
        x = self.first(x)
        return self.last(x * nnx.sigmoid(nnx.avg_pool(x, x.shape[1:3])))


def test_a_repeated_cell_is_seen_by_all():
    boxes, _ = seen_by_gradient(Squeeze(nnx.Rngs(0)), (12, 10, 3), corners_and_middle)
    assert all(box == ((0, 11), (0, 9)) for box in boxes["last"])
    rows, columns = receptive_fields(Squeeze(nnx.Rngs(0)), (12, 10, 3))["last"]
    assert rows is None or (rows.jump == 0 and rows.size >= 12)
    assert columns is None or (columns.jump == 0 and columns.size >= 10)


def test_cells_along_another_axis_have_no_field_of_their_own():
    fields = receptive_fields(Odd(nnx.Rngs(0)), (26, 30, 3))
    assert fields["turn"] == (None, None) and None not in fields["last"]


def test_multiplications_that_no_image_has_by_itself_are_blank():
    class Gram(nnx.Module):
        def __init__(self, rngs):
            self.linear = nnx.Linear(3, 4, rngs=rngs)
            self.table = nnx.Param(jnp.ones((4, 4)))

        def __call__(self, x):
            x = self.linear(x) @ (self.table @ self.table)  # the square of the table is made once a batch
            return x @ x.T

    found = measure(Gram(nnx.Rngs(0)), (3,))
    assert found["linear"].multiplications == 12 and found[""].multiplications is None


def test_published_fields_of_vgg16_and_mobilenet():
    """Araujo, Norris and Sim 2019, table 1: size, stride and padding of the last feature maps."""
    vgg = nnx.eval_shape(lambda: vgg16((None, None, 3), False, rngs=nnx.Rngs(0)))
    rows, columns = receptive_field(vgg, "block5_pool", (224, 224, 3))
    assert rows == columns
    assert (rows.size, rows.jump, -rows.start) == (212, 32, 90)
    small = nnx.eval_shape(lambda: mobilenet(0.25, include_top=False, rngs=nnx.Rngs(0)))
    rows, _ = receptive_field(small, "conv_pw_13_relu")
    assert (rows.size, rows.jump) == (315, 32)


def test_neighbouring_cells_see_neighbouring_regions():
    field, _ = receptive_field(nnx.eval_shape(lambda: lecture_cnn(rngs=nnx.Rngs(0))), "conv2d_4")
    centres = [field.centre(k) for k in range(15)]
    assert np.allclose(np.diff(centres), 8)
    assert centres[7] == pytest.approx(74.5, abs=4)  # the middle cell looks at the middle of 150 pixels


def test_multiplications_are_half_of_what_the_compiler_counts():
    """XLA counts a multiplication and an addition each; without padding its count of a convolution is exact."""
    model = lecture_cnn((48, 40, 3), (8, 8), include_top=False, rngs=nnx.Rngs(0))
    found = measure(model, (48, 40, 3))
    for name in ("conv2d_1", "conv2d_2"):
        kernel, shape = model.get_layer(name).kernel[...], found[name].shape
        x = jax.ShapeDtypeStruct((1, shape[1] + 2, shape[2] + 2, kernel.shape[2]), jnp.float32)

        def convolve(x, kernel=kernel):
            return jax.lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))

        cost = jax.jit(convolve).lower(x).cost_analysis()
        assert found[name].multiplications == cost["flops"] / 2


def test_what_cannot_be_known_is_blank():
    class Blank(nnx.Module):
        def __init__(self, rngs):
            self.patches = nnx.Conv(3, 8, (4, 4), strides=4, rngs=rngs)
            self.attention = nnx.MultiHeadAttention(2, 8, decode=False, rngs=rngs)
            self.mixed = nnx.Linear(8, 8, rngs=rngs)
            self.pair = Pair(rngs)

        def __call__(self, x):
            x = self.patches(x)
            x = self.attention(x.reshape(x.shape[0], -1, 8))
            x = self.mixed(x - x.mean(0))
            return jax.lax.while_loop(lambda c: c[0].sum() < 0, lambda c: (self.pair(c[0])[0], c[1]), (x, x))[0]

    class Pair(nnx.Module):
        def __init__(self, rngs):
            self.linear = nnx.Linear(8, 8, rngs=rngs)

        def __call__(self, x):
            return self.linear(x), x

    found = measure(Blank(nnx.Rngs(0)), (16, 16, 3))
    assert found["patches"].views[1].field.size == 4
    assert all(view is None for view in found["attention"].views[1:])
    assert found["attention"].multiplications == 2 * 16 * 16 * 8
    assert found["mixed"].shape == (None, 16, 8)
    assert found["mixed"].views is None  # the mean over the batch mixes the examples
    assert found["pair"].shape is None  # two arrays
    assert found["pair/linear"].multiplications is None  # nobody knows how often the loop runs


def test_scanned_layers_are_counted_as_often_as_they_run():
    class Scanned(nnx.Module):
        def __init__(self, rngs):
            split = nnx.split_rngs(splits=3)
            self.stack = split(nnx.vmap(lambda rngs: nnx.Linear(8, 8, rngs=rngs)))(rngs)

        def __call__(self, x):
            return nnx.scan(lambda x, layer: layer(x), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)(x, self.stack)

    assert measure(Scanned(nnx.Rngs(0)), (8,))["stack"].multiplications == 3 * 8 * 8


def test_unknown_sizes_and_layers_are_errors():
    vgg = nnx.eval_shape(lambda: vgg16((None, None, 3), False, rngs=nnx.Rngs(0)))
    with pytest.raises(ValueError, match=r"the size of vgg16's images is not known: give input_shape"):
        receptive_fields(vgg)
    with pytest.raises(LookupError, match="no layer 'block5_conv4' in vgg16; did you mean 'block5_conv3'"):
        receptive_field(vgg, "block5_conv4", (64, 64, 3))
    with pytest.raises(ValueError, match=r"each at least 1, found \(64, -1, 3\)"):
        receptive_field(vgg, "block5_conv3", (64, -1, 3))
