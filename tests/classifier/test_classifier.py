"""Predicting and evaluating."""

import numpy as np
import optax
import pytest
from PIL import Image
from scipy.special import expit, softmax

from cnnjax import Freeze, Trainer
from cnnjax.classifier import ImageClassifier
from cnnjax.data import Folder, ImageError, InMemory, open_splits


def test_published_weights_name_what_is_on_photographs(shared_data):
    files = sorted((shared_data / "imagenet_samples").glob("*.jpg"))[::6]
    classifier = ImageClassifier(
        "mobilenet",
        [f"{k:03}" for k in range(1000)],
        weights=shared_data / "weights/mobilenet_7_5_224_tf.h5",
        alpha=0.75,
        image_size=160,
        head="top",
        resizing="center_crop",
    )
    found = classifier.predict(files)
    assert [p.path for p in found] == [str(file) for file in files] and len(found) > 20
    labels = [file.name[:3] for file in files]
    assert np.mean([p.class_name == label for p, label in zip(found, labels, strict=True)]) > 0.6
    assert all(p.probability == max(p.probabilities.values()) == p.top(1)[0][1] for p in found)
    assert all(abs(sum(p.probabilities.values()) - 1) < 1e-9 for p in found)


@pytest.mark.parametrize("resizing", ["bilinear", "center_crop"])
def test_files_are_decoded_and_resized_as_for_training(resizing, shared_data, small):
    options = {"image_size": 32, "head": "linear", "widths": (4, 8), "resizing": resizing}
    classifier = ImageClassifier("lecture_cnn", ("cats", "dogs", "rest"), **options).with_leaves(small.leaves)
    source = Folder(shared_data / "cats_and_dogs_small", "test", (32, 32), resizing=resizing).take([0, 5, 300, 301])
    found = classifier.predict([source.path(i) for i in range(4)])
    expected = softmax(np.asarray(classifier.model(source.read(range(4)))), 1)  # layer by layer
    np.testing.assert_allclose([list(p.probabilities.values()) for p in found], expected, atol=1e-5)
    assert [p.probability for p in classifier.predict(source)] == [p.probability for p in found]
    in_memory = classifier.predict(source.read(range(4)))
    np.testing.assert_allclose([p.probability for p in in_memory], [p.probability for p in found], atol=1e-6)


def test_probabilities_of_more_classes_are_a_softmax(small):
    images = np.random.default_rng(1).integers(0, 256, (5, 32, 32, 3), np.uint8)
    logits = small.predict_logits(images)
    assert logits.shape == (5, 3) and logits.dtype == np.float32
    found = small.predict(images)
    np.testing.assert_allclose([list(p.probabilities.values()) for p in found], softmax(logits, 1), rtol=1e-5)
    assert [p.class_name for p in found] == ["abc"[k] for k in logits.argmax(1)]
    assert [p.path for p in found] == ["0", "1", "2", "3", "4"]
    larger = images.repeat(2, 1).repeat(2, 2)  # resized back by taking every other pixel's middle: the same
    np.testing.assert_allclose(small.predict_logits(larger), logits, rtol=1e-5)


def test_batches_have_one_shape_and_change_nothing(small, photographs):
    options = {"image_size": 32, "head": "linear", "widths": (4, 8)}
    fresh = ImageClassifier("lecture_cnn", small.class_names, **options).with_leaves(small.leaves)
    sevens = fresh.predict_logits(photographs[:7], batch_size=3)  # 3, 3 and 1
    assert fresh._apply._cache_size() == 1
    np.testing.assert_allclose(sevens, fresh.predict_logits(photographs, batch_size=3)[:7], rtol=1e-5)
    one = fresh.with_leaves({}).predict_logits(photographs[:2], batch_size=3)  # a batch of two, also for other leaves
    np.testing.assert_allclose(one, sevens[:2], rtol=1e-4)
    assert fresh._apply._cache_size() == 2
    np.testing.assert_allclose(fresh.predict_logits(photographs)[:7], sevens, rtol=1e-4)


def test_one_logit_is_a_sigmoid(stripes):
    images = np.random.default_rng(1).integers(0, 256, (5, 32, 32, 3), np.uint8)
    logits, found = stripes.predict_logits(images)[:, 0], stripes.predict(images)
    np.testing.assert_allclose([p.probabilities["down"] for p in found], expit(logits), rtol=1e-5)
    np.testing.assert_allclose([p.probabilities["across"] for p in found], expit(-logits), rtol=1e-5)
    assert [p.class_name for p in found] == [("across", "down")[int(logit > 0)] for logit in logits]


@pytest.fixture
def folder(tmp_path, photographs):
    for name in ("b/2.JPG", "b/1.png", "a.jpeg", ".hidden.jpg", ".cache/x.jpg", "c.webp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        with Image.open(photographs[0]) as image:
            image.save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    return tmp_path


def test_folders_are_searched_and_sorted(folder, small, photographs):
    expected = [str(folder / name) for name in ("a.jpeg", "b/1.png", "b/2.JPG", "c.webp")]
    assert [p.path for p in small.predict(folder)] == expected
    assert [p.path for p in small.predict([photographs[1], folder / "b"])] == [photographs[1], *expected[1:3]]
    with pytest.raises(FileNotFoundError, match=r"no image 'z\.jpg' in "):
        small.predict(folder / "z.jpg")
    with pytest.raises(ValueError, match=r"no images \(.bmp, .*\) in "):
        small.predict((folder / "empty").mkdir() or folder / "empty")
    with pytest.raises(ValueError, match="no images given"):
        small.predict([])


def test_bad_images_are_refused_together_or_reported_in_their_place(folder, small):
    good = small.predict(folder)
    whole = (folder / "b/2.JPG").read_bytes()
    (folder / "b/2.JPG").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ImageError, match="1 image cannot be decoded"):
        small.predict(folder, batch_size=1)
    (folder / "a.jpeg").write_bytes(b"")
    with pytest.raises(ImageError) as refused:
        small.predict(folder, batch_size=1)
    listed = str(refused.value).splitlines()
    assert listed[0].startswith("2 images cannot be decoded") and len(listed) == 3
    assert listed[1].endswith("a.jpeg: the file is empty") and "2.JPG: damaged" in listed[2]
    found = small.predict(folder, on_error="skip", batch_size=1)
    assert [p.error is None for p in found] == [False, True, False, True]
    assert [found[1].path, found[3].path] == [good[1].path, good[3].path]
    np.testing.assert_allclose([found[1].probability, found[3].probability], [good[k].probability for k in (1, 3)])
    assert found[0].class_name is None and found[0].to_json() == {"path": good[0].path, "error": "the file is empty"}
    with pytest.raises(ValueError, match="on_error: expected 'refuse' or 'skip', found 'ignore'"):
        small.predict(folder, on_error="ignore")


def test_arrays_must_be_images(small):
    with pytest.raises(ValueError, match=r"expected shape \[N, H, W, 3\], found \[32, 32, 3\]"):
        small.predict(np.zeros((32, 32, 3), np.uint8))
    with pytest.raises(ValueError, match=r"expected values in 0..255, found -1.0"):
        small.predict(np.full((1, 32, 32, 3), -1.0))
    with pytest.raises(ValueError, match="there are no images"):
        small.predict(np.zeros((0, 32, 32, 3), np.uint8))
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        small.predict(np.zeros((1, 32, 32, 3), np.uint8), batch_size=0)


def test_trained_leaves_score_as_in_the_trainer(shapes_folder, stripes):
    splits, classifier = open_splits(shapes_folder, (32, 32)), stripes
    frozen = Freeze.none().resolve(classifier.model)
    trainer = Trainer(classifier.model, frozen, (32, 32), batch_size=11, optimizer=optax.adam(0.01))
    state, log = trainer.fit(trainer.init(), trainer.rows(splits["train"]), epochs=8)
    trained = classifier.with_leaves(trainer.leaves(state), history=log)
    expected, logits = trainer.predict(state, trainer.rows(splits["test"], train=False))
    found = trained.evaluate(splits["test"])
    assert found.accuracy == pytest.approx(expected["accuracy"]) and found.accuracy > 0.9
    assert found.loss == pytest.approx(expected["loss"], rel=1e-4)
    np.testing.assert_allclose(trained.predict_logits(splits["test"]), logits, atol=1e-4)
    assert trained.history == log and classifier.history == []
    assert classifier.evaluate(splits["test"]).loss > 2 * found.loss  # the first one stayed as it was
    trainer.fit(state, trainer.rows(splits["train"]), epochs=1)  # uses the state's arrays up
    np.testing.assert_allclose(trained.predict_logits(splits["test"]), logits, atol=1e-4)


def test_evaluation_goes_by_the_names_of_classes(small):
    images = np.random.default_rng(2).integers(0, 256, (12, 32, 32, 3), np.uint8)
    labels = np.arange(12) % 3
    right = np.mean(small.predict_logits(images).argmax(1) == labels)
    assert small.evaluate(InMemory(images, labels, ("a", "b", "c"))).accuracy == pytest.approx(right)
    turned = InMemory(images, np.array([1, 2, 0])[labels], ("c", "a", "b"))
    assert small.evaluate(turned).accuracy == pytest.approx(right)
    assert "accuracy" in small.evaluate(turned, samples=10).intervals
    with pytest.raises(ValueError, match="but it lacks b, c and it has x"):
        small.evaluate(InMemory(images, np.zeros(12, int), ("a", "x")))


def test_sources_must_give_what_the_classifier_takes(small, shapes_folder):
    with pytest.raises(ValueError, match=r"takes images of \(32, 32\), the source gives \(64, 64\)"):
        small.predict_logits(Folder(shapes_folder, "test", (64, 64)))
    with pytest.raises(ValueError, match="resized by 'bilinear', the source resizes by 'antialias'"):
        small.predict_logits(Folder(shapes_folder, "test", (32, 32), resizing="antialias"))
    ready = InMemory(np.zeros((1, 32, 32, 3), np.uint8), [0], ("a", "b", "c"), resizing="antialias")
    assert small.predict_logits(ready).shape == (1, 3)  # nothing is resized
    ready.resizing = "center_crop"
    with pytest.raises(ValueError, match="the source resizes by 'center_crop'"):
        small.predict_logits(ready)


def test_seeds_and_options_decide_the_numbers():
    def made(seed, **options):
        options = {"image_size": 32, "head": "linear", "widths": (4, 8)} | options
        return ImageClassifier("lecture_cnn", ("a", "b"), seed=seed, **options).leaves

    first, again, other = made(0), made(0), made(1)
    assert all(np.array_equal(first[path], again[path]) for path in first)
    kernels = [path for path in first if path.endswith("kernel")]
    assert len(kernels) == 3 and not any(np.array_equal(first[path], other[path]) for path in kernels)
    assert made(0, head="lecture")["head/dense/kernel"].shape == (6 * 6 * 8, 256)


def test_a_backbones_own_top_gives_logits():
    made = ImageClassifier("cifar_cnn", [str(k) for k in range(10)], head="top", pooling="max")
    assert sum(x.size for x in made.leaves.values()) == 179_306  # the lecture's number
    logits = made.predict_logits(np.full((2, 32, 32, 3), 90, np.uint8))
    assert logits.shape == (2, 10) and (logits < 0).any()


@pytest.mark.parametrize(
    "backbone, options, error, message",
    [
        ("mobilnet", {}, LookupError, "no backbone 'mobilnet'; did you mean 'mobilenet'"),
        ("mobilenet", {"head": "lectur"}, LookupError, "no head 'lectur'; did you mean 'lecture'"),
        ("mobilenet", {"preprocessing": "tg"}, LookupError, "no preprocessing 'tg'; did you mean 'tf'"),
        ("mobilenet", {"resizing": "crop"}, ValueError, "no resizing 'crop'; did you mean"),
        ("mobilenet", {"image_size": 0}, ValueError, "image_size: expected a whole number of pixels"),
        ("mobilenet", {"image_size": 16}, ValueError, "at least 32x32 pixels"),
        ("mobilenet", {"class_names": ("cats",)}, ValueError, "at least two classes, found .'cats'."),
        ("mobilenet", {"class_names": "cats"}, ValueError, "at least two classes, found .'cats'."),
        ("mobilenet", {"class_names": ("cats", "cats")}, ValueError, "'cats' given more than once"),
        ("mobilenet", {"seed": -1}, ValueError, "seed: expected a whole number from 0 on, found -1"),
        (
            "mobilenet",
            {"widths": (4,)},
            ValueError,
            "no option 'widths' .which is one of .*lecture_cnn.*; its options are alpha",
        ),
        ("mobilenet", {"dropout": 0.1}, ValueError, "dropout is of mobilenet's own classification layers"),
        ("mobilenet", {"alpha": "wide"}, ValueError, "alpha of mobilenet: expected a number from 0 to 4, found 'wide'"),
        (
            "vgg16",
            {"alpha": 0.5},
            ValueError,
            "vgg16 has no option 'alpha' .which is one of .*mobilenet.*; its options are widths",
        ),
        ("mobilenet", {"weights": "none.h5"}, ValueError, "none.h5: there is no such file"),
    ],
)
def test_wrong_requests_are_told_in_a_sentence(backbone, options, error, message):
    with pytest.raises(error, match=message):
        ImageClassifier(backbone, **{"class_names": ("cats", "dogs"), "image_size": 96, **options})


def test_leaves_that_do_not_fit_are_listed_together(small):
    wrong = {"head/dense/bias": np.zeros(2), "head/dense/kernel": np.zeros((8, 3), int), "head/x": np.zeros(1)}
    with pytest.raises(ValueError, match="leaves that do not fit the classifier") as refused:
        small.with_leaves(wrong)
    listed = str(refused.value)
    assert "head/x: no such leaf" in listed and "head/dense/kernel: expected float32[8, 3], found int32[8, 3]" in listed
    assert "head/dense/bias: expected float32[3], found float32[2]" in listed
