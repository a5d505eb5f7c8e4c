"""Which layers each method trains, in which order, at which rate: against Keras's `layer.trainable`."""

import itertools

import keras
import pytest
from flax import nnx

from cnnjax.fit import Recipe, phases
from cnnjax.functional import leaves_of
from cnnjax.models import Classifier, lecture_cnn, linear_head, mobilenet, vgg16


def abstract(make, **options):
    def build():
        rngs = nnx.Rngs(0)
        backbone = make(include_top=False, rngs=rngs, **options)
        return Classifier(backbone, linear_head(backbone.output_shape(), 2, rngs=rngs), "tf")

    return nnx.eval_shape(build)


@pytest.fixture(scope="module")
def vgg():
    return abstract(vgg16, input_shape=(64, 64, 3))


@pytest.fixture(scope="module")
def mobile():
    return abstract(mobilenet, alpha=0.25, input_shape=(64, 64, 3))


def trained(phase, model):
    """Layers of the backbone with a parameter that trains."""
    live, _ = phase.frozen.partition(leaves_of(model, nnx.Param))
    return {path.split("/")[1] for path in live if path.startswith("backbone/")}


@pytest.mark.parametrize("options", [{"unfreeze_from": "block5_conv1"}, {"freeze": "[:-4]"}])
def test_the_lectures_fine_tuning_leaves_block5_free(vgg, options):
    base = keras.applications.VGG16(weights=None, include_top=False, input_shape=(64, 64, 3))
    for layer in base.layers[:-4]:
        layer.trainable = False
    theirs = {weight.path.split("/")[-2] for weight in base.trainable_weights}
    head, tune = phases(Recipe("finetune", **options), vgg)
    assert trained(head, vgg) == set()
    assert trained(tune, vgg) == theirs == {"block5_conv1", "block5_conv2", "block5_conv3"}
    assert (head.learning_rate, tune.learning_rate) == (1e-3, pytest.approx(1e-4))
    assert (head.epochs, tune.epochs, tune.keeps_optimizer) == (30, 10, False)


@pytest.mark.parametrize("method", ["features", "views", "augment"])
def test_the_feature_methods_train_the_head_alone(mobile, method):
    (head,) = phases(Recipe(method), mobile)
    assert trained(head, mobile) == set()
    live, _ = head.frozen.partition(leaves_of(mobile))
    assert live and all(path.startswith("head/") for path in live)


def test_probing_then_tuning_and_from_scratch_train_everything(mobile):
    everything = {path.split("/")[1] for path in leaves_of(mobile, nnx.Param) if path.startswith("backbone/")}
    _, tune = phases(Recipe("lp-ft"), mobile)
    (only,) = phases(Recipe("scratch"), mobile)
    assert trained(tune, mobile) == trained(only, mobile) == everything
    assert only.learning_rate == 1e-3


def test_gradual_unfreezing_goes_deeper_and_keeps_its_optimizer(mobile):
    head, *stages = phases(Recipe("gradual"), mobile)
    layers = [trained(phase, mobile) for phase in (head, *stages)]
    assert all(before < after for before, after in itertools.pairwise(layers))
    assert "conv1" in layers[-1] and [stage.keeps_optimizer for stage in stages] == [True] * 3
    _, first, second = phases(Recipe("gradual", stages=("conv_pw_12_relu", "21")), mobile)
    assert trained(first, mobile) == {"conv_dw_13", "conv_dw_13_bn", "conv_pw_13", "conv_pw_13_bn"}
    assert trained(first, mobile) < trained(second, mobile)


def test_views_and_augment_imply_the_lectures_augmentation():
    assert Recipe("views").views == 4 and Recipe("views", views=2).views == 2
    assert Recipe("views").augmentation == Recipe("augment").augmentation != Recipe().augmentation


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "finetun"}, "no method 'finetun'; did you mean 'finetune'"),
        ({"method": "finetune"}, "needs one of unfreeze_from .* found neither"),
        ({"method": "finetune", "freeze": "3", "unfreeze_from": "conv1"}, "found both"),
        ({"method": "features", "unfreeze_from": "conv1"}, "of the method finetune; this is 'features'"),
        ({"method": "augment", "views": 3}, "stored views are the method 'views'"),
        ({"views": 3}, "an augmentation to draw them with, found 3"),
        ({"stages": ("3",)}, "of the method gradual"),
        ({"learning_rate": 0.0}, "must be positive, not 0.0; freeze what is not to move"),
        ({"tuning_factor": 0.0}, "tuning_factor: expected above 0 and at most 1, found 0.0"),
        ({"layer_factor": 2.6}, "layer_factor: expected above 0 and at most 1, found 2.6"),
        ({"warmup": 5.0}, "warmup: expected a part of the steps"),
        ({"label_smoothing": 1.0}, "label_smoothing: expected 0 or more and less than 1"),
        ({"patience": 0}, "patience must be at least 1 epoch"),
        ({"epochs": 0}, "epochs must be at least 1, not 0"),
        ({"tune_epochs": 2.5}, "tune_epochs: expected a whole number, found 2.5"),
        ({"schedule": "cosin"}, "no schedule 'cosin'; did you mean 'cosine'"),
        ({"keep": "bst"}, "no keep 'bst'; did you mean 'best'"),
        ({"last_batch": "dorp"}, "no last_batch 'dorp'; did you mean 'drop'"),
        ({"batchnorm": "frosen"}, "no batchnorm 'frosen'; did you mean 'frozen'"),
        ({"augment": "lectur"}, "no augment 'lectur'; did you mean 'lecture'"),
        ({"ema": 1.0}, "ema: expected a decay above 0 and below 1"),
        ({"clip": -1.0}, "clip: expected a positive norm"),
        ({"accumulate": 0}, "accumulate: expected a whole number"),
        ({"method": "finetune", "freeze": "[:x]"}, "no slice"),
    ],
)
def test_wrong_recipes_say_what_to_do(options, message):
    with pytest.raises(ValueError, match=message):
        Recipe(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"method": "finetune", "unfreeze_from": "block6_conv1"},
            "no layer 'block6_conv1'.*did you mean 'block5_conv1'",
        ),
        ({"method": "finetune", "freeze": "all"}, "all leaves nothing of the backbone to tune"),
        ({"method": "finetune", "unfreeze_from": "block5_pool"}, "leaves nothing of the backbone to tune"),
        ({"method": "gradual", "stages": ("[:-1]", "none")}, r"stage 1 of 2 .* unfreezes nothing more"),
        ({"method": "gradual", "stages": ("5", "9")}, r"stage 2 of 2 \(9\) unfreezes nothing more"),
        ({"method": "gradual", "stages": ("all",)}, r"stage 1 of 1 \(all\) unfreezes nothing more"),
        ({"method": "finetune", "freeze": "99"}, "cannot freeze 99 layers"),
    ],
)
def test_recipes_that_do_not_fit_the_model(vgg, options, message):
    with pytest.raises(ValueError, match=message):
        phases(Recipe(**options), vgg)


def test_frozen_statistics_leave_scale_and_bias_free(mobile):
    _, tune = phases(Recipe("lp-ft", batchnorm="frozen"), mobile)
    live, fixed = tune.frozen.partition(leaves_of(mobile))
    assert "backbone/conv1_bn/scale" in live and "backbone/conv1_bn/mean" in fixed


def test_any_model_with_a_backbone():
    model = abstract(lecture_cnn, input_shape=(48, 48, 3), widths=(4, 8))
    _, tune = phases(Recipe("finetune", unfreeze_from="conv2d_2"), model)
    assert trained(tune, model) == {"conv2d_2"}
    single = abstract(lecture_cnn, input_shape=(48, 48, 3), widths=(4,))
    _, stage = phases(Recipe("gradual"), single)
    assert trained(stage, single) == {"conv2d_1"}


def test_a_model_without_a_head_of_its_own_trains_from_scratch_only():
    model = nnx.eval_shape(lambda: Classifier(lecture_cnn((48, 48, 3), (4,), rngs=nnx.Rngs(0)), None, "unit"))
    with pytest.raises(ValueError, match="features trains the head first, and the model has no layer outside its back"):
        phases(Recipe("features"), model)
    assert len(phases(Recipe("scratch"), model)) == 1
