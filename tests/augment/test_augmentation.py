"""Augmentations against Keras's layers, with Keras's random numbers put in, and against SciPy."""

import os
import subprocess
import sys
import textwrap
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from cnnjax.augment import FILL_MODES, Augmentation, Parameters

COUNT, HEIGHT, WIDTH = 6, 19, 26
SCIPY_MODES = {"reflect": "reflect", "constant": "grid-constant", "nearest": "nearest", "wrap": "grid-wrap"}


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    """Noise: a place off by a hundredth of a pixel shows."""
    return np.random.default_rng(0).uniform(0, 255, (COUNT, HEIGHT, WIDTH, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def keras_layers(images: np.ndarray) -> SimpleNamespace:
    """Keras's layers at strong settings, and what each draws for the images."""
    from keras import layers

    made = {
        "flip": layers.RandomFlip("horizontal"),
        "rotation": layers.RandomRotation((-0.4, 0.3)),
        "zoom": layers.RandomZoom((-0.6, 0.9)),
        "translation": layers.RandomTranslation((-0.7, 0.4), (-0.5, 0.9)),
    }
    drawn = jax.jit(
        lambda keys: {
            name: layer.get_random_transformation(images, training=True, seed=key)
            for (name, layer), key in zip(made.items(), keys, strict=True)
        }
    )([jax.random.PRNGKey(k) for k in range(len(made))])
    drawn = jax.tree.map(np.asarray, drawn)
    return SimpleNamespace(layers=made, drawn=drawn)


def neutral(count: int = COUNT, **given: np.ndarray) -> Parameters:
    """Parameters that change nothing, but for those given."""
    ones, zeros = np.ones(count, np.float32), np.zeros(count, np.float32)
    pairs = np.zeros((count, 2), np.float32)
    same = Parameters(pairs > 0, zeros, ones, pairs, pairs, ones, zeros)
    return same._replace(**given)


def parameters_of(drawn: dict) -> Parameters:
    """Keras's random numbers as ours: degrees, zooms, and pixels as (right, down)."""
    flip = np.zeros((COUNT, 2), bool)
    flip[:, 1] = np.asarray(drawn["flip"]["flips"])[:, 0, 0, 0]
    return neutral(
        flip=flip,
        angle=np.deg2rad(drawn["rotation"]["angle"]),
        zoom=np.asarray(drawn["zoom"]["height_zoom"])[:, 0],
        shift=np.asarray(drawn["translation"]["translations"])[:, ::-1] / np.array([HEIGHT, WIDTH]),
    )


@pytest.mark.parametrize("fill_mode", FILL_MODES)
def test_each_warp_is_keras(images, keras_layers, fill_mode):
    drawn, fill = keras_layers.drawn, 40.0 if fill_mode == "constant" else 0.0
    parameters = parameters_of(drawn)
    assert 0 < parameters.flip.sum() < COUNT

    @jax.jit
    def theirs(images):
        from keras.ops.image import affine_transform

        matrices = {
            "rotation": drawn["rotation"]["rotation_matrix"],
            "zoom": keras_layers.layers["zoom"]._get_zoom_matrix(
                jnp.repeat(drawn["zoom"]["height_zoom"], 2, 1), HEIGHT, WIDTH
            ),
            "translation": keras_layers.layers["translation"]._get_translation_matrix(
                drawn["translation"]["translations"]
            ),
        }
        # One call for the three: that is what the layers do, and compiling it takes a second each.
        out = affine_transform(
            jnp.concatenate([images] * 3), jnp.concatenate(list(matrices.values())), "bilinear", fill_mode, fill
        )
        return dict(zip(matrices, jnp.split(out, 3), strict=True))

    for name, want in theirs(images).items():
        ours = Augmentation(**{name: 0.5}, fill_mode=fill_mode, fill_value=fill).apply(parameters, images)
        assert np.abs(want - images).mean() > 10, name
        np.testing.assert_allclose(ours, want, atol=0.02, err_msg=name)


@pytest.mark.parametrize("flip", ["horizontal", "vertical", "both"])
def test_flips_are_keras(images, flip):
    from keras import layers

    layer = layers.RandomFlip("horizontal_and_vertical" if flip == "both" else flip)
    flips = np.arange(COUNT) % 3 == 0
    ways = np.stack([flips & (flip != "horizontal"), flips & (flip != "vertical")], 1)
    ours = Augmentation(flip=flip).apply(neutral(flip=ways), images)
    np.testing.assert_array_equal(ours, layer.transform_images(images, {"flips": flips[:, None, None, None]}))


def test_colours_are_keras(images):
    from keras import layers

    factor, delta = np.linspace(0.1, 1.8, COUNT, dtype=np.float32), np.linspace(0.8, -0.6, COUNT, dtype=np.float32)
    contrast, brightness = layers.RandomContrast((0.9, 0.8)), layers.RandomBrightness((-0.6, 0.8))
    want = contrast.transform_images(images, {"contrast_factor": factor[:, None, None, None]})
    want = brightness.transform_images(want, {"rgb_delta": 255 * delta[:, None, None, None]})
    assert (np.asarray(want) == 0).any() and (np.asarray(want) == 255).any()
    parameters = neutral(contrast=factor, brightness=delta)
    ours = Augmentation(contrast=0.9, brightness=0.8).apply(parameters, images)
    np.testing.assert_allclose(ours, want, atol=2e-4)

    unit = layers.RandomBrightness(0.5, value_range=(0, 1))
    want = unit.transform_images(images / 255, {"rgb_delta": delta[:, None, None, None]})
    ours = Augmentation(brightness=0.5, value_range=(0, 1)).apply(parameters, images / 255)
    np.testing.assert_allclose(ours, want, atol=1e-6)


def test_crop_is_keras(images):
    from keras import layers

    layer = layers.RandomCrop(11, 20)
    seen = set()
    for k in range(4):
        top, left = layer.get_random_transformation(images, training=True, seed=jax.random.PRNGKey(k))
        seen.add((int(top), int(left)))
        corner = (np.array([[int(top), int(left)]]) + 0.5) / (HEIGHT - 11 + 1, WIDTH - 20 + 1)
        ours = Augmentation(crop=(11, 20)).apply(neutral(corner=np.repeat(corner, COUNT, 0)), images)
        np.testing.assert_array_equal(ours, layer.transform_images(images, (top, left)))
    assert len(seen) > 1


def test_crop_takes_every_place_equally_often():
    pixels = np.broadcast_to(np.arange(30, dtype=np.float32).reshape(1, 5, 6, 1), (3000, 5, 6, 1))
    corners = np.asarray(Augmentation(crop=(3, 5))(jax.random.key(1), pixels))[:, 0, 0, 0]
    places, counts = np.unique(corners, return_counts=True)
    assert places.tolist() == [0, 1, 6, 7, 12, 13]
    assert (np.abs(counts - 500) < 100).all()  # five standard deviations
    all_of_it = Augmentation(crop=(5, 6)).apply(neutral(corner=np.full((COUNT, 2), 0.99)), pixels[:COUNT])
    np.testing.assert_array_equal(all_of_it, pixels[:COUNT])


@pytest.mark.parametrize("fill_mode", FILL_MODES)
def test_one_resampling_is_the_composed_map(images, keras_layers, fill_mode):
    drawn, layers, crop = keras_layers.drawn, keras_layers.layers, (13, 17)
    parameters = parameters_of(drawn)._replace(corner=np.full((COUNT, 2), 0.5, np.float32))
    augmentation = Augmentation(
        flip=True, rotation=0.5, zoom=0.5, translation=0.5, crop=crop, fill_mode=fill_mode, fill_value=40
    )
    ours = np.asarray(augmentation.apply(parameters, images))
    zooms = layers["zoom"]._get_zoom_matrix(np.repeat(drawn["zoom"]["height_zoom"], 2, 1), HEIGHT, WIDTH)
    shifts = layers["translation"]._get_translation_matrix(drawn["translation"]["translations"])
    tops, lefts = (HEIGHT - 13 + 1) // 2, (WIDTH - 17 + 1) // 2
    places = np.stack([*np.mgrid[lefts : lefts + 17, tops : tops + 13].transpose(0, 2, 1), np.ones(crop)])  # x, y, 1
    for n in range(COUNT):
        steps = [
            np.append(m[n, :6], [0, 0, 1]).reshape(3, 3) for m in (drawn["rotation"]["rotation_matrix"], zooms, shifts)
        ]
        flip = np.array([[-1, 0, WIDTH - 1], [0, 1, 0], [0, 0, 1]]) if parameters.flip[n, 1] else np.eye(3)
        x, y, _ = np.einsum("ij,jhw->ihw", flip @ steps[0] @ steps[1] @ steps[2], places)
        for channel in range(3):
            image = images[n, :, :, channel].astype(np.float64)
            want = ndimage.map_coordinates(image, [y, x], order=1, mode=SCIPY_MODES[fill_mode], cval=40)
            np.testing.assert_allclose(ours[n, :, :, channel], want, atol=0.02)


def test_order_is_that_of_keras_layers_one_after_another(keras_layers):
    # On a smooth image resampling several times differs little, and in the middle nothing is filled in.
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    smooth = 128 + 60 * np.sin(x / 9) + 60 * np.cos(y / 7 + x / 20)
    tiled = np.repeat(smooth[None, :, :, None], COUNT, 0).astype(np.float32)
    quarter = np.linspace(-0.25, 0.25, COUNT, dtype=np.float32)
    parameters = neutral(
        flip=np.tile([False, True], (COUNT, 1)),
        angle=np.float32(np.pi) * quarter,
        zoom=1 - np.abs(quarter),
        shift=np.stack([quarter / 2, -quarter / 3], 1),
    )
    layers = keras_layers.layers
    pixels = parameters.shift[:, ::-1] * np.array([WIDTH, HEIGHT], np.float32)
    drawn = {
        "flip": {"flips": np.ones((COUNT, 1, 1, 1), bool)},
        "zoom": {"height_zoom": parameters.zoom[:, None], "width_zoom": parameters.zoom[:, None]},
        "translation": {"translations": pixels},
    }

    @jax.jit
    def theirs(out):
        zeros, ones = np.zeros(COUNT), np.ones(COUNT)
        matrix = layers["rotation"]._compute_affine_matrix(
            0.5, 0.5, jnp.rad2deg(parameters.angle), zeros, zeros, ones, zeros, zeros, HEIGHT, WIDTH
        )
        drawn["rotation"] = {"rotation_matrix": matrix}
        for name, layer in layers.items():
            out = layer.transform_images(out, drawn[name])
        return out

    ours = Augmentation(flip=True, rotation=0.5, zoom=0.5, translation=0.5).apply(parameters, tiled)
    middle = (slice(None), slice(7, 12), slice(10, 16))
    want = np.asarray(theirs(tiled))
    assert np.abs(tiled - want)[middle].max() > 30
    assert np.abs(ours - want)[middle].max() < 1.5


def test_nothing_drawn_changes_no_pixel(images):
    still = Augmentation(flip=True, rotation=0.5, zoom=0.5, translation=0.5).apply(neutral(), images)
    np.testing.assert_array_equal(still, images)
    turned = neutral(flip=np.ones((COUNT, 2), bool))
    exact = Augmentation(flip="both", rotation=0.5).apply(turned, images)
    np.testing.assert_array_equal(exact, images[:, ::-1, ::-1])
    np.testing.assert_array_equal(Augmentation.none()(jax.random.key(0), images), images)


def test_types_of_pixels():
    augmentation = Augmentation(rotation=0.1, contrast=0.2)
    pixels = np.random.default_rng(1).integers(0, 256, (2, 9, 8, 3), np.uint8)
    drawn = neutral(2, angle=np.float32([0.5, -0.5]), contrast=np.float32([0.9, 1.2]))
    whole = augmentation.apply(drawn, pixels)
    assert whole.dtype == jnp.float32
    np.testing.assert_array_equal(whole, augmentation.apply(drawn, pixels.astype(np.float32)))
    half = augmentation.apply(drawn, pixels.astype(jnp.bfloat16))
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(half, np.float32), whole, atol=1)


@pytest.mark.parametrize("fill_mode", FILL_MODES)
def test_a_single_pixel_fills_all(fill_mode):
    drawn = neutral(2, zoom=np.float32([0.6, 1.4]), shift=np.float32([[0.3, -0.4], [5, -7]]))
    one = Augmentation(zoom=0.5, translation=1, fill_mode=fill_mode, fill_value=7).apply(
        drawn, np.full((2, 1, 1, 1), 7.0)
    )
    np.testing.assert_allclose(np.ravel(one), [7, 7], rtol=1e-6)


def test_draws_what_was_asked_for():
    count = 2000
    augmentation = Augmentation(
        flip="both", rotation=(-0.1, 0.3), zoom=0.2, translation=(0.1, (0, 0.4)), contrast=(0.1, 0.5), brightness=0.3
    )
    drawn, again = (jax.tree.map(np.asarray, augmentation.draw(jax.random.key(k), count)) for k in (5, 6))
    for values, low, high in (
        (drawn.angle / (2 * np.pi), -0.1, 0.3), (drawn.zoom, 0.8, 1.2), (drawn.shift[:, 0], -0.1, 0.1),
        (drawn.shift[:, 1], 0.0, 0.4), (drawn.contrast, 0.9, 1.5), (drawn.brightness, -0.3, 0.3),
        (drawn.corner[:, 0], 0.0, 1.0), (drawn.corner[:, 1], 0.0, 1.0),
    ):  # fmt: skip
        spread = high - low
        assert values.min() >= low - 1e-6 and values.max() <= high + 1e-6
        np.testing.assert_allclose(
            np.quantile(values, [0.1, 0.5, 0.9]), low + spread * np.array([0.1, 0.5, 0.9]), atol=0.05 * spread
        )
    columns = np.concatenate([drawn.flip, *(np.asarray(x).reshape(count, -1) for x in drawn[1:])], 1)
    np.testing.assert_allclose(drawn.flip.mean(0), 0.5, atol=0.05)
    assert np.abs(np.corrcoef(columns.T) - np.eye(10)).max() < 0.1  # each drawn on its own
    # An image draws the same in any batch, and whatever else is on.
    alone = Augmentation(rotation=(-0.1, 0.3)).draw(jax.random.key(5), 7)
    np.testing.assert_array_equal(alone.angle, drawn.angle[:7])
    assert not alone.flip.any() and (alone.zoom == 1).all() and (alone.shift == 0).all()
    assert np.abs(np.corrcoef(again.zoom, drawn.zoom)[0, 1]) < 0.1


def test_equal_choices_are_one_augmentation():
    short, long = Augmentation(flip=True, rotation=0.1, crop=8), Augmentation("horizontal", [-0.1, 0.1], crop=[8, 8])
    assert short == long and hash(short) == hash(long) and short.digest == long.digest
    others = [
        Augmentation.none(), Augmentation(flip=True), Augmentation(flip="both"), Augmentation(rotation=0.1),
        Augmentation(rotation=(0, 0.1)), Augmentation(zoom=0.1), Augmentation(translation=0.1),
        Augmentation(translation=(0, 0.1)), Augmentation(crop=8), Augmentation(contrast=0.1),
        Augmentation(brightness=0.1), Augmentation(zoom=0.1, fill_mode="wrap"), Augmentation(zoom=0.1, fill_value=1),
        Augmentation(contrast=0.1, value_range=(0, 1)), Augmentation(mixup=0.2), Augmentation(cutmix=0.2),
    ]  # fmt: skip
    assert len({other.digest for other in others}) == len(others)
    assert [bool(other) for other in others] == [False] + [True] * 15
    assert Augmentation(flip=False, rotation=0, zoom=(0, 0)) == Augmentation.none()


def test_wrong_choices_are_told_the_right_one():
    for given, message in (
        (dict(rotation=2), r"rotation is a fraction of a full turn, -1 to 1, not 2; for 2 degrees give 0.00556"),
        (dict(rotation=-0.1), r"rotation -0.1 stands for a range: give 0.1 for -0.1 to 0.1, or a pair \(-0.1, 0\)"),
        (dict(rotation=(0.3, -0.1)), r"low end above its high end; did you mean \(-0.1, 0.3\)"),
        (dict(rotation=True), "rotation must be a number or a pair of them, not True"),
        (dict(rotation=(0, 0, 1)), r"rotation must be a number or a pair of them, not \(0, 0, 1\)"),
        (dict(zoom=float("nan")), "zoom must be a number or a pair of them, not nan"),
        (dict(zoom=1.2), "zoom is a fraction of the size, above -1 and at most 1, not 1.2; did you mean 0.2"),
        (dict(zoom=(-1, 0)), "above -1 and at most 1, not -1; the nearest is -0.9"),
        (dict(zoom=1), r"zoom 1 would go down to -1, .* give \(-0.9, 1\) or 0.9"),
        (dict(translation=(0.1, 4)), "translation is a fraction .* not 4; the nearest is 1"),
        (dict(contrast=-0.2), "contrast is a fraction, 0 to 1, not -0.2; did you mean 0.2"),
        (dict(brightness=30), "brightness is a fraction of the value range, -1 to 1, not 30; the nearest is 1"),
        (dict(fill_mode="reflct"), "no fill_mode 'reflct'; did you mean 'reflect'"),
        (dict(flip="horizontally"), "no flip 'horizontally'; did you mean 'horizontal'"),
        (dict(fill_value="white"), "fill_value must be a number, not 'white'"),
        (dict(value_range=(255, 0)), r"value_range \(255, 0\) is empty; did you mean \(0, 255\)"),
        (dict(value_range=255), r"the lowest and the highest value, such as \(0, 255\), not 255"),
        (dict(mixup=-0.2), r"mixup is the alpha of Beta\(alpha, alpha\), 0 \(off\) or more, not -0.2; .* 0.2"),
        (dict(crop=(0, 8.5)), r"crop is a height and a width in pixels, not \(0, 8.5\); did you mean \(1, 8\)"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            Augmentation(**given)
    with pytest.raises(
        ValueError, match=r"a crop of \(8, 5\) is larger than the images, \(6, 9\); the largest is \(6, 5\)"
    ):
        Augmentation(crop=(8, 5))(jax.random.key(0), np.zeros((2, 6, 9, 3), np.float32))
    with pytest.raises(ValueError, match=r"images of shape \[N, H, W, C\], found \(6, 9, 3\)"):
        Augmentation(flip=True)(jax.random.key(0), np.zeros((6, 9, 3), np.float32))


def test_eight_devices_give_the_images_of_one(tmp_path):
    script = """
        import jax, jax.numpy as jnp, numpy as np
        from jax.sharding import AxisType, NamedSharding, PartitionSpec
        from cnnjax.augment import Augmentation

        assert jax.device_count() == 8
        images = np.random.default_rng(0).uniform(0, 255, (16, 12, 14, 3)).astype(np.float32)
        augmentation = Augmentation("both", 0.1, 0.2, 0.1, 10, 0.2, 0.1, "constant", 9, mixup=0.4, cutmix=1)

        key, targets = jax.random.key(3), np.eye(16, dtype=np.float32)
        for kind in (AxisType.Explicit, AxisType.Auto):  # explicit axes are checked while tracing
            rows = NamedSharding(jax.make_mesh((8,), ("batch",), axis_types=(kind,)), PartitionSpec("batch"))
            change = jax.jit(augmentation, in_shardings=(None, rows), out_shardings=rows).lower(key, images)
            mix = jax.jit(augmentation.mix, in_shardings=(None, rows, rows), out_shardings=rows)
            mix = mix.lower(key, change.out_info, targets)
        change = change.compile()
        for word in ("all-gather", "all-to-all", "all-reduce", "collective-permute"):
            assert word not in change.as_text(), "each device needs its own images only"
        out = change(key, jax.device_put(images, rows))
        assert len({shard.device for shard in out.addressable_shards}) == 8
        mixed, targets = mix.compile()(key, out, jax.device_put(targets, rows))
        np.savez("eight.npz", out=out, mixed=mixed, targets=targets)
    """
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # compiles in half the time
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
    }
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True, env=environment, cwd=tmp_path)
    images = np.random.default_rng(0).uniform(0, 255, (16, 12, 14, 3)).astype(np.float32)
    augmentation = Augmentation("both", 0.1, 0.2, 0.1, 10, 0.2, 0.1, "constant", 9, mixup=0.4, cutmix=1)
    out = augmentation(jax.random.key(3), images)
    mixed, targets = augmentation.mix(jax.random.key(3), out, jnp.eye(16))
    eight = np.load(tmp_path / "eight.npz")
    np.testing.assert_allclose(eight["out"], out, atol=0.02)
    np.testing.assert_allclose(eight["mixed"], mixed, atol=0.02)
    np.testing.assert_allclose(eight["targets"], targets, atol=1e-5)
    assert np.abs(mixed - out).max() > 10
